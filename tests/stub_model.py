"""A model whose answers can be worked out by hand, for exact tests of inference."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from iris_pipeline.checkpoints.checkpoint import RunState, hash_weights
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.model import build_iris
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.normalise import Normalisation

HASH = "0123456789abcdef"


class GreyModel(nn.Module):
    """A class is what is as grey as the reference's mask: logits = 40 (width - |grey - mean under the mask|).

    One task level, one token of one channel: tokens ([B,K,1,1],). `images` and `masks` keep what came in.
    """

    def __init__(self, width: float = 0.5):
        super().__init__()
        self.config = SimpleNamespace(task_levels=(4,))
        self.width = width
        self.images: list[Tensor] = []
        self.masks: list[Tensor] = []

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        self.masks.append(masks)
        means = (image * masks).flatten(2).sum(-1) / masks.flatten(2).sum(-1).clamp(min=1)
        return (means[..., None, None],)

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        self.images.append(image)
        assert tokens[0].shape[0] == image.shape[0], "tokens must have the batch of the image"
        means = tokens[0][..., 0, 0][:, :, None, None, None]
        return 40 * (self.width - (image - means).abs())


def make_task(means: list[float], names: tuple[str, ...] | None = None, **changes: Any) -> TaskEmbedding:
    """A task of the grey model: one class per mean grey value."""
    task = TaskEmbedding(
        class_names=names or tuple(f"class_{k}" for k in range(len(means))),
        tokens=(torch.tensor(means).reshape(1, -1, 1, 1),),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=(16, 16, 16),
        normalisation=Normalisation.for_modality("MR"),
        intensity_offset=0.0,
        modality="MR",
        references=1,
        model_hash=HASH,
        made_by="one-shot",
    )
    return replace(task, **changes)


def loaded_with(model: nn.Module, **changes: Any) -> Any:
    """What `load_model` returns, around a stub."""
    values: dict[str, Any] = {
        "model": model,
        "bank": MemoryBank(0.9),
        "plans": {},
        "specs": {},
        "state": RunState(0, 0.0, 0),
        "model_hash": HASH,
        "version": "0",
        "knows_wide_view": False,
    }
    return SimpleNamespace(**(values | changes))


def tiny_model(seed: int = 0) -> Any:
    """A real, untrained network of the smallest size as `load_model` gives it, and the shapes it encoded.

    Each call of the encoder is noted in `model.encoded`.
    """
    model = build_iris("tiny", seed=seed).eval()
    encode = model.encode_image
    encoded: list[tuple[int, ...]] = []

    def noted(image: Tensor) -> tuple[Tensor, ...]:
        encoded.append(tuple(image.shape))
        return encode(image)

    model.__dict__.update(encode_image=noted, encoded=encoded)
    return loaded_with(model, config=model.config, model_hash=hash_weights(model))
