"""Rows of all runs -> result tables, as CSV and Markdown, each with what was left out and the command.

Dice is 0..1 in the dataset tables and in % where rows of ours stand beside the paper's. A mean is the mean
over the classes of each class's mean over the cases. The paper's rows are marked and never averaged with
ours.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from iris_pipeline import paper
from iris_pipeline.measures.rows import (
    BASELINE_RUN,
    BASELINE_STRATEGY,
    COLUMNS,
    FIRST_COLUMNS,
    NAMES,
    Row,
    rows_text,
)
from iris_pipeline.provenance import without_machine
from iris_pipeline.tables.table_format import Table
from iris_pipeline.tables.uncertainty import CI, LEAST_SUBJECTS, RESAMPLES, Interval, bootstrap_mean
from preprocessing.errors import EvaluationError

EVALUATION = "evaluation"
ROW_KEY = ["run", "split", "strategy"]
PAPER_RUN = "paper"
PAPER_METHODS = ("Iris", "nnUNet")
BASELINE_TITLE = "everything is foreground"
STRATEGY_ORDER = (
    "one-shot",
    "ensemble",
    "image-retrieval",
    "object-retrieval",
    "tuning",
    "refining",
    "best",
    "bank",
)
RULE = (
    "Dice is left out of the means where truth and mask both lack the class, and 0 where only one of them "
    "has it. The mean is over the classes of each class's mean over its cases."
)
CI_RULE = (
    f"{CI} of the mean: {RESAMPLES} bootstrap resamples of the subjects (seed 0, percentiles), all cases of a "
    f"subject together; empty below {LEAST_SUBJECTS} subjects."
)
CI_OF_DATASETS_RULE = (
    "Of a mean over datasets the subjects are resampled within each dataset (seeds 0, 1, ..., in the order of their "
    "names); a dataset of one subject adds nothing to the width. What another training or other references would "
    "change is not in it."
)
PAPER_RULE = (
    "Rows of the run 'paper' are the paper's own figures for its own scans, not made here; no mean mixes "
    "them with ours."
)


@dataclass(frozen=True)
class Counts:
    """How the case-class pairs behind one table row were treated (the empty-mask rule)."""

    pairs: int
    scored: int
    absent: int
    truth_only: int
    mask_only: int
    unknown: int
    failed: int

    def sentence(self) -> str:
        """All counts in words; the ones that did not happen are left out."""
        parts = [
            (self.absent, "in neither truth nor mask (left out)"),
            (self.truth_only, "in the truth only (0)"),
            (self.mask_only, "in the mask only (0)"),
            (self.unknown, "with a truth that does not tell (left out)"),
            (self.failed, "WITHOUT A USABLE PREDICTION (left out: this row is incomplete)"),
        ]
        told = "".join(f", {count} {what}" for count, what in parts if count)
        return f"{self.scored} of {self.pairs} case-class pairs scored{told}"


def read_rows(path: Path) -> pd.DataFrame:
    """One evaluation CSV of schema 2, or of schema 1 with the measures it lacks left empty (see rows.py).

    EvaluationError where it is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        frame = _parse("".join(line for line in lines if not line.startswith("#")))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} is no evaluation table ({error}): make it again with iris_evaluate."
        ) from None
    if tuple(frame.columns) not in (COLUMNS, FIRST_COLUMNS):
        raise EvaluationError(
            f"An evaluation table has the columns {', '.join(FIRST_COLUMNS)} and those of the measures; {path} "
            f"has {', '.join(frame.columns)}: make it again with iris_evaluate."
        )
    if tuple(frame.columns) == FIRST_COLUMNS:
        frame = frame.reindex(columns=list(COLUMNS)).astype(
            dict.fromkeys(COLUMNS[len(FIRST_COLUMNS) :], "float64")
        )
        frame["base"] = frame["strategy"]
    return frame


def frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows of an evaluation as the frame that `read_rows` would give."""
    return _parse(rows_text(rows))


def collect_rows(results: Path, runs: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of results/<run>/evaluation/*.csv of all runs, or of some. EvaluationError if a run has none.

    The baseline comes with every run and is kept once for each dataset, split, case and class.
    """
    paths = sorted(results.glob(f"*/{EVALUATION}/*.csv"))
    if not paths:
        raise EvaluationError(
            f"{results} holds no <run>/{EVALUATION}/*.csv to make tables from: run iris_evaluate first."
        )
    if runs is not None:
        known = sorted({path.parents[1].name for path in paths})
        absent = [run for run in runs if run not in known]
        if absent:
            raise EvaluationError(
                f"Under {results} these runs were evaluated: {', '.join(known)}; asked for {', '.join(absent)}: "
                "name others, or run iris_evaluate first."
            )
        paths = [path for path in paths if path.parents[1].name in runs]
    frame = pd.concat([read_rows(path) for path in paths], ignore_index=True)
    repeated = frame["run"].eq(BASELINE_RUN) & frame.duplicated(
        ["run", "dataset", "split", "strategy", "case", "class"]
    )
    return frame[~repeated].reset_index(drop=True)


def of_test_parts(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the test part of a split; not those of validation, nor of scans of which no split tells."""
    return rows[rows["split"].str.endswith("/test")]


def count_pairs(rows: pd.DataFrame) -> Counts:
    """The empty-mask rule's counts over rows of one table row."""
    truth, mask, scored = rows["truth_voxels"], rows["predicted_voxels"], rows["dice"].notna()
    return Counts(
        pairs=len(rows),
        scored=int(scored.sum()),
        absent=int((~scored & (truth == 0) & (mask == 0)).sum()),
        truth_only=int((scored & (truth > 0) & (mask == 0)).sum()),
        mask_only=int((scored & (truth == 0) & (mask > 0)).sum()),
        unknown=int((~scored & (truth == 0) & (mask > 0)).sum()),
        failed=int(mask.isna().sum()),
    )


def class_means(rows: pd.DataFrame) -> pd.Series:
    """Mean Dice of each class over the scored cases, in the rows' order; NaN where none is."""
    return rows.groupby("class", sort=False)["dice"].mean()


def dataset_table(rows: pd.DataFrame, dataset: str, paper_column: str | None = None) -> Table:
    """Rows: run, split, strategy, then the baseline and the paper's figures; columns: classes, their mean."""
    chosen = rows[rows["dataset"] == dataset]
    classes = list(dict.fromkeys(chosen["class"]))
    groups = row_groups(chosen)
    lines, notes = [], [RULE, CI_RULE, *count_notes(groups)]
    for key, group in groups:
        means = class_means(group)
        lines.append(
            dict(zip(ROW_KEY, shown(key), strict=True))
            | {"cases": str(group.loc[group["predicted_voxels"].notna(), "case"].nunique())}
            | {name: score_text(means.get(name)) for name in classes}
            | {"mean": score_text(means.mean()), CI: interval_text(bootstrap_mean(group))}
        )
    if paper_column is not None:
        lines += paper_lines(dataset, paper_column)
        notes.append(PAPER_RULE)
    frame = pd.DataFrame(lines, columns=[*ROW_KEY, "cases", *classes, "mean", CI]).fillna("")
    return Table(dataset, dataset, frame, tuple(notes))


def paper_lines(dataset: str, column: str) -> list[dict[str, str]]:
    """The paper's own figures for a column of its tables, a line a method that has one."""
    where = {"run": PAPER_RUN, "split": f"Table {_table_of(dataset, column)}, {column}"}
    figures = {method: paper.figure(method, column) for method in PAPER_METHODS}
    return [
        where | {"strategy": method, "mean": score_text(percent / 100)}
        for method, percent in figures.items()
        if percent is not None
    ]


def overview_table(rows: pd.DataFrame) -> Table:
    """Rows: run, split, strategy; columns: the datasets' means, and their mean where a row has them all."""
    datasets = sorted(set(rows["dataset"]))
    groups = row_groups(rows)
    lines, notes = [], [RULE, "The last column is the mean over the datasets, empty where a row lacks one."]
    notes += count_notes(groups)
    for key, group in groups:
        means = {name: class_means(part).mean() for name, part in group.groupby("dataset")}
        lines.append(
            dict(zip(ROW_KEY, shown(key), strict=True))
            | {name: score_text(means.get(name)) for name in datasets}
            | {"mean": score_text(mean_of_all(means, len(datasets)))}
        )
    frame = pd.DataFrame(lines, columns=[*ROW_KEY, *datasets, "mean"]).fillna("")
    return Table("overview", "All datasets, draw by draw, Dice", frame, tuple(notes))


def paper_table(rows: pd.DataFrame, number: int, columns: Mapping[str, str]) -> Table | None:
    """The paper's table 1 or 2 in its own form, Dice in %, with rows of ours above the paper's.

    columns: our dataset -> the paper's column. None where no dataset of ours is in this table. Ours get an
    average only if they fill every column.
    """
    published = paper.load_table(number)
    order = paper.columns_of(number)
    ours = {
        name: column
        for name, column in columns.items()
        if column in order and (rows["dataset"] == name).any()
    }
    for column in {column for column in ours.values() if list(ours.values()).count(column) > 1}:
        both = ", ".join(name for name in ours if ours[name] == column)
        raise EvaluationError(
            f"One dataset at most can fill the paper's column {column}; {both} do: keep paper_column in one "
            "of them."
        )
    if not ours:
        return None
    fills = ", ".join(f"{name} fills {column}" for name, column in ours.items())
    theirs = PAPER_RULE.replace("of the run 'paper'", "from 'paper'")
    lines, notes = [], [f"Dice in %. {RULE}", theirs, f"Of ours, {fills}."]
    groups = row_groups(rows[rows["dataset"].isin(list(ours)) & (rows["run"] != BASELINE_RUN)])
    notes += count_notes(groups)
    for key, group in groups:
        means = {ours[str(name)]: 100 * class_means(part).mean() for name, part in group.groupby("dataset")}
        of_model = strategy_place(key[2])[0] < len(STRATEGY_ORDER)
        lines.append(
            {"from": "ours", "method": row_name(key), "group": "in-context" if of_model else "another tool"}
            | {column: percent_text(means.get(column)) for column in order}
            | {"average": percent_text(mean_of_all(means, len(order)))}
        )
    for _, line in published.iterrows():
        cells = {
            name: percent_text(line[name]) for name in published.columns if name not in ("method", "group")
        }
        lines.append({"from": PAPER_RUN, "method": line["method"], "group": line["group"]} | cells)
    last = ["average"] if "average" in published.columns else []
    frame = pd.DataFrame(lines, columns=["from", "method", "group", *order, *last]).fillna("")
    return Table(f"paper_table{number}", paper.TITLES[number], frame, tuple(notes))


def read_run(folder: Path) -> dict[str, str]:
    """What run.json says about a training run, as label -> text; empty without such a file."""
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    settings = record.get("settings", {})
    minutes = record.get("seconds", float("nan")) / 60
    told = {
        "trained on": ", ".join(record.get("datasets", [])),
        "size": str(settings.get("size", "")),
        "split": str(settings.get("split", "")),
        "seed": str(settings.get("seed", "")),
        "iterations": str(record.get("iterations", "")),
        "minutes": "" if pd.isna(minutes) else f"{minutes:.1f}",
        "status": str(record.get("status", "")),
        "code": str(record.get("code", "")),
        "command": without_machine(str(record.get("command", ""))),
    }
    return {label: text for label, text in told.items() if text}


def runs_table(results: Path, runs: Sequence[str]) -> Table | None:
    """How the models behind the rows were trained; None where no run left a run.json."""
    lines = [{"run": run} | facts for run in runs if (facts := read_run(results / run))]
    if not lines:
        return None
    frame = pd.DataFrame(lines).fillna("")
    return Table("runs", "Runs", frame, ("Each model as its own run.json describes it.",))


def result_tables(rows: pd.DataFrame, columns: Mapping[str, str] | None = None) -> list[Table]:
    """Overview (from two datasets on), a table a dataset, the paper's forms where datasets fill columns."""
    columns = columns or {}
    datasets = sorted(set(rows["dataset"]))
    tables = [overview_table(rows)] if len(datasets) > 1 else []
    tables += [dataset_table(rows, name, columns.get(name)) for name in datasets]
    forms = [paper_table(rows, number, columns) for number in paper.DICE_TABLES]
    return tables + [form for form in forms if form is not None]


def _parse(text: str) -> pd.DataFrame:
    # Names stay text, whatever they look like: a case '007' or a class 'NA' is no number and no gap.
    names = [*NAMES, "base"]
    header = text.partition("\n")[0].split(",")
    return pd.read_csv(
        io.StringIO(text),
        dtype={name: "str" if name in names else "float64" for name in header},
        keep_default_na=False,
        na_values={name: [""] for name in header if name not in names},
    )


def row_groups(rows: pd.DataFrame) -> list[tuple[tuple[str, str, str], pd.DataFrame]]:
    """The rows of each run, split and strategy; strategies in STRATEGY_ORDER, the baseline last."""

    def place(key: tuple[str, str, str]) -> tuple[bool, str, str, int, str]:
        run, split, strategy = key
        return run == BASELINE_RUN, run, split, *strategy_place(strategy)

    groups = {(str(k[0]), str(k[1]), str(k[2])): group for k, group in rows.groupby(ROW_KEY, sort=False)}
    return [(key, groups[key]) for key in sorted(groups, key=place)]


def strategy_place(strategy: str) -> tuple[int, str]:
    """Sorts strategies in STRATEGY_ORDER ("tuning_k5_draw1" with "tuning"), the unknown ones last, by name."""
    known = [n for n, name in enumerate(STRATEGY_ORDER) if re.match(rf"{name}(?![a-z])", strategy)]
    return known[0] if known else len(STRATEGY_ORDER), strategy


def mean_of_all(means: Mapping[Any, float], count: int) -> float | None:
    """The mean of `count` numbers; None where one is missing or NaN, so that no mean hides a gap."""
    known = [value for value in means.values() if not pd.isna(value)]
    return sum(known) / count if len(known) == count else None


def count_notes(groups: Iterable[tuple[tuple[str, str, str], pd.DataFrame]]) -> list[str]:
    """The lines under a table about its rows, one for all rows of a run that it says the same of; no baseline."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for (run, split, strategy), rows in groups:
        if run != BASELINE_RUN:
            told.setdefault((run, split, count_pairs(rows).sentence()), []).append(strategy)
    return [
        f"{row_name((run, split, '; '.join(strategies)))}: {sentence}."
        for (run, split, sentence), strategies in told.items()
    ]


def shown(key: tuple[str, str, str]) -> tuple[str, str, str]:
    return (key[0], key[1], BASELINE_TITLE) if key[2] == BASELINE_STRATEGY else key


def row_name(key: tuple[str, str, str]) -> str:
    return " · ".join(part for part in (key[0], key[2], key[1]) if part)


def _table_of(dataset: str, column: str) -> int:
    number = paper.table_of(column)
    if number is None:
        known = ", ".join(name for table in paper.DICE_TABLES for name in paper.columns_of(table))
        raise EvaluationError(
            f"paper_column of dataset {dataset} must be one of {known}; it is '{column}': correct the "
            "specification."
        )
    return number


def score_text(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}"


def interval_text(interval: Interval, scale: float = 1.0, digits: int = 3) -> str:
    """ "[0.781, 0.829]"; "" where there is no interval."""
    if pd.isna(interval.low):
        return ""
    return f"[{scale * interval.low:.{digits}f}, {scale * interval.high:.{digits}f}]"


def percent_text(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.2f}"
