"""The mask decoder: query features and task tokens -> one mask per class in a single pass (Sec. 3.3 of the paper).

B batch; K classes; m+1 tokens a class; C channels of a level; task levels are fused before each up-sampling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iris_pipeline.model.blocks import Attention, FeedForward, ResidualBlock, SelfAttention
from iris_pipeline.model.volume_ops import Conv3d, InstanceNorm3d, upsample_trilinear


class Fusion(nn.Module):
    """(F', T') = CrossAttn(F, T) both ways, `depth` times: features [B,C,d,h,w], tokens [B,N,C], N = K(m+1)."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.tokens_read = nn.ModuleList(Attention(channels) for _ in range(depth))
        self.tokens_ffn = nn.ModuleList(FeedForward(channels) for _ in range(depth))
        self.image_reads = nn.ModuleList(Attention(channels) for _ in range(depth))
        self.image_ffn = nn.ModuleList(FeedForward(channels) for _ in range(depth))
        self.classes_meet = nn.ModuleList(SelfAttention(channels) for _ in range(depth))
        self.classes_ffn = nn.ModuleList(FeedForward(channels) for _ in range(depth))

    def forward(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        grid = features.shape[2:]
        image = features.flatten(2).transpose(1, 2)
        for i in range(len(self.tokens_read)):
            tokens = self.tokens_ffn[i](self.tokens_read[i](tokens, image))
            image = self.image_ffn[i](self.image_reads[i](image, tokens))
            tokens = self.classes_ffn[i](self.classes_meet[i](tokens))
        return image.transpose(1, 2).unflatten(2, grid), tokens


class UpStage(nn.Module):
    """Up-sample [B,C_in,d,h,w] by 2, join the skip [B,C,2d,2h,2w], refine -> [B,C,2d,2h,2w].

    The 1x1x1 reduction stands before the up-sampling: both are linear and commute, and it is 8 times cheaper there.
    """

    def __init__(self, channels_in: int, channels: int, blocks: int, join: str):
        super().__init__()
        self.join = join
        self.reduce = Conv3d(channels_in, channels, 1)
        first = 2 * channels if join == "concat" else channels
        self.blocks = nn.Sequential(
            *(ResidualBlock(first if j == 0 else channels, channels) for j in range(blocks))
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = upsample_trilinear(self.reduce(x), 2)
        x = torch.cat([x, skip], dim=1) if self.join == "concat" else x + skip
        return self.blocks(x)


class MaskDecoder(nn.Module):
    """Feature pyramid and task tokens -> logits [B,K,D,H,W].

    `levels[i]` is the stage (log2 of the stride) at which the i-th task level is fused, deepest first. Each class's
    foreground tokens of all levels, projected to the width of the up-path, are dotted with the voxel features.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        levels: tuple[int, ...],
        fusion_depth: int,
        join: tuple[str, ...],
    ):
        super().__init__()
        self.levels = levels
        self.fusions = nn.ModuleList(Fusion(widths[level], fusion_depth) for level in levels)
        self.ups = nn.ModuleList(
            UpStage(widths[i + 1], widths[i], blocks[i], join[i]) for i in reversed(range(len(widths) - 1))
        )
        self.final_norm = InstanceNorm3d(widths[0], affine=True)
        token_channels = sum(widths[level] for level in levels)
        self.classifier = nn.Sequential(
            nn.LayerNorm(token_channels),
            nn.Linear(token_channels, token_channels),
            nn.GELU(),
            nn.Linear(token_channels, widths[0] + 1),
        )
        last = self.classifier[-1]
        assert isinstance(last, nn.Linear)
        # Objects fill a few per cent of a crop; starting near "background" spares the first hundred iterations.
        nn.init.constant_(last.bias[-1:], -2.0)

    def forward(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        b, k, per_class = tokens[0].shape[:3]
        x = features[-1]
        class_tokens = []
        for stage in reversed(range(len(features))):
            if stage < len(features) - 1:
                x = self.ups[len(features) - 2 - stage](x, features[stage])
            if stage in self.levels:
                index = self.levels.index(stage)
                x, fused = self.fusions[index](x, tokens[index].flatten(1, 2).to(x.dtype))
                class_tokens.append(fused.view(b, k, per_class, -1)[:, :, 0])
        weights = self.classifier(torch.cat(class_tokens, dim=-1))  # [B,K,C_0+1]
        x = F.relu(self.final_norm(x)).flatten(2)
        logits = weights[..., :-1].to(x.dtype) @ x + weights[..., -1:].to(x.dtype)
        return logits.view(b, k, *features[0].shape[2:])
