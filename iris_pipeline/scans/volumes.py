"""volumes.csv beside the masks: how many millilitres of each class a label map holds.

What most masks are made for is a number; it is counted as the mask is written, on the scan's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.scans.case_table import CaseTable
from preprocessing.geometry import label_counts, voxel_ml
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

    @classmethod
    def of_cells(cls, cells: Mapping[str, str]) -> ClassVolume:
        """What `cells` wrote, by column; errors as `CaseTable` expects them."""
        return cls(cells["case"], cells["class"], int(cells["voxels"]), float(cells["ml"]))


def volumes_of(case: str, labels: Volume, classes: Mapping[str, int]) -> list[ClassVolume]:
    """Of each class of a label map, uint8 [D,H,W]: voxels, and these times the voxel's own volume, sheared or not."""
    counts = label_counts(labels.array)
    ml = voxel_ml(labels.affine)
    return [
        ClassVolume(case, name, int(counts[value]), float(counts[value] * ml))
        for name, value in classes.items()
    ]


def volumes_in(folder: Path) -> CaseTable[ClassVolume]:
    """volumes.csv of a folder of masks."""
    return CaseTable(folder / TABLE, COLUMNS, ClassVolume.of_cells, "take it away, it is made anew")
