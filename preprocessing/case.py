"""`preprocess_case`: the one function that prepares a scan, for the store and for prediction alike.

Arrays are [D,H,W] = (z,y,x), prepared ones in RAS+; spacings in mm in the same order. Affines map (x,y,z,1) to mm.

>>> scan = Volume(np.arange(8.0).reshape(2, 2, 2), np.diag([-0.5, 1.0, 1.0, 1.0]))  # a file in LAS+
>>> case = preprocess_case(scan, (1.0, 1.0, 1.0), Normalisation(modality="MR"))
>>> case.image.shape, case.trace.native_shape, case.spacing_mm
((2, 2, 1), (2, 2, 2), (1.0, 1.0, 1.0))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from preprocessing.errors import GridMismatchError, LabelValueError
from preprocessing.geometry import GridTrace, Resampling
from preprocessing.normalise import Normalisation, normalise
from preprocessing.orientation import RAS, Pose, Reorientation
from preprocessing.volume import CORNER_VOXELS, Volume, corner_shift

EQUAL_MM = 1e-3  # headers hold float32: what is nearer than this is the same
HIGHEST_LABEL = 255


@dataclass(frozen=True)
class PreparedCase:
    """image float32, labels uint8 or None, both [D,H,W]; `trace` leads back to the file's own grid.

    They and `spacing_mm` lie in the pose that was asked for, RAS+ unless another one was.
    """

    image: np.ndarray
    labels: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    trace: GridTrace
    affine: np.ndarray


def check_same_grid(image: Volume, labels: Volume) -> str | None:
    """None where both grids are equal; a phrase where a small difference is mended by the image's geometry.

    GridMismatchError where shapes differ or a corner lies more than half a voxel elsewhere.
    """
    if image.shape != labels.shape:
        raise GridMismatchError(
            f"Image and label must have the same grid, but the image has {_times(image.shape)} voxels and the "
            f"label {_times(labels.shape)} (z,y,x): export the label on the image's grid."
        )
    voxels, millimetres = corner_shift(image.shape, image.affine, labels.affine)
    if voxels > CORNER_VOXELS:
        raise GridMismatchError(
            f"Image and label must have the same grid, but a corner of the label lies {voxels:.1f} voxels "
            f"({millimetres:.1f} mm) from the image's{_other_axes(image, labels)}: export the label on the image's "
            "grid."
        )
    if millimetres <= EQUAL_MM:
        return None
    return f"the label's corners lie up to {millimetres:.2g} mm from the image's, whose geometry is used"


def in_axes_of(volume: Volume, other: Volume) -> Volume:
    """A volume with its axes in the order and the directions of another's: the same voxels, nothing is resampled."""
    here, there = (Reorientation.to_ras(each.affine) for each in (volume, other))
    if here == there:
        return volume
    array = there.undo(here.apply(volume.array))
    upright = here.apply_affine(volume.affine, volume.shape)
    return Volume(array, upright @ np.linalg.inv(there.apply_affine(np.eye(4), array.shape)))


def in_axes_of_image(image: Volume, labels: Volume) -> Volume:
    """A label map in the image's axes, where these alone tell the two grids apart, with a repair that says so.

    ITK and dcm2niix write one scan with other axes. As it is, where the grids are equal, or differ in more than that.
    Turned only where it has to be: axes half way between two of the body's would come out now so, now so.
    """
    if _is_same_grid(image, labels):
        return labels
    turned = in_axes_of(labels, image)
    if not _is_same_grid(image, turned):
        return labels
    told = f"the label's axes are turned to the image's{_other_axes(image, labels)}"
    return replace(turned, repairs=(*labels.repairs, told), doubts=labels.doubts, segments=labels.segments)


def on_grid_of_image(image: Volume, labels: Volume) -> Volume:
    """A label map on the image's grid, as far as it is the same lattice, with a repair that says what was done.

    Axes are turned as by `in_axes_of_image`. A label map that may cover a part of the image only (`Volume.partial`) is
    laid on its whole grid, zeros elsewhere: voxel by voxel, nothing is resampled. Where its lattice is another one, or
    a labelled voxel lies outside the image, it is left as it is, so that `check_same_grid` refuses it.
    """
    labels = in_axes_of_image(image, labels)
    if not labels.partial:
        return labels
    if _is_same_grid(image, labels):
        return replace(labels, segments=None)
    if labels.array.any():
        laid = _laid(image, labels)
        if laid is None:
            return labels
        told = (
            f"the segmentation covers {_times(labels.shape)} voxels (z,y,x) and is laid on the image's grid"
            f"{_other_axes(image, labels)}"
        )
    else:  # 3D Slicer writes one voxel, which may lie anywhere
        laid = Volume(np.zeros(image.shape, labels.array.dtype), image.affine)
        told = "the segmentation is empty"
    return replace(laid, repairs=(*labels.repairs, told), doubts=labels.doubts)


def whole_where_partial(labels: Volume, grid: Volume) -> Volume:
    """A label map that may cover a part of its scan only, on a grid of the whole; any other as it is."""
    return on_grid_of_image(grid, labels) if labels.partial else labels


def _laid(image: Volume, labels: Volume) -> Volume | None:
    """A part of the image's lattice as the whole; None where it is none. Its affine stays the label map's, extended."""
    step = np.linalg.inv(image.affine) @ labels.affine  # index (x,y,z,1) of the label map -> of the image
    turn = np.rint(step[:3, :3])
    if not all((np.abs(turn).sum(axis=axis) == 1).all() for axis in (0, 1)):
        return None
    whole = np.eye(4)
    whole[:3, :3] = turn
    whole[:3, 3] = np.rint(step[:3, 3])
    affine = labels.affine @ np.linalg.inv(whole)
    if corner_shift(image.shape, image.affine, affine)[0] > CORNER_VOXELS:
        return None
    axes = [2 - int(np.abs(turn[2 - axis]).argmax()) for axis in range(3)]
    flipped = tuple(axis for axis in range(3) if turn[2 - axis].sum() < 0)
    last = turn @ (np.array(labels.shape[::-1]) - 1)
    ends = np.array([whole[:3, 3], whole[:3, 3] + last])
    start = ends.min(axis=0).astype(int)[::-1]
    array = _pasted(np.flip(labels.array.transpose(axes), flipped), start, image.shape)
    return None if array is None else Volume(array, affine)


def _pasted(part: np.ndarray, start: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray | None:
    """An array whose first voxel is at `start` (z,y,x) of one of zeros; None where it is labelled outside of that."""
    here, there = [], []
    for axis, (first, size) in enumerate(zip(start.tolist(), shape, strict=True)):
        labelled = np.flatnonzero(part.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = int(labelled[0]), int(labelled[-1]) + 1
        if first + low < 0 or first + high > size:
            return None
        here.append(slice(low, high))
        there.append(slice(first + low, first + high))
    array = np.zeros(shape, part.dtype)
    array[tuple(there)] = part[tuple(here)]
    return array


def _is_same_grid(image: Volume, labels: Volume) -> bool:
    try:
        check_same_grid(image, labels)
    except GridMismatchError:
        return False
    return True


def preprocess_case(
    image: Volume,
    spacing_mm: tuple[float, float, float],
    normalisation: Normalisation,
    labels: Volume | None = None,
    intensity_offset: float = 0.0,
    pose: Pose = RAS,
) -> PreparedCase:
    """Add the offset, reorient to RAS+, normalise the native voxels, resample to `spacing_mm` (z,y,x; mm), and give the
    result its tones, where the normalisation has any.

    pose: of the result, instead of RAS+; `spacing_mm` is in the order of its axes.
    The prepared spacing is the nearest to the wanted one that keeps the field of view. Raises
    GridMismatchError, LabelValueError (fractions, or values outside 0..255) and RawDataError (NaN, infinity).
    """
    reorientation = pose.orient(image.affine)
    upright = Volume(reorientation.apply(image.array), reorientation.apply_affine(image.affine, image.shape))
    resampling = Resampling.to_spacing(upright.shape, upright.spacing_mm, spacing_mm)
    prepared_labels = None
    if labels is not None:
        labels = on_grid_of_image(image, labels)
        check_same_grid(image, labels)
        prepared_labels = resampling.apply_labels(reorientation.apply(_small(labels.array)))
    shifted = upright.array + np.float32(intensity_offset) if intensity_offset else upright.array
    prepared = resampling.apply_image(normalise(shifted, normalisation))
    return PreparedCase(
        image=prepared if normalisation.tones is None else normalisation.tones(prepared),
        labels=prepared_labels,
        spacing_mm=resampling.out_spacing(upright.spacing_mm),
        trace=GridTrace(reorientation, resampling, image.shape, image.affine),
        affine=resampling.apply_affine(upright.affine),
    )


def _small(labels: np.ndarray) -> np.ndarray:
    """As uint8."""
    if labels.dtype.kind not in "biu":
        raise LabelValueError(
            f"Label maps must hold whole numbers, but {labels.dtype} came: read them as labels."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > HIGHEST_LABEL:
        raise LabelValueError(
            f"Labels must lie in 0..{HIGHEST_LABEL}, but {low}..{high} came: renumber them."
        )
    return labels.astype(np.uint8)


def _other_axes(image: Volume, labels: Volume) -> str:
    """Told where the axes themselves run otherwise, since no small shift is then to blame."""
    theirs, ours = (",".join(nib.aff2axcodes(volume.affine)) for volume in (labels, image))
    return f" (its axes run {theirs}, the image's {ours})" if theirs != ours else ""


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
