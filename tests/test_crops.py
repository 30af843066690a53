"""Where patches lie: hand-made volumes with classes at known places. Arrays are [D,H,W] = (z,y,x)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from memory_store import CLASSES, MemoryStore, make_store

from iris_pipeline.sampling.crops import (
    CasePool,
    bounds,
    centred_start,
    densest_patch,
    fits_patch,
    inside,
    joint_box,
    roaming_start,
    voxel_of_class,
)
from iris_pipeline.sampling.episodes import EpisodeConfig, EpisodeSampler, _query_crop
from preprocessing.errors import EpisodeError

PLAIN = EpisodeConfig(augment=False)


def pool_with(labels: np.ndarray, patch: tuple[int, int, int]) -> tuple[CasePool, SimpleNamespace]:
    volumes = {n: (n, labels.astype(np.float32), labels) for n in ("one", "two")}
    store = MemoryStore(volumes, CLASSES, patch, {"paper": {"train": ["one", "two"]}})
    return CasePool("a", store, "paper", "train"), store.entry("one")


def test_a_patch_stays_inside_the_volume_or_holds_a_smaller_volume_in_its_middle() -> None:
    size, shape = np.array([16, 16, 16]), np.array([40, 40, 10])
    assert inside(np.array([-5.0, 3.4, 99.0]), size, shape) == (0, 3, -3)
    assert inside(np.array([30.0, 24.0, 0.0]), size, shape) == (24, 24, -3)


def test_the_reference_is_centred_on_its_objects_and_jitter_keeps_them_whole() -> None:
    labels = np.zeros((64, 64, 64), dtype=np.uint8)
    labels[20:30, 24:30, 28:36] = 1
    pool, entry = pool_with(labels, (16, 16, 16))
    rng = np.random.default_rng(0)
    box = bounds(entry.classes["liver"].bbox)
    assert centred_start(rng, pool, entry, "liver", box, jitter=0.0) == (17, 19, 24)
    starts = np.array([centred_start(rng, pool, entry, "liver", box, jitter=0.25) for _ in range(300)])
    assert (starts <= box[0]).all() and (starts + 16 >= box[1]).all()
    assert starts.min(0).tolist() == [14, 15, 20] and starts.max(0).tolist() == [20, 23, 28]


def test_the_anchor_takes_neighbours_along_as_long_as_they_fit() -> None:
    labels = np.zeros((64, 64, 64), dtype=np.uint8)
    labels[10:16, 10:16, 10:16] = 1
    labels[18:24, 10:16, 10:16] = 2
    labels[50:52, 10:16, 10:16] = 5
    pool, entry = pool_with(labels, (16, 16, 16))
    low, high = joint_box(np.random.default_rng(0), pool, entry, "liver", ["liver", "spleen", "tumour"])
    assert low.tolist() == [10, 10, 10] and high.tolist() == [24, 16, 16]


def test_an_object_larger_than_the_patch_is_shown_where_it_has_voxels() -> None:
    labels = np.zeros((80, 80, 80), dtype=np.uint8)
    labels[5:75, 5:75, 5:75] = 1
    labels[12:68, 12:68, 12:68] = 0  # a shell: the middle of its box is empty
    pool, entry = pool_with(labels, (16, 16, 16))
    rng, box = np.random.default_rng(0), bounds(entry.classes["liver"].bbox)
    starts = [centred_start(rng, pool, entry, "liver", box, jitter=0.1) for _ in range(40)]
    shown = [np.count_nonzero(labels[z : z + 16, y : y + 16, x : x + 16]) for z, y, x in starts]
    assert min(shown) > 100 and len(set(starts)) > 30


def test_a_voxel_of_a_class_is_found_wherever_the_class_lies() -> None:
    labels = np.zeros((30, 30, 30), dtype=np.uint8)
    labels[10, 13, 15] = labels[10, 17, 11] = labels[20, 13, 16] = 1  # slices 11 to 19 are empty
    labels[10:21, 16, 12] = 2  # another class inside the box
    pool, entry = pool_with(labels, (16, 16, 16))
    rng = np.random.default_rng(0)
    found = Counter(tuple(voxel_of_class(rng, pool, entry, "liver").tolist()) for _ in range(60))
    assert set(found) == {(10, 13, 15), (10, 17, 11), (20, 13, 16)}
    pool.classes["liver"] = 9  # a manifest that is not true of the arrays
    with pytest.raises(EpisodeError, match=r"'liver' must have voxels in case 'one'.*none was found"):
        voxel_of_class(rng, pool, entry, "liver")


def test_the_densest_patch_is_found() -> None:
    labels = np.zeros((60, 60, 60), dtype=np.uint8)
    labels[::9, ::9, ::9] = 2
    labels[31:39, 22:30, 40:48] = 2
    pool, entry = pool_with(labels, (8, 8, 8))
    found = densest_patch(pool, entry, "spleen")
    shown = np.count_nonzero(labels[31:39, 22:30, 40:48])
    assert (found.start, found.voxels) == ((31, 22, 40), shown) and shown >= 8**3
    pool.store.read.clear()
    assert densest_patch(pool, entry, "spleen") is found and not pool.store.read, "read once"


def test_the_densest_patch_of_a_large_class_is_near_the_best() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((100, 70, 40)) < np.linspace(0, 1, 100)[:, None, None]).astype(np.uint8)
    pool, entry = pool_with(labels, (64, 32, 48))  # steps of 4, 2 and 3 voxels; the last axis fits
    found = densest_patch(pool, entry, "liver")
    sums = np.pad(labels.cumsum(0).cumsum(1).sum(2, dtype=np.int64), ((1, 0), (1, 0)))
    every = sums[64:, 32:] - sums[:-64, 32:] - sums[64:, :-32] + sums[:-64, :-32]
    z, y, x = found.start
    assert found.voxels <= np.count_nonzero(labels[z : z + 64, y : y + 32]) and x == -4
    assert 0.97 * every.max() < found.voxels <= every.max()
    assert not fits_patch(pool, entry, "liver")
    assert fits_patch(pool_with(labels, (112, 80, 48))[0], entry, "liver")


def test_the_query_patch_roams_from_one_side_of_the_object_to_the_other() -> None:
    labels = np.zeros((64, 64, 64), dtype=np.uint8)
    labels[30:34, 30:34, 10:50] = 1  # smaller than the patch in z and y, larger in x
    pool, entry = pool_with(labels, (16, 16, 16))
    rng = np.random.default_rng(0)
    starts = np.array([roaming_start(rng, pool, entry, "liver", jitter=0.0) for _ in range(2000)])
    assert starts.min(0).tolist() == [18, 18, 10] and starts.max(0).tolist() == [30, 30, 34]
    beyond = np.array([roaming_start(rng, pool, entry, "liver", jitter=0.25) for _ in range(8000)])
    assert beyond.min(0).tolist() == [14, 14, 6] and beyond.max(0).tolist() == [34, 34, 38], "4 voxels more"
    anywhere = np.array([roaming_start(rng, pool, entry, None, jitter=0.0) for _ in range(4000)])
    assert anywhere.min(0).tolist() == [0, 0, 0] and anywhere.max(0).tolist() == [48, 48, 48]
    ends = np.bincount(anywhere[:, 0], minlength=49)
    assert 40 < ends[0] < 140 and 40 < ends[48] < 140, "first and last start as likely as the others (82)"


@pytest.mark.parametrize(("jitter", "low", "high"), [(0.0, 18, 30), (0.25, 14, 34)])
def test_the_query_of_an_episode_roams_as_far_as_its_own_jitter_says(
    jitter: float, low: int, high: int
) -> None:
    labels = np.zeros((64, 64, 64), dtype=np.uint8)
    labels[30:34, 30:34, 30:34] = 1
    pool, entry = pool_with(labels, (16, 16, 16))
    place = np.arange(64, dtype=np.float32)[:, None, None] + 100 * np.arange(64, dtype=np.float32)[:, None]
    pool.store.volumes["one"] = ("one", np.broadcast_to(place, labels.shape), labels)
    config = EpisodeConfig(
        augment=False, foreground_probability=1.0, query_jitter=jitter, reference_jitter=0.1
    )
    rng = np.random.default_rng(0)
    first = [int(_query_crop(rng, pool, entry, ["liver"], config).image[0, 0, 0, 0]) for _ in range(200)]
    starts = np.array([divmod(value, 100) for value in first])
    assert low <= starts.min() and starts.max() <= high
    assert starts.min() <= low + 2 and starts.max() >= high - 2


def test_the_query_shows_its_class_about_as_often_as_asked() -> None:
    def shown(probability: float) -> float:
        config = EpisodeConfig(
            augment=False, foreground_probability=probability, max_classes=1, full_set_probability=0.0
        )
        sampler = EpisodeSampler({"a": make_store(8, (90, 90, 90), (16, 16, 16))}, config=config)
        return float(np.mean([bool(sampler[i].query.masks.any()) for i in range(150)]))

    assert shown(1.0) > 0.9
    assert shown(0.0) < 0.2


def test_a_volume_smaller_than_the_patch_is_padded_with_its_own_minimum() -> None:
    store = make_store(4, shape=(34, 44, 36), patch=(64, 64, 64))
    e = EpisodeSampler({"a": store}, split="all", config=PLAIN).episode(0)
    for s in (e.reference, e.query):
        _, image, labels = store.volumes[s.case_id]
        expected = np.full((64, 64, 64), image.min())
        expected[15:49, 10:54, 14:50] = image
        assert np.array_equal(s.image[0].numpy(), expected)
        for name, mask in zip(e.class_names, s.masks, strict=True):
            assert np.array_equal(mask[15:49, 10:54, 14:50].numpy(), labels == CLASSES[name])
            assert int(mask.sum()) == np.count_nonzero(labels == CLASSES[name])


def test_only_boxes_near_the_patch_are_read() -> None:
    store = make_store(4, shape=(160, 160, 160), patch=(16, 16, 16))
    sampler = EpisodeSampler({"a": store}, split="all")
    reads = []
    for i in range(10):
        store.read.clear()
        sampler.episode(i)
        reads.append(max(store.read))
    whole = 160**3
    assert np.median(reads) < whole / 200
    assert sum(r == whole for r in reads) <= 4, (
        "whole volumes are read for the padding value alone, once a case"
    )


def test_episodes_have_no_last_one_to_count_from() -> None:
    sampler = EpisodeSampler({"a": make_store(4, (40, 40, 40), (32, 32, 32))}, config=PLAIN)
    with pytest.raises(
        EpisodeError, match=r"^Episodes are numbered from 0 and have no last one; got -1: count from"
    ):
        sampler[-1]
