"""Beyond Dice: a table of all measures for a dataset, and the long list of every class for other programs.

Each cell is the mean over the classes of each class's mean over its cases, as Dice is in its own table.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from iris_pipeline.measures.lesions import LESION_OVERLAP
from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.tables.result_tables import ROW_KEY, count_notes, row_groups
from iris_pipeline.tables.table_format import Table
from iris_pipeline.tables.uncertainty import bootstrap_mean

COLUMNS: Mapping[str, tuple[str, int]] = {
    "dice": ("Dice", 3),
    "iou": ("IoU", 3),
    "nsd": ("NSD", 3),
    "hd95_mm": ("HD95 (mm)", 2),
    "assd_mm": ("ASSD (mm)", 2),
    "volume_error_ml": ("volume error (mL)", 2),
    "volume_error_percent": ("volume error (%)", 1),
    "absolute_volume_error_percent": ("absolute volume error (%)", 1),
    "lesion_f1": ("lesion F1", 3),
}
"""Measure -> (heading, digits)."""
MEASURE_RULE = (
    "A class in neither truth nor mask is left out; one that only one of them has scores 0 in Dice, IoU, NSD and "
    "lesion F1, and the diagonal of the image in HD95 and ASSD. Volume errors are prediction minus truth, in % where "
    "the truth has the class. Each is the mean over the classes of each class's mean over its cases."
)


def measures_table(rows: pd.DataFrame, dataset: str) -> Table | None:
    """All measures of a dataset's rows; None where only Dice was evaluated (files of schema 1)."""
    chosen = rows[(rows["dataset"] == dataset) & (rows["run"] != BASELINE_RUN)]
    chosen = with_absolute(chosen[chosen["tolerance_mm"].notna() | chosen["dice"].isna()])
    if chosen["nsd"].isna().all():
        return None
    there = {name: shown for name, shown in COLUMNS.items() if chosen[name].notna().any()}
    lines, notes = [], [MEASURE_RULE, _tolerances(chosen)]
    if "lesion_f1" in there:
        notes.append(
            "A lesion is a connected component (26 neighbours) and found where more than "
            f"{100 * LESION_OVERLAP:g} % of its voxels are marked, a mark confirmed where more than "
            f"{100 * LESION_OVERLAP:g} % of it is true; lesion F1 joins both shares, a case at a time. "
            + _lesion_counts(chosen)
        )
    groups = row_groups(chosen)
    for key, group in groups:
        cells = dict(zip(ROW_KEY, key, strict=True))
        for name, (heading, digits) in there.items():
            mean = group.groupby("class", sort=False)[name].mean().mean()
            cells[heading] = "" if pd.isna(mean) else f"{mean:.{digits}f}"
        lines.append(cells)
    notes += count_notes(groups)
    frame = pd.DataFrame(lines).fillna("")
    return Table(f"{dataset}_measures", f"{dataset}, all measures", frame, tuple(notes))


def measures_by_class(rows: pd.DataFrame) -> Table:
    """One line a row, dataset, class and measure: n, mean with its interval, spread and median; as CSV only."""
    lines = []
    for (run, split, strategy), group in row_groups(with_absolute(rows)):
        for (dataset, name), part in group.groupby(["dataset", "class"], sort=False):
            for measure in COLUMNS:
                scores = part[measure].dropna()
                if scores.empty:
                    continue
                interval = bootstrap_mean(part, measure)
                lines.append(
                    {"run": run, "split": split, "strategy": strategy, "dataset": dataset, "class": name}
                    | {"measure": measure, "n": len(scores), "subjects": interval.subjects}
                    | {"mean": scores.mean(), "ci_low": interval.low, "ci_high": interval.high}
                    | {"sd": scores.std(ddof=1), "median": scores.median()}
                )
    frame = pd.DataFrame(lines)
    numbers = frame.select_dtypes("float").columns
    frame[numbers] = frame[numbers].map(lambda value: "" if pd.isna(value) else f"{value:.6g}")
    return Table("by_class", "Every class and measure", frame, (MEASURE_RULE,), on_page=False)


def with_absolute(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the size of the volume error beside the signed one, whose mean errors of both signs cancel."""
    return rows.assign(absolute_volume_error_percent=rows["volume_error_percent"].abs())


def _tolerances(rows: pd.DataFrame) -> str:
    of_class = {
        str(name): sorted(part["tolerance_mm"].dropna().unique())
        for name, part in rows.groupby("class", sort=False)
    }
    values = {value for found in of_class.values() for value in found}
    if len(values) == 1:
        return f"NSD at a tolerance of {values.pop():g} mm."
    told = ", ".join(
        f"{name} {' or '.join(f'{value:g}' for value in found)}" for name, found in of_class.items()
    )
    return f"NSD at tolerances in mm: {told}."


def _lesion_counts(rows: pd.DataFrame) -> str:
    told = []
    for key, group in row_groups(rows):
        counts = group[["lesions_found", "lesions_truth", "lesions_confirmed", "lesions_predicted"]].sum()
        found, lesions, confirmed, marked = (int(count) for count in counts)
        told.append(
            f"{key[0]} · {key[2]}: {found} of {lesions} lesions found, {confirmed} of {marked} marks confirmed"
        )
    return "; ".join(told) + "."
