"""Scans with known answers: blocks of one grey value, on grids of any orientation, angle and spacing."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from preprocessing.volume import Volume

Blocks = dict[int, tuple[slice, slice, slice]]

UNSEARCHED = ("--pose", "upright", "--scale", "1", "--grey", "0")
"""Options by which references need no search, most of a minute for nothing where an untrained network reads them."""

ORDERS = {
    "RAS": ((0, 1, 2), (1, 1, 1)),
    "LPS": ((0, 1, 2), (-1, -1, 1)),
    "PSR": ((1, 2, 0), (-1, 1, 1)),
    "SAL": ((2, 1, 0), (1, 1, -1)),
}


def affine_of(order: str, spacing_zyx: tuple[float, float, float], degrees: float = 0.0) -> np.ndarray:
    """Affine of a file whose axes x,y,z run along the named directions, turned; spacing in mm of (z,y,x)."""
    axes, signs = ORDERS[order]
    direction = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[axis, column] = sign
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0.64, 0.48])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ direction * np.array(spacing_zyx[::-1])
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    return affine


def paint(
    shape: tuple[int, int, int], blocks: Blocks, grey: dict[int, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Image (100 times the label, unless `grey` says otherwise, on 0) and labels, both (z,y,x)."""
    labels = np.zeros(shape, np.uint8)
    for value, box in blocks.items():
        labels[box] = value
    levels = {value: 100.0 * value for value in blocks} | (grey or {})
    image = np.zeros(shape, np.float32)
    for value in blocks:
        image[labels == value] = levels[value]
    return image, labels


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """A NIfTI file of a (z,y,x) array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    return path


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(z,y,x) array and affine of a NIfTI file, by nibabel alone."""
    image = nib.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def volume(array: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(array, affine)
