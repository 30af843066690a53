"""A second look: a scan's grey values matched to the references' round what a first look found.

Arrays are [D,H,W] = (z,y,x), K classes. Grey values of MR and PET are in standard deviations of the whole scan, so that
they say as much about what else is in it: a scan that is cropped to the lungs has other ones than the reference with
its arms and its air, and so has one of another field of view. What lies in the box round an organ is much the same in
any scan that shows it, though. Its mean and spread, as the references have them, are part of the task; the scan is
segmented roughly, its grey values are brought to that mean and spread in the boxes of what was found, and it is
segmented roughly again. What the network is surer of is segmented in earnest: where a reference is the odd one, its
grey values are no help. A memory bank knows what its dataset's scans have there, and how far most of them are off: a
scan that is no farther off needs no second look. Nothing is learned, and the paper has nothing like it: this is ours
(LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.pool import Embedded
from iris_pipeline.inference.sliding_window import InferenceOptions, Segmenter
from iris_pipeline.inference.strategies import Prepare, PreparedReference, class_boxes
from iris_pipeline.tasks.pieces import keep_largest
from iris_pipeline.tasks.task import Deviation, Surroundings, TaskEmbedding
from preprocessing.geometry import label_counts
from preprocessing.normalise import spread_about

MARGIN = 4
"""voxels beyond a class on each side that still are its surroundings"""
LEAST_VOXELS = 20
"""of a class that is found, or its box says nothing"""
MOST_GAIN = 2.0
"""grey values are stretched or squeezed by no more than this"""
ROUGH_OVERLAP = 0.25
"""of the windows of both looks, at most: their seams do no harm"""
UNSURE = 0.5
"""how sure the network is of a class that the other look alone found: as little as can be"""


@dataclass(frozen=True)
class Matching:
    """What is done to a scan's grey values (in standard deviations): gain x value + shift."""

    gain: float = 1.0
    shift: float = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """float32 [D,H,W]; the same array where nothing is done."""
        return image if self == AS_IT_IS else image * np.float32(self.gain) + np.float32(self.shift)


AS_IT_IS = Matching()


def surroundings_of(reference: PreparedReference, names: Sequence[str]) -> tuple[Surroundings, ...]:
    """Mean and spread of the grey values in the box round each of these classes; spread 0 where it shows too little."""
    boxes = class_boxes(reference)
    return tuple(
        _in_box(reference.image, reference.labels, reference.classes[name], boxes.get(name)) for name in names
    )


def with_surroundings(pool: Sequence[Embedded], prepare: Prepare, looks: int = 2) -> list[Embedded]:
    """The pool with what its tasks need for a second look; as it is where one look is wanted.

    prepare: reads a reference once more, by id, at the tasks' grid.
    """
    if looks == 1:
        return list(pool)
    return [
        replace(
            each,
            task=replace(each.task, surroundings=surroundings_of(prepare(each.id), each.task.class_names)),
        )
        for each in pool
    ]


def look_twice(
    model: Segmenter,
    image: np.ndarray,
    task: TaskEmbedding,
    options: InferenceOptions,
    progress: bool = False,
) -> Matching:
    """How a prepared scan, float32 [D,H,W], is to be segmented: with its grey values matched to the task's references
    by what a first look finds, if the network is surer then; as it is otherwise, and where the task knows no
    surroundings.
    """
    if not task.surroundings:
        return AS_IT_IS
    labels, sure = _look(model, image, task, options, "First look" if progress else "")
    found = matching(image, labels, task)
    if found == AS_IT_IS:
        return found
    _, surer = _look(model, found(image), task, options, "Second look" if progress else "")
    names = sure.keys() | surer.keys()
    first, second = (sum(each.get(name, UNSURE) for name in names) for each in (sure, surer))
    return found if second > first else AS_IT_IS


def matching(image: np.ndarray, labels: np.ndarray, task: TaskEmbedding) -> Matching:
    """What gives a prepared scan the mean and spread that the task's references have round its classes, as far as a
    label map of it, uint8 [D,H,W], shows these. Nothing where they are as the task calls usual.
    """
    scan = PreparedReference("scan", image, labels, task.classes)
    found = surroundings_of(scan, task.class_names) if task.surroundings else ()
    both = compared(task.surroundings, found)
    if both is None or all(off <= most for off, most in zip(deviation(*both), task.usual, strict=True)):
        return AS_IT_IS
    (mean, spread), (own_mean, own_spread) = both
    gain = float(np.clip(spread / own_spread, 1 / MOST_GAIN, MOST_GAIN))
    return Matching(gain, mean - gain * own_mean)


def compared(
    known: Sequence[Surroundings], found: Sequence[Surroundings]
) -> tuple[Surroundings, Surroundings] | None:
    """What is known and what was found, each as a mean over the classes of which there is both; None if of none."""
    pairs = [pair for pair in zip(known, found, strict=False) if all(spread > 0 for _, spread in pair)]
    if not pairs:
        return None
    (mean, spread), (own_mean, own_spread) = np.mean(pairs, axis=0).tolist()
    return (mean, spread), (own_mean, own_spread)


def deviation(first: Surroundings, other: Surroundings) -> Deviation:
    """How far two are apart; both spreads above 0."""
    return abs(first[0] - other[0]), abs(math.log(first[1] / other[1]))


def _look(
    model: Segmenter, image: np.ndarray, task: TaskEmbedding, options: InferenceOptions, progress: str
) -> tuple[np.ndarray, dict[str, float]]:
    """A rough label map, and of each class in it the mean probability there."""
    highest = np.zeros(image.shape, np.float32)
    rough = replace(options, overlap=min(options.overlap, ROUGH_OVERLAP))
    labels = label_volume(model, image, task, rough, highest, progress)
    keep_largest(labels, task.one_piece().values())
    certainty = certainty_of(labels, highest, task.classes)
    return labels, {name: sure for name, sure in certainty.items() if not np.isnan(sure)}


def certainty_of(labels: np.ndarray, highest: np.ndarray, classes: Mapping[str, int]) -> dict[str, float]:
    """Mean of the highest probability [D,H,W] over the voxels of each class in a label map [D,H,W]; NaN without any."""
    voxels, sums = label_counts(labels), np.zeros(256)
    for plane, most in zip(labels, highest, strict=True):  # as `label_counts`, and for its reason
        sums += np.bincount(plane.ravel(), weights=most.ravel(), minlength=256)
    return {
        name: float(sums[value] / voxels[value]) if voxels[value] else float("nan")
        for name, value in classes.items()
    }


def _in_box(
    image: np.ndarray, labels: np.ndarray, value: int, box: Sequence[tuple[int, int]] | None
) -> Surroundings:
    """Mean and spread in a class's box and its margin."""
    if box is None or np.count_nonzero(labels[tuple(slice(*edge) for edge in box)] == value) < LEAST_VOXELS:
        return 0.0, 0.0
    wide = tuple(slice(max(0, low - MARGIN), high + MARGIN) for low, high in box)
    grey = image[wide]
    mean = float(grey.mean(dtype=np.float64))
    return mean, spread_about(grey, mean)
