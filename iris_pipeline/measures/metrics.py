"""Overlap of a mask with its truth: numbers from two arrays, no files and no tables.

Masks and label maps are arrays of any one shape, here [D,H,W] = (z,y,x). A structure that neither truth nor
prediction has scores NaN (there is nothing to score), one that only one of them has scores 0; tables say how
often each happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from preprocessing.errors import EvaluationError

MAX_VALUE = 255


@dataclass(frozen=True)
class Overlap:
    """Voxels of one class: in the truth, in the prediction, in both."""

    truth: int
    predicted: int
    both: int

    @property
    def dice(self) -> float:
        """2 |P and T| / (|P| + |T|), 0..1; NaN where the class is in neither."""
        total = self.truth + self.predicted
        return 2 * self.both / total if total else float("nan")

    @property
    def iou(self) -> float:
        """|P and T| / |P or T|, 0..1; NaN where the class is in neither."""
        either = self.truth + self.predicted - self.both
        return self.both / either if either else float("nan")


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks of one shape; all but 0 (False) is inside. NaN if both are empty, 0 if one is.

    Raises EvaluationError if the shapes differ.
    """
    _same_shape(prediction, truth)
    inside, true = prediction != 0, truth != 0
    return Overlap(int(true.sum()), int(inside.sum()), int((inside & true).sum())).dice


def label_overlaps(
    prediction: np.ndarray, truth: np.ndarray, classes: Mapping[str, int]
) -> dict[str, Overlap]:
    """The overlap of every class of two label maps with values 0..255, in one pass for all.

    classes: name -> value, the same in both maps. Raises EvaluationError if the shapes differ or a value is
    outside or a fraction.
    """
    _same_shape(prediction, truth)
    for array, whose in ((prediction, "prediction"), (truth, "truth")):
        if array.size and not (array.min() >= 0 and array.max() <= MAX_VALUE):
            raise EvaluationError(
                f"Label maps hold values from 0 to {MAX_VALUE}; the {whose} has {array.min()} to "
                f"{array.max()}: renumber its classes."
            )
        if array.dtype.kind == "f" and (array != np.rint(array)).any():
            raise EvaluationError(
                f"Label maps hold whole numbers, but the {whose} holds fractions: give labels, as probabilities above "
                "0.5 are."
            )
    size = MAX_VALUE + 1
    anything = (truth != 0) | (prediction != 0)  # most voxels are background in both: they need no counting
    pairs = truth[anything].astype(np.intp) * size + prediction[anything].astype(np.intp)
    joint = np.bincount(pairs, minlength=size * size).reshape(size, size)
    in_truth, in_prediction = joint.sum(1), joint.sum(0)
    return {
        name: Overlap(int(in_truth[value]), int(in_prediction[value]), int(joint[value, value]))
        for name, value in classes.items()
    }


def _same_shape(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise EvaluationError(
            f"Prediction and truth must have one shape; they have {prediction.shape} and {truth.shape}: "
            "predict on the truth's own grid."
        )
