"""Rows of an evaluation: one case and class each, and the CSV file that holds them.

The file is wide: a row a case and class, a column a measure. The first ten columns are those of the first schema, whose
files are still read (`tables.read_rows`); what such a file lacks is empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iris_pipeline.measures.class_scores import MEASURES
from preprocessing.runtime.files import write_text

NAMES = ("run", "dataset", "split", "strategy", "case", "subject", "class")
FIRST_COLUMNS = (*NAMES, "dice", "truth_voxels", "predicted_voxels")
"""Schema 1: Dice alone."""
COLUMNS = (*FIRST_COLUMNS, *MEASURES, "references", "draw", "base")
"""Schema 2: all measures; how many references were drawn by which seed (empty where there was no draw); and the
strategy itself where `strategy` is the name of a folder that says the draw too."""

BASELINE_RUN = "baseline"
BASELINE_STRATEGY = "everything-foreground"


@dataclass(frozen=True)
class Origin:
    """Which result a row belongs to. split: "paper/test" and the like, "" where the cases are a folder's.

    references: how many labelled references each query had, draw: the seed they were drawn by; None: not known.
    base: the strategy where `strategy` names a folder that says more ("ensemble-k3-draw1"), else "".
    """

    run: str
    dataset: str
    split: str
    strategy: str
    references: int | None = None
    draw: int | None = None
    base: str = ""


@dataclass(frozen=True)
class Row:
    """One case and class. None: not known, because the prediction (or the truth) could not be read.

    dice is NaN where there is nothing to score: the class is in neither mask, or (partly labelled datasets)
    the truth does not tell whether it is there. measures: a column of MEASURES -> its value; those left out are
    not known.
    """

    origin: Origin
    case: str
    subject: str
    class_name: str
    dice: float
    truth_voxels: int | None
    predicted_voxels: int | None
    measures: Mapping[str, float] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """The row's text in the order of COLUMNS; NaN and None are empty."""
        where = self.origin
        return [
            *(where.run, where.dataset, where.split, where.strategy, self.case, self.subject),
            self.class_name,
            *(_number(self.dice), _whole(self.truth_voxels), _whole(self.predicted_voxels)),
            *(_number(self.measures.get(name)) for name in MEASURES),
            *(_whole(where.references), _whole(where.draw), where.base or where.strategy),
        ]


def write_rows(path: Path, rows: Iterable[Row], made_by: str = "") -> None:
    """Rows as CSV, the columns of COLUMNS; `made_by` follows as a last line that begins with #."""
    write_text(path, rows_text(rows) + (f"# {made_by}\n" if made_by else ""))


def rows_text(rows: Iterable[Row]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)
