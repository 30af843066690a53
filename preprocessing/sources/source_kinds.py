"""Label maps that are no single file: PNG masks beside a DICOM series, and probability maps.

Arrays are [D,H,W] = (z,y,x); affines map (x,y,z,1) to RAS+ mm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from preprocessing.errors import GridMismatchError, LabelValueError, RawDataError
from preprocessing.formats.itk_files import dicom_files
from preprocessing.sources.source import Source
from preprocessing.volume import CORNER_VOXELS, Volume, corner_shift, read_raw

PROBABILITY = 1e-3  # by which a stored probability may leave 0..1
CLEARLY = 1.5  # times as much of the image's variance must a reversed stack explain to be believed
LITTLE = 0.02  # a share of the variance below which nothing is explained


@dataclass(frozen=True)
class PngStackSource(Source):
    """A folder of PNG masks, one a slice of the DICOM series they were drawn on.

    greys: (low, high, value): grey values above low and up to high mean that value; 0 is background. A mask
    belongs to the slice whose file has the same name; where the names do not agree, to the slice of the same
    place in the order of names, and then the direction of the stack is checked against the image.
    """

    masks: Path
    series: Path
    greys: tuple[tuple[int, int, int], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.masks, self.series)

    @property
    def recipe(self) -> str:
        return f"greys {self.greys}"

    def read(self) -> Volume:
        """uint8 labels on the grid of the series.

        RawDataError for a wrong number of masks, LabelValueError for a grey value that is none of a class,
        GridMismatchError for a mask of another size.
        """
        if not self.series.is_dir():
            raise RawDataError(
                f"{self.masks} belongs to the DICOM series {self.series}, which is not there: copy the series there, "
                "or take the masks away."
            )
        grid, slices = read_raw(self.series), [Path(file) for file in dicom_files(self.series)]
        masks = sorted(
            (path for path in self.masks.iterdir() if _is_png(path)), key=lambda path: natural(path.name)
        )
        if len(masks) != len(slices):
            raise RawDataError(
                f"Each slice has one mask, but {self.masks} holds {len(masks)} PNG files for {len(slices)} slices: "
                "copy the case again."
            )
        by_stem = {path.stem: path for path in masks}
        named = {path.stem for path in slices} == set(by_stem)
        if named:
            ordered = [by_stem[path.stem] for path in slices]
        else:
            place = {path: i for i, path in enumerate(sorted(slices, key=lambda path: natural(path.name)))}
            ordered = [masks[place[path]] for path in slices]
        labels = np.stack([self._slice(path, grid.shape[1:]) for path in ordered])
        if not named and _reversed_fits(grid.array, labels):
            raise GridMismatchError(
                f"The masks in {self.masks} fit the image better in the opposite order, and their names are not "
                "those of the slices: give them the names of the slices they belong to."
            )
        return Volume(labels, grid.affine)

    def _slice(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        try:
            with Image.open(path) as picture:
                grey = np.asarray(picture if picture.mode == "L" else picture.convert("L"))
        except (OSError, UnidentifiedImageError) as error:
            raise RawDataError(
                f"{path} cannot be read ({error}): the file is damaged, copy it again."
            ) from None
        if grey.shape != shape:
            raise GridMismatchError(
                f"Image and label must have the same grid, but {path} has {grey.shape} pixels (y,x) and a slice "
                f"{shape}: export the masks on the image's grid."
            )
        values = np.zeros(256, np.int16) - 1
        values[0] = 0
        for low, high, value in self.greys:
            values[low + 1 : high + 1] = value
        found = values[grey]
        if (found < 0).any():
            strange = sorted(set(grey[found < 0].tolist()))
            ranges = ", ".join(f"{low + 1}-{high} ({value})" for low, high, value in self.greys)
            raise LabelValueError(
                f"{path} holds unknown grey values ({', '.join(map(str, strange[:5]))}): allowed are 0 "
                f"(background), {ranges}; correct the mask or the specification."
            )
        return found.astype(np.uint8)


@dataclass(frozen=True)
class ArgmaxSource(Source):
    """Probability maps, one a class: each voxel gets the class of the largest, background where none is above.

    maps: (value, file). above: the largest probability that is still background.
    """

    maps: tuple[tuple[int, Path], ...]
    above: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for _, path in self.maps)

    @property
    def recipe(self) -> str:
        return f"argmax {[value for value, _ in self.maps]} above {self.above:g}"

    def read(self) -> Volume:
        """uint8. GridMismatchError where the maps differ in grid, LabelValueError for values outside 0..1."""
        best: np.ndarray | None = None
        first: Volume | None = None
        for value, path in self.maps:
            volume = read_raw(path)
            chance = volume.array.astype(np.float32)
            if not (chance.min() >= -PROBABILITY and chance.max() <= 1 + PROBABILITY):
                raise LabelValueError(
                    f"Probabilities lie in 0..1, but {path} holds {chance.min():g} to {chance.max():g}: give the "
                    "probability maps, not something else."
                )
            if first is None or best is None:
                first, best = volume, chance
                labels = np.where(chance > self.above, np.uint8(value), np.uint8(0))
                continue
            if (
                volume.shape != first.shape
                or corner_shift(first.shape, first.affine, volume.affine)[0] > CORNER_VOXELS
            ):
                raise GridMismatchError(
                    f"The probability maps of a case must have the same grid, but {path} has another one than "
                    f"{self.files[0]}: export them together."
                )
            larger = (chance > best) & (chance > self.above)
            labels[larger] = value
            np.maximum(best, chance, out=best)
        assert first is not None
        return Volume(labels, first.affine, first.header)


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts numbers inside names by their size.

    >>> sorted(["s10.png", "s9.png"], key=natural)
    ['s9.png', 's10.png']
    """
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def _is_png(path: Path) -> bool:
    return path.name.lower().endswith(".png") and not path.name.startswith(".")


def _reversed_fits(image: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the masks explain the grey values clearly better in the opposite order of slices."""
    straight, reverse = _explained(image, labels), _explained(image, labels[::-1])
    return reverse > LITTLE and reverse > CLEARLY * straight


def _explained(image: np.ndarray, labels: np.ndarray) -> float:
    """The share of the image's variance that lies between the labels (eta squared)."""
    grey = image.astype(float).ravel()
    total = grey.var()
    if total == 0:
        return 0.0
    counts = np.bincount(labels.ravel())
    sums = np.bincount(labels.ravel(), weights=grey)
    means = np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0)
    return float((counts * (means - grey.mean()) ** 2).sum() / grey.size / total)
