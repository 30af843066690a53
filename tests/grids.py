"""Grids of any orientation, and the naive formulas of resampling. Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SIZES = st.integers(1, 9)
SHAPES = st.tuples(SIZES, SIZES, SIZES)
ALL_48 = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def oblique(
    order: tuple[int, ...],
    signs: tuple[int, ...],
    turn: Rotation,
    spacing_xyz: tuple[float, ...],
    shear: float = 0.0,
) -> np.ndarray:
    """File axis i runs along world axis order[i] with signs[i], then everything is turned (and sheared)."""
    direction = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        direction[row, column] = sign
    skew = np.eye(3) + shear * np.array([[0, 1, -0.5], [0.3, 0, 1], [-0.2, 0.4, 0]])
    affine = np.eye(4)
    affine[:3, :3] = turn.as_matrix() @ skew @ direction * np.array(spacing_xyz)
    affine[:3, 3] = (-71.3, 15.5, 230.0)
    return affine


def small_turn(seed: int, degrees: float = 20.0) -> Rotation:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(np.deg2rad(rng.uniform(-degrees, degrees)) * axis / np.linalg.norm(axis))


def positions(n_in: int, n_out: int) -> np.ndarray:
    return (np.arange(n_out) + 0.5) * n_in / n_out - 0.5


def sampled(array: np.ndarray, shape_out: tuple[int, ...], order: int, mode: str) -> np.ndarray:
    """scipy's interpolation at the same places."""
    places = [positions(i, o) for i, o in zip(array.shape, shape_out, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(array.astype(float), grid, order=order, mode=mode)


def one_hot_argmax(labels: np.ndarray, shape_out: tuple[int, ...]) -> np.ndarray:
    """All labels at once; shares that are equal but for rounding go to the lower label."""
    values = np.unique([0, *np.unique(labels)])
    shares = np.stack([sampled(labels == value, shape_out, 1, "nearest") for value in values])
    return values[shares.round(4).argmax(axis=0)]


def blobs(shape: tuple[int, int, int], labels: int, seed: int) -> np.ndarray:
    """Smooth regions of 0..labels."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(labels + 1)]
    return np.argmax(fields, axis=0).astype(np.uint8)
