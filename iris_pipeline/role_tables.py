"""Table 1 and Table 2 in our own columns: datasets a model was trained on, and datasets it never saw.

Dice in %. The paper's tables in the paper's columns are made elsewhere; here its figures stand, in rows marked as the
paper's, only in columns whose specification names the paper's column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from iris_pipeline import paper
from iris_pipeline.rows import BASELINE_RUN
from iris_pipeline.run_facts import RunFacts
from iris_pipeline.table_format import Table
from iris_pipeline.tables import (
    CI_RULE,
    PAPER_METHODS,
    PAPER_RULE,
    PAPER_RUN,
    ROW_KEY,
    RULE,
    class_means,
    count_note,
    interval_text,
    mean_of_all,
    percent_text,
    row_groups,
    shown,
)
from iris_pipeline.uncertainty import CI, bootstrap_mean_of_datasets, subject_of
from preprocessing.spec import DatasetSpec

IN_DISTRIBUTION, HELD_OUT = 1, 2
TITLES = {
    IN_DISTRIBUTION: "Table 1: in-distribution, Dice in %",
    HELD_OUT: "Table 2: held-out, Dice in %",
}


def role_table(
    number: int, rows: pd.DataFrame, facts: Mapping[str, RunFacts], specs: Mapping[str, DatasetSpec]
) -> Table | None:
    """Rows: run, split, strategy, the baseline, the paper's; columns: the datasets of this role; None without any.

    A dataset is in-distribution for a run that was trained on it, held-out for one that was not. Where no run.json
    tells (another tool's row), and for the baseline, the specification's role decides.
    """
    parts = {
        key: {
            str(name): part
            for name, part in group.groupby("dataset")
            if _place(key[0], str(name), facts, specs) == number
        }
        for key, group in row_groups(rows)
    }
    datasets = sorted({name for key, found in parts.items() if key[0] != BASELINE_RUN for name in found})
    if not datasets:
        return None
    headings = {name: _heading(number, name, parts, facts, specs) for name in datasets}
    lines, notes = [], [RULE, CI_RULE, _sizes(rows, datasets)]
    for key, found in parts.items():
        found = {name: part for name, part in found.items() if name in datasets}
        if not found:
            continue
        means = {name: 100 * class_means(part).mean() for name, part in found.items()}
        mean = mean_of_all(means, len(datasets))
        interval = bootstrap_mean_of_datasets(list(found.values())) if mean is not None else None
        lines.append(
            dict(zip(ROW_KEY, shown(key), strict=True))
            | {headings[name]: percent_text(value) for name, value in means.items()}
            | {"mean": percent_text(mean), CI: interval_text(interval, 100, 2) if interval else ""}
        )
        notes += count_note(key, pd.concat(found.values()))
    theirs = _paper_rows(
        number, {headings[name]: paper.whole_column(specs[name]) for name in datasets if name in specs}
    )
    if theirs:
        notes.append(PAPER_RULE)
    frame = pd.DataFrame([*lines, *theirs], columns=[*ROW_KEY, *headings.values(), "mean", CI]).fillna("")
    return Table(f"table{number}", TITLES[number], frame, tuple(notes))


def novelty(spec: DatasetSpec, trained: Collection[DatasetSpec]) -> str:
    """What is new about a dataset for a model trained on others: its classes, its modality, or its domain alone."""
    known = {name.casefold(): set() for each in trained for name in each.classes}  # type: dict[str, set[str]]
    for each in trained:
        for name in each.classes:
            known[name.casefold()].add(each.modality)
    seen = [known[name.casefold()] for name in spec.classes if name.casefold() in known]
    if len(seen) < len(spec.classes):
        return "new classes" if not seen else "some new classes"
    return "new domain" if all(spec.modality in modalities for modalities in seen) else "new modality"


def _place(run: str, dataset: str, facts: Mapping[str, RunFacts], specs: Mapping[str, DatasetSpec]) -> int:
    if run in facts:
        return IN_DISTRIBUTION if dataset in facts[run].datasets else HELD_OUT
    held_out = dataset in specs and specs[dataset].role == "held-out"
    return HELD_OUT if held_out else IN_DISTRIBUTION


def _heading(
    number: int,
    dataset: str,
    parts: Mapping[tuple[str, str, str], Mapping[str, pd.DataFrame]],
    facts: Mapping[str, RunFacts],
    specs: Mapping[str, DatasetSpec],
) -> str:
    """The dataset's name; in Table 2 with what is new about it, where that is the same for all runs shown."""
    if number == IN_DISTRIBUTION or dataset not in specs:
        return dataset
    runs = {key[0] for key, found in parts.items() if dataset in found and key[0] in facts}
    kinds = {
        novelty(specs[dataset], [specs[name] for name in facts[run].datasets if name in specs])
        for run in runs
    }
    return f"{dataset} ({kinds.pop()})" if len(kinds) == 1 else dataset


def _sizes(rows: pd.DataFrame, datasets: list[str]) -> str:
    told = []
    for name in datasets:
        part = rows[rows["dataset"] == name]
        told.append(f"{name} {part['case'].nunique()} of {subject_of(part).nunique()}")
    return f"Cases of subjects: {', '.join(told)}."


def _paper_rows(number: int, columns: Mapping[str, str | None]) -> list[dict[str, str]]:
    """The paper's own figures for the columns that are its columns; its average of 12 datasets is none of ours."""
    lines = []
    for method in PAPER_METHODS:
        cells = {
            heading: percent_text(paper.figure(method, column))
            for heading, column in columns.items()
            if column is not None and column in paper.columns_of(number)
        }
        if any(cells.values()):
            lines.append({"run": PAPER_RUN, "split": f"Table {number}", "strategy": method} | cells)
    return lines
