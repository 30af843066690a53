"""How far two surfaces lie apart: NSD, HD95 and ASSD, in mm, from two masks on one anisotropic grid.

Masks are [D,H,W] = (z,y,x), as is `spacing_mm`. A surface is what Nikolov et al. (arXiv 1809.04430) make of it: where
the 2x2x2 neighbourhood of a voxel corner is neither empty nor full, a surface element lies at that corner, and its
area in mm^2 depends on which of the eight voxels are inside. Areas and the three formulas are those of the
library `surface-distance`, whose distances are taken over here in another way: over the box around both masks only,
and by a search tree over surface elements, since two surfaces have far fewer elements than their box has voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import surface_distance
from scipy import ndimage
from scipy.spatial import cKDTree
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from preprocessing.errors import EvaluationError

Spacing = tuple[float, float, float]
Distances = Mapping[str, np.ndarray]
"""The four arrays of surface_distance.compute_surface_distances: distances (mm, rising) and areas (mm^2)."""

FULL = 255  # the code of a neighbourhood with all eight voxels inside
HAUSDORFF_PERCENT = 95
TREE_SHARE = 0.2
"""With more surface elements than this share of the box a distance transform of the box is the faster way (measured:
benchmarks/evaluation_speed.py --ways); masks of real structures lie well below, salt and pepper above."""


@dataclass(frozen=True)
class SurfaceScores:
    """nsd: 0..1, the share of both surfaces within the tolerance of the other; hd95_mm: the larger of the two
    directed 95th percentiles; assd_mm: the mean distance over the elements of both surfaces, weighted by area."""

    nsd: float
    hd95_mm: float
    assd_mm: float


def surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Spacing, tolerance_mm: float, diagonal_mm: float
) -> SurfaceScores:
    """Scores of two masks [D,H,W], all but 0 (False) is inside; they may be cut to any box that holds both.

    Both empty: NaN. One empty: NSD 0, the distances are `diagonal_mm`, the diagonal of the whole image. EvaluationError
    unless both have one shape of three axes.
    """
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise EvaluationError(
            f"Masks are [D,H,W] of one shape; they have {prediction.shape} and {truth.shape}: give both on one grid."
        )
    z, y, x = (float(edge) for edge in spacing_mm)
    spacing_mm = (z, y, x)
    # The corners' codes are made of bits: a mask of 255 or of 2 would set others than one of 1.
    prediction, truth = prediction != 0, truth != 0
    present = prediction.any(), truth.any()
    if not any(present):
        return SurfaceScores(float("nan"), float("nan"), float("nan"))
    if not all(present):
        return SurfaceScores(0.0, diagonal_mm, diagonal_mm)
    found = surface_distances(prediction, truth, spacing_mm)
    lengths = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    return SurfaceScores(
        nsd=float(surface_distance.compute_surface_dice_at_tolerance(found, tolerance_mm)),
        hd95_mm=float(surface_distance.compute_robust_hausdorff(found, HAUSDORFF_PERCENT)),
        assd_mm=float((lengths * areas).sum() / areas.sum()),
    )


def surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Spacing) -> Distances:
    """From every surface element of each mask to the nearest of the other; neither mask may be empty."""
    box = union_box(prediction, truth)
    code_truth, code_prediction = neighbour_codes(truth[box]), neighbour_codes(prediction[box])
    on_truth, on_prediction = _is_surface(code_truth), _is_surface(code_prediction)
    areas = _areas(spacing_mm)
    elements = int(on_truth.sum()) + int(on_prediction.sum())
    measure = _by_tree if elements < TREE_SHARE * on_truth.size else _by_transform
    to_prediction, to_truth = measure(on_truth, on_prediction, spacing_mm)
    truth_order, prediction_order = np.argsort(to_prediction), np.argsort(to_truth)
    return {
        "distances_gt_to_pred": to_prediction[truth_order],
        "surfel_areas_gt": areas[code_truth[on_truth]][truth_order],
        "distances_pred_to_gt": to_truth[prediction_order],
        "surfel_areas_pred": areas[code_prediction[on_prediction]][prediction_order],
    }


def union_box(prediction: np.ndarray, truth: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds both masks, of which one at least has a voxel."""
    either = prediction | truth
    z = _extent(either.any(axis=(1, 2)))
    y = _extent(either[z].any(axis=(0, 2)))
    return z, y, _extent(either[z, y].any(axis=(0, 1)))


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """uint8 [D+1,H+1,W+1]: which of the eight voxels around each voxel corner are inside, outside the box none.

    The bits are those of surface_distance: 128 for the voxel before the corner on all axes, down to 1 behind it.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    d, h, w = (edge - 1 for edge in padded.shape)
    codes = np.zeros((d, h, w), np.uint8)
    for bit in range(8):
        z, y, x = bit >> 2 & 1, bit >> 1 & 1, bit & 1
        codes |= padded[z : z + d, y : y + h, x : x + w] << np.uint8(7 - bit)
    return codes


def _is_surface(codes: np.ndarray) -> np.ndarray:
    return (codes != 0) & (codes != FULL)


@lru_cache(maxsize=64)
def _areas(spacing_mm: Spacing) -> np.ndarray:
    return create_table_neighbour_code_to_surface_area(spacing_mm)


def _by_tree(truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the marked corners, (truth's to prediction, prediction's to truth); exact, as `_by_transform`."""
    points = [np.argwhere(marked) * np.asarray(spacing_mm) for marked in (truth, prediction)]
    alone = [
        ~prediction[truth],
        ~truth[prediction],
    ]  # a corner that both surfaces have lies 0 mm from the other
    found = []
    for own, other in ((0, 1), (1, 0)):
        distances = np.zeros(len(points[own]))
        if alone[own].any():
            tree = cKDTree(points[other], balanced_tree=False, compact_nodes=False)
            distances[alone[own]] = tree.query(points[own][alone[own]])[0]
        found.append(distances)
    return found[0], found[1]


def _by_transform(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    to_prediction = ndimage.distance_transform_edt(~prediction, sampling=spacing_mm)[truth]
    to_truth = ndimage.distance_transform_edt(~truth, sampling=spacing_mm)[prediction]
    return to_prediction, to_truth


def _extent(inside: np.ndarray) -> slice:
    places = np.flatnonzero(inside)
    return slice(int(places[0]), int(places[-1]) + 1)
