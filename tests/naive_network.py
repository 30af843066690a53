"""The network's parts as formulas of torch.nn.functional over their own weights, for tests. Arrays are [B,C,D,H,W]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_pipeline.model.blocks import Attention, FeedForward, ResidualBlock
from iris_pipeline.model.volume_ops import InstanceNorm3d


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of which none is 0 or 1, as those of fresh norms are: each has its say in what comes out."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(0.3 * noise + (0.5 if parameter.ndim == 1 else 0.0))


def instance_norm(layer: InstanceNorm3d, x: Tensor) -> Tensor:
    assert layer.weight is not None and layer.bias is not None
    mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), unbiased=False, keepdim=True)
    gain, shift = (each.view(1, -1, 1, 1, 1) for each in (layer.weight, layer.bias))
    return (x - mean) / (variance + layer.eps).sqrt() * gain + shift


def residual_block(block: ResidualBlock, x: Tensor) -> Tensor:
    y = F.conv3d(F.relu(instance_norm(block.norm1, x)), block.conv1.weight, padding=1)
    y = F.conv3d(F.relu(instance_norm(block.norm2, y)), block.conv2.weight, padding=1)
    shortcut = block.shortcut
    return y + (x if isinstance(shortcut, nn.Identity) else F.conv3d(x, shortcut.weight))  # type: ignore[arg-type]


def attention(layer: Attention, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """By PyTorch's own layer of as many heads of 32 channels as there are."""
    channels = tokens.shape[-1]
    theirs = nn.MultiheadAttention(
        channels, max(1, channels // 32), batch_first=True, dtype=tokens.dtype
    ).requires_grad_(False)
    theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key_value.bias]))
    theirs.out_proj.weight.copy_(layer.out.weight)
    theirs.out_proj.bias.copy_(layer.out.bias)
    read = layer.norm_tokens(tokens)
    source = read if context is None else layer.norm_context(context)
    return tokens + theirs(read, source, source, need_weights=False)[0]


def feed_forward(layer: FeedForward, tokens: Tensor) -> Tensor:
    norm, widen, _, narrow = layer.layers
    return tokens + narrow(F.gelu(widen(norm(tokens))))
