"""Layers whose CPU kernels PyTorch chooses badly for single small volumes: the same values, several times faster.

Arrays are [B,C,D,H,W]. Prediction is made of one window at a time, and there PyTorch's own choice is a convolution
without oneDNN, an instance norm by way of batch norm, a max-pooling that notes indices nobody reads, and a trilinear
up-sampling voxel by voxel (`benchmarks/network_speed.py` measures each beside its replacement). Parameters keep the
names of the layers that are replaced, so checkpoints fit. On other devices nothing is replaced.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """nn.Conv3d, zero-padded, that on a CPU goes to oneDNN however small the volume is."""

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast it is bfloat16, which PyTorch gives to oneDNN unasked; oneDNN has no float64.
        direct = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not direct or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        assert not isinstance(self.padding, str) and self.padding_mode == "zeros"
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class InstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d; on a CPU a group norm with one group a channel: the same mean and variance."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class HalvingMaxPool3d(nn.Module):
    """The maximum of every 2 x 2 x 2 voxels of a grid with even sides."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return F.max_pool3d(x, 2)  # its gradient is the faster one
        x = torch.maximum(x[..., ::2, :, :], x[..., 1::2, :, :])  # the outermost axis first: long rows
        x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return torch.maximum(x[..., ::2], x[..., 1::2])


def upsampling_matrix(coarse: int, factor: int, device: torch.device | None = None) -> Tensor:
    """Linear up-sampling of one axis as a matrix [factor*coarse, coarse], half-pixel centres (align_corners=False).

    Row i holds the weights with which the coarse samples make full-resolution sample i, so
    `F.interpolate(mode="trilinear")` is this matrix along each of the three axes.
    """
    centres = (torch.arange(coarse * factor, dtype=torch.float32, device=device) + 0.5) / factor - 0.5
    centres = centres.clamp(0, coarse - 1)
    low = centres.floor().clamp(max=max(coarse - 2, 0)).long()
    weight = centres - low
    matrix = torch.zeros(coarse * factor, coarse, dtype=torch.float32, device=device)
    rows = torch.arange(coarse * factor, device=device)
    matrix[rows, low] = 1 - weight
    if coarse > 1:
        matrix[rows, low + 1] += weight
    return matrix


def upsample_trilinear(x: Tensor, factor: int) -> Tensor:
    """`F.interpolate(scale_factor=factor, mode="trilinear")`; on a CPU as three matrix products, one an axis.

    They run in float32, and bfloat16 is rounded once at the end: autocast would round after each axis.
    """
    if x.device.type != "cpu":
        return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)
    with torch.autocast("cpu", enabled=False):
        kept = torch.float64 if x.dtype == torch.float64 else torch.float32
        depth, height, width = (upsampling_matrix(n, factor).to(kept) for n in x.shape[-3:])
        y = height @ (x.to(kept) @ width.T)  # [B,C,d,H,W]
        return (depth @ y.flatten(-2)).unflatten(-1, y.shape[-2:]).to(x.dtype)
