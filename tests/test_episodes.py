"""Episodes: what they show, that they repeat to the bit, and that a reference is never its own query.

Arrays are [D,H,W] = (z,y,x). In the stores of memory_store.py the image is 10 * case + label.
"""

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_store import CLASSES, make_store
from torch.utils.data import DataLoader

from iris_pipeline.sampling import episodes as module
from iris_pipeline.sampling.augment import AugmentationRanges
from iris_pipeline.sampling.episode import Episode, stack_episodes
from iris_pipeline.sampling.episodes import EpisodeConfig, EpisodeSampler
from preprocessing.errors import EpisodeError
from preprocessing.store import Store

PLAIN = EpisodeConfig(augment=False)


def same(a: Episode, b: Episode) -> bool:
    return (a.index, a.dataset, a.class_names) == (b.index, b.dataset, b.class_names) and all(
        (x.case_id, x.subject) == (y.case_id, y.subject)
        and torch.equal(x.image, y.image)
        and torch.equal(x.masks, y.masks)
        for x, y in ((a.reference, b.reference), (a.query, b.query))
    )


def fingerprint(sampler: EpisodeSampler, indices: list[int]) -> list[str]:
    """Values that another process must reproduce to the last bit."""
    lines = []
    for i in indices:
        e = sampler.episode(i)
        total = [float(s.image.double().sum()).hex() for s in (e.reference, e.query)]
        voxels = [int(s.masks.sum()) for s in (e.reference, e.query)]
        lines.append(f"{e.dataset} {e.class_names} {e.reference.case_id} {e.query.case_id} {total} {voxels}")
    return lines


# --- repeatability --------------------------------------------------------------------------------


def test_an_episode_is_the_same_twice_in_any_order_and_from_another_sampler() -> None:
    sampler = EpisodeSampler({"a": make_store(), "b": make_store(8)}, seed=3)
    first = {i: sampler.episode(i) for i in (0, 1, 2, 3)}
    torch.manual_seed(99)
    np.random.seed(99)
    for i in (3, 1, 0, 2):
        assert same(sampler.episode(i), first[i])
        assert same(EpisodeSampler({"a": make_store(), "b": make_store(8)}, seed=3)[i], first[i])
    assert not any(same(first[i], first[j]) for i in first for j in first if i < j)


def test_another_seed_gives_other_episodes() -> None:
    stores = {"a": make_store()}
    pairs = zip(range(20), range(20), strict=True)
    one, two = EpisodeSampler(stores, seed=0), EpisodeSampler(stores, seed=1)
    assert sum(torch.equal(one[i].query.image, two[j].query.image) for i, j in pairs) == 0
    alone = EpisodeConfig(
        augment=False, max_classes=1, full_set_probability=0.0
    )  # the anchor and nothing else
    one, two = (EpisodeSampler(stores, seed=seed, config=alone) for seed in (0, 1))
    assert [one[i].class_names for i in range(20)] != [two[i].class_names for i in range(20)]


def test_another_process_draws_the_same_episodes() -> None:
    here = fingerprint(EpisodeSampler({"a": make_store()}, seed=5), [0, 7, 123456789])
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_episodes import *\n"
        "print('\\n'.join(fingerprint(EpisodeSampler({'a': make_store()}, seed=5), [0, 7, 123456789])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    assert out.stdout.splitlines() == here


def test_it_is_a_torch_dataset() -> None:
    sampler = EpisodeSampler({"a": make_store()}, config=PLAIN)
    loader = DataLoader(sampler, batch_size=None, sampler=[4, 2])
    drawn = list(loader)
    assert [e.index for e in drawn] == [4, 2] and same(drawn[0], sampler.episode(4))
    assert len(sampler) == 10**9


# --- what an episode is ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, EpisodeConfig()])
def test_shapes_types_and_values(config: EpisodeConfig) -> None:
    store = make_store()
    sampler = EpisodeSampler({"a": store}, config=config)
    for i in range(30):
        e = sampler.episode(i)
        k = len(e.class_names)
        for s in (e.reference, e.query):
            assert s.image.shape == (1, 32, 32, 32) and s.image.dtype == torch.float32
            assert s.masks.shape == (k, 32, 32, 32) and s.masks.dtype == torch.float32
            assert set(s.masks.unique().tolist()) <= {0.0, 1.0}
            assert int(s.masks.sum(0).max()) <= 1, "the labels of one map never overlap"
            assert torch.isfinite(s.image).all()
        assert set(e.class_names) <= set(CLASSES) and len(set(e.class_names)) == k >= 1


def test_each_side_is_augmented_by_its_own_ranges() -> None:
    off = AugmentationRanges(p_spatial=0, p_brightness=0, p_gamma=0, p_contrast=0, p_blur=0, p_noise=0)
    on = dataclasses.replace(off, p_brightness=1.0, brightness=(2.0, 2.0), brightness_shift_sd=0.0)
    for first, second in ((on, off), (off, on), (off, off)):
        config = EpisodeConfig(reference_ranges=first, query_ranges=second, foreground_probability=1.0)
        e = EpisodeSampler({"a": make_store(8)}, split="all", config=config).episode(1)
        for s, ranges in ((e.reference, first), (e.query, second)):
            values = s.image[0][s.masks[0] > 0].unique().tolist()
            plain = 10 * int(s.case_id.removeprefix("case")) + CLASSES[e.class_names[0]]
            assert values == [2.0 * plain if ranges is on else plain]


def test_masks_belong_to_their_class_and_case() -> None:
    # image = 10 * case number + label value, so every voxel of a mask has a known intensity.
    sampler = EpisodeSampler({"a": make_store()}, config=PLAIN)
    seen = 0
    for i in range(40):
        e = sampler.episode(i)
        for s in (e.reference, e.query):
            number = int(s.case_id.removeprefix("case"))
            for name, mask in zip(e.class_names, s.masks, strict=True):
                values = s.image[0][mask > 0]
                assert (values == 10 * number + CLASSES[name]).all()
                seen += len(values)
    assert seen > 10_000


def test_reference_and_query_are_always_two_subjects() -> None:
    sampler = EpisodeSampler({"a": make_store(8, per_subject=2)}, split="all", config=PLAIN)
    pairs = [(e.reference, e.query) for e in map(sampler.episode, range(60))]
    assert all(r.subject != q.subject and r.case_id != q.case_id for r, q in pairs)
    assert {q.case_id for _, q in pairs} == {f"case{n}" for n in range(8)}
    assert {r.case_id for r, _ in pairs} == {f"case{n}" for n in range(8)}


def test_a_reference_that_is_its_own_query_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpisodeSampler({"a": make_store()}, config=PLAIN)
    monkeypatch.setattr(
        module, "_others", lambda entries, subject: [e for e in entries if e.subject == subject]
    )
    with pytest.raises(EpisodeError, match="never be its own query"):
        sampler.episode(0)


def test_only_the_asked_part_of_the_split_is_read() -> None:
    sampler = EpisodeSampler({"a": make_store()}, part="train", config=PLAIN)
    used = {s.case_id for e in map(sampler.episode, range(40)) for s in (e.reference, e.query)}
    assert used == {"case0", "case1", "case2", "case3"}


# --- classes --------------------------------------------------------------------------------------


def test_class_subsets_vary_and_full_sets_come_as_often_as_asked() -> None:
    stores = {"a": make_store(8, patch=(48, 48, 48))}  # everything is in view
    config = EpisodeConfig(augment=False, full_set_probability=0.5, empty_query_probability=0.0)
    sampler = EpisodeSampler(stores, config=config)
    drawn = [sampler.episode(i) for i in range(400)]
    both = [
        e.class_names
        for e in drawn
        if {int(s.case_id[4:]) % 2 for s in (e.reference, e.query)} == {0}  # both show all three classes
    ]
    counts = Counter(both)
    assert set(counts) == {
        ("liver",), ("spleen",), ("tumour",), ("liver", "spleen"), ("liver", "tumour"), ("spleen", "tumour"),
        ("liver", "spleen", "tumour"),
    }  # fmt: skip
    # Full by choice 1/2, or by a random subset of size 3 of 3: 1/3 of the other half.
    assert counts[tuple(CLASSES)] / len(both) == pytest.approx(0.5 + 0.5 / 3, abs=0.08)


def test_rare_classes_are_anchors_as_often_as_frequent_ones() -> None:
    config = EpisodeConfig(augment=False, full_set_probability=0.0, max_classes=1)
    sampler = EpisodeSampler({"a": make_store(8)}, config=config)
    counts = Counter(e.class_names for e in map(sampler.episode, range(300)))
    assert set(counts) == {("liver",), ("spleen",), ("tumour",)}
    assert min(counts.values()) > 75


def test_no_more_classes_than_allowed() -> None:
    config = EpisodeConfig(augment=False, full_set_probability=1.0, max_classes=2)
    sampler = EpisodeSampler({"a": make_store(patch=(48, 48, 48))}, config=config)
    sizes = Counter(len(e.class_names) for e in map(sampler.episode, range(60)))
    assert max(sizes) == 2 and sizes[2] > 30


def asked_of_a_case_without(config: EpisodeConfig, count: int = 300) -> float:
    """Share of episodes that ask for the tumour of a query that has none (odd case numbers)."""
    sampler = EpisodeSampler({"a": make_store(8, patch=(48, 48, 48))}, config=config)
    drawn = [sampler.episode(i) for i in range(count)]
    return sum("tumour" in e.class_names and int(e.query.case_id[4:]) % 2 == 1 for e in drawn) / count


def test_classes_the_query_lacks_are_asked_only_with_the_small_probability() -> None:
    assert asked_of_a_case_without(EpisodeConfig(augment=False, empty_query_probability=0.0)) == 0.0
    assert 0.0 < asked_of_a_case_without(EpisodeConfig(augment=False)) < 0.05
    assert asked_of_a_case_without(EpisodeConfig(augment=False, empty_query_probability=1.0)) > 0.2


def test_what_nobody_contoured_in_a_query_is_not_asked_of_it() -> None:
    store = dataclasses.replace(make_store(8, patch=(48, 48, 48)), partly_labelled=True)
    sampler = EpisodeSampler({"a": store}, config=EpisodeConfig(augment=False, empty_query_probability=1.0))
    told = EpisodeSampler({"a": store}, config=EpisodeConfig(augment=False, empty_query_probability=0.0))
    for i in range(60):
        e = sampler.episode(i)
        assert "tumour" not in e.class_names or int(e.query.case_id[4:]) % 2 == 0
        assert same(e, told.episode(i)), "nothing else is drawn otherwise"


def enough(voxels: int) -> float:
    """What a reference must show of a class: 50 voxels (half of a smaller object), and a fifth of it at least."""
    return max(min(50, voxels / 2), voxels / 5)


@pytest.mark.parametrize("config", [PLAIN, EpisodeConfig()])
def test_the_reference_shows_every_class_that_is_asked(config: EpisodeConfig) -> None:
    store = make_store(8, shape=(60, 60, 60), patch=(16, 16, 16))  # organs at the edge of a small patch
    sampler = EpisodeSampler({"a": store}, config=config)
    for i in range(80):
        e = sampler.episode(i)
        entry = store.entry(e.reference.case_id)
        for name, mask in zip(e.class_names, e.reference.masks, strict=True):
            assert int(mask.sum()) >= enough(entry.classes[name].voxels), name


def test_where_every_draw_loses_the_mask_the_reference_falls_back_to_the_identity() -> None:
    wild = AugmentationRanges(translation=3.0, p_spatial=1.0)  # far outside, nearly always
    config = EpisodeConfig(reference_ranges=wild, max_classes=1, full_set_probability=0.0)
    store = make_store(8)
    sampler = EpisodeSampler({"a": store}, config=config)
    exact = 0
    for i in range(20):
        e = sampler.episode(i)
        voxels = store.entry(e.reference.case_id).classes[e.class_names[0]].voxels
        assert int(e.reference.masks[0].sum()) >= enough(voxels)
        exact += int(e.reference.masks[0].sum()) == voxels
    assert exact >= 15


# --- batches, refusals ----------------------------------------------------------------------------


def test_a_batch_shares_dataset_and_classes_and_can_be_stacked() -> None:
    sampler = EpisodeSampler({"a": make_store(8), "b": make_store(6)}, seed=2)
    for i in range(6):
        batch = sampler.batch(i, 3)
        assert len(batch) == 3 and len({(e.dataset, e.class_names) for e in batch}) == 1
        stacked = stack_episodes(batch)
        k = len(stacked.class_names)
        assert stacked.reference_images.shape == stacked.query_images.shape == (3, 1, 32, 32, 32)
        assert stacked.reference_masks.shape == stacked.query_masks.shape == (3, k, 32, 32, 32)
        assert torch.equal(stacked.query_masks[2], batch[2].query.masks)
        assert all(float(m.sum()) > 0 for m in stacked.reference_masks.flatten(0, 1))
        assert all(same(x, y) for x, y in zip(batch, sampler.batch(i, 3), strict=True))
        images = [e.reference.image for e in batch]
        assert not any(torch.equal(images[j], images[k]) for j in range(3) for k in range(j))


def test_episodes_of_different_tasks_cannot_be_stacked() -> None:
    sampler = EpisodeSampler({"a": make_store(8)}, config=PLAIN)
    tasks = [sampler.episode(i) for i in range(10)]
    with pytest.raises(EpisodeError, match="same classes can be joined"):
        stack_episodes(tasks)


def test_datasets_are_drawn_by_their_weights() -> None:
    stores = {"a": make_store(), "b": make_store(), "c": make_store()}
    sampler = EpisodeSampler(stores, config=PLAIN, weights={"a": 6, "b": 3, "c": 1})
    counts = Counter(sampler.episode(i).dataset for i in range(400))
    assert [counts[n] / 400 for n in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.06)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(EpisodeError, match=r"two different subjects.*dataset 'a' has 1"):
        EpisodeSampler({"a": make_store(4, per_subject=4)}, split="all")
    with pytest.raises(EpisodeError, match=r"Split 'papr', part 'train' is not in dataset 'a'.*all, paper"):
        EpisodeSampler({"a": make_store()}, split="papr")
    with pytest.raises(EpisodeError, match="At least one dataset"):
        EpisodeSampler({})
    with pytest.raises(EpisodeError, match="seed must be 0 or a positive"):
        EpisodeSampler({"a": make_store()}, seed=-1)
    for weights in ({"a": 0.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": float("nan")}):
        with pytest.raises(EpisodeError, match="Weights must be positive, one for each of a"):
            EpisodeSampler({"a": make_store()}, weights=weights)
    with pytest.raises(EpisodeError, match=r"foreground_probability must lie between 0 and 1, but is 1\.5"):
        EpisodeConfig(foreground_probability=1.5)
    with pytest.raises(EpisodeError, match="max_classes must be at least 1, but is 0"):
        EpisodeConfig(max_classes=0)


def test_a_dataset_whose_classes_are_each_in_one_subject_is_refused() -> None:
    store = make_store(2)
    store.volumes["case0"][2][:] = 0
    store.volumes["case1"][2][:] = 0
    store.volumes["case0"][2][4:8, 4:8, 4:8] = 1
    store.volumes["case1"][2][4:8, 4:8, 4:8] = 2
    with pytest.raises(EpisodeError, match="No class of dataset 'a' is present in two subjects"):
        EpisodeSampler({"a": store}, split="all")


# --- a store made by the real stages -----------------------------------------------------------------------


def test_episodes_of_a_real_store_show_its_own_voxels(tiny_store: Store) -> None:
    sampler = EpisodeSampler({"tiny": tiny_store}, split="all", config=PLAIN)
    size = tiny_store.plan.patch_size
    for i in range(12):
        e = sampler.episode(i)
        for s in (e.reference, e.query):
            image, labels = tiny_store.image(s.case_id), tiny_store.labels(s.case_id)
            assert s.subject == tiny_store.entry(s.case_id).subject and s.image.shape == (1, *size)
            offsets = [
                range(min(0, n - p), max(0, n - p) + 1) for n, p in zip(image.shape, size, strict=True)
            ]
            padded = np.pad(image, [(-min(o), -min(o) + 1) for o in offsets], constant_values=image.min())
            marks = np.pad(labels, [(-min(o), -min(o) + 1) for o in offsets])
            places = [
                part
                for start in np.ndindex(*(len(o) for o in offsets))
                if np.array_equal(padded[part := _window(start, size)], s.image[0].numpy())
            ]
            assert places, "the patch must be found in the case, voxel by voxel"
            for name, mask in zip(e.class_names, s.masks, strict=True):
                value = tiny_store.manifest.classes[name]
                assert any(np.array_equal(marks[part] == value, mask.numpy() > 0) for part in places)


def test_augmented_episodes_of_a_real_store_keep_the_references_mask(tiny_store: Store) -> None:
    sampler = EpisodeSampler({"tiny": tiny_store}, split="all", seed=4)
    seen = Counter()
    for i in range(40):
        e = sampler.episode(i)
        assert e.reference.subject != e.query.subject
        classes = tiny_store.entry(e.reference.case_id).classes
        for name, mask in zip(e.class_names, e.reference.masks, strict=True):
            assert int(mask.sum()) >= enough(classes[name].voxels)
            seen[name] += 1
    assert set(seen) == {"left", "right", "core"} and min(seen.values()) >= 10


def _window(start: tuple[int, ...], size: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
