"""The table of how far a predicted Dice agreed with the true one, from what iris_evaluate left beside the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iris_pipeline.confidence import Agreement
from iris_pipeline.table_format import Table
from iris_pipeline.tables import EVALUATION
from preprocessing.errors import EvaluationError
from preprocessing.files import load_json

ENDING = "__confidence.json"


def agreement_path(rows: Path) -> Path:
    """Beside a CSV of rows."""
    return rows.with_name(f"{rows.stem}{ENDING}")


def confidence_table(results: Path, runs: Sequence[str]) -> Table | None:
    """A line a run, dataset and strategy whose masks were judged; None where none was. EvaluationError if damaged."""
    lines = []
    for path in sorted(path for run in runs for path in (results / run / EVALUATION).glob(f"*{ENDING}")):
        dataset, _, strategy = path.name.removesuffix(ENDING).partition("__")
        found = load_json(path, Agreement, EvaluationError, "make it again with iris_evaluate")
        lines.append(
            {
                "run": path.parents[1].name,
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
        )
    if not lines:
        return None
    notes = (
        "Predicted against true Dice of each mask; the numbers behind the prediction were fitted to validation cases "
        "of the datasets that the model was trained on, and to nothing else.",
        "Poor: a true Dice below 0.7. Marked: for review, in confidence.csv. Correlations are empty where they cannot "
        "be told (two masks, or equal ones).",
    )
    return Table("confidence", "Confidence", pd.DataFrame(lines), notes)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
