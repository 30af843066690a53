"""volumes.csv beside the masks: how many millilitres of each class a label map holds.

What most masks are made for is a number; it is counted as the mask is written, on the scan's own grid.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.errors import PredictionError
from preprocessing.files import write_text
from preprocessing.geometry import voxel_ml
from preprocessing.volume import Volume

TABLE = "volumes.csv"
COLUMNS = ("case", "class", "voxels", "ml")


@dataclass(frozen=True)
class ClassVolume:
    """One class of one case; ml is 0 where it was not found."""

    case: str
    class_name: str
    voxels: int
    ml: float

    def cells(self) -> tuple[str, str, int, str]:
        """The line of the table."""
        return self.case, self.class_name, self.voxels, f"{self.ml:.3f}"


def volumes_of(case: str, labels: Volume, classes: Mapping[str, int]) -> list[ClassVolume]:
    """Of each class of a label map, uint8 [D,H,W]: voxels, and these times the voxel's own volume, sheared or not."""
    counts = np.zeros(256, dtype=np.int64)
    for plane in labels.array:  # bincount makes copies of 8 bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=256)
    ml = voxel_ml(labels.affine)
    return [
        ClassVolume(case, name, int(counts[value]), float(counts[value] * ml))
        for name, value in classes.items()
    ]


def keep_volumes(folder: Path, found: Sequence[ClassVolume]) -> None:
    """Write them into the folder's table in the place of what it says of these cases; whole or not at all."""
    cases = {each.case for each in found}
    _write(folder, [*(each for each in read_volumes(folder / TABLE) if each.case not in cases), *found])


def forget_volumes(folder: Path, case: str) -> None:
    """Take a case out of the folder's table: its mask is gone."""
    former = read_volumes(folder / TABLE)
    if any(each.case == case for each in former):
        _write(folder, [each for each in former if each.case != case])


def _write(folder: Path, rows: Sequence[ClassVolume]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(each.cells() for each in sorted(rows, key=lambda each: each.case))
    write_text(folder / TABLE, text.getvalue())


def read_volumes(path: Path) -> list[ClassVolume]:
    """What `keep_volumes` wrote; none where there is no file. PredictionError if it is something else."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [
                ClassVolume(row["case"], row["class"], int(row["voxels"]), float(row["ml"]))
                for row in csv.DictReader(stream)
            ]
    except (KeyError, ValueError, TypeError):
        raise PredictionError(
            f"{path} should have the columns {', '.join(COLUMNS)}: take it away, it is made anew."
        ) from None
