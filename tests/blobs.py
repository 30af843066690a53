"""Prepared references and queries of two soft blobs on noise, for tests of strategies. Arrays are [D,H,W]."""

from __future__ import annotations

import numpy as np

from iris_pipeline.inference.strategies import PreparedReference
from preprocessing.normalise import Normalisation
from preprocessing.plan import Plan

PATCH = (32, 32, 32)
CLASSES = {"ball": 1, "disc": 4}
PLAN = Plan(
    dataset="blobs",
    modality="MR",
    policy="fit",
    spacing_mm=(1.0, 1.0, 1.0),
    patch_size=PATCH,
    normalisation=Normalisation.for_modality("MR"),
    intensity_offset=0.0,
    reasons=(),
)


def draw_blobs(seed: int, shape: tuple[int, int, int] = PATCH) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and labels uint8: a bright ball, and a dark flat disc above it."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    middle = np.asarray(shape) / 2 + rng.uniform(-2, 2, 3)
    ball = (((grid - middle - (-6, 0, 0)) / rng.uniform(5, 7, 3)) ** 2).sum(-1) < 1
    disc = (((grid - middle - (7, 0, 0)) / (2.5, *rng.uniform(6, 9, 2))) ** 2).sum(-1) < 1
    labels = np.where(ball, 1, np.where(disc, 4, 0)).astype(np.uint8)
    image = np.where(ball, 2.0, np.where(disc, -2.0, 0.0)) + rng.normal(0, 0.3, shape)
    return image.astype(np.float32), labels


def blob_reference(seed: int, subject: str = "", **changes: object) -> PreparedReference:
    """A reference with both classes, of a person of its own unless `subject` says whose it is."""
    image, labels = draw_blobs(seed)
    values = {
        "id": f"r{seed}",
        "image": image,
        "labels": labels,
        "classes": CLASSES,
        "subject": subject or f"person {seed}",
        "image_hash": f"hash{seed}",
    }
    return PreparedReference(**(values | changes))  # type: ignore[arg-type]
