"""Where a patch is cut from a stored case: the geometry of crops round classes, and the reading of them.

Arrays are [D,H,W] = (z,y,x) in RAS+ orientation; every box, shape, start and patch_size has the same order.
Boxes are half-open. A patch stays inside its volume wherever the volume is large enough, as the windows of
prediction do; along an axis where it is not, the volume lies in the patch's middle, padded with its minimum
(labels: 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.sampling.augment import Augmentation, apply_intensity, sample_patch, source_box
from preprocessing.errors import EpisodeError
from preprocessing.grid_types import Box, Shape
from preprocessing.store import CaseEntry, Store

STEPS = 16
"""a patch's edge is a multiple of it"""
Relabel = Callable[[np.ndarray, Shape], np.ndarray]


@dataclass(frozen=True)
class Crop:
    """A cut and augmented patch: image [1,D,H,W], labels [D,H,W] with all of the dataset's classes."""

    entry: CaseEntry
    image: Tensor
    labels: Tensor

    def voxels(self, value: int) -> int:
        return int(torch.count_nonzero(self.labels == value))


@dataclass(frozen=True)
class DensestPatch:
    """The patch of a case that holds the most voxels of a class: how many, and its first voxel."""

    voxels: int
    start: Shape


class CasePool:
    """The cases of one dataset and part, and which classes they show. Reads patches, draws nothing."""

    def __init__(self, name: str, store: Store, split: str, part: str) -> None:
        splits = store.manifest.splits
        if split not in splits or part not in splits[split]:
            raise EpisodeError(
                f"Split '{split}', part '{part}' is not in dataset '{name}': its splits are "
                f"{', '.join(sorted(splits))}, their parts {', '.join(next(iter(splits.values()), {}))}."
            )
        self.name, self.store = name, store
        self.patch_size: Shape = store.plan.patch_size
        self.classes = dict(sorted(store.manifest.classes.items(), key=lambda item: item[1]))
        self.knows_absence = not store.manifest.spec.partly_labelled
        """a class without a voxel in a case is not there; else it may be, and nobody contoured it"""
        self.cases = [store.entry(case_id) for case_id in splits[split][part]]
        self.showing = {c: [e for e in self.cases if voxels_of(e, c) > 0] for c in self.classes}
        self._minimum: dict[str, float] = {}
        self.densest: dict[tuple[str, str], DensestPatch] = {}
        """a memo of `densest_patch`, by case and class"""

    def anchors(self) -> list[str]:
        """Classes that at least two subjects show: they can be both shown and found."""
        return [c for c, entries in self.showing.items() if len({e.subject for e in entries}) > 1]

    def crop(
        self, entry: CaseEntry, start: Shape, params: Augmentation, relabel: Relabel | None = None
    ) -> Crop:
        """Read only the box that the augmented patch needs, then cut the patch from it.

        relabel: (labels of a box, the box's first voxel) -> other labels, before the patch is turned and scaled.
        """
        box, outside = source_box(params, start, self.patch_size, entry.shape)
        fill = self._fill(entry.id) if outside else 0.0
        image, labels = self.store.image(entry.id, box), self.store.labels(entry.id, box)
        if relabel is not None:
            labels = relabel(labels, (box[0][0], box[1][0], box[2][0]))
        inner = (start[0] - box[0][0], start[1] - box[1][0], start[2] - box[2][0])
        cut, mask = sample_patch(params, image, labels, inner, self.patch_size, fill)
        return Crop(entry, apply_intensity(params, cut), mask)

    def _fill(self, case_id: str) -> float:
        # Padding is the minimum of the whole volume, as in prediction. A memo of a pure function, no state.
        if case_id not in self._minimum:
            self._minimum[case_id] = float(self.store.image(case_id).min())
        return self._minimum[case_id]


def voxels_of(entry: CaseEntry, name: str) -> int:
    """Voxels of a class in a case, 0 where its manifest does not list the class."""
    found = entry.classes.get(name)
    return 0 if found is None else found.voxels


def bounds(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of a box and the one after its last."""
    return np.array([a for a, _ in box]), np.array([b for _, b in box])


def inside(begin: np.ndarray, size: np.ndarray, shape: np.ndarray) -> Shape:
    """The nearest start that keeps the patch inside the volume, or centres a smaller volume in it."""
    room = shape - size
    start = np.where(room >= 0, np.clip(np.rint(begin), 0, np.maximum(room, 0)), room // 2)
    z, y, x = start.astype(int).tolist()
    return (z, y, x)


def joint_box(
    rng: np.random.Generator, pool: CasePool, entry: CaseEntry, anchor: str, asked: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The anchor's bounding box, grown class by class in random order while it still fits the patch."""
    low, high = bounds(entry.classes[anchor].bbox)
    for k in rng.permutation(len(asked)):
        other_low, other_high = bounds(entry.classes[asked[k]].bbox)
        joint_low, joint_high = np.minimum(low, other_low), np.maximum(high, other_high)
        if np.all(joint_high - joint_low <= pool.patch_size):
            low, high = joint_low, joint_high
    return low, high


def centred_start(
    rng: np.random.Generator,
    pool: CasePool,
    entry: CaseEntry,
    anchor: str,
    box: tuple[np.ndarray, np.ndarray],
    jitter: float,
) -> Shape:
    """Centred on the box with jitter that keeps it inside; on a voxel of the anchor where it does not fit."""
    size = np.asarray(pool.patch_size)
    slack = (size - (box[1] - box[0])) / 2
    centre = (box[0] + box[1]) / 2
    reach = np.where(slack >= 0, np.minimum(slack, jitter * size), jitter * size)
    if np.any(slack < 0):
        voxel = voxel_of_class(rng, pool, entry, anchor)
        centre = np.where(slack >= 0, centre, voxel + 0.5)
    offset = rng.uniform(-1.0, 1.0, 3) * reach
    return inside(centre + offset - size / 2, size, np.asarray(entry.shape))


def roaming_start(
    rng: np.random.Generator, pool: CasePool, entry: CaseEntry, name: str | None, jitter: float
) -> Shape:
    """Anywhere from "the class touches one side of the patch" to "the other", and `jitter` beyond.

    Where the class is larger than the patch, the patch roams inside it. Without a name: anywhere in the
    volume.
    """
    size, shape = np.asarray(pool.patch_size), np.asarray(entry.shape)
    if name is None:
        return inside(rng.random(3) * np.maximum(shape - size + 1, 1) - 0.5, size, shape)
    low, high = bounds(entry.classes[name].bbox)
    begin = low + rng.random(3) * (high - size - low) + rng.uniform(-jitter, jitter, 3) * size
    return inside(begin, size, shape)


def voxel_of_class(rng: np.random.Generator, pool: CasePool, entry: CaseEntry, name: str) -> np.ndarray:
    """A random voxel of a class, read slice by slice so that a large box need not be read whole."""
    (z0, z1), rows, columns = entry.classes[name].bbox
    for z in rng.permutation(np.arange(z0, z1)):
        plane = pool.store.labels(entry.id, ((int(z), int(z) + 1), rows, columns))[0]
        y, x = np.nonzero(plane == pool.classes[name])
        if len(y):
            pick = int(rng.integers(len(y)))
            return np.array([int(z), rows[0] + int(y[pick]), columns[0] + int(x[pick])])
    raise EpisodeError(
        f"Class '{name}' must have voxels in case '{entry.id}' of dataset '{pool.name}' as its manifest "
        "says, but none was found: run iris_plan_and_preprocess again."
    )


def fits_patch(pool: CasePool, entry: CaseEntry, name: str) -> bool:
    """Whether a patch can hold the whole class."""
    low, high = bounds(entry.classes[name].bbox)
    return bool(np.all(high - low <= pool.patch_size))


def densest_patch(pool: CasePool, entry: CaseEntry, name: str) -> DensestPatch:
    """Where a patch holds the most voxels of a class; reads the class's whole box once and remembers.

    Windows are tried in steps of a sixteenth of the patch's edge, so that a class that fills a whole scan is counted in
    a fraction of a second; the true best holds some voxels more at most.
    """
    key = (entry.id, name)
    if key not in pool.densest:
        pool.densest[key] = _find_densest(pool, entry, name)
    return pool.densest[key]


def _find_densest(pool: CasePool, entry: CaseEntry, name: str) -> DensestPatch:
    box = entry.classes[name].bbox
    low, high = bounds(box)
    size = np.asarray(pool.patch_size)
    steps = np.maximum(1, size // STEPS)
    counts = pool.store.labels(entry.id, box) == pool.classes[name]
    for axis in (2, 1, 0):  # the last axis first: it is the fast one
        cells = np.arange(0, counts.shape[axis], steps[axis])
        counts = np.add.reduceat(counts, cells, axis=axis, dtype=np.int64)
    for axis in range(3):
        counts = _window_sums(counts, int(size[axis] // steps[axis]), axis)
    best = np.unravel_index(int(np.argmax(counts)), counts.shape)
    begin = np.where(high - low <= size, (low + high - size) / 2, low + np.array(best) * steps)
    return DensestPatch(int(counts[best]), inside(begin, size, np.asarray(entry.shape)))


def _window_sums(counts: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Sums over every run of `width` along an axis; over all of it where it is shorter."""
    sums = np.insert(np.cumsum(counts, axis=axis), 0, 0, axis=axis)
    length = counts.shape[axis]
    first = np.arange(max(1, length - width + 1))
    return sums.take(np.minimum(first + width, length), axis=axis) - sums.take(first, axis=axis)
