"""Training coarse to fine: the first part of a run sees its crops on a coarser grid, where a step costs a fraction.

B batch; K classes; images [B,1,D,H,W], masks [B,K,D,H,W]. A crop of 64^3 voxels shown as 32^3 has the same objects in
the same places for an eighth of the work, which is enough to learn what belongs to what; edges are learned after that
("progressive resizing"). The paper trains on one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iris_pipeline.model import STRIDE
from iris_pipeline.sampling.episode import StackedEpisodes
from preprocessing.errors import ModelError

Curriculum = tuple[tuple[float, float], ...]
"""Phases (share of the run, share of the crop's edge) in order; what is left of the run sees whole crops."""
FINEST = 2 * STRIDE  # 16^3 is one voxel at the deepest stage, which instance norm turns into zero


def check_curriculum(phases: Curriculum) -> None:
    """ModelError unless every share lies in (0, 1] and the phases leave room for the whole crop at the end."""
    shares = [share for phase in phases for share in phase]
    if any(not 0 < share <= 1 for share in shares) or sum(length for length, _ in phases) >= 1:
        raise ModelError(
            "A curriculum is a list of phases RUN:EDGE, shares above 0 and up to 1 whose RUNs sum to less than 1, "
            f"such as 0.2:0.5 0.3:0.75; got {' '.join(f'{run:g}:{edge:g}' for run, edge in phases)}."
        )


def edge_share(phases: Curriculum, progress: float) -> float:
    """The share of the crop's edge at `progress` 0..1 of the run.

    >>> [edge_share(((0.2, 0.5), (0.3, 0.75)), progress) for progress in (0.0, 0.2, 0.5, 1.0)]
    [0.5, 0.75, 1.0, 1.0]
    """
    end = 0.0
    for length, edge in phases:
        end += length
        if progress < end:
            return edge
    return 1.0


def shrink_group(group: StackedEpisodes, share: float) -> StackedEpisodes:
    """The same episodes on a grid of `share` of the edge, rounded to multiples of the network's stride.

    Images are averaged over the area of each new voxel; a mask is set where half of that area is. A nerve that no new
    voxel is half filled by stays where most of it is: an empty mask would say that it is not there.
    """
    if share >= 1:
        return group
    size = shrunk_size(group.query_images.shape[2:], share)

    def masks(full: Tensor) -> Tensor:
        share = F.interpolate(full, size, mode="area")
        most = share.amax((2, 3, 4), keepdim=True)
        return (share >= most.clamp(min=torch.finfo(share.dtype).tiny, max=0.5)).to(full.dtype)

    return replace(
        group,
        reference_images=F.interpolate(group.reference_images, size, mode="area"),
        query_images=F.interpolate(group.query_images, size, mode="area"),
        reference_masks=masks(group.reference_masks),
        query_masks=masks(group.query_masks),
    )


def shrunk_size(size: Sequence[int], share: float) -> list[int]:
    """Edges (z,y,x) of a shrunken crop: multiples of 16, at least 32 unless the crop itself is smaller.

    >>> shrunk_size((64, 48, 32), 0.5)
    [32, 32, 32]
    """
    return [min(edge, max(FINEST, STRIDE * round(edge * share / STRIDE))) for edge in size]
