"""Building blocks of the network: residual convolutions, attention, and two linear-algebra identities.

Legend: B batch; C channels; D,H,W a grid (z,y,x); N tokens; K classes; r the factor between a coarse grid (d,h,w)
and the full one (D = r d). Everything here sees torch only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_pipeline.model.volume_ops import Conv3d, InstanceNorm3d, upsampling_matrix


class ResidualBlock(nn.Module):
    """Pre-activation residual block: (norm, ReLU, conv 3^3) twice, plus a shortcut ([B,C_in,..] -> [B,C_out,..])."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = InstanceNorm3d(channels_in, affine=True)
        self.conv1 = Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = InstanceNorm3d(channels_out, affine=True)
        self.conv2 = Conv3d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity() if channels_in == channels_out else Conv3d(channels_in, channels_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return y + self.shortcut(x)


class Attention(nn.Module):
    """Multi-head attention of `tokens` [B,N,C] over `context` [B,M,C], pre-norm, residual; heads of 32 channels."""

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm_tokens = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.norm_tokens(tokens)
        source = x if context is None else self.norm_context(context)
        b, n, c = x.shape
        q = self.query(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(source).view(b, source.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return tokens + self.out(y.transpose(1, 2).reshape(b, n, c))


class SelfAttention(Attention):
    """Attention of tokens [B,N,C] over themselves; one norm, since the context is the tokens."""

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__(channels, head_channels)
        del self.norm_context  # never used without a context: no dead parameters in the checkpoint


class FeedForward(nn.Module):
    """Pre-norm residual two-layer perceptron with GELU and expansion 4 ([B,N,C] -> [B,N,C])."""

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels),
            nn.GELU(),
            nn.Linear(expansion * channels, channels),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.layers(tokens)


def downsample_mask_adjoint(mask: Tensor, factor: int) -> Tensor:
    """U^T y: the adjoint of trilinear up-sampling by `factor`, applied to masks [B,K,D,H,W] -> [B,K,d,h,w].

    With it Pool(U F * y) = F (U^T y) / sum(y): the masked mean of the up-sampled features at FULL resolution
    costs three small matrix products on the mask and no full-resolution feature map.
    """
    with torch.autocast(mask.device.type, enabled=False):
        y = mask.float()
        depth, height, width = (upsampling_matrix(n // factor, factor, y.device) for n in y.shape[-3:])
        y = y @ width  # [B,K,D,H,w]
        y = height.T @ y  # [B,K,D,h,w]
        return (depth.T @ y.flatten(-2)).unflatten(-1, y.shape[-2:])


def unshuffle_mask(mask: Tensor, factor: int) -> Tensor:
    """Pixel-unshuffle of masks [B,K,D,H,W] -> [B,K,r^3,d,h,w]: each coarse voxel keeps its r^3 fine values."""
    b, k, depth, height, width = mask.shape
    r = factor
    y = mask.view(b, k, depth // r, r, height // r, r, width // r, r)
    return y.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, k, r**3, depth // r, height // r, width // r)
