"""One level of task encoding step by step: what the tokens begin as, what they read, and what they end as."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from naive_network import attention, feed_forward, randomise
from torch import Tensor

from iris_pipeline.model.task_encoder import TaskLevel


def naive_level(level: TaskLevel, features: Tensor, mask: Tensor) -> Tensor:
    """Tokens [m+1,C] of one class of one sample, features [1,C,d,h,w] and mask [1,1,D,H,W]."""
    full = F.interpolate(features, size=mask.shape[2:], mode="trilinear", align_corners=False)
    pooled = (full * mask).sum((2, 3, 4)) / mask.sum()
    tokens = torch.cat([pooled, level.queries])[None]
    context = (
        level.context(features, mask)[0].flatten(2).movedim(1, -1)
    )  # [1,n,C], voxels in the order (z,y,x)
    for i in range(len(level.cross)):
        tokens = attention(level.cross[i], tokens, context)  # type: ignore[arg-type]
        tokens = feed_forward(level.cross_ffn[i], tokens)  # type: ignore[arg-type]
        tokens = attention(level.self_attention[i], tokens)  # type: ignore[arg-type]
        tokens = feed_forward(level.self_ffn[i], tokens)  # type: ignore[arg-type]
    return level.norm(tokens)[0]


def test_tokens_of_each_class_and_sample_are_those_it_has_alone() -> None:
    level = TaskLevel(channels=64, factor=2, tokens=3, depth=2).double().requires_grad_(False)
    randomise(level, 0)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 64, 2, 3, 4, generator=generator, dtype=torch.float64)
    masks = (torch.rand(2, 3, 4, 6, 8, generator=generator) > 0.7).double()
    found = level(features, masks)
    assert found.shape == (2, 3, 4, 64)
    for b in range(2):
        for k in range(3):
            alone = naive_level(level, features[b : b + 1], masks[b : b + 1, k : k + 1])
            torch.testing.assert_close(found[b, k], alone)
