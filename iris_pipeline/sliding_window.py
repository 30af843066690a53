"""Whole volumes through a network of fixed window: overlapping windows, weighted mean of their probabilities.

Arrays are [D,H,W] = (z,y,x); K classes; windows lie on a full grid (every z start with every y and x start).
Their weights are products of one weight per axis, and so is the sum of weights over that grid: each axis is
normalised on its own and no [D,H,W] map of weights is needed. Finished planes leave as float16, so that the
float32 part is one window deep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from iris_pipeline.model import TaskTokens
from iris_pipeline.task import TaskEmbedding
from preprocessing.errors import ModelError

Weighting = Literal["gaussian", "uniform"]
GAUSSIAN_SIGMA = 1 / 8  # of the window's edge


class Segmenter(Protocol):
    """`Iris.segment`: image [B,1,D,H,W] and tokens (batch B) -> logits [B,K,D,H,W]."""

    def segment(self, image: Tensor, tokens: TaskTokens) -> Tensor: ...


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Even starts of the fewest windows that cover `length` voxels and overlap by `overlap` or more."""
    if length <= window:
        return [0]
    step = max(1.0, window * (1.0 - overlap))
    count = math.ceil((length - window) / step) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def axis_weights(length: int, window: int, starts: Sequence[int], weighting: Weighting) -> np.ndarray:
    """Weights [len(starts), window] along one axis, scaled to sum to 1 at each of the `length` voxels."""
    if weighting == "uniform":
        profile = np.ones(window)
    else:
        profile = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / (window * GAUSSIAN_SIGMA)) ** 2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + window] += profile
    return np.stack([profile / total[start : start + window] for start in starts]).astype(np.float32)


def segment_volume(
    model: Segmenter,
    image: np.ndarray,
    task: TaskEmbedding,
    *,
    overlap: float = 0.5,
    weighting: Weighting = "gaussian",
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    autocast: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """Probability of each class of the task at each voxel: float16 [K,D,H,W], on the grid of `image` [D,H,W].

    image: one prepared volume (the task's spacing and intensities); smaller than the window it is padded with
    its minimum, evenly on both sides, and the result is cropped back. The weighted mean is taken over sigmoid
    probabilities ("overlaps averaged", Sec. 4 of the paper); overlap 0.5 is the paper's. autocast: bfloat16.
    ModelError if overlap, weighting or the image's shape is not usable.
    """
    check_options(overlap, weighting, batch_size)
    if image.ndim != 3 or 0 in image.shape:
        raise ModelError(
            f"A volume to segment must be [D,H,W] with voxels on each axis; got shape {list(image.shape)}."
        )
    device = torch.device(device)
    window = task.patch_size
    padded, inner = _pad_to_window(image, window)
    starts = [window_starts(n, w, overlap) for n, w in zip(padded.shape, window, strict=True)]
    weights = [
        torch.from_numpy(axis_weights(n, w, s, weighting)).to(device)
        for n, w, s in zip(padded.shape, window, starts, strict=True)
    ]
    tokens = tuple(level.to(device) for level in task.tokens)
    classes = len(task.class_names)
    depth = window[0]
    result = np.empty((classes, *padded.shape), dtype=np.float16)
    slab = torch.zeros((classes, depth, *padded.shape[1:]), device=device)
    bar = tqdm(total=math.prod(map(len, starts)), unit="window", leave=False, disable=not progress)
    with bar, torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        for i, z in enumerate(starts[0]):
            for chunk in _chunks(starts[1], starts[2], batch_size):
                boxes = [np.s_[:, y : y + window[1], x : x + window[2]] for (_, y), (_, x) in chunk]
                batch = np.stack([padded[z : z + depth][box] for box in boxes])[:, None]
                logits = model.segment(
                    torch.from_numpy(batch).to(device),
                    tuple(t.expand(len(boxes), -1, -1, -1) for t in tokens),
                )
                for logit, box, ((j, _), (k, _)) in zip(logits, boxes, chunk, strict=True):
                    weight = weights[0][i][:, None, None] * weights[1][j][:, None] * weights[2][k]
                    slab[(slice(None), *box)] += logit.float().sigmoid_().mul_(weight)
                bar.update(len(boxes))
            done = (starts[0][i + 1] if i + 1 < len(starts[0]) else padded.shape[0]) - z
            result[:, z : z + done] = slab[:, :done].to(torch.float16).cpu().numpy()
            if done < depth:  # planes that the next row of windows adds to; the rest starts from nothing
                slab[:, : depth - done] = slab[:, done:].clone()
            slab[:, max(0, depth - done) :] = 0
    return result[(slice(None), *inner)]


def check_options(overlap: float, weighting: str, batch_size: int) -> None:
    """ModelError if one of them is not usable."""
    if not 0 <= overlap < 1:
        raise ModelError(
            f"The overlap of windows must be 0 or more and under 1 (0.5 is half a window); got {overlap}."
        )
    if weighting not in get_args(Weighting):
        raise ModelError(f"Window weights must be {' or '.join(get_args(Weighting))}; got {weighting!r}.")
    if batch_size < 1:
        raise ModelError(f"The batch of windows must be 1 or more; got {batch_size}.")


def _pad_to_window(image: np.ndarray, window: Sequence[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The image as float32, padded to the window where it is smaller; and where the original lies in it."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    missing = [max(0, w - n) for n, w in zip(image.shape, window, strict=True)]
    before = [m - m // 2 for m in missing]  # as the crops of training lie
    inner = tuple(slice(b, b + n) for n, b in zip(image.shape, before, strict=True))
    if any(missing):
        margins = [(b, m - b) for m, b in zip(missing, before, strict=True)]
        image = np.pad(image, margins, constant_values=image.min())
    return image, inner


def _chunks(
    rows: Sequence[int], columns: Sequence[int], size: int
) -> Iterator[list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Pairs ((j, y), (k, x)) of one row of windows, `size` at a time."""
    pairs = [((j, y), (k, x)) for j, y in enumerate(rows) for k, x in enumerate(columns)]
    for first in range(0, len(pairs), size):
        yield pairs[first : first + size]
