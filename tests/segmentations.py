"""Segmentations as 3D Slicer saves them, written by SimpleITK. Arrays are [D,H,W] = (z,y,x), affines to RAS+ mm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scans import affine_of, save

AFFINE = affine_of("LPS", (2.0, 1.0, 1.0))
SHAPE = (6, 12, 14)
LIVER, KIDNEY = np.s_[1:3, 2:6, 3:8], np.s_[3:5, 7:10, 9:12]  # 40 and 18 voxels
PART, START = np.s_[1:5, 2:10, 3:12], (3, 2, 1)  # both and no more; x, y, z of its first voxel
CLASSES = {"liver": 1, "kidney": 2}
SPEC = """\
name: made
title: Made
modality: MR
role: upstream
source: here
licence: none
layout: files
files: {image: "{case}.nrrd", labels: "{case}.seg.nrrd"}
classes: {kidney: 2, liver: 1}
"""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Told = tuple[str, int] | tuple[str, int, int]


def keys_of(segments: Sequence[Told]) -> dict[str, str]:
    """The header of segments (name, value) or (name, value, layer)."""
    keys = {}
    for number, (name, value, *layer) in enumerate(segments):
        keys[f"Segment{number}_ID"] = f"Segment_{number + 1}"
        keys[f"Segment{number}_Name"] = name
        keys[f"Segment{number}_LabelValue"] = str(value)
        keys[f"Segment{number}_Layer"] = str(layer[0] if layer else 0)
    return keys


def save_segmentation(
    path: Path,
    layers: np.ndarray | Sequence[np.ndarray],
    affine: np.ndarray,
    segments: Sequence[Told] = (),
    keys: dict[str, str] | None = None,
) -> Path:
    """layers: one array (z,y,x), or a list of several. keys: other ones than those of `segments`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(layers, np.ndarray):
        image = sitk.GetImageFromArray(layers)
    else:
        image = sitk.GetImageFromArray(np.stack(layers, axis=-1), isVector=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for key, text in (keys_of(segments) if keys is None else keys).items():
        image.SetMetaData(key, text)
    sitk.WriteImage(image, str(path), True)
    return path


def cropped(affine: np.ndarray, start_xyz: Sequence[float]) -> np.ndarray:
    """The affine of an array whose first voxel is that of the index `start_xyz` of the whole."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*start_xyz, 1])[:3]
    return moved


def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)


def painted(liver: int, kidney: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[LIVER], labels[KIDNEY] = liver, kidney
    return labels


def one_layer(
    path: Path, liver: int = 1, kidney: int = 2, names: tuple[str, str] = ("liver", "kidney")
) -> Path:
    """As Slicer crops and numbers it."""
    told = sorted(zip((liver, kidney), names, strict=True))
    segments = [(name, value) for value, name in told]
    return save_segmentation(path, painted(liver, kidney)[PART], cropped(AFFINE, START), segments)


def older(path: Path) -> Path:
    """Liver and kidney in layers of their own, both of the value 1."""
    layers = [painted(1, 0)[PART], painted(0, 1)[PART]]
    keys = {"Segment0_Name": "liver", "Segment1_Name": "kidney"}
    return save_segmentation(path, layers, cropped(AFFINE, START), keys=keys)


def plain(path: Path, array: np.ndarray) -> Path:
    return save(path, array, AFFINE)


def scan(path: Path) -> Path:
    return save_segmentation(path, grey(), AFFINE, keys={})
