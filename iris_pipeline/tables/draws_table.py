"""Rows over the draws of their references: what many draws of one strategy say together, for people to read first.

Dice is 0..1. Means are those of every table: over the classes of each class's mean over its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from iris_pipeline.tables.comparisons import by_draw, distinct, drawn_strategy
from iris_pipeline.tables.result_tables import (
    PAPER_RULE,
    ROW_KEY,
    RULE,
    class_means,
    count_notes,
    mean_of_all,
    paper_lines,
    row_groups,
    score_text,
    shown,
)
from iris_pipeline.tables.table_format import Table

Key = tuple[str, str, str]
OVER_DRAWS_RULE = (
    "k: the number of references. Over several draws of them: the mean, ± the standard deviation over draws, whose "
    "number stands beside it; draws that gave the same masks count once."
)


def class_draws_table(rows: pd.DataFrame, dataset: str, paper_column: str | None = None) -> Table | None:
    """Rows: run, split, strategy with k, over its draws, then the baseline and the paper's figures; columns: classes,
    their mean. None where no strategy was drawn twice: `dataset_table` says it all.
    """
    chosen = rows[rows["dataset"] == dataset]
    classes = list(dict.fromkeys(chosen["class"]))
    groups = _by_strategy(chosen)
    lines = []
    for key, group in groups.items():
        means = _over_draws(group, class_means).reindex(columns=classes)
        cells = {name: _spread_text(means[name]) for name in classes}
        lines.append(_line(key, [len(means)]) | cells | {"mean": _spread_text(means.mean(axis=1))})
    if not _any_spread(lines):
        return None
    theirs = paper_lines(dataset, paper_column) if paper_column is not None else []
    frame = pd.DataFrame([*lines, *theirs], columns=[*ROW_KEY, "draws", *classes, "mean"]).fillna("")
    notes = (RULE, OVER_DRAWS_RULE, *((PAPER_RULE,) if theirs else ()), *count_notes(groups.items()))
    return Table(f"{dataset}_draws", f"{dataset}, over draws", frame, notes)


def dataset_draws_table(rows: pd.DataFrame) -> Table | None:
    """Rows: run, split, strategy with k, over its draws; columns: the datasets' means, and their mean where a row has
    them all. None where no strategy was drawn twice.
    """
    datasets = sorted(set(rows["dataset"]))
    groups = _by_strategy(rows)
    lines = []
    for key, group in groups.items():
        found = {
            name: _over_draws(part, lambda one: pd.Series({"mean": class_means(one).mean()}))["mean"]
            for name, part in group.groupby("dataset")
        }
        means = {str(name): values.mean() for name, values in found.items()}
        cells = {str(name): _spread_text(values) for name, values in found.items()}
        mean = score_text(mean_of_all(means, len(datasets)))
        lines.append(_line(key, [len(values) for values in found.values()]) | cells | {"mean": mean})
    if not _any_spread(lines):
        return None
    frame = pd.DataFrame(lines, columns=[*ROW_KEY, "draws", *datasets, "mean"]).fillna("")
    notes = (
        RULE,
        OVER_DRAWS_RULE,
        "The last column is the mean over the datasets, without ±, empty where a row lacks one.",
        *count_notes(groups.items()),
    )
    return Table("overview_draws", "All datasets, Dice", frame, notes)


def _by_strategy(rows: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """(run, split, strategy with its number of references) -> the rows of all draws, in the order of the tables."""
    found: dict[Key, list[pd.DataFrame]] = {}
    for (run, split, strategy), group in row_groups(rows):
        found.setdefault(shown((run, split, drawn_strategy(strategy, group))), []).append(group)
    return {key: pd.concat(parts) for key, parts in found.items()}


def _over_draws(rows: pd.DataFrame, scores: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
    """A row a draw, without those that gave the same masks; columns as `scores` names them."""
    return pd.DataFrame([scores(one) for one in distinct(by_draw(rows)).values()])


def _line(key: Key, counts: Sequence[int]) -> dict[str, str]:
    """The key and the number of draws: "3", "2 to 3" where datasets differ, "" where none was drawn twice."""
    low, high = min(counts), max(counts)
    draws = "" if high < 2 else f"{high}" if low == high else f"{low} to {high}"
    return dict(zip(ROW_KEY, key, strict=True)) | {"draws": draws}


def _any_spread(lines: list[dict[str, str]]) -> bool:
    return any(line["draws"] for line in lines)


def _spread_text(draws: pd.Series) -> str:
    """ "0.791 ± 0.012" over draws, "0.791" of one, "" where nothing was scored."""
    known = draws.dropna()
    if len(known) < 2:
        return score_text(known.mean())
    return f"{known.mean():.3f} ± {known.std(ddof=1):.3f}"
