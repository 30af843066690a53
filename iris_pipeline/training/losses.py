"""Training loss: Dice + cross-entropy per class, on logits and binary masks [B,K,D,H,W] (Sec. 3.4 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """Scalars: `total` carries the gradient, the two parts are detached for the log."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


EMPTY_SMOOTH = 2e-3
"""Share of the crop's voxels that smooth the Dice of an empty mask: with a single voxel its gradient would vanish as
soon as a few hundred voxels are wrong, and whole scans are mostly windows that hold no object"""


def soft_dice(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice coefficient per class, [B,K]: (2 sum(p y) + s) / (sum p + sum y + s), p = sigmoid(logits).

    s is `smooth` voxels, and for an empty mask `EMPTY_SMOOTH` of the crop at least: an empty prediction is rewarded.
    """
    p = torch.sigmoid(logits.float()).flatten(2)
    y = masks.float().flatten(2)
    size = y.sum(-1)
    s = torch.where(size > 0, smooth, max(smooth, EMPTY_SMOOTH * y.shape[-1]))
    return (2 * (p * y).sum(-1) + s) / (p.sum(-1) + size + s)


def class_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """(1 - soft Dice) + binary cross-entropy of each sample and class, [B,K]."""
    dice, entropy = _parts(logits, masks)
    return dice + entropy


def episode_loss(logits: Tensor, masks: Tensor, valid: Tensor | None = None) -> LossParts:
    """Mean over the valid (sample, class) pairs of (1 - soft Dice) + binary cross-entropy.

    valid [B,K]: 0 where the class had no voxel in the reference, so that its token says nothing; all by default.
    """
    dice, entropy = _parts(logits, masks)
    weight = torch.ones_like(dice) if valid is None else valid.to(dice)
    count = weight.sum().clamp(min=1.0)
    dice_mean, entropy_mean = (dice * weight).sum() / count, (entropy * weight).sum() / count
    return LossParts(dice_mean + entropy_mean, dice_mean.detach(), entropy_mean.detach())


def _parts(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """1 - soft Dice, and binary cross-entropy, each [B,K]."""
    entropy = F.binary_cross_entropy_with_logits(logits.float(), masks.float(), reduction="none")
    return 1 - soft_dice(logits, masks), entropy.flatten(2).mean(-1)
