"""The table of how far a predicted Dice agreed with the true one, from what iris_evaluate left beside the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from iris_pipeline.confidence import Agreement, agreement_of
from iris_pipeline.table_format import Table
from iris_pipeline.tables import EVALUATION
from preprocessing.errors import EvaluationError
from preprocessing.files import load_json

ENDING = "__confidence.json"
Found = dict[tuple[str, str], Agreement]
"""By dataset and strategy, with its number of references and its draw"""


def agreement_path(rows: Path) -> Path:
    """Beside a CSV of rows."""
    return rows.with_name(f"{rows.stem}{ENDING}")


def confidence_table(
    results: Path, runs: Sequence[str], trained: Mapping[str, Collection[str]] | None = None
) -> Table | None:
    """A line a run, dataset and strategy whose masks were judged; None where none was. EvaluationError if damaged.

    trained: the datasets that a run was trained on. Of the runs of which that is known, lines over all masks of several
    datasets stand at the end: of those that were trained on, and of those that were not.
    """
    lines, pools = [], dict[tuple[str, str, bool], Found]()
    for path in sorted(path for run in runs for path in (results / run / EVALUATION).glob(f"*{ENDING}")):
        run = path.parents[1].name
        dataset, _, strategy = path.name.removesuffix(ENDING).partition("__")
        found = load_json(path, Agreement, EvaluationError, "make it again with iris_evaluate")
        lines.append(_line(run, dataset, strategy, found))
        if trained is not None and run in trained:
            known = dataset in trained[run]
            pools.setdefault((run, strategy.partition("_")[0], known), {})[dataset, strategy] = found
    if not lines:
        return None
    pooled = [_pooled(*key, found) for key, found in sorted(pools.items()) if _can_be_pooled(found)]
    notes = [
        "Predicted against true Dice of each mask; the numbers behind the prediction were fitted to validation cases "
        "of the datasets that the model was trained on, and to nothing else.",
        "Poor: a true Dice below 0.7. Marked: for review, in confidence.csv. Correlations are empty where they cannot "
        "be told (two masks, or equal ones).",
    ]
    if pooled:
        notes.append(
            "all seen, all held out: the masks of the datasets above that the model was and was not trained on."
        )
    return Table("confidence", "Confidence", pd.DataFrame([*lines, *pooled]), tuple(notes))


def _can_be_pooled(found: Found) -> bool:
    """Of several datasets, with all of their masks."""
    datasets = {dataset for dataset, _ in found}
    return len(datasets) > 1 and all(len(each.each) == each.masks for each in found.values())


def _pooled(run: str, strategy: str, known: bool, found: Found) -> dict[str, object]:
    masks = [
        mask.model_copy(update={"case": f"{dataset} {mask.case}"})
        for (dataset, _), agreed in found.items()
        for mask in agreed.each
    ]
    return _line(run, "all seen" if known else "all held out", strategy, agreement_of(masks))


def _line(run: str, dataset: str, strategy: str, found: Agreement) -> dict[str, object]:
    return {
        "run": run,
        "dataset": dataset,
        "strategy": strategy,
        "masks": found.masks,
        "cases": found.cases,
        "Pearson": _text(found.pearson),
        "Spearman": _text(found.spearman),
        "mean error": f"{found.mean_absolute_error:.3f}",
        "poor": found.poor,
        "poor, marked": found.poor_flagged,
        "better, marked": found.flagged - found.poor_flagged,
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
