"""A voxel head: a few numbers that a task carries beside its tokens, fitted on its references together with them.

B batch; K classes; H hidden units; F features a voxel. A network that was trained on few datasets knows where things
lie better than how they look: of lungs, which it never met, it finds the place and not the edge. The head sees, voxel
by voxel, the window's grey values, plain and averaged over 3^3, 5^3 and 9^3 voxels, and the class's own logit, plain
and averaged over 5^3; what it says is added to the logit. It begins at nothing, so that a task is no worse before its
first step. Each class has a head of its own: classes can be chosen, joined and put into another order. The paper
tunes tokens alone (Sec. 3.4); this is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RADII = (1, 2, 4)
"""voxels to each side over which grey values are averaged"""
LOGIT_RADIUS = 2
FEATURES = 1 + len(RADII) + 2
HIDDEN = 16
LIMIT = 8.0
"""logits beyond it say nothing new"""
SCALE = 4.0
"""logits are divided by it, to be of the size of grey values in standard deviations"""


@dataclass(frozen=True)
class VoxelHead:
    """inner [K,H,F], inner_bias [K,H], outer [K,H], outer_bias [K]: one hidden layer a class."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    @staticmethod
    def begin(classes: int, seed: int = 0) -> VoxelHead:
        """A head that adds nothing, with a drawn first layer, alike for every class."""
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(1, HIDDEN, FEATURES, generator=generator, dtype=torch.float32) / FEATURES**0.5
        bias = 0.3 * torch.randn(1, HIDDEN, generator=generator, dtype=torch.float32)
        return VoxelHead(
            inner.repeat(classes, 1, 1),
            bias.repeat(classes, 1),
            torch.zeros(classes, HIDDEN, dtype=torch.float32),
            torch.zeros(classes, dtype=torch.float32),
        )

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.inner, self.inner_bias, self.outer, self.outer_bias

    def select(self, rows: Sequence[int]) -> VoxelHead:
        """The head of these classes, in this order."""
        return VoxelHead(*(part[list(rows)] for part in self.parts))

    def to(self, device: torch.device | str) -> VoxelHead:
        return VoxelHead(*(part.to(device) for part in self.parts))

    def __call__(self, image: Tensor, logits: Tensor) -> Tensor:
        """Logits [B,K,D,H,W] and what the head adds to them, float32; image [B,1,D,H,W] is the window they are of.

        Class by class: the hidden units of all classes never stand in memory together unless gradients are asked for.
        """
        with torch.autocast(image.device.type, enabled=False):
            image, logits = image.float(), logits.float()
            grey = [image, *(cube_mean(image, radius) for radius in RADII)]
            added = []
            for k in range(logits.shape[1]):
                own = logits[:, k : k + 1].clamp(-LIMIT, LIMIT) / SCALE
                features = torch.cat([*grey, own, cube_mean(own, LOGIT_RADIUS)], dim=1).flatten(2)  # [B,F,N]
                hidden = F.relu(self.inner[k] @ features + self.inner_bias[k][:, None])
                added.append((self.outer[k] @ hidden + self.outer_bias[k]).view(logits[:, k].shape))
            return logits + torch.stack(added, dim=1)


Share = tuple[VoxelHead | None, int, float]
"""A head (None: it adds nothing), the row of a class in it, and its weight in the mean."""


def mix(classes: Sequence[Sequence[Share]]) -> VoxelHead | None:
    """The head that adds, of each class, the weighted mean of what its shares add; None where none adds anything.

    Exactly: hidden units stand side by side, and their outer weights are scaled.
    """
    if all(head is None for shares in classes for head, _, _ in shares):
        return None
    rows = [_side_by_side(shares) for shares in classes]
    width = max(row[2].shape[0] for row in rows)
    padded = []
    for inner, inner_bias, outer, outer_bias in rows:
        missing = width - outer.shape[0]
        padded.append(
            (
                F.pad(inner, (0, 0, 0, missing)),
                F.pad(inner_bias, (0, missing)),
                F.pad(outer, (0, missing)),
                outer_bias,
            )
        )
    return VoxelHead(*(torch.stack(part) for part in zip(*padded, strict=True)))


def _side_by_side(shares: Sequence[Share]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """inner [H',F], inner_bias [H'], outer [H'], outer_bias [] of one class."""
    having = [(head, row, weight) for head, row, weight in shares if head is not None]
    if not having:
        shapes = ((0, FEATURES), (0,), (0,), ())
        inner, inner_bias, outer, outer_bias = (torch.zeros(shape, dtype=torch.float32) for shape in shapes)
        return inner, inner_bias, outer, outer_bias
    return (
        torch.cat([head.inner[row].float() for head, row, _ in having]),
        torch.cat([head.inner_bias[row].float() for head, row, _ in having]),
        torch.cat([weight * head.outer[row].float() for head, row, weight in having]),
        torch.stack([weight * head.outer_bias[row].float() for head, row, weight in having]).sum(),
    )


def cube_mean(values: Tensor, radius: int) -> Tensor:
    """The mean over cubes of 2 radius + 1 voxels of [B,1,D,H,W]; the edge goes on as it is."""
    padded = F.pad(values, (radius,) * 6, mode="replicate")
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = 2 * radius + 1
        padded = F.avg_pool3d(padded, kernel, stride=1)
    return padded
