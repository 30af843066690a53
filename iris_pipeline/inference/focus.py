"""A look at half the resolution first: where are the classes? Then whole resolution there, and nowhere else.

Arrays are [D,H,W] = (z,y,x). A window at the plan's resolution shows a part of a large scan: one kidney and not which
one. At half the resolution it shows eight times as much. Models trained with `--wide` know both views; a task then
holds tokens for each. What is found in the wide view, with a margin, is where the second pass looks: it costs a
fraction of the windows and finds no left kidney on the right. The paper has one pass over all of the scan.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from iris_pipeline.inference.sliding_window import (
    Focus,
    InferenceOptions,
    Segmenter,
    segment_slabs,
    window_bar,
)
from iris_pipeline.sampling.halved import WORTH, halve_image, window_edges
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.grid_types import Box

MARGIN = 0.25
"""of a found object's extent, added on each side"""
LEAST_MARGIN_VOXELS = 8
FAINT = 0.2
"""a class that is nowhere above 0.5 is looked for where it is above this"""
PIECE_SHARE = 0.1
"""of a class's largest piece: smaller ones are crumbs"""


def look_first(
    model: Segmenter, image: np.ndarray, task: TaskEmbedding, options: InferenceOptions
) -> Focus | None:
    """Where the classes of a task are in a prepared image [D,H,W]; None where the whole of it has to be searched.

    That is where the task has no tokens for the wide view, where a window shows most of the image anyhow, and where a
    class was not found.
    """
    if options.one_pass or not task.wide_tokens or not shows_less(task, image.shape):
        return None
    halved = halve_image(image)
    wide = wide_task(task, halved.shape)
    best = np.zeros(halved.shape, dtype=np.uint8)
    faint = np.zeros((len(task.class_names), *halved.shape), dtype=bool)
    for first, slab in segment_slabs(model, halved, wide, options):
        planes = slice(first, first + slab.shape[1])
        highest, number = slab.max(dim=0)
        best[planes] = torch.where(highest > 0.5, number + 1, 0).to(torch.uint8).cpu().numpy()
        faint[:, planes] = (slab > FAINT).cpu().numpy()
    one_piece = task.one_piece()
    boxes = []
    for k, name in enumerate(task.class_names):
        sure = best == k + 1
        box = object_box(sure if sure.any() else faint[k], name in one_piece)
        if box is None:
            return None
        boxes.append(grown(box, image.shape))
    return Focus(tuple(boxes))


def shows_less(task: TaskEmbedding, shape: tuple[int, ...]) -> bool:
    """Whether a window at the task's resolution shows so little of an image [D,H,W] that a wide view is worth it."""
    return bool(np.prod(shape) >= WORTH * np.prod(task.patch_size))


def wide_task(task: TaskEmbedding, shape: tuple[int, ...]) -> TaskEmbedding:
    """The task as it is asked of a halved image of this shape: tokens, spacing and window of the wide view."""
    z, y, x = (2 * mm for mm in task.spacing_mm)
    return replace(
        task,
        tokens=task.wide_tokens,
        wide_tokens=(),
        head=None,  # fitted at the whole resolution, and for its tokens
        grey=None,  # counted there, and edges are not asked for here
        spacing_mm=(z, y, x),
        patch_size=window_edges(task.patch_size, shape),
    )


def object_box(mask: np.ndarray, one_piece: bool) -> Box | None:
    """The box round the largest piece of a mask [D,H,W], and round others that are no crumbs unless it is one piece."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    least = sizes.max() if one_piece else PIECE_SHARE * sizes.max()
    found = [part for part, size in zip(ndimage.find_objects(pieces), sizes, strict=True) if size >= least]
    z, y, x = (
        (min(part[axis].start for part in found), max(part[axis].stop for part in found)) for axis in range(3)
    )
    return z, y, x


def grown(box: Box, shape: tuple[int, ...]) -> Box:
    """A box of the halved grid on the whole one, with its margin, inside a volume of this shape."""
    edges = []
    for (low, high), length in zip(box, shape, strict=True):
        margin = max(LEAST_MARGIN_VOXELS, round(MARGIN * 2 * (high - low)))
        edges.append((max(0, 2 * low - margin), min(length, 2 * high + margin)))
    return edges[0], edges[1], edges[2]


def label_volume(
    model: Segmenter,
    image: np.ndarray,
    task: TaskEmbedding,
    options: InferenceOptions,
    highest: np.ndarray | None = None,
    progress: str = "",
) -> np.ndarray:
    """Label map uint8 [D,H,W] of a prepared image on its own grid: the most probable class above 0.5, else 0.

    highest: float32 [D,H,W], where the highest probability of each voxel is to be written. progress: what a bar
    says, "" for none.
    Made slab by slab: the probabilities of all classes never stand in memory for the whole volume.
    """
    labels = np.zeros(image.shape, dtype=np.uint8)
    values = torch.tensor([0, *task.class_values], dtype=torch.uint8, device=options.device)
    focus = look_first(model, image, task, options)
    with window_bar(image.shape, task.patch_size, options, bool(progress), focus=focus, said=progress) as bar:
        for first, slab in segment_slabs(model, image, task, options, focus=focus, bar=bar):
            most, best = slab.max(dim=0)
            planes = slice(first, first + slab.shape[1])
            labels[planes] = values[torch.where(most > 0.5, best + 1, 0)].cpu().numpy()
            if highest is not None:
                highest[planes] = most.cpu().numpy()
    return labels
