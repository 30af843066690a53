"""The Iris network, its configuration and its three sizes ("Show and Segment", CVPR 2025, arXiv 2503.19359).

B batch; K classes; m context tokens; C_l channels of task level l; D,H,W multiples of the stride, 16.
A task is a value (`TaskTokens`): encode it once from a reference, then segment any number of queries with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from iris_pipeline.model.encoder import Encoder
from iris_pipeline.model.mask_decoder import MaskDecoder
from iris_pipeline.model.task_encoder import TaskLevel
from preprocessing.errors import ModelError

TaskTokens = tuple[Tensor, ...]
"""One tensor per task level, deepest first, each [B,K,m+1,C_l]; token 0 begins as the foreground token."""

STRIDE = 16


@dataclass(frozen=True)
class IrisConfig:
    """Numbers of the network, checked on construction.

    widths: channels at strides 1, 2, 4, 8, 16.
    encoder_blocks, decoder_blocks: residual blocks at each of these strides (the decoder has none at stride 16).
    task_levels: log2 of the strides at which tasks are encoded and fused, deepest first.
    context_tokens: m, 10 in the paper; 0 leaves the foreground token alone.
    task_depth, fusion_depth: attention blocks per level.
    context_groups: channels a shuffled feature map keeps at full resolution.
    join: how each up-path stage (strides 1, 2, 4, 8) takes its skip: "concat" or "add".
    rectified_stem: a ReLU behind the first convolution, so that its channels can be windows of grey values.
    full_resolution_masking, foreground_token: False for the paper's ablations: masks are brought to the level's grid
    before anything else sees them; the first token is learned, as the others are, and pools nothing.
    """

    widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    task_levels: tuple[int, ...] = (4, 3)
    context_tokens: int = 10
    task_depth: int = 2
    fusion_depth: int = 1
    context_groups: int = 1
    join: tuple[str, ...] = ("concat", "concat", "concat", "concat")
    rectified_stem: bool = False
    full_resolution_masking: bool = True
    foreground_token: bool = True

    def __post_init__(self) -> None:
        stages = len(self.widths)
        if 2 ** (stages - 1) != STRIDE or len(self.encoder_blocks) != stages:
            raise ModelError(
                f"Iris has five stages, so widths and encoder_blocks need 5 entries, not {self}."
            )
        if len(self.decoder_blocks) != stages - 1 or len(self.join) != stages - 1:
            raise ModelError(
                f"The decoder has four stages, so decoder_blocks and join need 4 entries, not {self}."
            )
        if not self.task_levels or list(self.task_levels) != sorted(set(self.task_levels), reverse=True):
            raise ModelError(f"task_levels must fall, as in (4, 3), without repeats; got {self.task_levels}.")
        if self.context_tokens < 0 or not (self.context_tokens or self.foreground_token):
            raise ModelError(
                "A task needs a token: context_tokens must be 0 or more, and 1 or more without the foreground token; "
                f"got {self.context_tokens}."
            )
        if not set(self.task_levels) <= set(range(1, stages)):
            raise ModelError(f"task_levels must lie in 1..{stages - 1}; got {self.task_levels}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IrisConfig:
        """Inverse of `to_dict`; ModelError names keys this version does not know."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ModelError(
                f"This version knows no model setting {sorted(unknown)}; use the version that wrote it."
            )
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)


# tiny and small have no residual block at full resolution, so that without a ReLU there the first two convolutions are
# one, and instance norm undoes every change of contrast (LOG.md: "CT of the head and neck is no longer flat").
SIZES: dict[str, IrisConfig] = {
    "tiny": IrisConfig(
        widths=(8, 16, 32, 64, 96),
        encoder_blocks=(0, 1, 1, 1, 1),
        decoder_blocks=(1, 1, 1, 1),
        task_levels=(4, 3),
        task_depth=1,
        join=("add", "concat", "concat", "concat"),
        rectified_stem=True,
    ),
    "small": IrisConfig(
        widths=(16, 32, 64, 128, 256),
        encoder_blocks=(0, 1, 2, 2, 1),
        decoder_blocks=(1, 1, 1, 1),
        task_levels=(4, 3),
        task_depth=1,
        join=("add", "concat", "concat", "concat"),
        rectified_stem=True,
    ),
    "paper": IrisConfig(
        widths=(32, 64, 128, 256, 512),
        encoder_blocks=(2, 2, 2, 2, 2),
        decoder_blocks=(2, 2, 2, 2),
        task_levels=(4, 3),
        task_depth=1,
    ),
}


def build_config(size: str) -> IrisConfig:
    """The configuration of a named size; ModelError lists the names."""
    if size not in SIZES:
        raise ModelError(f"--size must be one of {', '.join(SIZES)}; got {size!r}.")
    return SIZES[size]


class Iris(nn.Module):
    """Encoder E, task encoder and mask decoder; `forward` is one episode, the parts serve inference."""

    stride = STRIDE

    def __init__(self, config: IrisConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.widths, config.encoder_blocks, config.rectified_stem)
        self.task_encoder = nn.ModuleList(
            TaskLevel(
                config.widths[level],
                2**level,
                config.context_tokens,
                config.task_depth,
                config.context_groups,
                config.full_resolution_masking,
                config.foreground_token,
            )
            for level in config.task_levels
        )
        self.decoder = MaskDecoder(
            config.widths, config.decoder_blocks, config.task_levels, config.fusion_depth, config.join
        )

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image [B,1,D,H,W] -> features at strides 1..16; ModelError unless D,H,W are multiples of 16.

        16^3 itself is refused: at stride 16 it is one voxel, which instance norm would turn into zero.
        """
        grid = image.shape[2:]
        if image.ndim != 5 or image.shape[1] != 1 or any(n % STRIDE for n in grid) or max(grid) <= STRIDE:
            raise ModelError(
                f"The network takes images [B,1,D,H,W] with D,H,W multiples of {STRIDE} and one of them above "
                f"{STRIDE}; got {tuple(image.shape)}: pad or crop to the plan's patch size."
            )
        return self.encoder(image)

    def encode_task_from_features(self, features: tuple[Tensor, ...], masks: Tensor) -> TaskTokens:
        """Features of the reference and its masks [B,K,D,H,W] (0/1) -> task tokens of each level."""
        if masks.ndim != 5 or masks.shape[2:] != features[0].shape[2:]:
            raise ModelError(
                f"Masks must be [B,K,D,H,W] on the image's grid {tuple(features[0].shape[2:])}; "
                f"got {tuple(masks.shape)}."
            )
        return tuple(
            level(features[stage], masks)
            for stage, level in zip(self.config.task_levels, self.task_encoder, strict=True)
        )

    def encode_task(self, image: Tensor, masks: Tensor) -> TaskTokens:
        """Reference image [B,1,D,H,W] and masks [B,K,D,H,W] (0/1) -> task tokens, each level [B,K,m+1,C_l]."""
        return self.encode_task_from_features(self.encode_image(image), masks)

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: TaskTokens) -> Tensor:
        """Features of the query and task tokens (batch B or 1) -> logits [B,K,D,H,W]; sigmoid gives one probability per
        class.
        """
        batch, levels = features[0].shape[0], len(self.config.task_levels)
        if len(tokens) != levels or any(t.ndim != 4 or t.shape[0] not in (1, batch) for t in tokens):
            raise ModelError(
                f"Tokens are {levels} levels, each [B,K,m+1,C] of the query's batch, {batch}, or of 1; got "
                f"{[tuple(t.shape) for t in tokens]}: give as many references as queries, or one."
            )
        tokens = tuple(t.expand(batch, -1, -1, -1) for t in tokens)
        return self.decoder(features, tokens)

    def segment(self, image: Tensor, tokens: TaskTokens) -> Tensor:
        """Query image [B,1,D,H,W] and task tokens (batch B or 1) -> logits [B,K,D,H,W]."""
        return self.segment_from_features(self.encode_image(image), tokens)

    def forward(self, reference: Tensor, masks: Tensor, query: Tensor) -> Tensor:
        """One-shot episode: reference [B,1,D,H,W] with masks [B,K,D,H,W], query [B,1,D,H,W] -> logits [B,K,D,H,W]."""
        return self.segment(query, self.encode_task(reference, masks))


def build_iris(size: str | IrisConfig, seed: int | None = None) -> Iris:
    """A fresh network of a named size or configuration; `seed` fixes its initial weights."""
    config = build_config(size) if isinstance(size, str) else size
    if seed is None:
        return Iris(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Iris(config)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
