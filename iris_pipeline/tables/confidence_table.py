"""The table of how far a predicted Dice agreed with the true one, from what iris_evaluate left beside the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from iris_pipeline.confidence.calibration import Agreement, JudgedMask, agreement_of
from iris_pipeline.tables.result_tables import EVALUATION, of_test_parts
from iris_pipeline.tables.table_format import Table
from preprocessing.errors import EvaluationError
from preprocessing.runtime.files import load_json

ENDING = "__confidence.json"
Found = dict[tuple[str, str], list[Agreement]]
"""By dataset and draw; of one draw there are several where its masks lie in several folders"""


def agreement_path(rows: Path) -> Path:
    """Beside a CSV of rows."""
    return rows.with_name(f"{rows.stem}{ENDING}")


def confidence_table(
    results: Path,
    runs: Sequence[str],
    trained: Mapping[str, Collection[str]] | None = None,
    rows: pd.DataFrame | None = None,
) -> Table | None:
    """A line a run, dataset and strategy whose masks were judged; None where none was. EvaluationError if damaged.

    trained: the datasets that a run was trained on. rows: of the runs' evaluations. Where both tell, lines over all
    masks of several datasets stand at the end: of those that were trained on, and of those that were not. Test parts
    alone have a say there, as the numbers were fitted to validation cases.
    """
    lines, pools = [], dict[tuple[str, str, bool], Found]()
    tested = _tested(rows)
    for path in sorted(path for run in runs for path in (results / run / EVALUATION).glob(f"*{ENDING}")):
        run = path.parents[1].name
        dataset, _, strategy = path.name.removesuffix(ENDING).partition("__")
        found = load_json(path, Agreement, EvaluationError, "make it again with iris_evaluate")
        lines.append(_line(run, dataset, strategy, found))
        if trained is not None and run in trained and (run, dataset, strategy) in tested:
            base, draw = tested[run, dataset, strategy]
            pool = pools.setdefault((run, base, dataset in trained[run]), {})
            pool.setdefault((dataset, draw), []).append(found)
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
            "all seen, all held out: the masks of the test parts of the datasets above that the model was and was not "
            "trained on, those of one draw once."
        )
    return Table("confidence", "Confidence", pd.DataFrame([*lines, *pooled]), tuple(notes))


def _tested(rows: pd.DataFrame | None) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(run, dataset, folder's name) of masks of a test part -> strategy, and draw with its number of references."""
    if rows is None:
        return {}
    found = {}
    for row in of_test_parts(rows).drop_duplicates(["run", "dataset", "strategy"]).to_dict("records"):
        drawn = pd.notna(row["draw"])
        draw = f"k{row['references']:.0f} draw{row['draw']:.0f}" if drawn else str(row["strategy"])
        found[str(row["run"]), str(row["dataset"]), str(row["strategy"])] = str(row["base"]), draw
    return found


def _can_be_pooled(found: Found) -> bool:
    """Of several datasets, with all of their masks."""
    datasets = {dataset for dataset, _ in found}
    return len(datasets) > 1 and all(len(one.each) == one.masks for each in found.values() for one in each)


def _pooled(run: str, strategy: str, known: bool, found: Found) -> dict[str, object]:
    masks: list[JudgedMask] = []
    for (dataset, _), agreed in found.items():
        cases = set[str]()
        for each in agreed:
            # The masks of a case in another folder of the same draw are the same ones.
            new = [mask for mask in each.each if mask.case not in cases]
            cases |= {mask.case for mask in new}
            masks += [mask.model_copy(update={"case": f"{dataset} {mask.case}"}) for mask in new]
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
