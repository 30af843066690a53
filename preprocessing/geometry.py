"""Resample, crop and pad: each step is a value that applies itself and undoes itself.

Arrays are [D,H,W] = (z,y,x); how a file's axes become these stands in `orientation.py`.
Shapes, spacings (mm) and starts are (z,y,x). Affines map (x,y,z,1) to RAS+ mm. Resampling aligns fields of view:
the outer faces of the first and last voxel stay where they were, so voxel j of the new grid has its centre
at (j + 0.5) * n_in / n_out - 0.5 of the old one.

>>> Resampling.to_spacing((30, 256, 256), (7.7, 1.25, 1.25), (1.5, 1.5, 1.5)).shape_out
(154, 213, 213)
>>> CropPad((1, 1, 3), start=(0, 0, -1), shape_out=(1, 1, 3)).apply(np.array([[[7, 8, 9]]])).tolist()
[[[0, 7, 8]]]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline

from preprocessing.grid_types import Region, Shape, Triple
from preprocessing.orientation import Reorientation

Matrices = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]  # (z,y,x); None: axis as it is
TIE = 1e-5  # shares closer than this are equal: the lower label has the voxel, whatever the rounding
NOTHING = 1e-10  # a weight below it is far below the precision of float32


@dataclass(frozen=True)
class Resampling:
    """Between two grids over the same field of view, axis by axis, as small matrix products."""

    shape_in: Shape
    shape_out: Shape

    @staticmethod
    def to_spacing(shape: Shape, spacing_mm: Triple, target_mm: Triple) -> Resampling:
        """To the nearest whole number of voxels of the target spacing, at least one an axis."""
        d, h, w = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
        return Resampling((shape[0], shape[1], shape[2]), (d, h, w))

    @property
    def is_identity(self) -> bool:
        return self.shape_in == self.shape_out

    def out_spacing(self, spacing_mm: Triple) -> Triple:
        """The new grid's spacing (z,y,x) in mm: near the target, exact for whole voxels."""
        z, y, x = (s * i / o for s, i, o in zip(spacing_mm, self.shape_in, self.shape_out, strict=True))
        return z, y, x

    def apply_affine(self, affine: np.ndarray) -> np.ndarray:
        """The new grid's affine: voxels n_in / n_out times as large, the outer faces in place."""
        ratio = np.divide(self.shape_in, self.shape_out)[::-1]
        step = np.diag([*ratio, 1.0])
        step[:3, 3] = (ratio - 1) / 2
        return affine @ step

    def apply_image(self, array: np.ndarray, antialias: bool = True) -> np.ndarray:
        """Cubic B-spline -> float32 [shape_out], as SimpleITK's sitkBSpline gives on the same two grids.

        With `antialias`, axes that become coarser are smoothed first (see `smoothing_matrix`).
        """
        _expect(array, self.shape_in)
        z, y, x = (_image_matrix(i, o, antialias) for i, o in zip(self.shape_in, self.shape_out, strict=True))
        return along_axes(array, (z, y, x))

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels (whole numbers from 0) [shape_in] -> [shape_out], of the same type.

        Linear on each label's indicator; the largest share has the voxel, the lower label at a tie. One label
        at a time and only around it, so memory does not grow with their number. Where no axis becomes coarser
        every voxel of `labels` also leaves its label on the new voxel that holds its centre, so that thin
        parts are not lost and `undo_labels` gives back all of it.
        """
        _expect(labels, self.shape_in)
        z, y, x = (_linear_or_none(i, o) for i, o in zip(self.shape_in, self.shape_out, strict=True))
        result = _resample_labels(labels, (z, y, x))
        if self._is_lossless and not self.is_identity:
            result[self._centres()] = labels
        return result

    def undo_labels(self, labels: np.ndarray) -> np.ndarray:
        """[shape_out] -> [shape_in]: the inverse of `apply_labels` where no axis was made coarser, else its like."""
        _expect(labels, self.shape_out)
        if self._is_lossless:
            return labels[self._centres()]
        return _resample_labels(labels, self.undo_matrices())

    def undo_scores(self, scores: np.ndarray) -> np.ndarray:
        """Linear, [shape_out] -> float32 [shape_in]."""
        _expect(scores, self.shape_out)
        return along_axes(scores, self.undo_matrices())

    def undo_matrices(self) -> Matrices:
        """What `undo_scores` multiplies each axis by."""
        z, y, x = (_linear_or_none(o, i) for i, o in zip(self.shape_in, self.shape_out, strict=True))
        return z, y, x

    @property
    def _is_lossless(self) -> bool:
        return all(o >= i for i, o in zip(self.shape_in, self.shape_out, strict=True))

    def _centres(self) -> tuple[np.ndarray, ...]:
        """Open mesh of the new voxels that hold the old voxels' centres; each its own where no axis is coarser."""
        pairs = zip(self.shape_in, self.shape_out, strict=True)
        return np.ix_(*(((2 * np.arange(i) + 1) * o) // (2 * i) for i, o in pairs))


@dataclass(frozen=True)
class CropPad:
    """The box of `shape_out` voxels from `start` on; what lies outside the array is filled. Exact both ways."""

    shape_in: Shape
    start: tuple[int, int, int]
    shape_out: Shape

    def apply(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """[shape_in] -> [shape_out]."""
        _expect(array, self.shape_in)
        inner, outer = self.overlap()
        result = np.full(self.shape_out, fill, dtype=array.dtype)
        result[outer] = array[inner]
        return result

    def undo(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """[shape_out] -> [shape_in]; what was cropped away becomes `fill`."""
        _expect(array, self.shape_out)
        inner, outer = self.overlap()
        result = np.full(self.shape_in, fill, dtype=array.dtype)
        result[inner] = array[outer]
        return result

    def overlap(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The shared voxels, as slices of the array and of the box."""
        inner, outer = [], []
        for n, begin, size in zip(self.shape_in, self.start, self.shape_out, strict=True):
            low = min(max(begin, 0), n)
            high = max(min(begin + size, n), low)
            inner.append(slice(low, high))
            outer.append(slice(low - begin, high - begin) if high > low else slice(0, 0))
        return tuple(inner), tuple(outer)


@dataclass(frozen=True)
class GridTrace:
    """How a prepared grid came from a file's own, and the way back; `native_*` are the file's."""

    reorientation: Reorientation
    resampling: Resampling
    native_shape: Shape
    native_affine: np.ndarray

    def undo_labels(self, labels: np.ndarray) -> np.ndarray:
        """Prepared label map -> the file's own grid."""
        return self.reorientation.undo(self.resampling.undo_labels(labels))

    def undo_scores(self, scores: np.ndarray) -> np.ndarray:
        """Prepared scores -> the file's own grid, linear, float32."""
        return self.reorientation.undo(self.resampling.undo_scores(scores))


def voxel_ml(affine: np.ndarray) -> float:
    """Millilitres of a voxel: the determinant, as the edges of a sheared one (a tilted gantry) are not at right angles.

    >>> round(voxel_ml(np.diag([2.0, 2.0, -5.0, 1.0])), 6)
    0.02
    """
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def label_counts(labels: np.ndarray) -> np.ndarray:
    """How many voxels of a label map [D,H,W] have each value 0..255: int64 [256].

    Plane by plane, as bincount makes a copy of 8 bytes a voxel: of a whole scan a gigabyte.

    >>> label_counts(np.array([[[0, 2, 2]]], np.uint8))[:4].tolist()
    [1, 0, 2, 0]
    """
    counts = np.zeros(256, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=256)
    return counts


@lru_cache(maxsize=256)
def linear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Linear interpolation of one axis, float32 [n_out, n_in]; beyond the outermost centres their value holds."""
    positions = np.clip(_positions(n_in, n_out), 0, n_in - 1)
    return _frozen(np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(n_in))))


@lru_cache(maxsize=256)
def cubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Cubic B-spline interpolation of one axis, float64 [n_out, n_in]: prefilter and evaluation in one.

    Coefficients are mirrored at the outermost centres (Unser 1999; ITK's BSplineInterpolateImageFunction).
    """
    at_samples = _spline_basis(np.arange(n_in, dtype=float), n_in)
    return np.linalg.solve(at_samples.T, _spline_basis(_positions(n_in, n_out), n_in).T).T


@lru_cache(maxsize=256)
def smoothing_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Gaussian against aliasing of one axis that becomes coarser, float64 [n_in, n_in].

    sigma = (n_in / n_out - 1) / 2 voxels of the input, mirrored at the outermost centres: the rule of
    skimage.transform.resize.
    """
    sigma = max(0.0, (n_in / n_out - 1) / 2)
    return ndimage.gaussian_filter1d(np.eye(n_in), sigma, axis=0, mode="mirror") if sigma else np.eye(n_in)


@lru_cache(maxsize=256)
def _image_matrix(n_in: int, n_out: int, antialias: bool) -> np.ndarray | None:
    if n_in == n_out:
        return None
    matrix = cubic_matrix(n_in, n_out)
    return _frozen(matrix @ smoothing_matrix(n_in, n_out) if antialias else matrix)


def _linear_or_none(n_in: int, n_out: int) -> np.ndarray | None:
    return None if n_in == n_out else linear_matrix(n_in, n_out)


def _positions(n_in: int, n_out: int) -> np.ndarray:
    """Centres of the new voxels in indices of the old ones."""
    return (np.arange(n_out) + 0.5) * n_in / n_out - 0.5


def _spline_basis(positions: np.ndarray, n: int) -> np.ndarray:
    """Cubic B-splines centred on the samples 0..n-1, mirrored at both ends, at the positions: [positions, n]."""
    if n == 1:
        return np.ones((len(positions), 1))
    bump = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    basis = np.zeros((len(positions), n))
    first = np.floor(positions).astype(int) - 1
    for index in (first, first + 1, first + 2, first + 3):
        weight = np.nan_to_num(bump(positions - index))
        mirrored = np.abs((index + n - 1) % (2 * n - 2) - (n - 1))
        np.add.at(basis, (np.arange(len(positions)), mirrored), weight)
    return basis


def along_axes(array: np.ndarray, matrices: Matrices) -> np.ndarray:
    """Multiply each axis of [D,H,W] by its matrix [out, in] -> float32; axes that shrink most go first."""
    result = np.asarray(array, dtype=np.float32)
    present = [(axis, matrix) for axis, matrix in enumerate(matrices) if matrix is not None]
    for axis, matrix in sorted(present, key=lambda item: item[1].shape[0] / item[1].shape[1]):
        d, h, w = result.shape
        if axis == 0:
            result = (matrix @ result.reshape(d, h * w)).reshape(len(matrix), h, w)
        elif axis == 1:
            result = matrix @ result
        else:
            result = (result.reshape(d * h, w) @ matrix.T).reshape(d, h, len(matrix))
    return result


def _resample_labels(labels: np.ndarray, matrices: Matrices) -> np.ndarray:
    """The label with the largest share at each voxel; background has what the others leave."""
    if all(matrix is None for matrix in matrices):
        return labels
    shape = [n if matrix is None else len(matrix) for n, matrix in zip(labels.shape, matrices, strict=True)]
    result = np.zeros(shape, dtype=labels.dtype)
    best, background = np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    whole = labels.view(np.uint8) if labels.dtype == bool else labels
    for value, box in enumerate(ndimage.find_objects(whole), start=1):
        reached = reach(box, matrices) if box is not None else None
        if reached is None:  # no such label, or it slips between the new voxels
            continue
        source, target, parts = reached
        share = along_axes(whole[source] == value, parts)
        background[target] -= share
        wins = share > best[target] + TIE
        np.copyto(best[target], share, where=wins)
        result[target][wins] = value
    result[background >= best - TIE] = 0
    return result


def bounding_box(mask: np.ndarray) -> Region | None:
    """The smallest box that holds all of a mask [D,H,W]."""
    z = span(np.any(mask, axis=(1, 2)))
    if z.start == z.stop:
        return None
    plane = np.any(mask[z], axis=0)
    return z, span(np.any(plane, axis=1)), span(np.any(plane, axis=0))


def reach(box: Region, matrices: Matrices) -> tuple[Region, Region, Matrices] | None:
    """The input that is needed for all output voxels in which a box of the input has a part; these; the matrices.

    None where there is no such voxel.
    """
    sources, targets, parts = list(box), list(box), list(matrices)
    for axis, matrix in enumerate(matrices):
        if matrix is None:
            continue
        targets[axis] = span(np.any(matrix[:, box[axis]], axis=1))
        if targets[axis].start == targets[axis].stop:
            return None
        sources[axis] = span(np.any(matrix[targets[axis]], axis=0))
        parts[axis] = matrix[targets[axis], sources[axis]]
    (z, y, x), (to_z, to_y, to_x), (by_z, by_y, by_x) = sources, targets, parts
    return (z, y, x), (to_z, to_y, to_x), (by_z, by_y, by_x)


def span(hit: np.ndarray) -> slice:
    """From the first to the last True; empty where there is none."""
    where = np.flatnonzero(hit)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0)


def _frozen(matrix: np.ndarray) -> np.ndarray:
    """float32, and read-only: the caches hand out the same array again and again.

    A spline's weights decay for ever; as denormal numbers the far ones would make a product 15 times slower.
    """
    result = np.where(np.abs(matrix) < NOTHING, 0, matrix).astype(np.float32)
    result.setflags(write=False)
    return result


def _expect(array: np.ndarray, shape: Shape) -> None:
    if array.shape != tuple(shape):
        raise ValueError(f"An array of shape {tuple(shape)} (z,y,x) is needed, but {array.shape} came.")
