"""Sources around sources: known faults of raw files, each mended as it is read and named in the verdict.

Arrays are [D,H,W] = (z,y,x); affines map (x,y,z,1) to RAS+ mm, so the patient's left is at smaller x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from preprocessing.case import in_axes_of_image
from preprocessing.errors import LabelValueError
from preprocessing.formats.slicer import Segmentation, is_segmentation, same_name
from preprocessing.grid_types import Triple
from preprocessing.sources.source import Source
from preprocessing.volume import CORNER_VOXELS, Volume, as_labels, corner_shift

EQUAL_SPACING = 1e-3  # relative
ORTHONORMAL = 1e-4  # largest scalar product of two axes' directions that rounding in a header explains


@dataclass(frozen=True)
class _Around(Source):
    """A source that changes what another one reads."""

    inner: Source

    @property
    def files(self) -> tuple[Path, ...]:
        return self.inner.files

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def recipe(self) -> str:
        """Its own rule behind that of the source inside."""
        return f"{self.inner.recipe} {self.rule}".strip()

    @property
    def rule(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.inner)


@dataclass(frozen=True)
class ValuesMapped(_Around):
    """values: (value in the file, the one it means). ignored: values that become background without a word."""

    values: tuple[tuple[int, int], ...] = ()
    ignored: tuple[int, ...] = ()

    @property
    def rule(self) -> str:
        return f"values {self.values} {self.ignored}"

    def read(self) -> Volume:
        volume = as_labels(self.inner.read(), str(self))
        result, told = volume.array.copy(), []
        for found, meant in self.values:
            if (volume.array == found).any():
                result[volume.array == found] = meant
                told.append(f"the label value {found} is read as {meant}")
        for value in self.ignored:
            result[volume.array == value] = 0
        # the names of segments belong to the values in the file
        segments = None if volume.segments is None else Segmentation()
        return replace(volume, array=result, segments=segments, repairs=(*volume.repairs, *told))


@dataclass(frozen=True)
class SegmentsByName(_Around):
    """A segmentation of 3D Slicer's under the values that the classes (name, value) have, not those of its own.

    Its values follow the order in which segments were made, so that the same organ may have another one in the next
    case. They stay, with a doubt that says so, where a segment that has a voxel is none of the classes; LabelValueError
    where another one is a class of another value, since the values then mean something else.
    """

    classes: tuple[tuple[str, int], ...]

    @property
    def rule(self) -> str:
        return f"segments {self.classes}"

    def read(self) -> Volume:
        volume = self.inner.read()
        known = volume.segments
        if known is None or not known.names:
            return volume
        there = set(np.unique(volume.array).tolist())
        pairs = [(name, value) for name, value in known.names if value in there]
        meant = {name: wanted for name, _ in pairs if (wanted := self._value_of(name)) is not None}
        if len(meant) < len({name for name, _ in pairs}):
            return volume if known.by_order else self._with_own_values(volume, pairs, meant)
        array = np.zeros(volume.shape, np.uint8)
        for name, value in pairs:
            array[volume.array == value] = meant[name]
        other = [f"{name} is {meant[name]}, not {value}" for name, value in pairs if value != meant[name]]
        told = [f"label values by the names of the segments ({', '.join(other)})"] if other else []
        if known.by_order:
            told = ["the segments share label values; their names tell which classes they are"]
        named = Segmentation(tuple(meant.items()))
        return replace(volume, array=array, segments=named, repairs=(*volume.repairs, *told))

    def _value_of(self, name: str) -> int | None:
        """The class of the same name, of those that differ in letter case the one that is written alike."""
        alike = {each.strip(): value for each, value in self.classes}
        return alike.get(name, {same_name(each): value for each, value in self.classes}.get(same_name(name)))

    def _with_own_values(
        self, volume: Volume, pairs: list[tuple[str, int]], meant: Mapping[str, int]
    ) -> Volume:
        strange = ", ".join(f"'{name}'" for name, _ in pairs if name not in meant)
        wrong = next((pair for pair in pairs if meant.get(pair[0], pair[1]) != pair[1]), None)
        if wrong is not None:
            classes = ", ".join(f"{value} {name}" for name, value in self.classes)
            raise LabelValueError(
                f"Segments have the names of the classes ({classes}), but {self} has {strange} beside '{wrong[0]}' "
                f"with the value {wrong[1]}: rename or remove what is no class in 3D Slicer."
            )
        told = f"not all segments are named as the classes ({strange}), so their values are used as they are"
        return replace(volume, doubts=(*volume.doubts, told))


def by_segment_names(source: Source, classes: Mapping[str, int]) -> Source:
    """A source of labels that goes by the names of segments where its file has them; any other as it is."""
    if not any(is_segmentation(path) for path in source.files):
        return source
    return SegmentsByName(source, tuple(classes.items()))


@dataclass(frozen=True)
class OnGridOf(_Around):
    """A label map brought to the grid of the image by the nearest voxel, where the two differ."""

    image: Source

    @property
    def rule(self) -> str:
        return "on the image's grid"

    def read(self) -> Volume:
        labels, image = as_labels(self.inner.read(), str(self)), self.image.read()
        same = labels.shape == image.shape
        voxels, millimetres = corner_shift(image.shape, image.affine, labels.affine)
        if same and voxels <= CORNER_VOXELS:
            return labels
        # index (x,y,z) of the image -> index of the label map; arrays are (z,y,x), so both are turned round
        step = np.linalg.inv(labels.affine) @ image.affine
        array = ndimage.affine_transform(
            labels.array,
            step[2::-1, 2::-1],
            offset=step[2::-1, 3],
            output_shape=image.shape,
            order=0,
            mode="grid-constant",
            cval=0,
        )
        how = f"its corners lay up to {millimetres:.1f} mm away" if same else "it had another size"
        told = f"the label map was brought to the image's grid by the nearest voxel ({how})"
        return Volume(array, image.affine, image.header, (*labels.repairs, told), labels.doubts)


@dataclass(frozen=True)
class PlacedAs(_Around):
    """A label map that lies where the image does, voxel by voxel, whatever its own header says: headers were lost.

    Its axes are turned where this alone makes both grids one. Of another size it stays as it is, and is refused.
    """

    image: Source

    @property
    def rule(self) -> str:
        return "placed as the image"

    def read(self) -> Volume:
        labels, image = as_labels(self.inner.read(), str(self)), self.image.read()
        labels = in_axes_of_image(image, labels)
        voxels, millimetres = corner_shift(image.shape, image.affine, labels.affine)
        if labels.shape != image.shape or voxels <= CORNER_VOXELS:
            return labels
        told = f"the label's corners lay up to {millimetres:.1f} mm from the image's, which places it"
        return replace(labels, affine=image.affine, header=image.header, repairs=(*labels.repairs, told))


@dataclass(frozen=True)
class SidesByPlace(_Around):
    """Two paired classes told apart by where they lie: the patient's left is at smaller x.

    between: the value of a class that must lie between the two, and tells one that lies alone. LabelValueError where
    it does not.
    """

    left: int
    right: int
    between: int
    names: tuple[str, str, str] = ("left", "right", "middle")

    @property
    def rule(self) -> str:
        return f"sides {self.left} {self.right} about {self.between}"

    def read(self) -> Volume:
        volume = as_labels(self.inner.read(), str(self))
        places = {value: _mean_x(volume, value) for value in (self.left, self.right, self.between)}
        left, right, middle = places[self.left], places[self.right], places[self.between]
        if middle is not None:  # one alone is told by the side of the middle on which it lies
            left = 2 * middle - right if left is None and right is not None else left
            right = 2 * middle - left if right is None and left is not None else right
        if left is None or right is None:
            return volume
        if middle is not None and not min(left, right) < middle < max(left, right):
            raise LabelValueError(
                f"'{self.names[0]}' and '{self.names[1]}' lie on either side of '{self.names[2]}', but in {self} "
                f"their centres are at {left:.0f}, {right:.0f} and {middle:.0f} mm from left to right: correct the "
                "label map or its affine."
            )
        if left < right:
            return volume
        array = volume.array.copy()
        array[volume.array == self.left], array[volume.array == self.right] = self.right, self.left
        told = f"the label values of {self.names[0]} and {self.names[1]} are exchanged, by where they lie"
        return replace(volume, array=array, repairs=(*volume.repairs, told))


@dataclass(frozen=True)
class NearestRotation(_Around):
    """Direction cosines that are not orthonormal are replaced by the nearest rotation (by SVD); spacing stays."""

    @property
    def rule(self) -> str:
        return "nearest rotation"

    def read(self) -> Volume:
        volume = self.inner.read()
        affine, degrees = nearest_rotation(volume.affine, volume.shape)
        if degrees == 0:
            return volume
        told = (
            f"the axes were not at right angles (up to {degrees:.2g} degrees): turned to the nearest that are"
        )
        return replace(volume, affine=affine, repairs=(*volume.repairs, told))


@dataclass(frozen=True)
class WithSpacing(_Around):
    """The spacing (z,y,x) in mm of the specification, where the header has another one."""

    spacing_mm: Triple

    @property
    def rule(self) -> str:
        return f"spacing {self.spacing_mm}"

    def read(self) -> Volume:
        volume = self.inner.read()
        if np.allclose(volume.spacing_mm, self.spacing_mm, rtol=EQUAL_SPACING):
            return volume
        affine = volume.affine.copy()
        affine[:3, :3] *= np.divide(self.spacing_mm, volume.spacing_mm)[::-1]
        old, new = (" x ".join(f"{edge:g}" for edge in each) for each in (volume.spacing_mm, self.spacing_mm))
        told = f"the spacing is {new} mm (z,y,x) by the specification; the header says {old}"
        return replace(volume, affine=affine, repairs=(*volume.repairs, told))


@dataclass(frozen=True)
class DoubtfulSpacing(_Around):
    """A spacing (z,y,x) in mm that is known as a placeholder: kept and named, since nobody knows the true one."""

    spacing_mm: Triple

    @property
    def rule(self) -> str:
        return ""

    def read(self) -> Volume:
        volume = self.inner.read()
        if not np.allclose(volume.spacing_mm, self.spacing_mm, rtol=EQUAL_SPACING):
            return volume
        edges = " x ".join(f"{edge:g}" for edge in self.spacing_mm)
        told = (
            f"the header's spacing {edges} mm (z,y,x) is a known placeholder; it is kept, since sources disagree on "
            "the true one (quirks.spacing_mm sets it)"
        )
        return replace(volume, doubts=(*volume.doubts, told))


def nearest_rotation(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The affine with its axes at right angles, about the middle of an array (z,y,x), and how far they turned.

    (the same affine, 0.0) where they are so already, up to the rounding of a header.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() <= ORTHONORMAL:
        return affine, 0.0
    u, _, v = np.linalg.svd(cosines)
    straight = u @ v
    turned = np.degrees(np.arccos(np.clip((straight * cosines).sum(axis=0), -1, 1)).max())
    middle = (np.array(shape[::-1]) - 1) / 2
    result = affine.copy()
    result[:3, :3] = straight * spacing
    result[:3, 3] += (affine[:3, :3] - result[:3, :3]) @ middle
    return result, float(turned)


def _mean_x(volume: Volume, value: int) -> float | None:
    """World x (mm) of the centre of a label value; None where it has no voxel."""
    index = np.argwhere(volume.array == value)
    if not len(index):
        return None
    centre = np.append(index.mean(axis=0)[::-1], 1.0)
    return float((volume.affine @ centre)[0])
