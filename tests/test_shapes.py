"""Scenes nobody scanned: two views agree where they should. Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iris_pipeline.sampling import shapes
from iris_pipeline.sampling.shapes import REGIONS, Scene, draw_scene, draw_view

SHAPE = (32, 48, 40)


def test_a_view_is_normalised_and_labels_every_voxel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        scene = draw_scene(rng)
        image, labels = draw_view(rng, scene, SHAPE)
        assert image.shape == (1, *SHAPE) and image.dtype == torch.float32
        assert labels.shape == SHAPE and labels.dtype == torch.uint8
        assert float(image.mean()) == pytest.approx(0, abs=1e-4)
        assert float(image.std()) == pytest.approx(1, abs=1e-3)
        assert int(labels.min()) >= 1 and int(labels.max()) <= len(scene.greys) <= REGIONS[1]


def test_a_region_has_its_grey_value_in_every_view() -> None:
    rng = np.random.default_rng(1)
    fields = torch.full((3, 24, 24, 24), -1.0)
    fields[0, :8], fields[1, 8:16], fields[2, 16:] = 1, 1, 1
    scene = Scene(fields, np.array([-2.0, 0.0, 2.0]))
    for _ in range(4):
        image, labels = draw_view(rng, scene, SHAPE)
        means = [float(image[0][labels == value].mean()) for value in (1, 2, 3)]
        assert means == sorted(means) and means[2] - means[0] > 1.5


def test_views_of_a_scene_are_alike_and_not_equal() -> None:
    rng = np.random.default_rng(2)
    scene = draw_scene(rng)
    (_, first), (_, second) = draw_view(rng, scene, SHAPE), draw_view(rng, scene, SHAPE)
    same = float((first == second).float().mean())
    strangers = float((first == draw_view(rng, draw_scene(rng), SHAPE)[1]).float().mean())
    assert strangers < same < 1


def test_without_bending_a_view_is_the_scene_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEND": 0.0, "TURN_DEGREES": 0.0, "SCALE": (1.0, 1.0), "SHIFT": 0.0}.items():
        monkeypatch.setattr(shapes, name, value)
    scene = draw_scene(np.random.default_rng(3))
    views = [draw_view(np.random.default_rng(seed), scene, (24, 24, 24))[1] for seed in (1, 2)]
    assert torch.equal(views[0], views[1])
    # the middle 80 % of the scene: the view's centre is the scene's
    assert int(views[0][12, 12, 12]) - 1 in scene.fields[:, 11:13, 11:13, 11:13].mean((1, 2, 3)).topk(2)[1]
