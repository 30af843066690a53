"""One label map out of a mask file for each class (TotalSegmentator's form). Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.case import check_same_grid
from preprocessing.errors import GridMismatchError, LabelValueError
from preprocessing.sources.source import FileSource, Source
from preprocessing.volume import Volume


@dataclass(frozen=True)
class MaskFiles(Source):
    """`masks`: (value, file) of each class that has a file, in the specification's order.

    Whatever is not 0 in a file is the class; where masks overlap the later one wins, and the verdict says so.
    """

    masks: tuple[tuple[int, Path], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for _, path in self.masks)

    @property
    def recipe(self) -> str:
        return "masks " + " ".join(str(value) for value, _ in self.masks)

    def read(self) -> Volume:
        merged: Volume | None = None
        shared = 0
        for value, path in self.masks:
            mask = FileSource(path).read_labels()
            inside = mask.array != 0
            found = np.unique(mask.array[inside])
            if len(found) > 1:
                raise LabelValueError(
                    f"The mask file of one class holds 0 and one other value, but {path} holds "
                    f"{', '.join(map(str, found[:5]))}: give one label map a case and name its values."
                )
            if merged is None:
                merged = Volume(np.zeros(mask.shape, np.uint8), mask.affine, mask.header)
            else:
                _same_grid(merged, mask, self.files[0], path)
            shared += int(np.count_nonzero(merged.array[inside]))
            merged.array[inside] = value
        if merged is None:
            raise ValueError("a label map is merged from one mask file at least")
        if not shared:
            return merged
        told = f"{shared} voxels lie in several masks and go to the later class"
        return Volume(merged.array, merged.affine, merged.header, (told,))

    def __str__(self) -> str:
        return f"{self.files[0].parent} ({len(self.masks)} mask files)"


def _same_grid(first: Volume, other: Volume, first_path: Path, path: Path) -> None:
    try:
        check_same_grid(first, other)
    except GridMismatchError:
        raise GridMismatchError(
            f"The mask files of a case must have one grid, but {path} lies on another than {first_path.name}: export "
            "them on the image's grid."
        ) from None
