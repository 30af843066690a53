"""Tasks of our own making: they teach that a task is what the reference shows, not what its dataset is known for.

Arrays are [D,H,W] = (z,y,x); images [1,D,H,W], masks [K,D,H,W]. Kinds, each drawn with its own probability:

- recolour: one random curve of grey values for reference and query alike; a kidney may be dark on bright.
- tones: both are shown by what the reference's grey values say of its classes, as scans of an unknown kind may be
  (`made_tones.py`); no curve of recolour then.
- turn: both are brought to one of the cube's 48 orientations, mirrored ones too; the heart may lie on the right.
- unite: some of the asked classes become one.
- split: a class is cut in two at a plane across its bounding box; each half is a class.
- cells: supervoxels of one scan as classes, reference and query being two views of that scan. Here, and only here,
  both are of one subject: the masks are made from the image, so there is no annotation that could leak.
- bands: what lies in a random interval of grey values in two subjects' scans, or one half of it.
- shapes: random regions that nobody ever scanned (`shapes.py`).

Recolour and turn go with any task, tones with those of annotated scans; of the others one at most is drawn. A made task
never enters the memory bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from iris_pipeline.sampling.made_tones import MadeTones, draw_made_tones
from preprocessing.errors import EpisodeError
from preprocessing.grid_types import Box, Shape
from preprocessing.store import CaseEntry

KNOTS = 6
"""control points of a grey-value curve"""
CURVE_RANGE = (-3.0, 3.0)
"""z-scores between which a curve bends; beyond, it goes on flat"""
GREY_WEIGHT = 0.35
"""this share of a standard deviation of grey parts two voxels as much as the distance between seeds"""
SMOOTHING_VOXELS = 1.0
CELLS = 24
"""seeds in the region of one crop"""
REGION = 1.25
"""edge of the region in which both views of a scan lie, in crops"""
LEAST_CELL_SHARE = 0.002
"""of a crop's voxels: smaller cells are not asked for"""


STRUCTURES = ("unite", "split", "cells", "bands", "shapes")
ANNOTATED = ("", "unite", "split")
"""where masks are annotated: those made of grey values themselves would be lost in tones, and shapes have no scan"""
BAND_WIDTH = (0.2, 0.6)
"""half the width of an interval of grey values, in standard deviations"""
BAND_SMOOTHING_VOXELS = 1.5
BAND_SHARES = (0.01, 0.5)
"""of the reference's voxels that a band may fill"""
BAND_ATTEMPTS = 4


@dataclass(frozen=True)
class SyntheticTasks:
    """Probability of each kind, 0..1; all 0 is the paper's training. At most one of STRUCTURES is drawn."""

    recolour: float = 0.0
    tones: float = 0.0
    turn: float = 0.0
    unite: float = 0.0
    split: float = 0.0
    cells: float = 0.0
    bands: float = 0.0
    shapes: float = 0.0

    def __post_init__(self) -> None:
        values = [getattr(self, field.name) for field in fields(self)]
        # A millionth more than 1 is rounding, as in 0.1 + 0.2 + 0.7.
        if any(not 0 <= value <= 1 for value in values) or sum(self.structures()) > 1 + 1e-6:
            raise EpisodeError(
                f"Probabilities of synthetic tasks lie between 0 and 1, and {', '.join(STRUCTURES[:-1])} and "
                f"{STRUCTURES[-1]} sum to 1 at most; got {self}."
            )

    def structures(self) -> tuple[float, ...]:
        """The probabilities of STRUCTURES, in that order."""
        return tuple(float(getattr(self, name)) for name in STRUCTURES)


@dataclass(frozen=True)
class Orientation:
    """Axes in a new order, then some of them reversed: one of the 48 ways in which a cube can lie."""

    axes: tuple[int, int, int]
    flipped: tuple[int, ...]

    def apply(self, array: Tensor) -> Tensor:
        """[...,D,H,W] turned; a new tensor where anything moves."""
        moved = array.permute(*range(array.ndim - 3), *(array.ndim - 3 + axis for axis in self.axes))
        return moved.flip([array.ndim - 3 + axis for axis in self.flipped]).contiguous()


def draw_orientation(rng: np.random.Generator) -> Orientation:
    """One of the 48, each as likely."""
    z, y, x = (int(axis) for axis in rng.permutation(3))
    return Orientation((z, y, x), tuple(axis for axis in range(3) if rng.random() < 0.5))


@dataclass(frozen=True)
class Draw:
    """What is made of one episode. structure: "" or one of STRUCTURES; curve: knots of the grey-value curve."""

    structure: str = ""
    curve: np.ndarray | None = None
    tones: MadeTones | None = None
    orientation: Orientation | None = None

    @property
    def is_made(self) -> bool:
        return bool(self.structure) or any(
            each is not None for each in (self.curve, self.tones, self.orientation)
        )

    def apply(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Image [1,D,H,W] and masks [K,D,H,W] recoloured and turned, where that was drawn."""
        image = with_curve(self.curve, image)
        if self.orientation is None:
            return image, masks
        return self.orientation.apply(image), self.orientation.apply(masks)


def draw_tasks(rng: np.random.Generator, tasks: SyntheticTasks) -> Draw:
    """Draw what is made of the next episode."""
    kind = int(np.searchsorted(np.cumsum(tasks.structures()), rng.random(), side="right"))
    curve = draw_curve(rng) if rng.random() < tasks.recolour else None
    orientation = draw_orientation(rng) if rng.random() < tasks.turn else None
    structure = (*STRUCTURES, "")[kind]
    # Last, and only where it may be: what is drawn without tones is what was drawn before there were any.
    if tasks.tones and rng.random() < tasks.tones and structure in ANNOTATED:
        return Draw(structure, None, draw_made_tones(rng), orientation)
    return Draw(structure, curve, None, orientation)


def draw_curve(rng: np.random.Generator) -> np.ndarray:
    """Values of a piecewise linear curve at `KNOTS` even steps over `CURVE_RANGE`: mean 0, spread 1, any order."""
    values = rng.normal(size=KNOTS)
    return (values - values.mean()) / max(float(values.std()), 1e-6)


def recolour(image: Tensor, curve: np.ndarray) -> Tensor:
    """The curve applied voxel by voxel to z-scored grey values, as a new tensor of the same shape."""
    knots = np.linspace(*CURVE_RANGE, KNOTS)
    return torch.from_numpy(np.interp(image.numpy(), knots, curve).astype(np.float32))


def unite(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Which of `count` classes make up each class of the task: two or more of them one, the rest as they were."""
    size = int(rng.integers(2, count + 1))
    joined = sorted(int(k) for k in rng.permutation(count)[:size])
    return [joined, *([k] for k in range(count) if k not in joined)]


@dataclass(frozen=True)
class Cut:
    """A plane across a class's bounding box: voxels from `share` of the box on along `axis` are its second part."""

    value: int
    second: int
    axis: int
    share: float

    def apply(self, labels: np.ndarray, begin: Sequence[int], entry: CaseEntry, name: str) -> np.ndarray:
        """Labels [D,H,W] of the region that begins at voxel `begin` of the case, with the second half renamed."""
        low, high = entry.classes[name].bbox[self.axis]
        first = round(low + self.share * (high - low)) - begin[self.axis]
        beyond = [slice(None)] * 3
        beyond[self.axis] = slice(max(0, first), None)
        result = labels.copy()
        part = result[tuple(beyond)]
        part[part == self.value] = self.second
        return result


def free_value(used: Iterable[int]) -> int | None:
    """The smallest label value of 1..255 that no class has, for a class of our own; None where all are taken.

    >>> free_value([1, 3, 255]), free_value(range(256))
    (2, None)
    """
    return min(set(range(1, 256)) - set(used), default=None)


def draw_cut(rng: np.random.Generator, value: int, second: int) -> Cut:
    """A plane somewhere in the middle half of the box, across any axis."""
    return Cut(value, second, int(rng.integers(3)), float(rng.uniform(0.25, 0.75)))


def region_box(rng: np.random.Generator, shape: Shape, patch: Shape) -> Box:
    """A random box of `REGION` crops inside a volume, as much of it as there is: where two views of a scan lie."""
    box = []
    for length, edge in zip(shape, patch, strict=True):
        size = min(length, round(REGION * edge))
        first = int(rng.integers(length - size + 1))
        box.append((first, first + size))
    return box[0], box[1], box[2]


def cells(rng: np.random.Generator, image: np.ndarray, count: int = CELLS) -> np.ndarray:
    """Supervoxels of a z-scored image [D,H,W]: each voxel's nearest of `count` random seeds in place and grey value.

    The first step of SLIC (Achanta et al., 2012), on every other voxel, which is an eighth of the work. Returns labels
    1..count as uint8.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), SMOOTHING_VOXELS)[::2, ::2, ::2]
    seeds = rng.choice(smooth.size, size=min(count, smooth.size), replace=False)
    pitch = (smooth.size / len(seeds)) ** (1 / 3)
    places = np.indices(smooth.shape, dtype=np.float32).reshape(3, -1) / pitch
    points = np.concatenate([places, smooth.reshape(1, -1) / GREY_WEIGHT]).T
    labels = (cKDTree(points[seeds]).query(points)[1] + 1).astype(np.uint8).reshape(smooth.shape)
    for axis, length in enumerate(image.shape):
        labels = labels.repeat(2, axis=axis).take(np.arange(length), axis=axis)
    return labels


def frequent(labels: Tensor, share: float = LEAST_CELL_SHARE) -> list[int]:
    """Values above 0 that fill at least `share` of the crop, the largest first."""
    counts = torch.bincount(labels.flatten().long())
    counts[0] = 0
    order = torch.argsort(counts, descending=True, stable=True)
    return [int(value) for value in order if counts[value] >= share * labels.numel()]


def with_curve(curve: np.ndarray | None, image: Tensor) -> Tensor:
    """The image recoloured, or itself where there is no curve."""
    return image if curve is None else recolour(image, curve)


def draw_bands(
    rng: np.random.Generator, reference: Tensor, query: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Masks [K,D,H,W] of the same intervals of grey values in two images [1,D,H,W]; K is 1..count, 0 where none fits.

    Both are smoothed first, so that a mask is a region and not a spray. Half of the bands are cut at their own middle
    along a random axis, and the half on one side is the class: the left one of two dark places.
    """
    smooth = [ndimage.gaussian_filter(each[0].numpy(), BAND_SMOOTHING_VOXELS) for each in (reference, query)]
    shown, wanted = [], []
    for _ in range(BAND_ATTEMPTS * count):
        value = float(rng.choice(smooth[0].ravel()))
        width = rng.uniform(*BAND_WIDTH)
        cut = (int(rng.integers(3)), bool(rng.random() < 0.5)) if rng.random() < 0.5 else None
        first, second = (_band(each, value, width, cut) for each in smooth)
        if BAND_SHARES[0] <= first.mean() <= BAND_SHARES[1]:
            shown.append(first)
            wanted.append(second)
        if len(shown) == count:
            break
    empty = np.zeros((0, *smooth[0].shape), dtype=bool)
    masks = [np.stack(each) if each else empty for each in (shown, wanted)]
    return torch.from_numpy(masks[0]).float(), torch.from_numpy(masks[1]).float()


def _band(image: np.ndarray, value: float, width: float, cut: tuple[int, bool] | None) -> np.ndarray:
    """Where a smoothed image [D,H,W] is within `width` of `value`; cut (axis, upper side): that half of it only."""
    mask = np.abs(image - value) < width
    if cut is None or not mask.any():
        return mask
    axis, upper = cut
    along = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    middle = float((along * np.arange(len(along))).sum() / along.sum())
    side = np.arange(len(along)) > middle
    return mask & np.expand_dims(side if upper else ~side, [other for other in range(3) if other != axis])
