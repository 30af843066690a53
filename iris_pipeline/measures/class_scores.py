"""All measures of every class of two label maps on one grid: overlap, surfaces, volume, lesions.

Label maps are [D,H,W] = (z,y,x). The empty-mask rule: a class that neither map has scores NaN
everywhere; one that only one of them has scores 0, and its distances are the diagonal of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from iris_pipeline.measures.lesions import count_lesions
from iris_pipeline.measures.metrics import Overlap
from iris_pipeline.measures.surfaces import surface_scores
from preprocessing.geometry import voxel_ml
from preprocessing.spec import DEFAULT_TOLERANCE_MM, DatasetSpec
from preprocessing.volume import Volume

MEASURES = (
    "iou",
    "nsd",
    "tolerance_mm",
    "hd95_mm",
    "assd_mm",
    "truth_ml",
    "volume_error_ml",
    "volume_error_percent",
    "lesion_f1",
    "lesions_truth",
    "lesions_found",
    "lesions_predicted",
    "lesions_confirmed",
)
"""Columns of the evaluation beside Dice. Volume errors are signed, prediction minus truth; the one in % is empty where
the truth has no voxel. Lesion columns are filled for the classes that the specification names under `lesions`."""


@dataclass(frozen=True)
class MeasureOptions:
    """How classes are measured. tolerances_mm: class -> mm, DEFAULT_TOLERANCE_MM for the others; lesions: classes."""

    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    lesions: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: DatasetSpec) -> MeasureOptions:
        """What a dataset's specification asks for."""
        return cls({name: spec.tolerance_of(name) for name in spec.classes}, spec.lesions)


def class_measures(
    prediction: np.ndarray,
    truth: Volume,
    overlaps: Mapping[str, Overlap],
    classes: Mapping[str, int],
    options: MeasureOptions,
) -> dict[str, dict[str, float]]:
    """Class -> {column of MEASURES: value}, for every class of `overlaps` (`metrics.label_overlaps`).

    prediction: [D,H,W] on the truth's grid. classes: name -> value, the same in both maps, which hold whole numbers.
    """
    spacing_mm, ml = truth.spacing_mm, voxel_ml(truth.affine)
    diagonal_mm = float(np.linalg.norm(np.array(truth.shape) * np.array(spacing_mm)))
    highest = max((classes[name] for name in overlaps), default=0)
    boxes = [ndimage.find_objects(array, max_label=highest) for array in (prediction, truth.array)]
    found: dict[str, dict[str, float]] = {}
    for name, overlap in overlaps.items():
        value = classes[name]
        box = _union(boxes[0][value - 1], boxes[1][value - 1])
        tolerance = options.tolerances_mm.get(name, DEFAULT_TOLERANCE_MM)
        found[name] = {"tolerance_mm": tolerance, "truth_ml": overlap.truth * ml}
        if box is None:
            continue
        marked, true = prediction[box] == value, truth.array[box] == value
        surfaces = surface_scores(marked, true, spacing_mm, tolerance, diagonal_mm)
        found[name] |= {
            "iou": overlap.iou,
            "nsd": surfaces.nsd,
            "hd95_mm": surfaces.hd95_mm,
            "assd_mm": surfaces.assd_mm,
            "volume_error_ml": (overlap.predicted - overlap.truth) * ml,
        }
        if overlap.truth:
            found[name]["volume_error_percent"] = 100 * (overlap.predicted - overlap.truth) / overlap.truth
        if name in options.lesions:
            lesions = count_lesions(marked, true)
            found[name] |= {
                "lesion_f1": lesions.f1,
                "lesions_truth": lesions.lesions,
                "lesions_found": lesions.found,
                "lesions_predicted": lesions.marked,
                "lesions_confirmed": lesions.confirmed,
            }
    return found


def _union(
    first: tuple[slice, ...] | None, second: tuple[slice, ...] | None
) -> tuple[slice, slice, slice] | None:
    """The box around two boxes, of which any may be missing."""
    given = [box for box in (first, second) if box is not None]
    if not given:
        return None
    z, y, x = (
        slice(min(box[axis].start for box in given), max(box[axis].stop for box in given))
        for axis in range(3)
    )
    return z, y, x
