"""Crops of references with their truth, and a task's loss on them: what tuning learns from and poses are judged by.

Arrays are [D,H,W] = (z,y,x), prepared at the task's grid; K classes. Nothing here can see a query: the functions take
references only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, class_boxes
from iris_pipeline.model import Iris
from iris_pipeline.sampling.augment import (
    IDENTITY,
    QUERY_RANGES,
    apply_intensity,
    draw_augmentation,
    sample_patch,
)
from iris_pipeline.sampling.crops import inside
from iris_pipeline.tasks.grey import GreyEvidence
from iris_pipeline.tasks.voxel_head import VoxelHead
from iris_pipeline.training.losses import episode_loss
from preprocessing.grid_types import Box

ANYWHERE = 0.25  # share of crops that lie anywhere in the volume, to learn what is no object


@dataclass(frozen=True)
class Example:
    """A crop of a reference: image [1,1,D,H,W], masks [1,K,D,H,W], and valid [1,K]: 0 for a class that the
    reference shows nowhere, as it may just not be annotated there.
    """

    image: Tensor
    masks: Tensor
    valid: Tensor


def draw_example(
    reference: PreparedReference,
    names: Sequence[str],
    patch: tuple[int, int, int],
    rng: np.random.Generator,
    *,
    augmented: bool,
    anywhere: float = ANYWHERE,
    device: torch.device | str = "cpu",
) -> Example:
    """A crop round a random class of the reference, or (with this probability) from anywhere in it."""
    boxes = {name: box for name, box in class_boxes(reference).items() if name in names}
    start = crop_start(rng, boxes, reference.image.shape, patch, anywhere)
    params = draw_augmentation(rng, patch, QUERY_RANGES) if augmented else IDENTITY
    fill = float(reference.image.min())
    image, labels = sample_patch(params, reference.image, reference.labels, start, patch, fill)
    masks = [
        (labels == reference.classes[name]) if name in boxes else torch.zeros_like(labels) for name in names
    ]
    valid = torch.tensor([[float(name in boxes) for name in names]], dtype=torch.float32)
    return Example(
        apply_intensity(params, image)[None].to(device),
        torch.stack([mask.float() for mask in masks])[None].to(device),
        valid.to(device),
    )


def encode_example(model: Iris, example: Example, options: InferenceOptions) -> tuple[Tensor, ...]:
    """The features of an example's image, level by level; no gradient reaches the encoder."""
    with torch.no_grad(), options.casting():
        return model.encode_image(example.image)


def features_loss(
    model: Iris,
    tokens: Sequence[Tensor],
    features: Sequence[Tensor],
    example: Example,
    options: InferenceOptions,
    head: VoxelHead | None = None,
    grey: GreyEvidence | None = None,
) -> Tensor:
    """The training loss of a task on an example whose image is encoded; its gradient reaches tokens and head."""
    with options.casting():
        logits = model.segment_from_features(tuple(features), tuple(tokens))
    if grey is not None:
        logits = grey(example.image, logits)
    if head is not None:
        logits = head(example.image, logits)
    return episode_loss(logits, example.masks, example.valid).total


def tokens_loss(model: Iris, tokens: Sequence[Tensor], example: Example, options: InferenceOptions) -> Tensor:
    """The training loss of a task's tokens on an example; its gradient reaches the tokens, not the encoder."""
    return features_loss(model, tokens, encode_example(model, example, options), example, options)


def crop_start(
    rng: np.random.Generator,
    boxes: Mapping[str, Box],
    shape: Sequence[int],
    patch: Sequence[int],
    anywhere: float = ANYWHERE,
) -> tuple[int, int, int]:
    """Where a crop begins: roaming from "a class touches one side" to "the other", or anywhere with a probability."""
    size, whole = np.asarray(patch), np.asarray(shape)
    roams, names = rng.random() < anywhere, sorted(boxes)
    if roams or not names:
        return inside(rng.random(3) * np.maximum(whole - size + 1, 1) - 0.5, size, whole)
    low, high = np.asarray(boxes[names[int(rng.integers(len(names)))]]).T
    return inside(low + rng.random(3) * (high - size - low), size, whole)
