"""Where the crops of made tasks lie, what they are padded with, and which cells and bands are asked for.

Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_store import make_store
from torch import Tensor

from iris_pipeline.sampling.crops import CasePool
from iris_pipeline.sampling.episode import Episode
from iris_pipeline.sampling.made_episodes import BANDS, NOT_AUGMENTED, Ranges, _crop, made_group
from iris_pipeline.sampling.synthetic import LEAST_CELL_SHARE, Draw

PLAIN = (NOT_AUGMENTED, NOT_AUGMENTED)
SHAPE = (40, 44, 36)


def placed(patch: tuple[int, int, int] = (16, 16, 16), shape: tuple[int, int, int] = SHAPE) -> CasePool:
    """Two scans of each of two subjects; grey values rise from 7 to 11 voxel by voxel, and so tell the place."""
    store = make_store(4, shape, patch, per_subject=2)
    for name, (subject, image, labels) in store.volumes.items():
        share = np.arange(image.size).reshape(image.shape) / image.size
        store.volumes[name] = subject, (7 + 4 * share).astype(np.float32), labels
    return CasePool("a", store, "all", "train")


def start_of(image: Tensor) -> list[int]:
    """Where a crop [1,D,H,W] of such a scan begins."""
    number = round((float(image[0, 0, 0, 0]) - 7) / 4 * np.prod(SHAPE))
    return [int(each) for each in np.unravel_index(number, SHAPE)]


def made(
    pool: CasePool, kind: str, seed: int, ranges: Ranges = PLAIN, jitter: float = 0.0, count: int = 8
) -> Episode:
    streams = [np.random.default_rng(seed)]
    (episode,) = made_group(0, pool, streams, ranges, jitter, count, Draw(kind), wide=False)
    return episode


def test_both_views_of_a_scan_lie_anywhere_in_a_region_a_quarter_larger_than_a_crop() -> None:
    pool, apart = placed(), []
    for seed in range(40):
        e = made(pool, "cells", seed)
        apart.append(np.subtract(start_of(e.reference.image), start_of(e.query.image)))
    assert (np.min(apart), np.max(apart)) == (-4, 4), "of 16 voxels in 20"
    assert len({tuple(each.tolist()) for each in apart}) > 30


def test_views_of_a_scan_that_is_smaller_than_a_crop_are_padded_with_its_minimum() -> None:
    pool = placed((32, 32, 32), (36, 44, 28))
    e = made(pool, "cells", 0)
    for sample in (e.reference, e.query):
        assert (sample.image[0, :, :, :2] == sample.image.min()).all() and sample.image.min() >= 7
        assert not sample.masks[..., :2].any() and not sample.masks[..., 30:].any()


def test_cells_that_are_asked_for_fill_their_share_of_the_reference() -> None:
    """Whatever the query shows of them: here it lies half a crop away."""
    away = replace(NOT_AUGMENTED, p_spatial=1.0, translation=0.5)
    for seed in range(10):
        e = made(placed(), "cells", seed, (NOT_AUGMENTED, away), count=30)
        assert float(e.reference.masks.mean(dim=(1, 2, 3)).min()) >= LEAST_CELL_SHARE


def test_which_cells_are_asked_for_does_not_follow_their_size() -> None:
    pool = placed()
    first = [
        made(pool, "cells", seed, count=30).reference.masks.sum(dim=(1, 2, 3)).tolist() for seed in range(4)
    ]
    assert not any(sizes == sorted(sizes, reverse=True) for sizes in first)


def test_bands_are_of_two_subjects_and_three_at_most() -> None:
    pool = placed((32, 32, 32))
    for seed in range(6):
        e = made(pool, "bands", seed)
        assert e.reference.subject != e.query.subject
        assert 1 <= len(e.class_names) <= BANDS
        assert e.class_names == tuple(f"region {k + 1}" for k in range(len(e.reference.masks)))


@pytest.mark.parametrize(
    ("jitter", "low", "high"), [(0.0, [2, 5, 1], [2, 5, 1]), (0.1, [0, 3, 0], [4, 7, 3])]
)
def test_crops_of_bands_are_centred_on_a_class_but_for_their_jitter(
    jitter: float, low: list[int], high: list[int]
) -> None:
    """The liver's centre is at z, y, x = 14, 17, 13; a tenth of the crop's edge is 2.4 voxels."""
    pool, rng = placed((24, 24, 24)), np.random.default_rng(0)
    drawn = [_crop(rng, pool, pool.cases[0], "liver", NOT_AUGMENTED, jitter) for _ in range(120)]
    starts = np.array([start_of(crop.image) for crop in drawn])
    assert (starts.min(0).tolist(), starts.max(0).tolist()) == (low, high)
