"""Connected pieces: a structure that is one piece in every reference is one piece in the result.

Arrays are [D,H,W] = (z,y,x). A window that holds no organ may still be given a crumb of mask; where all references show
a class as one piece, crumbs beside the largest piece are known to be wrong. Pieces touch by faces, edges or corners.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

ONE_PIECE = 0.95
"""A class is one piece where its largest piece holds this share of its voxels, in every reference"""
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def largest_share(labels: np.ndarray, value: int) -> float:
    """Share of a class's voxels that its largest piece holds, 0..1; 0.0 where it has none."""
    sizes = _sizes(*_pieces(labels, value))
    return float(sizes.max() / sizes.sum()) if len(sizes) else 0.0


def keep_largest(labels: np.ndarray, values: Iterable[int]) -> int:
    """Take all but the largest piece of each of these classes out of a label map, in place; returns the voxels taken.

    Of several largest pieces the first stays.
    """
    taken = 0
    boxes = ndimage.find_objects(labels)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        part = labels[box]
        pieces, count = _pieces(part, value)
        if count > 1:
            crumbs = (pieces > 0) & (pieces != 1 + int(_sizes(pieces, count).argmax()))
            part[crumbs] = 0
            taken += int(crumbs.sum())
    return taken


def _pieces(labels: np.ndarray, value: int) -> tuple[np.ndarray, int]:
    pieces, count = ndimage.label(labels == value, structure=TOUCHING)
    return pieces, int(count)


def _sizes(pieces: np.ndarray, count: int) -> np.ndarray:
    """Voxels of pieces 1..count."""
    return np.bincount(pieces.ravel(), minlength=count + 1)[1:]
