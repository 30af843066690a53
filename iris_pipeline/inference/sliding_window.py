"""Whole volumes through a network of fixed window: overlapping windows, weighted mean of their probabilities.

Arrays are [D,H,W] = (z,y,x); K classes; windows lie on a full grid (every z start with every y and x start).
Their weights are products of one weight per axis, and so is the sum of weights over that grid: each axis is
normalised on its own and no [D,H,W] map of weights is needed. Planes leave as soon as no further window adds to
them, so that never more than one window's depth of a volume is held, in float32, for all classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.model import TaskTokens
from iris_pipeline.tasks.grey import GreyEvidence
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.tasks.voxel_head import VoxelHead
from preprocessing.errors import ModelError
from preprocessing.grid_types import Box
from preprocessing.runtime.progress import Bar

Weighting = Literal["gaussian", "uniform"]
GAUSSIAN_SIGMA = 1 / 8  # of the window's edge
SAME = 1e-5  # grey values (in standard deviations) that are no farther apart are equal: resampling rounds
AIR = 0.1  # standard deviations above a volume's minimum: noise of the air round a patient stays below
Skip = Literal["never", "air"]


@dataclass(frozen=True)
class Focus:
    """Where in a volume each class is looked for: a half-open box ((z0,z1),(y0,y1),(x0,x1)) a class.

    Windows lie over all boxes together; outside of its own box a class has probability 0.
    """

    boxes: tuple[Box, ...]

    @property
    def whole(self) -> Box:
        """The box round all of them."""
        return union_of(self.boxes)


def union_of(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them, one or more."""
    z, y, x = (
        (min(low for low, _ in axis), max(high for _, high in axis)) for axis in zip(*boxes, strict=True)
    )
    return z, y, x


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


@dataclass(frozen=True)
class InferenceOptions:
    """How volumes go through the network; ModelError if one of the values is not usable.

    overlap: share of a window that its neighbour covers too (0.5 is the paper's). weighting: "gaussian" makes the
    middle of a window count more than its edges, "uniform" is the plain average of the paper. batch_size: windows run
    together. autocast: bfloat16. skip "air": windows without a voxel more than 0.1 standard deviations above the
    volume's minimum are background without asking the network. moved: the windows lie elsewhere: a volume
    moves by half a window, one smaller than the window by half of the way to its edge, as training saw it in the
    middle only. all_pieces: crumbs of a class that is one piece in every reference stay in the label map. one_pass: no
    look at half the resolution first, even where the model knows how (`focus.py`).
    """

    overlap: float = 0.5
    weighting: Weighting = "gaussian"
    batch_size: int = 1
    device: str = "cpu"
    autocast: bool = False
    skip: Skip = "never"
    moved: bool = False
    all_pieces: bool = False
    one_pass: bool = False

    def __post_init__(self) -> None:
        check_options(self.overlap, self.weighting, self.batch_size)
        if self.skip not in get_args(Skip):
            raise ModelError(f"Windows to skip are {' or '.join(get_args(Skip))}; got {self.skip!r}.")

    def casting(self) -> torch.autocast:
        """The context in which the network runs: in bfloat16 where `autocast` says so."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast)


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

    All of `segment_slabs` at once, for volumes and classes that fit into memory together.
    """
    options = InferenceOptions(overlap, weighting, batch_size, str(device), autocast)
    result: np.ndarray | None = None
    with window_bar(image.shape, task.patch_size, options, progress) as bar:
        for first, slab in segment_slabs(model, image, task, options, bar=bar):
            if result is None:
                result = np.empty((len(slab), *image.shape), dtype=np.float16)
            result[:, first : first + slab.shape[1]] = slab.to(torch.float16).cpu().numpy()
    assert result is not None  # an image without voxels was refused
    return result


def segment_slabs(
    model: Segmenter,
    image: np.ndarray,
    task: TaskEmbedding,
    options: InferenceOptions,
    *,
    rows: slice | None = None,
    halo: int = 0,
    focus: Focus | None = None,
    bar: Bar | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities of a volume in slabs along z, from the bottom up: (first plane, float32 [K,d,h,W]).

    image [D,H,W]: one prepared volume (the task's spacing and intensities); smaller than the window it is
    padded with its minimum, evenly on both sides, and the result is cropped back. rows: only these of H (h of
    them), from the windows that reach them. Every slab but the first begins `halo` planes before the former
    one's end (or as many as there are). A slab is overwritten when the next one is asked for. The weighted
    mean is taken over sigmoid probabilities ("overlaps averaged", Sec. 4 of the paper). Windows in which
    nothing but the volume's minimum is (to 1e-5) are all answered by the first of them. focus: a class is looked
    for in its box only. ModelError if the image's shape is not usable.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise ModelError(
            f"A volume to segment must be [D,H,W] with voxels on each axis; got shape {list(image.shape)}."
        )
    device = torch.device(options.device)
    window = task.patch_size
    padded, inner = _pad_to_window(image, window, options.moved)
    minimum = float(padded.min())
    starts = _starts(padded.shape, window, inner, options, focus)
    weights = [
        torch.from_numpy(axis_weights(n, w, s, options.weighting)).to(device)
        for n, w, s in zip(padded.shape, window, starts, strict=True)
    ]
    tokens = tuple(level.to(device) for level in task.tokens)
    added = [part.to(device) for part in (task.grey, task.head) if part is not None]
    depth, (low, high, _) = window[0], rows.indices(image.shape[1]) if rows else (0, image.shape[1], 1)
    region = (slice(inner[1].start + low, inner[1].start + high), inner[2])
    pairs = [
        (y, x)
        for y in _reaching(starts[1], window[1], region[0])
        for x in _reaching(starts[2], window[2], region[1])
    ]
    held = torch.zeros(
        (len(task.class_names), halo + depth, high - low, image.shape[2]), dtype=torch.float32, device=device
    )
    air: Tensor | None = None  # the answer [K,*window] for a window that holds nothing
    kept = 0  # planes of the halo that are filled
    with torch.inference_mode(), options.casting():
        steps = _steps(starts[0], depth, padded.shape[0])
        for number, (i, z) in enumerate(steps):
            slab = held[:, halo:]
            waiting: list[_Place] = []
            for n, ((j, y), (k, x)) in enumerate(pairs if i is not None else (), start=1):
                patch = padded[z : z + depth, y : y + window[1], x : x + window[2]]
                weight = weights[0][i or 0][:, None, None] * weights[1][j][:, None] * weights[2][k]
                place = _Place(patch, weight, (y, x), float(patch.max()) - minimum)
                if place.contrast <= SAME and air is not None and options.skip != "air":
                    _add(slab, air, place, region)
                elif options.skip != "air" or place.contrast > AIR:
                    waiting.append(place)
                if waiting and (len(waiting) == options.batch_size or n == len(pairs)):
                    air = _run(model, tokens, added, waiting, slab, region, air)
                    waiting = []
                if bar is not None:
                    bar.update()
            done = (steps[number + 1][1] if number + 1 < len(steps) else padded.shape[0]) - z
            begin, end = max(z - kept, inner[0].start), min(z + done, inner[0].stop)
            if end > max(z, inner[0].start):
                first, planes = begin - inner[0].start, held[:, halo + begin - z : halo + end - z]
                if focus is not None:
                    _blank(planes, (first, low, 0), focus)
                yield first, planes
            kept = min(halo, kept + done)
            for planes in held:  # class by class: the copy that an overlapping move needs stays small
                planes[: halo + depth - done] = planes[done:].clone()
                planes[halo + depth - done :] = 0


def _starts(
    shape: Sequence[int],
    window: Sequence[int],
    inner: Sequence[slice],
    options: InferenceOptions,
    focus: Focus | None,
) -> list[list[int]]:
    """Starts of the windows along each axis of the padded volume: over all of it, or over the focus."""
    if focus is None:
        return [window_starts(n, w, options.overlap) for n, w in zip(shape, window, strict=True)]
    starts = []
    for n, edge, part, (low, high) in zip(shape, window, inner, focus.whole, strict=True):
        low, high = low + part.start, high + part.start
        spare = max(0, edge - (high - low))  # the box in the window's middle, the window inside the volume
        low = max(0, min(low - spare // 2, n - max(edge, high - low)))
        high = max(high, low + edge)
        starts.append([low + start for start in window_starts(high - low, edge, options.overlap)])
    return starts


def _steps(starts: Sequence[int], depth: int, length: int) -> list[tuple[int | None, int]]:
    """(number, start) of the windows along z, and (None, start) of the stretches in which no window lies."""
    before = [(None, z) for z in range(0, starts[0], depth)]
    after = [(None, z) for z in range(starts[-1] + depth, length, depth)]
    return [*before, *enumerate(starts), *after]


def _blank(slab: Tensor, first: tuple[int, int, int], focus: Focus) -> None:
    """Probability 0 for each class outside of its box; `first` is the slab's first voxel in the volume."""
    for sums, box in zip(slab, focus.boxes, strict=True):
        inside = tuple(
            slice(max(0, low - begin), max(0, high - begin))
            for (low, high), begin in zip(box, first, strict=True)
        )
        kept = sums[inside].clone()
        sums.zero_()
        sums[inside] = kept


def window_bar(
    shape: Sequence[int],
    window: Sequence[int],
    options: InferenceOptions,
    progress: bool,
    rows: Sequence[slice | None] = (None,),
    focus: Focus | None = None,
    said: str = "",
) -> Bar:
    """A progress bar that counts the windows of a volume [D,H,W], cut into these rows. said: in front of it."""
    total = 0
    for part in rows:
        padded, inner = _padding(shape, window, options.moved)
        starts = _starts(padded, window, inner, options, focus)
        low, high, _ = part.indices(shape[1]) if part else (0, shape[1], 1)
        reached = slice(inner[1].start + low, inner[1].start + high)
        columns = len(_reaching(starts[2], window[2], inner[2]))
        total += len(starts[0]) * len(_reaching(starts[1], window[1], reached)) * columns
    desc = said or None
    return Bar(total=total, desc=desc, unit="window", leave=False, disable=not progress, dynamic_ncols=True)


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


@dataclass(frozen=True)
class _Place:
    """A window: patch and weights [d,h,w], start (y,x), and how far its maximum is above the volume's minimum."""

    patch: np.ndarray
    weight: Tensor
    start: tuple[int, int]
    contrast: float


def _run(
    model: Segmenter,
    tokens: TaskTokens,
    added: Sequence[GreyEvidence | VoxelHead],
    places: Sequence[_Place],
    slab: Tensor,
    region: tuple[slice, slice],
    air: Tensor | None,
) -> Tensor | None:
    """Add the network's answers for some windows; return the answer for an empty one, if it is known by now."""
    batch = np.stack([place.patch for place in places])[:, None]
    image = torch.from_numpy(batch).to(slab.device)
    logits = model.segment(image, tuple(t.expand(len(places), -1, -1, -1) for t in tokens))
    for part in added:
        logits = part(image, logits)
    for logit, place in zip(logits, places, strict=True):
        probabilities = logit.float().sigmoid_()
        _add(slab, probabilities, place, region)
        if air is None and place.contrast <= SAME:
            air = probabilities
    return air


def _add(slab: Tensor, probabilities: Tensor, place: _Place, region: tuple[slice, slice]) -> None:
    """slab [K,d,h,W] += weight * probabilities [K,*window], where the window reaches the slab's region (y,x)."""
    to, source = [], []
    for start, edge, part in zip(place.start, place.weight.shape[1:], region, strict=True):
        begin, end = max(start, part.start), min(start + edge, part.stop)
        to.append(slice(begin - part.start, end - part.start))
        source.append(slice(begin - start, end - start))
    weight = place.weight[:, source[0], source[1]]
    for sums, values in zip(slab, probabilities, strict=True):  # class by class: no second [K,*window]
        sums[:, to[0], to[1]].addcmul_(values[:, source[0], source[1]], weight)


def _reaching(starts: Sequence[int], edge: int, part: slice) -> list[tuple[int, int]]:
    """(number, start) of the windows of this edge that reach into a part of their axis."""
    return [(n, s) for n, s in enumerate(starts) if s < part.stop and s + edge > part.start]


def _padding(
    shape: Sequence[int], window: Sequence[int], moved: bool
) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Shape of the padded volume, and where the original lies in it."""
    missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
    before = [m - m // 2 for m in missing]  # as the crops of training lie
    if moved:
        before = [b + m // 4 if m else w // 2 for b, m, w in zip(before, missing, window, strict=True)]
    inner = tuple(slice(b, b + n) for n, b in zip(shape, before, strict=True))
    return tuple(max(w, part.stop) for w, part in zip(window, inner, strict=True)), inner


def _pad_to_window(
    image: np.ndarray, window: Sequence[int], moved: bool
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The image as float32, padded as `_padding` says with its minimum; and where the original lies in it."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    shape, inner = _padding(image.shape, window, moved)
    if shape != image.shape:
        margins = [(part.start, n - part.stop) for n, part in zip(shape, inner, strict=True)]
        image = np.pad(image, margins, constant_values=image.min())
    return image, inner
