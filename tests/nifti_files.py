"""Small NIfTI files with a known answer, and what a reader says of a broken one. Arrays are (z,y,x)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing.errors import RawDataError
from preprocessing.volume import read_volume

TURN = Rotation.from_rotvec([0.2, -0.1, 0.35]).as_matrix()
SHAPE = (4, 5, 6)  # (z,y,x)


def affine_of(spacing_xyz: tuple[float, ...] = (0.75, 1.25, 3.0), turn: np.ndarray = TURN) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, 1, 1]) * np.array(spacing_xyz)
    affine[:3, 3] = (-12.5, 40.25, 7.0)
    return affine


def grey(kind: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1200, SHAPE).astype(kind)


def save(path: Path, array_zyx: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array_zyx.T, affine_of() if affine is None else affine, dtype=array_zyx.dtype)
    nib.save(image, path)
    return path


def sentence(path: Path, read: Callable[[Path], object] = read_volume) -> str:
    """What reading says; it must be one sentence on one line that names the file."""
    with pytest.raises(RawDataError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    return text
