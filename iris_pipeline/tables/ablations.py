"""Runs that differ in one setting only, under one another, and a run beside all that lack one of its parts.

Dice is 0..1. Means and their intervals are those of every table: over classes, then bootstrapped over subjects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pandas as pd

from iris_pipeline.tables.result_tables import (
    CI_OF_DATASETS_RULE,
    CI_RULE,
    RULE,
    class_means,
    count_notes,
    interval_text,
    row_groups,
    score_text,
)
from iris_pipeline.tables.run_facts import RunFacts
from iris_pipeline.tables.table_format import Table, file_name
from iris_pipeline.tables.uncertainty import CI, bootstrap_mean_of_datasets

DATASETS = "training datasets"
MADE_TASKS = "synthetic"
SWITCHES = {
    "network full_resolution_masking": {"false": "masks at the features' resolution"},
    "network foreground_token": {"false": "no foreground token"},
    "network context_tokens": {"0": "no context tokens"},
}
"""What a value of a setting is called where it takes something away"""


def ablation_tables(rows: pd.DataFrame, facts: Mapping[str, RunFacts]) -> list[Table]:
    """For every setting by which runs differ while all others are equal: these runs under one another."""
    runs = runs_of(rows, facts)
    alike: dict[str, list[set[str]]] = {}
    for number, first in enumerate(runs):
        for second in runs[number + 1 :]:
            setting = only_difference(first, second)
            if setting is not None:
                _join(alike.setdefault(setting, []), {first.name, second.name})
    return [
        _ablation(setting, group, number, rows, facts)
        for setting, groups in sorted(alike.items())
        for number, group in enumerate(groups)
    ]


def runs_of(rows: pd.DataFrame, facts: Mapping[str, RunFacts]) -> list[RunFacts]:
    """The facts of the runs that have rows, by name."""
    there = {str(run) for run in rows["run"]}
    return [facts[name] for name in sorted(facts) if name in there]


def only_difference(first: RunFacts, second: RunFacts) -> str | None:
    """The setting by which two runs differ, if it is one; None too where one did not record what the other did."""
    if first.settings.keys() != second.settings.keys():
        return None
    different = [name for name, value in first.settings.items() if second.settings[name] != value]
    return different[0] if len(different) == 1 else None


def parts_tables(rows: pd.DataFrame, facts: Mapping[str, RunFacts]) -> list[Table]:
    """The form of the paper's ablation: a run, then others that differ from it in one setting each.

    A table for every run that has such neighbours in two settings or more, unless it lacks a part itself.
    """
    runs = runs_of(rows, facts)
    tables = []
    for hub in runs:
        if any(hub.settings.get(setting) in values for setting, values in SWITCHES.items()):
            continue
        changes = {other.name: only_difference(hub, other) for other in runs if other is not hub}
        found = {name: setting for name, setting in changes.items() if setting is not None}
        if len(set(found.values())) > 1:
            tables.append(_parts(hub, found, rows, facts))
    return tables


def _parts(
    hub: RunFacts, changes: Mapping[str, str], rows: pd.DataFrame, facts: Mapping[str, RunFacts]
) -> Table:
    said = {name: _change(setting, facts[name], hub) for name, setting in changes.items()}
    names = [hub.name, *sorted(changes, key=lambda name: (changes[name], _natural(said[name])))]
    lines = []
    for (split, strategy), part in rows[rows["run"].isin(names)].groupby(["split", "strategy"]):
        by_run = {
            str(run): {str(name): one for name, one in found.groupby("dataset")}
            for run, found in part.groupby("run")
        }
        if hub.name not in by_run or len(by_run) < 2:
            continue
        shared = sorted(set.intersection(*(set(found) for found in by_run.values())))
        for name in (name for name in names if name in by_run):
            interval = bootstrap_mean_of_datasets([by_run[name][each] for each in shared]) if shared else None
            lines.append(
                {"change": said.get(name, "none: the whole")}
                | {"run": name, "split": split, "strategy": strategy}
                | {each: score_text(class_means(one).mean()) for each, one in by_run[name].items()}
                | {"mean of shared": score_text(interval.mean) if interval else ""}
                | {CI: interval_text(interval) if interval else ""}
            )
    datasets = sorted(set(rows[rows["run"].isin(names)]["dataset"]))
    columns = ["change", "run", "split", "strategy", *datasets, "mean of shared", CI]
    frame = pd.DataFrame(lines, columns=columns).fillna("")
    note = (
        f"Each run differs from {hub.name} in the one setting named. The mean is over the datasets that all runs of "
        "the same split and strategy have."
    )
    notes = (
        note,
        RULE,
        CI_RULE,
        CI_OF_DATASETS_RULE,
        *count_notes(row_groups(rows[rows["run"].isin(names)])),
    )
    return Table(file_name("parts", hub.name), f"What the parts of {hub.name} add, Dice", frame, notes)


def _change(setting: str, facts: RunFacts, hub: RunFacts) -> str:
    """What a run has otherwise than the hub, in words."""
    value = facts.settings[setting]
    if setting == DATASETS:
        missing = [name for name in hub.datasets if name not in facts.datasets]
        if missing and len(facts.datasets) == len(hub.datasets) - len(missing) > len(missing):
            return f"without {', '.join(missing)}"
        return f"{len(facts.datasets)} training dataset{'s' * (len(facts.datasets) != 1)}"
    if setting == MADE_TASKS:
        return _change_of_made_tasks(value, hub.settings[setting])
    if setting == "network context_tokens" and value != "0":
        return f"{value} context tokens"
    return SWITCHES.get(setting, {}).get(value, f"{setting}: {_value(setting, facts)}")


def _change_of_made_tasks(value: str, whole: str) -> str:
    """Both: lists of [kind, probability] as JSON."""
    kinds, all_kinds = (dict(json.loads(text)) for text in (value, whole))
    if not kinds:
        return "no made tasks"
    missing = [kind for kind in all_kinds if kind not in kinds]
    if missing and kinds == {kind: p for kind, p in all_kinds.items() if kind not in missing}:
        return f"no made tasks of the kind {', '.join(missing)}"
    return "made tasks: " + ", ".join(f"{kind} {p:g}" for kind, p in kinds.items())


def _join(groups: list[set[str]], pair: set[str]) -> None:
    """Put a pair into the group it touches: runs that differ in one same setting only all differ so."""
    for group in groups:
        if group & pair:
            group |= pair
            return
    groups.append(pair)


def _ablation(
    setting: str, group: set[str], number: int, rows: pd.DataFrame, facts: Mapping[str, RunFacts]
) -> Table:
    chosen = rows[rows["run"].isin(list(group))]
    datasets = sorted(set(chosen["dataset"]))
    lines = []
    for (split, strategy), part in chosen.groupby(["split", "strategy"]):
        by_run = {
            str(run): {str(name): one for name, one in found.groupby("dataset")}
            for run, found in part.groupby("run")
        }
        shared = set.intersection(*(set(found) for found in by_run.values()))
        for run in sorted(by_run, key=lambda name: _natural(_value(setting, facts[name]))):
            common = [by_run[run][name] for name in sorted(shared)]
            interval = bootstrap_mean_of_datasets(common) if common else None
            lines.append(
                {setting: _value(setting, facts[run]), "run": run, "split": split, "strategy": strategy}
                | {name: score_text(class_means(one).mean()) for name, one in by_run[run].items()}
                | {"mean of shared": score_text(interval.mean) if interval else ""}
                | {CI: interval_text(interval) if interval else ""}
            )
    columns = [setting, "run", "split", "strategy", *datasets, "mean of shared", CI]
    frame = pd.DataFrame(lines, columns=columns).fillna("")
    note = (
        f"These runs differ in '{setting}' and in no other recorded setting. The mean is over the datasets that all "
        "runs of the same split and strategy have."
    )
    name = file_name("ablation", setting, *([str(number + 1)] if number else []))
    return Table(
        name,
        f"Runs that differ in {setting} only, Dice",
        frame,
        (note, RULE, CI_RULE, CI_OF_DATASETS_RULE, *count_notes(row_groups(chosen))),
    )


def _value(setting: str, facts: RunFacts) -> str:
    text = facts.settings[setting]
    if setting == DATASETS:
        return f"{len(facts.datasets)} ({text})"
    return text or "nothing"


def _natural(text: str) -> tuple[float, str]:
    """Numbers in their own order, before words."""
    found = re.match(r"-?\d+(\.\d+)?", text)
    return (float(found.group()) if found else float("inf"), text)
