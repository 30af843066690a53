"""Scenes that nobody ever scanned: random regions with random grey values, seen twice.

Arrays are [D,H,W] = (z,y,x). A scene is the argmax of smooth random fields, as in SynthMorph (Hoffmann et al., 2022);
each view bends, turns and scales the fields and paints the regions with the scene's grey values, a little off, with
texture, bias, blur and noise of its own. No anatomy is in them, so nothing can be known but what the reference shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from preprocessing.grid_types import Shape

FIELD_EDGE = 24
"""voxels along an edge of the grid on which fields are drawn; views sample it"""
REGIONS = (4, 10)
COARSENESS = (3, 6)
"""random numbers along an edge of a field: few give large regions"""
BEND = 0.12
"""largest displacement, as a share of half the scene's edge"""
TURN_DEGREES = 20.0
SCALE = (0.8, 1.25)
SHIFT = 0.15
GREY_JITTER = 0.15
AIR_PROBABILITY = 0.5


@dataclass(frozen=True)
class Scene:
    """fields [R,n,n,n]: the largest one owns a place; greys [R]: each region's grey value, in standard deviations."""

    fields: Tensor
    greys: np.ndarray


def draw_scene(rng: np.random.Generator) -> Scene:
    """Regions of which some share a grey value, so that place and form matter too."""
    count, coarse = int(rng.integers(*REGIONS, endpoint=True)), int(rng.integers(*COARSENESS, endpoint=True))
    noise = rng.normal(size=(count, coarse, coarse, coarse))
    zoom = FIELD_EDGE / coarse
    fields = np.stack([ndimage.zoom(field, zoom, order=3) for field in noise])
    values = rng.normal(size=max(2, int(count * rng.uniform(0.4, 1.0))))
    greys = values[rng.integers(len(values), size=count)]
    if rng.random() < AIR_PROBABILITY:  # as round a patient: one dark region, larger than the others
        fields[0] += rng.uniform(0.3, 1.0)
        greys[0] = greys.min() - rng.uniform(0.5, 1.5)
    return Scene(torch.from_numpy(fields).float(), greys)


def draw_view(rng: np.random.Generator, scene: Scene, shape: Shape) -> tuple[Tensor, Tensor]:
    """One look at a scene: image [1,D,H,W] float32 of mean 0 and spread 1, labels [D,H,W] uint8 with values 1..R."""
    grid = _grid(rng, shape)
    fields = F.grid_sample(scene.fields[None], grid, padding_mode="border", align_corners=False)[0]
    labels = fields.argmax(0)
    greys = scene.greys + GREY_JITTER * rng.normal(size=len(scene.greys))
    image = torch.from_numpy(greys).float()[labels]
    image = image + rng.uniform(0.0, 0.25) * _smooth(rng, shape, 16)  # texture
    image = image + rng.uniform(0.0, 0.4) * _smooth(rng, shape, 3)  # bias of the field
    image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), rng.uniform(0.3, 1.0)))
    image = image + rng.uniform(0.0, 0.15) * torch.from_numpy(rng.normal(size=shape)).float()
    image = (image - image.mean()) / image.std().clamp(min=1e-6)
    return image[None], labels.to(torch.uint8) + 1


def _grid(rng: np.random.Generator, shape: Shape) -> Tensor:
    """Where each voxel of a view lies in the scene, -1..1 in (x,y,z): [1,D,H,W,3]."""
    angles = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES, 3))
    matrix = np.eye(3)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix = matrix * rng.uniform(*SCALE, 3)
    theta = np.concatenate([0.8 * matrix, rng.uniform(-SHIFT, SHIFT, (3, 1))], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta).float()[None], [1, 1, *shape], align_corners=False)
    bend = torch.from_numpy(rng.normal(size=(1, 3, 4, 4, 4))).float()
    bend = F.interpolate(bend, size=shape, mode="trilinear", align_corners=True)
    return grid + BEND * rng.random() * bend.movedim(1, -1)


def _smooth(rng: np.random.Generator, shape: Shape, edge: int) -> Tensor:
    """Noise that was drawn on a grid of `edge` along each axis: [D,H,W]."""
    noise = torch.from_numpy(rng.normal(size=(1, 1, edge, edge, edge))).float()
    return F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)[0, 0]
