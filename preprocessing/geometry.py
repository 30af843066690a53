"""Reorient, resample, crop and pad: each step is a value that applies itself and undoes itself.

Arrays are [D,H,W] = (z,y,x); after `Reorientation` the index grows towards Superior, Anterior, Right (RAS+).
Shapes, spacings (mm) and starts are (z,y,x). Affines map (x,y,z,1) to mm. Resampling aligns fields of view: the outer
faces of the first and last voxel stay where they were, so coarse voxel i has its centre at (i + 0.5) * n_in / n_out - 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Reorientation:
    """A permutation of axes and flips; loses nothing. `axes[a]` is the file's axis that becomes axis a (z,y,x)."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_ras(cls, affine: np.ndarray) -> Reorientation:
        """To the nearest RAS+ axes; an oblique rotation stays in the affine, nothing is interpolated."""
        orientation = nib.io_orientation(affine)  # row i: file axis i (x,y,z) -> (RAS axis, direction)
        axes, flips = [0, 0, 0], [False, False, False]
        for source, (target, direction) in enumerate(orientation):
            axes[2 - int(target)] = 2 - source
            flips[2 - int(target)] = direction < 0
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """File's order -> RAS+ order."""
        moved = array.transpose(self.axes)
        return np.ascontiguousarray(np.flip(moved, [a for a in range(3) if self.flips[a]]))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """RAS+ order -> file's order; `undo(apply(a))` is `a`."""
        unflipped = np.flip(array, [a for a in range(3) if self.flips[a]])
        return np.ascontiguousarray(unflipped.transpose(np.argsort(self.axes)))

    def apply_affine(self, affine: np.ndarray, shape: Shape) -> np.ndarray:
        """The affine of the RAS+ array, for a file's affine and array shape (z,y,x)."""
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for target in range(3):  # in (z,y,x); matrices are in (x,y,z)
            source = self.axes[target]
            step[2 - source, 2 - target] = -1 if self.flips[target] else 1
            if self.flips[target]:
                step[2 - source, 3] = shape[source] - 1
        return affine @ step


@lru_cache(maxsize=256)
def linear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Linear interpolation of one axis, [n_out, n_in], float32; borders repeat the last sample."""
    centres = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.minimum(np.floor(centres).astype(int), max(n_in - 2, 0))
    matrix = np.zeros((n_out, n_in))
    matrix[np.arange(n_out), low] = 1 - (centres - low)
    if n_in > 1:
        matrix[np.arange(n_out), low + 1] += centres - low
    return matrix.astype(np.float32)


@lru_cache(maxsize=256)
def cubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Cubic B-spline interpolation of one axis, [n_out, n_in], float32: prefilter and evaluation in one product.

    Mirror boundaries (whole-sample symmetric) and clamped positions, as SimpleITK's sitkBSpline inside the image.
    """
    centres = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return (
        _spline_basis(centres, n_in) @ np.linalg.inv(_spline_basis(np.arange(n_in, dtype=float), n_in))
    ).astype(np.float32)


def _spline_basis(positions: np.ndarray, n: int) -> np.ndarray:
    """Cubic B-splines centred on the samples 0..n-1, mirrored at both ends, at the positions: [len(positions), n]."""
    basis = np.zeros((len(positions), n))
    if n == 1:
        return np.ones((len(positions), 1))
    first = np.floor(positions).astype(int) - 1
    bump = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    period = 2 * (n - 1)
    for k in range(4):
        index = first + k
        weight = np.nan_to_num(bump(positions - index))
        mirrored = np.abs(((index + n - 1) % period) - (n - 1))
        np.add.at(basis, (np.arange(len(positions)), mirrored), weight)
    return basis


@lru_cache(maxsize=256)
def smoothing_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Gaussian anti-aliasing of one axis before going coarser, [n_in, n_in]: sigma = (n_in / n_out - 1) / 2 voxels."""
    sigma = max(0.0, (n_in / n_out - 1) / 2)
    if sigma == 0:
        return np.eye(n_in, dtype=np.float32)
    return ndimage.gaussian_filter1d(np.eye(n_in), sigma, axis=0, mode="mirror").astype(np.float32)


def along_axes(array: np.ndarray, matrices: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Multiply each axis of [D,H,W] by its matrix [out, in]; axes that shrink most go first."""
    result = np.asarray(array, dtype=np.float32)
    for axis in sorted(range(3), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1]):
        matrix = matrices[axis]
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(
            matrix, np.eye(len(matrix), dtype=np.float32)
        ):
            continue
        if axis == 0:
            result = (matrix @ result.reshape(len(result), -1)).reshape(-1, *result.shape[1:])
        elif axis == 1:
            result = matrix @ result
        else:
            result = result @ matrix.T
    return result


@dataclass(frozen=True)
class Resampling:
    """Between two grids over the same field of view, as three small matrix products."""

    shape_in: Shape
    shape_out: Shape

    @staticmethod
    def to_spacing(shape: Shape, spacing_mm: Triple, target_mm: Triple) -> Resampling:
        """The nearest whole number of voxels at the target spacing, at least one."""
        d, h, w = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
        return Resampling(shape, (d, h, w))

    @property
    def is_identity(self) -> bool:
        return self.shape_in == self.shape_out

    def out_spacing(self, spacing_mm: Triple) -> Triple:
        """Exact spacing (z,y,x) of the new grid in mm."""
        z, y, x = (s * i / o for s, i, o in zip(spacing_mm, self.shape_in, self.shape_out, strict=True))
        return z, y, x

    def apply_affine(self, affine: np.ndarray) -> np.ndarray:
        """Affine of the new grid."""
        ratio = np.array([i / o for i, o in zip(self.shape_in, self.shape_out, strict=True)][::-1])
        step = np.diag([*ratio, 1.0])
        step[:3, 3] = (ratio - 1) / 2
        return affine @ step

    def apply_image(self, array: np.ndarray, antialias: bool = True) -> np.ndarray:
        """Cubic B-spline -> float32; smoothed first along axes that become coarser, unless antialias=False."""
        if self.is_identity:
            return np.asarray(array, dtype=np.float32)
        matrices = []
        for n_in, n_out in zip(self.shape_in, self.shape_out, strict=True):
            matrix = np.eye(n_in, dtype=np.float32) if n_in == n_out else cubic_matrix(n_in, n_out)
            matrices.append(matrix @ smoothing_matrix(n_in, n_out) if antialias and n_out < n_in else matrix)
        return along_axes(array, (matrices[0], matrices[1], matrices[2]))

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Linear on each label's indicator, the largest share wins; one label at a time, so memory stays small."""
        return _resample_labels(labels, self.shape_in, self.shape_out)

    def undo_scores(self, scores: np.ndarray) -> np.ndarray:
        """Linear back to `shape_in`, float32."""
        if self.is_identity:
            return np.asarray(scores, dtype=np.float32)
        z, y, x = (linear_matrix(o, i) for i, o in zip(self.shape_in, self.shape_out, strict=True))
        return along_axes(scores, (z, y, x))

    def undo_labels(self, labels: np.ndarray) -> np.ndarray:
        """Like `apply_labels`, back to `shape_in`."""
        return _resample_labels(labels, self.shape_out, self.shape_in)


def _resample_labels(labels: np.ndarray, shape_in: Shape, shape_out: Shape) -> np.ndarray:
    if shape_in == shape_out:
        return labels
    pairs = list(zip(shape_in, shape_out, strict=True))
    z, y, x = (linear_matrix(i, o) @ smoothing_matrix(i, o) for i, o in pairs)
    best = np.zeros(shape_out, dtype=np.float32)
    result = np.zeros(shape_out, dtype=labels.dtype)
    for value in np.unique(labels):
        share = along_axes(labels == value, (z, y, x))
        wins = share > best
        best[wins], result[wins] = share[wins], value
    return result


@dataclass(frozen=True)
class CropPad:
    """The box of `shape_out` voxels that begins at `start`; parts outside the array are filled. Exact both ways."""

    shape_in: Shape
    start: tuple[int, int, int]
    shape_out: Shape

    def _slices(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        inner, outer = [], []
        for n, begin, size in zip(self.shape_in, self.start, self.shape_out, strict=True):
            low, high = max(begin, 0), min(begin + size, n)
            high = max(high, low)
            inner.append(slice(low, high))
            outer.append(slice(low - begin, high - begin))
        return tuple(inner), tuple(outer)

    def apply(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """[shape_in] -> [shape_out]."""
        result = np.full(self.shape_out, fill, dtype=array.dtype)
        inner, outer = self._slices()
        result[outer] = array[inner]
        return result

    def undo(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """[shape_out] -> [shape_in]; what was cropped away is `fill`."""
        result = np.full(self.shape_in, fill, dtype=array.dtype)
        inner, outer = self._slices()
        result[inner] = array[outer]
        return result


@dataclass(frozen=True)
class GridTrace:
    """How a prepared grid came from a file's own, and the way back."""

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

    def undo_argmax(self, scores: Iterable[tuple[int, np.ndarray]], threshold: float = 0.5) -> np.ndarray:
        """(value, scores [D,H,W]) class by class -> uint8 label map on the file's own grid.

        Each voxel takes the class of the highest score above `threshold`, else 0. Streaming: memory does not grow with
        the number of classes.
        """
        result = np.zeros(self.resampling.shape_in, dtype=np.uint8)
        best = np.full(self.resampling.shape_in, threshold, dtype=np.float32)
        for value, prepared in scores:
            native = self.resampling.undo_scores(prepared)
            wins = native > best
            best[wins], result[wins] = native[wins], value
        return self.reorientation.undo(result)
