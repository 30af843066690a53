"""Table 1 and Table 2 in our own columns: datasets a model was trained on, and datasets it never saw.

Dice in %. The paper's tables in the paper's columns are made elsewhere; here its figures stand, in rows marked as the
paper's, only in columns whose specification names the paper's column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from iris_pipeline import paper
from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.tables.comparisons import by_draw, distinct, drawn_strategy
from iris_pipeline.tables.result_tables import (
    CI_OF_DATASETS_RULE,
    CI_RULE,
    PAPER_METHODS,
    PAPER_RULE,
    PAPER_RUN,
    ROW_KEY,
    RULE,
    class_means,
    count_notes,
    interval_text,
    percent_text,
    row_groups,
    shown,
)
from iris_pipeline.tables.run_facts import RunFacts
from iris_pipeline.tables.table_format import Table
from iris_pipeline.tables.uncertainty import CI, bootstrap_mean_of_datasets, subject_of
from preprocessing.spec import DatasetSpec

IN_DISTRIBUTION, HELD_OUT = 1, 2
DRAWS = "draws"
SPREAD_RULE = (
    "k: the number of references (one-shot: 1). Where there were several draws of them: the mean, ± the standard "
    "deviation over draws (of a mean over datasets: over the draws that all of them have); draws that gave the "
    "same masks count once."
)
Key = tuple[str, str, str]
TITLES = {
    IN_DISTRIBUTION: "Table 1: in-distribution, Dice in %",
    HELD_OUT: "Table 2: held-out, Dice in %",
}


def role_table(
    number: int, rows: pd.DataFrame, facts: Mapping[str, RunFacts], specs: Mapping[str, DatasetSpec]
) -> Table | None:
    """Rows: run, split, strategy with k, over its draws; columns: the datasets of this role; None without any.

    Then the baseline's row and the paper's.

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
    lines, counted = [], []
    for key, found in _over_strategies(parts, datasets).items():
        draws = {name: by_draw(part) for name, part in found.items()}
        means = {name: _means(distinct(each)) for name, each in draws.items()}
        whole = len(found) == len(datasets) and not any(each.empty for each in means.values())
        interval = bootstrap_mean_of_datasets(list(found.values())) if whole else None
        lines.append(
            dict(zip(ROW_KEY, shown(key), strict=True))
            | {DRAWS: _how_many(found, means)}
            | {headings[name]: _spread_text(each.mean(), each) for name, each in means.items()}
            | {"mean": _mean_text(list(means.values()), list(draws.values())) if whole else ""}
            | {CI: interval_text(interval, 100, 2) if interval else ""}
        )
        counted.append((key, pd.concat(found.values())))
    notes = [RULE, SPREAD_RULE, CI_RULE, CI_OF_DATASETS_RULE, _sizes(rows, datasets), *count_notes(counted)]
    theirs = _paper_rows(
        number, {headings[name]: paper.whole_column(specs[name]) for name in datasets if name in specs}
    )
    if theirs:
        notes.append(PAPER_RULE)
    frame = pd.DataFrame([*lines, *theirs], columns=[*ROW_KEY, DRAWS, *headings.values(), "mean", CI]).fillna(
        ""
    )
    return Table(f"table{number}", TITLES[number], frame, tuple(notes))


def _over_strategies(
    parts: Mapping[Key, Mapping[str, pd.DataFrame]], datasets: Sequence[str]
) -> dict[Key, dict[str, pd.DataFrame]]:
    """(run, split, strategy with its number of references) -> dataset -> the rows of all draws."""
    found: dict[Key, dict[str, list[pd.DataFrame]]] = {}
    for (run, split, strategy), of_dataset in parts.items():
        for name in datasets:
            if name in of_dataset:
                rows = of_dataset[name]
                base = drawn_strategy(strategy, rows)
                found.setdefault((run, split, base), {}).setdefault(name, []).append(rows)
    return {key: {name: pd.concat(each) for name, each in of.items()} for key, of in found.items()}


def _means(draws: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Draw -> mean Dice in %, of one dataset; draws without a scored case are left out."""
    means = {draw: 100 * class_means(part).mean() for draw, part in draws.items()}
    return pd.Series(means, dtype=float).dropna()


def _mean_text(cells: Sequence[pd.Series], draws: Sequence[Mapping[str, pd.DataFrame]]) -> str:
    """The mean over datasets of what stands in their cells, ± over the draws that all of them have.

    Draws that are equal in one dataset differ in another: here each counts.
    """
    by_dataset = pd.concat([_means(each) for each in draws], axis=1)
    return _spread_text(sum(each.mean() for each in cells) / len(cells), by_dataset.dropna().mean(axis=1))


def _spread_text(mean: float, draws: pd.Series) -> str:
    """ "79.53 ± 0.31" over draws, "79.53" of one; "" where nothing was scored."""
    return percent_text(mean) + (f" ± {draws.std(ddof=1):.2f}" if len(draws) > 1 else "")


def _how_many(found: Mapping[str, pd.DataFrame], means: Mapping[str, pd.Series]) -> str:
    """ "3", or "1 to 3" where datasets differ; "" where no row says which draw it is."""
    if not any(rows["draw"].notna().any() for rows in found.values()):
        return ""
    counts = [len(means[name]) for name in found]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def novelty(spec: DatasetSpec, trained: Collection[DatasetSpec]) -> str:
    """What is new about a dataset for a model trained on others: its classes, its modality, or its domain alone."""
    known: dict[str, set[str]] = {}
    for each in trained:
        for name in each.classes:
            known.setdefault(name.casefold(), set()).add(each.modality)
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
    parts: Mapping[Key, Mapping[str, pd.DataFrame]],
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
