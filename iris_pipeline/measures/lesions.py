"""Tumours and other lesions counted one by one: how many were found, and how many marks are real.

Masks are [D,H,W]. A lesion is a connected component (26 neighbours). A lesion of the truth is found where more than
LESION_OVERLAP of its voxels are marked; a marked component is confirmed where more than LESION_OVERLAP of it lies in
the truth. Both are counted on their own side, so that one mark over two lesions, or two marks in one, is judged the
same way round. F1 = 2 P R / (P + R) with R = found / lesions and P = confirmed / marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LESION_OVERLAP = 0.1
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class LesionCounts:
    """Components of the truth and of the prediction, and how many of each meet the other."""

    lesions: int
    found: int
    marked: int
    confirmed: int

    @property
    def f1(self) -> float:
        """0..1; NaN where neither mask has a lesion, 0 where only one has."""
        if not self.lesions and not self.marked:
            return float("nan")
        if not self.found or not self.confirmed:
            return 0.0
        recall, precision = self.found / self.lesions, self.confirmed / self.marked
        return 2 * precision * recall / (precision + recall)


def count_lesions(prediction: np.ndarray, truth: np.ndarray) -> LesionCounts:
    """Counts of two masks [D,H,W] of one shape; all but 0 (False) is inside."""
    prediction, truth = prediction != 0, truth != 0
    lesions, found = _met(truth, prediction)
    marked, confirmed = _met(prediction, truth)
    return LesionCounts(lesions, found, marked, confirmed)


def _met(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Components of `mask`, and how many of them lie in `other` with more than LESION_OVERLAP of their voxels."""
    parts, number = ndimage.label(mask, structure=_NEIGHBOURS)
    sizes = np.bincount(parts[mask], minlength=number + 1)[1:]
    inside = np.bincount(parts[mask & other], minlength=number + 1)[1:]
    return number, int((inside > LESION_OVERLAP * sizes).sum())
