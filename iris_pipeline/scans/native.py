"""From slabs of probabilities on a prepared grid to what is wanted on the scan's own grid, block by block.

Arrays are [D,H,W] = (z,y,x); K classes. "Native" is the scan's own grid, here in RAS+ order; resampling between the
two is linear and separable, one small matrix an axis, so that a block of native planes needs only the prepared planes
under it. Nothing of K native volumes in floating point is ever held: a block is [d,h,W] for one class at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import blosc2
import numpy as np
from torch import Tensor

from preprocessing.geometry import Matrices, along_axes, bounding_box, reach, span
from preprocessing.grid_types import Region, Shape

PLANES = 64  # native planes of one block, at most
FULL = 255  # a probability of 1 as an 8-bit whole number
HALO = 1  # planes that a linear interpolation between two slabs needs of the former one


@dataclass(frozen=True)
class Tile:
    """Native rows (of H) that are made together, and the prepared rows they need."""

    native: slice
    prepared: slice


@dataclass(frozen=True)
class Block:
    """Some native planes and rows, whole in x. source: the prepared probabilities [K,d,h,W] they come from."""

    planes: slice
    rows: slice
    source: Tensor
    matrices: Matrices

    def scores(self, k: int) -> np.ndarray:
        """Probabilities of class k, float32 [planes,rows,W]."""
        return along_axes(self.source[k].cpu().numpy(), self.matrices)

    def scores_above(self, k: int, threshold: float) -> tuple[Region, np.ndarray] | None:
        """The box of the block outside of which class k is nowhere above `threshold`, and the probabilities in it.

        A linear mean is never above its largest part, so only the surroundings of what is above are computed.
        None where there is nothing.
        """
        prepared = self.source[k].cpu().numpy()
        box = bounding_box(prepared > threshold)
        found = reach(box, self.matrices) if box is not None else None
        if found is None:
            return None
        source, target, parts = found
        return target, along_axes(prepared[source], parts)


def tiles(matrices: Matrices, native: Shape, bytes_a_row: int, limit_bytes: int) -> list[Tile]:
    """The fewest tiles of equal height whose slabs, of `bytes_a_row` a prepared row, stay within the limit."""
    _, prepared = _cut(matrices[1], slice(0, native[1]))
    count = min(native[1], max(1, math.ceil((prepared.stop - prepared.start) * bytes_a_row / limit_bytes)))
    edges = [round(i * native[1] / count) for i in range(count + 1)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return [Tile(part, _cut(matrices[1], part)[1]) for part in parts]


def blocks(
    slabs: Iterable[tuple[int, Tensor]], matrices: Matrices, native: Shape, tile: Tile
) -> Iterator[Block]:
    """Native blocks of a tile from its slabs [K,d,h,W] (see `segment_slabs`; with a halo of one plane).

    matrices: prepared grid -> native grid, each [native, prepared] or None where an axis stays as it is.
    """
    z, y, x = matrices
    rows, _ = _cut(y, tile.native)
    # the last prepared plane that each native plane needs
    last = np.arange(native[0]) if z is None else np.array([span(row != 0).stop - 1 for row in z])
    finished = 0
    for first, slab in slabs:
        ready = int(np.searchsorted(last, first + slab.shape[1], side="left"))
        for begin in range(finished, ready, PLANES):
            planes = slice(begin, min(begin + PLANES, ready))
            part, needed = _cut(z, planes)
            source = slab[:, needed.start - first : needed.stop - first]
            yield Block(planes, tile.native, source, (part, rows, x))
        finished = ready


def _cut(matrix: np.ndarray | None, targets: slice) -> tuple[np.ndarray | None, slice]:
    """The part of an axis' matrix that makes these outputs, and the inputs it needs."""
    if matrix is None:
        return None, targets
    needed = span(np.any(matrix[targets] != 0, axis=0))
    return matrix[targets, needed], needed


def label_block(block: Block, values: Sequence[int], labels: np.ndarray, best: np.ndarray) -> None:
    """Give each voxel of a block the class of its highest probability, where that is above `best`.

    labels uint8 and best float32, both [planes,rows,W] and changed in place; the first of equals wins.
    """
    threshold = float(best.min())
    for k, value in enumerate(values):
        found = block.scores_above(k, threshold)
        if found is None:
            continue
        box, scores = found
        wins = scores > best[box]
        np.copyto(best[box], scores, where=wins)
        labels[box][wins] = value


@dataclass
class PackedVolume:
    """A volume of whole numbers 0..255 [D,H,W], filled block by block and held compressed."""

    shape: Shape
    pieces: list[tuple[Region, tuple[int, ...], bytes]] = field(default_factory=list)

    def put(self, box: Region, values: np.ndarray) -> None:
        """Set the voxels of a box; those of no box are 0."""
        if values.any():
            content = np.ascontiguousarray(values, dtype=np.uint8)
            self.pieces.append(
                (box, content.shape, blosc2.compress2(content, codec=blosc2.Codec.LZ4, nthreads=1))
            )

    def unpack(self) -> np.ndarray:
        """The volume, uint8 [D,H,W]."""
        result = np.zeros(self.shape, dtype=np.uint8)
        for box, shape, content in self.pieces:
            result[box] = np.frombuffer(blosc2.decompress2(content), dtype=np.uint8).reshape(shape)
        return result


def quantise(scores: np.ndarray) -> np.ndarray:
    """Probabilities 0..1 as 8-bit whole numbers of 1/255: 128 and more is above 0.5."""
    return np.rint(scores * np.float32(FULL)).clip(0, FULL).astype(np.uint8)
