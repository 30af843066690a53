"""`preprocess_case`: the one function that prepares a scan, for the store and for prediction.

Arrays are [D,H,W] = (z,y,x) in RAS+; spacings in mm in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.errors import GridMismatchError, LabelValueError
from preprocessing.geometry import GridTrace, Reorientation, Resampling
from preprocessing.normalise import Normalisation, normalise
from preprocessing.volume import Volume

SAME_GRID_VOXELS = 0.5


@dataclass(frozen=True)
class PreparedCase:
    """image float32, labels uint8 or None, both [D,H,W]; `trace` leads back to the file's grid."""

    image: np.ndarray
    labels: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    trace: GridTrace
    affine: np.ndarray


def check_same_grid(image: Volume, labels: Volume) -> str | None:
    """None where both grids are equal, a phrase where a tiny difference is repaired by the image's geometry.

    GridMismatchError for other shapes or where a corner lies more than half a voxel elsewhere.
    """
    if image.shape != labels.shape:
        raise GridMismatchError(
            f"Image and label must have the same grid, but the image has {image.shape} and the label {labels.shape} voxels "
            "(z,y,x): export the label on the image's grid."
        )
    x, y, z = image.shape[2] - 1, image.shape[1] - 1, image.shape[0] - 1
    corners = np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=float)
    apart = float(np.linalg.norm((corners @ (image.affine - labels.affine).T)[:, :3], axis=1).max())
    if apart > SAME_GRID_VOXELS * min(image.spacing_mm):
        raise GridMismatchError(
            f"Image and label must have the same grid, but a corner lies {apart:.1f} mm elsewhere in the label: export the "
            "label on the image's grid."
        )
    return (
        None if apart < 1e-4 else f"label header differs by {apart:.2g} mm at a corner; the image's is used"
    )


def preprocess_case(
    image: Volume,
    spacing_mm: tuple[float, float, float],
    normalisation: Normalisation,
    labels: Volume | None = None,
    intensity_offset: float = 0.0,
) -> PreparedCase:
    """Offset, reorient to RAS+, normalise the native voxels, resample to `spacing_mm` (mm, z,y,x).

    Raises GridMismatchError, LabelValueError (values above 255) and RawDataError (NaN).
    """
    reorientation = Reorientation.to_ras(image.affine)
    affine = reorientation.apply_affine(image.affine, image.shape)
    grid = Volume(reorientation.apply(image.array), affine)
    resampling = Resampling.to_spacing(grid.shape, grid.spacing_mm, spacing_mm)
    prepared_labels = None
    if labels is not None:
        check_same_grid(image, labels)
        if labels.array.max(initial=0) > 255 or labels.array.min(initial=0) < 0:
            raise LabelValueError("Label values must lie in 0..255, but others came: renumber them.")
        prepared_labels = resampling.apply_labels(reorientation.apply(labels.array.astype(np.uint8)))
    values = normalise(grid.array + np.float32(intensity_offset), normalisation)
    return PreparedCase(
        image=resampling.apply_image(values),
        labels=prepared_labels,
        spacing_mm=resampling.out_spacing(grid.spacing_mm),
        trace=GridTrace(reorientation, resampling, image.shape, image.affine),
        affine=resampling.apply_affine(affine),
    )
