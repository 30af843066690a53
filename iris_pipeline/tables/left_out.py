"""Leaving one training dataset out: how well a model does on it unseen, and what it gives to the others.

Dice is 0..1. Means are those of every table, over classes and then over datasets; differences are tested subject by
subject.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from iris_pipeline.tables.ablations import DATASETS, only_difference, runs_of
from iris_pipeline.tables.comparisons import difference_cells
from iris_pipeline.tables.result_tables import (
    RULE,
    class_means,
    count_notes,
    row_groups,
    score_text,
)
from iris_pipeline.tables.run_facts import RunFacts
from iris_pipeline.tables.table_format import Table, file_name
from iris_pipeline.tables.uncertainty import CI, paired_test

ITSELF, OTHERS, NEITHER = "the dataset itself", "other training datasets", "datasets unseen by both"
ADDS = "what it adds to those"
COLUMNS = [
    *("left out", "run", "split", "strategy"),
    *(f"{scope}: {how}" for scope in (ITSELF, OTHERS, NEITHER) for how in ("whole", "without")),
    *(ADDS, CI, "p"),
]


def left_out_tables(rows: pd.DataFrame, facts: Mapping[str, RunFacts]) -> list[Table]:
    """A table for every run beside which stand others that lack one of its datasets and differ in nothing else."""
    runs = runs_of(rows, facts)
    found = {hub.name: {other.name: name for other in runs if (name := _lacks(other, hub))} for hub in runs}
    return [_left_out(facts[hub], lacking, rows) for hub, lacking in found.items() if lacking]


def _lacks(run: RunFacts, hub: RunFacts) -> str | None:
    """The one dataset of the hub's that the run was not trained on; None where they differ in more than that."""
    missing = set(hub.datasets) - set(run.datasets)
    extra = set(run.datasets) - set(hub.datasets)
    if extra or len(missing) != 1 or only_difference(hub, run) != DATASETS:
        return None
    return missing.pop()


def _left_out(hub: RunFacts, lacking: Mapping[str, str], rows: pd.DataFrame) -> Table:
    lines = []
    chosen = rows[rows["run"].isin([hub.name, *lacking])]
    for (split, strategy), part in chosen.groupby(["split", "strategy"]):
        whole = part[part["run"] == hub.name]
        for run, name in sorted(lacking.items(), key=lambda item: item[1]):
            without = part[part["run"] == run]
            both = set(whole["dataset"]) & set(without["dataset"])
            if not both:
                continue
            scopes = {ITSELF: both & {name}, OTHERS: both & set(hub.datasets) - {name}}
            scopes[NEITHER] = both - set(hub.datasets)
            line = {"left out": name, "run": run, "split": split, "strategy": strategy}
            for scope, names in scopes.items():
                line[f"{scope}: whole"] = _mean(whole, names)
                line[f"{scope}: without"] = _mean(without, names)
            lines.append(line | _added(whole, without, scopes[NEITHER]))
    note = (
        f"Each run was trained as {hub.name} was, on all of its datasets but one. {ADDS}: with it minus without it, "
        f"the mean over subjects of each one's mean Dice, with its {CI} by bootstrap over subjects; p: Wilcoxon "
        "signed-rank test over subjects, two-sided, not corrected for the number of lines."
    )
    frame = pd.DataFrame(lines, columns=COLUMNS)
    notes = (note, RULE, *count_notes(row_groups(chosen)))
    return Table(
        file_name("left_out", hub.name), f"Leaving out one dataset of {hub.name}, Dice", frame, notes
    )


def _mean(rows: pd.DataFrame, datasets: Collection[str]) -> str:
    """The mean over the datasets of their means; "" of none."""
    means = [class_means(rows[rows["dataset"] == name]).mean() for name in datasets]
    return score_text(sum(means) / len(means)) if means else ""


def _added(whole: pd.DataFrame, without: pd.DataFrame, datasets: Collection[str]) -> dict[str, str]:
    """The paired test over the datasets' subjects; nothing where there are none."""
    if not datasets:
        return dict.fromkeys((ADDS, CI, "p"), "")
    test = paired_test(whole[whole["dataset"].isin(list(datasets))], without)
    return difference_cells(test, ADDS)
