"""Slabs -> native blocks -> label maps, masks, probabilities: equal to doing it with all classes at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from iris_pipeline.scans.native import HALO, PackedVolume, Tile, blocks, label_block, quantise, tiles
from preprocessing.geometry import Resampling
from preprocessing.grid_types import Shape

GRIDS = [  # native, prepared
    ((6, 9, 8), (9, 5, 8)),
    ((40, 7, 7), (5, 14, 5)),
    ((4, 5, 3), (23, 5, 10)),
    ((12, 5, 3), (12, 5, 3)),
    ((1, 1, 2), (3, 1, 1)),
    ((150, 4, 5), (17, 4, 3)),
]


def slabs_of(scores: np.ndarray, steps: list[int], rows: slice) -> Iterator[tuple[int, Tensor]]:
    """Pieces along z that repeat the last plane before, in a buffer that is overwritten."""
    at, i = 0, 0
    buffer = torch.zeros(1)
    while at < scores.shape[1]:
        first, end = max(0, at - HALO), min(at + steps[i % len(steps)], scores.shape[1])
        buffer.fill_(torch.nan)
        buffer = torch.from_numpy(scores[:, first:end, rows].astype(np.float32))
        yield first, buffer
        at, i = end, i + 1


def naive(scores: np.ndarray, native: Shape, values: list[int]) -> np.ndarray:
    """Argmax over the classes above 0.5 on the native grid, else 0."""
    resampling = Resampling(native, scores.shape[1:])
    stack = np.stack([resampling.undo_scores(each) for each in scores])
    return np.where(stack.max(axis=0) > 0.5, np.array(values)[stack.argmax(axis=0)], 0)


@pytest.mark.parametrize(("native", "prepared"), GRIDS)
@pytest.mark.parametrize("steps", [[1], [3, 1, 2], [100]])
@pytest.mark.parametrize("limit", [1, 60, 10**9])
def test_streaming_equals_all_classes_at_once(
    native: Shape, prepared: Shape, steps: list[int], limit: int
) -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(size=(5, *prepared)).astype(np.float32)
    scores[1] = scores[0]  # equals everywhere: the first of them wins
    scores[2] *= 0.5  # never above the threshold
    scores[3][: prepared[0] // 2 + 1] = 0  # a part of the volume only
    values, matrices = [9, 4, 200, 1, 7], Resampling(native, prepared).undo_matrices()
    parts = tiles(matrices, native, bytes_a_row=10, limit_bytes=limit)
    found, best = np.zeros(native, np.uint8), np.full(native, 0.5, np.float32)
    dense = np.full((5, *native), np.nan, np.float32)
    for tile in parts:
        for block in blocks(slabs_of(scores, steps, tile.prepared), matrices, native, tile):
            label_block(block, values, found[block.planes, block.rows], best[block.planes, block.rows])
            for k in range(5):
                dense[k, block.planes, block.rows] = block.scores(k)
    resampling = Resampling(native, prepared)
    assert np.allclose(dense, np.stack([resampling.undo_scores(each) for each in scores]), atol=1e-6)
    assert np.array_equal(found, naive(scores, native, values))
    assert 4 not in found and 200 not in found
    assert np.allclose(best, np.maximum(dense.max(axis=0), 0.5), atol=1e-6)


@pytest.mark.parametrize("prepared", [(20, 13, 22), (11, 30, 16), (15, 17, 19)])
def test_small_objects_with_soft_edges(prepared: Shape) -> None:
    """Only their surroundings are computed; what lies under the threshold there has its part all the same."""
    native = (15, 17, 19)
    index = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in prepared), indexing="ij"), axis=-1)
    centres = {4: (0.3, 0.35, 0.4), 1: (0.36, 0.42, 0.5), 9: (0.8, 0.75, 0.1)}
    scores = np.stack([np.exp(-(((index - c) / 0.12) ** 2).sum(axis=-1)) for c in centres.values()])
    matrices = Resampling(native, prepared).undo_matrices()
    labels, best = np.zeros(native, np.uint8), np.full(native, 0.5, np.float32)
    for tile in tiles(matrices, native, 1, 6):
        for block in blocks(slabs_of(scores, [4], tile.prepared), matrices, native, tile):
            box = (block.planes, block.rows)
            label_block(block, list(centres), labels[box], best[box])
            for k in range(3):
                found = block.scores_above(k, 0.5)
                dense = block.scores(k)
                assert found is not None or dense.max() <= 0.5
                if found is not None:
                    assert np.allclose(found[1], dense[found[0]], atol=1e-6)
    assert np.array_equal(labels, naive(scores.astype(np.float32), native, list(centres)))
    assert set(np.unique(labels)) == {0, 1, 4, 9} and (labels > 0).mean() < 0.1


def test_tiles_cover_all_rows_once_within_the_limit() -> None:
    matrices = Resampling((3, 100, 4), (3, 50, 4)).undo_matrices()
    parts = tiles(matrices, (3, 100, 4), bytes_a_row=10, limit_bytes=200)
    # 50 rows of 10 bytes are three tiles; native row 33 lies at (33.5 / 2 - 0.5) = 16.25 of the prepared rows
    assert parts == [
        Tile(slice(0, 33), slice(0, 17)),
        Tile(slice(33, 67), slice(16, 34)),
        Tile(slice(67, 100), slice(33, 50)),
    ]
    assert tiles(matrices, (3, 100, 4), 10, 500) == [Tile(slice(0, 100), slice(0, 50))]
    assert len(tiles(matrices, (3, 100, 4), 10, 1)) == 100


def test_one_half_is_not_above_one_half() -> None:
    scores = np.array([0.9, 0.5, 0.6, 0.7, 0.2, 0.5, 0.6, 0.8], np.float32).reshape(2, 4, 1, 1)
    matrices = (None, None, None)
    labels, best = np.zeros((4, 1, 1), np.uint8), np.full((4, 1, 1), 0.5, np.float32)
    everything = Tile(slice(0, 1), slice(0, 1))
    for block in blocks(slabs_of(scores, [2], slice(None)), matrices, (4, 1, 1), everything):
        label_block(block, [2, 5], labels[block.planes], best[block.planes])
    assert labels.ravel().tolist() == [2, 0, 2, 5]


def test_packed_volumes_come_back_and_are_small() -> None:
    volume = np.zeros((40, 50, 60), np.uint8)
    volume[10:20, 5:30, 7:50] = np.random.default_rng(0).integers(0, 3, (10, 25, 43))
    packed = PackedVolume(volume.shape)
    for z in range(0, 40, 10):
        box = (slice(z, z + 10), slice(0, 50), slice(0, 60))
        packed.put(box, volume[box])
    assert np.array_equal(packed.unpack(), volume)
    assert len(packed.pieces) == 1, "blocks of nothing are not held"
    assert len(packed.pieces[0][2]) < volume.size / 10
    assert not PackedVolume((2, 2, 2)).unpack().any()


def test_eight_bits_keep_the_side_of_one_half() -> None:
    scores = np.array([0.0, 0.4999, 0.5001, 1.0, 0.25], np.float32)
    assert quantise(scores).tolist() == [0, 127, 128, 255, 64]
