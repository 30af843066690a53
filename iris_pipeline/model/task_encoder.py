"""The task encoder: reference features and binary masks -> task tokens T = [T_f ; T_c] (Sec. 3.2 of the Iris paper).

B batch; K classes; C channels of the level; r its down-sampling; m context tokens; full grid (D,H,W) = r (d,h,w).
Neither token ever needs a full-resolution feature map, thanks to the two identities in `blocks.py` and below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_pipeline.model.blocks import (
    Attention,
    FeedForward,
    SelfAttention,
    downsample_mask_adjoint,
    unshuffle_mask,
)
from iris_pipeline.model.volume_ops import Conv3d, InstanceNorm3d


def coarse_masks(masks: Tensor, factor: int) -> Tensor:
    """Masks [B,K,D,H,W] as a coarse grid knows them, on the full one: 1 where half of the coarse voxel is inside.

    What is smaller than that is gone, which is what masking at full resolution is there to prevent (Sec. 3.2).
    """
    coarse = (F.avg_pool3d(masks.float(), factor) >= 0.5).to(masks.dtype)
    return F.interpolate(coarse, scale_factor=factor, mode="nearest")


class ContextBranch(nn.Module):
    """Features [B,C,d,h,w] and masks [B,K,D,H,W] -> mask-aware context [B,K,C,d,h,w].

    The paper shuffles the features to full resolution, concatenates the mask, applies a 1x1x1 convolution and
    un-shuffles. A 1x1x1 convolution mixes channels only, so between shuffle and unshuffle it equals W_F on the
    channel groups of the features plus w_y times the unshuffled mask: the feature part is computed once for all K
    classes on the coarse grid. `widen` gives the shuffle its r^3 channels per group, `narrow` returns to C. Norm, ReLU
    and GELU between, and the features that are added at the end, are not in the paper.
    """

    def __init__(self, channels: int, factor: int, groups: int = 1):
        super().__init__()
        self.factor, self.groups = factor, groups
        self.norm = InstanceNorm3d(channels, affine=True)
        self.widen = Conv3d(channels, groups * factor**3, 1)
        self.mix = Conv3d(groups + 1, groups, 1)  # on [shuffled features ; mask]
        self.narrow = nn.Linear(groups * factor**3, channels)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        r3 = self.factor**3
        b, _, d, h, w = features.shape
        wide = self.widen(F.relu(self.norm(features))).view(b, self.groups, r3, d * h * w)
        weight = self.mix.weight.flatten(1)  # [groups, groups + 1]
        bias = self.mix.bias
        assert bias is not None
        feature_part = torch.einsum("og,bgrn->born", weight[:, :-1].to(wide.dtype), wide)
        feature_part = feature_part + bias.view(1, -1, 1, 1).to(wide.dtype)
        mask = unshuffle_mask(masks.to(wide.dtype), self.factor).view(b, -1, 1, r3, d * h * w)
        mask_part = weight[:, -1].view(1, 1, -1, 1, 1).to(wide.dtype) * mask
        # [B,K,groups,r^3,n]; the non-linearity acts voxel by voxel, so it commutes with the unshuffle.
        mixed = F.gelu(feature_part.unsqueeze(1) + mask_part)
        context = self.narrow(mixed.flatten(2, 3).transpose(-1, -2))  # [B,K,n,C]
        return features.unsqueeze(1) + context.transpose(-1, -2).view(b, -1, features.shape[1], d, h, w)


class TaskLevel(nn.Module):
    """One level of task encoding: (features [B,C,d,h,w], masks [B,K,D,H,W]) -> tokens [B,K,m+1,C].

    Token 0 begins as the foreground token, the mean of the up-sampled features under the mask, and 1..m as the learned
    queries. All of them read the context by cross-attention and one another by self-attention, and are layer-normed;
    in the paper the queries alone do, and the mean itself is the token (its first author's later code does as here).
    The paper's ablations: without `full_resolution` the masks are brought to the level's grid first; without
    `foreground` token 0 is one more learned query.
    """

    def __init__(
        self,
        channels: int,
        factor: int,
        tokens: int,
        depth: int,
        groups: int = 1,
        full_resolution: bool = True,
        foreground: bool = True,
    ):
        super().__init__()
        self.factor, self.full_resolution, self.foreground = factor, full_resolution, foreground
        learned = tokens if foreground else tokens + 1
        self.queries = nn.Parameter(torch.randn(learned, channels) * 0.02)
        self.context = ContextBranch(channels, factor, groups)
        self.cross = nn.ModuleList(Attention(channels) for _ in range(depth))
        self.cross_ffn = nn.ModuleList(FeedForward(channels) for _ in range(depth))
        self.self_attention = nn.ModuleList(SelfAttention(channels) for _ in range(depth))
        self.self_ffn = nn.ModuleList(FeedForward(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)

    def foreground_token(self, features: Tensor, masks: Tensor) -> Tensor:
        """T_f = Pool(Upsample(F) * y) at full resolution, by the adjoint identity: [B,K,C]; zeros for an empty mask."""
        coarse = downsample_mask_adjoint(masks, self.factor).flatten(2)  # [B,K,n]
        with torch.autocast(features.device.type, enabled=False):
            pooled = coarse @ features.float().flatten(2).transpose(1, 2)
            return pooled / masks.float().flatten(2).sum(-1, keepdim=True).clamp(min=1.0)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        b, k = masks.shape[:2]
        if not self.full_resolution:
            masks = coarse_masks(masks, self.factor)
        tokens = self.queries.expand(b, k, -1, -1)
        if self.foreground:
            tokens = torch.cat([self.foreground_token(features, masks).unsqueeze(2), tokens], dim=2)
        tokens = tokens.flatten(0, 1)  # [BK,m+1,C]
        context = self.context(features, masks).flatten(0, 1).flatten(2).transpose(1, 2)  # [BK,n,C]
        layers = zip(self.cross, self.cross_ffn, self.self_attention, self.self_ffn, strict=True)
        for cross, cross_ffn, self_attention, self_ffn in layers:
            tokens = cross_ffn(cross(tokens, context))
            tokens = self_ffn(self_attention(tokens))
        return self.norm(tokens).unflatten(0, (b, k))
