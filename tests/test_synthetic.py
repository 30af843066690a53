"""Made tasks against hand-made volumes and brute force. Arrays are [D,H,W] = (z,y,x).

In the stores of memory_store.py the image is 10 * case + label: liver 1, spleen 2, tumour 5.
"""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from memory_store import CLASSES, make_store
from scipy import ndimage

from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.cli.train import _synthetic
from iris_pipeline.sampling import synthetic
from iris_pipeline.sampling.augment import IDENTITY, AugmentationRanges, draw_augmentation
from iris_pipeline.sampling.crops import CasePool, inside
from iris_pipeline.sampling.episode import Episode, stack_episodes
from iris_pipeline.sampling.episodes import EpisodeConfig, EpisodeSampler
from iris_pipeline.sampling.reference_crops import relabelled
from iris_pipeline.sampling.synthetic import (
    CURVE_RANGE,
    KNOTS,
    Cut,
    SyntheticTasks,
    _band,
    cells,
    draw_bands,
    draw_curve,
    draw_cut,
    draw_orientation,
    draw_tasks,
    free_value,
    frequent,
    recolour,
    region_box,
    unite,
)
from iris_pipeline.training.train import update_bank
from preprocessing.errors import EpisodeError, ModelError


def episodes(count: int = 40, **tasks: float) -> list[Episode]:
    config = EpisodeConfig(augment=False, synthetic=SyntheticTasks(**tasks))
    sampler = EpisodeSampler({"a": make_store()}, config=config)
    return [sampler.episode(i) for i in range(count)]


# --- the parts --------------------------------------------------------------------------------------


def test_each_kind_is_drawn_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    draws = [
        draw_tasks(rng, SyntheticTasks(recolour=0.5, unite=0.1, split=0.2, cells=0.3)) for _ in range(4000)
    ]
    kinds = [draw.structure for draw in draws]
    shares = [kinds.count(kind) / 4000 for kind in ("unite", "split", "cells", "")]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)
    assert sum(draw.curve is not None for draw in draws) / 4000 == pytest.approx(0.5, abs=0.03)
    assert not any(draw_tasks(rng, SyntheticTasks()).is_made for _ in range(100))


def test_a_curve_has_mean_0_and_spread_1_and_bends_at_its_knots() -> None:
    curve = draw_curve(np.random.default_rng(1))
    assert curve.shape == (KNOTS,) and curve.mean() == pytest.approx(0, abs=1e-9)
    assert curve.std() == pytest.approx(1)
    low, high = CURVE_RANGE
    step = (high - low) / (KNOTS - 1)
    image = torch.tensor([low - 9, low, low + step, low + 1.5 * step, high, high + 9]).view(1, 1, 1, 6)
    expected = [curve[0], curve[0], curve[1], (curve[1] + curve[2]) / 2, curve[-1], curve[-1]]
    assert recolour(image, curve).flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_united_classes_are_two_or_more_and_none_is_lost() -> None:
    rng = np.random.default_rng(2)
    for count in (2, 3, 5):
        for _ in range(20):
            groups = unite(rng, count)
            assert sorted(k for group in groups for k in group) == list(range(count))
            assert len(groups[0]) >= 2 and all(len(group) == 1 for group in groups[1:])
    joined = [tuple(unite(rng, 3)[0]) for _ in range(100)]
    assert set(joined) == {(0, 1), (0, 2), (1, 2), (0, 1, 2)}


def test_a_cut_lies_where_the_whole_class_says_whatever_box_was_read() -> None:
    store = make_store()
    entry = store.entry("case1")  # at = 1: the liver spans z 9..20
    (low, high), *_ = entry.classes["liver"].bbox
    assert (low, high) == (9, 21)
    cut = Cut(value=1, second=6, axis=0, share=0.5)  # the plane lies at z = 15
    labels = store.volumes["case1"][2]
    expected = np.where((labels == 1) & (np.arange(40)[:, None, None] >= 15), 6, labels)
    assert np.array_equal(cut.apply(labels, (0, 0, 0), entry, "liver"), expected)
    assert np.array_equal(cut.apply(labels[12:18], (12, 0, 0), entry, "liver"), expected[12:18])
    assert np.array_equal(cut.apply(labels[17:], (17, 0, 0), entry, "liver"), expected[17:])
    assert labels.max() == 2, "the store's own labels were changed"


@pytest.mark.parametrize(
    "patch", [(16, 16, 16), (64, 64, 64)]
)  # of a part of the scan; larger than all of it
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_of_a_class_that_is_cut_is_the_crop_of_the_whole_scan_cut(
    axis: int, patch: tuple[int, int, int]
) -> None:
    store = make_store(patch=patch)
    pool = CasePool("a", store, "paper", "train")
    entry = pool.cases[1]
    cut = Cut(value=1, second=6, axis=axis, share=0.4)
    whole = make_store(patch=patch)
    subject, image, labels = whole.volumes["case1"]
    whole.volumes["case1"] = subject, image, cut.apply(labels, (0, 0, 0), entry, "liver")
    expected = CasePool("a", whole, "paper", "train")
    turned = draw_augmentation(np.random.default_rng(0), patch, AugmentationRanges(p_spatial=1.0))
    for params in (IDENTITY, turned):
        start = inside(np.array([8, 9, 7]), np.array(patch), np.array(entry.shape))
        found = pool.crop(entry, start, params, relabelled((cut, "liver"), entry)).labels
        assert torch.equal(found, expected.crop(entry, start, params).labels)
        assert (found == 1).any() and (found == 6).any()
    assert relabelled((cut, "tumour"), entry) is None, "this case has none that could be cut"


def test_a_plane_lies_in_the_middle_half_of_any_axis() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_cut(rng, 1, 6) for _ in range(600)]
    shares = [cut.share for cut in drawn]
    assert 0.25 <= min(shares) < 0.26 and 0.74 < max(shares) <= 0.75
    assert all((cut.value, cut.second) == (1, 6) for cut in drawn)
    assert min(sum(cut.axis == axis for cut in drawn) for axis in range(3)) > 150


def test_a_free_value_is_found_up_to_the_last_one() -> None:
    result = doctest.testmod(synthetic)
    assert result.attempted >= 1 and result.failed == 0
    assert free_value(range(1, 255)) == 255


def test_a_class_with_the_highest_value_is_cut_as_any_other() -> None:
    store, high = make_store(), make_store()
    for _, _, labels in high.volumes.values():
        labels[labels == 5] = 255
    high.classes = high.manifest.classes = CLASSES | {"tumour": 255}
    config = EpisodeConfig(augment=False, synthetic=SyntheticTasks(split=1.0))
    for i in range(20):
        usual, other = (EpisodeSampler({"a": each}, config=config).episode(i) for each in (store, high))
        assert usual.class_names == other.class_names and ", first part" in other.class_names[0]
        assert torch.equal(usual.reference.masks, other.reference.masks)
        assert torch.equal(usual.query.masks, other.query.masks)


def test_where_every_value_is_a_class_nothing_is_cut() -> None:
    store = make_store()
    store.manifest.classes = CLASSES | {f"class {value}": value for value in (3, 4, *range(6, 256))}
    made = EpisodeConfig(augment=False, synthetic=SyntheticTasks(split=1.0))
    for i in range(8):
        plain, kept = (
            EpisodeSampler({"a": store}, config=c).episode(i) for c in (EpisodeConfig(augment=False), made)
        )
        assert kept.class_names == plain.class_names and not kept.is_made
        assert torch.equal(kept.reference.masks, plain.reference.masks)


def test_cells_are_the_nearest_seeds_in_place_and_grey() -> None:
    image = np.zeros((16, 16, 16), dtype=np.float32)
    image[:, :, 8:] = (
        20.0  # far apart in grey: no cell may reach across but where the smoothing blurs the edge
    )
    labels = cells(np.random.default_rng(0), image, count=8)
    assert (
        labels.shape == image.shape
        and labels.dtype == np.uint8
        and set(np.unique(labels)) <= set(range(1, 9))
    )
    left, right = set(np.unique(labels[:, :, :4])), set(np.unique(labels[:, :, 12:]))
    assert left and right and not left & right
    assert np.array_equal(labels[::2, ::2, ::2], labels[1::2, 1::2, 1::2])  # found on every other voxel


def test_cells_of_a_noisy_image_by_brute_force() -> None:
    """Distance in seeds' pitches and in 0.35 standard deviations of grey; odd edges, as crops of small scans have."""
    image = 2 * np.random.default_rng(1).normal(size=(9, 10, 7)).astype(np.float32)
    labels = cells(np.random.default_rng(7), image, count=8)
    smooth = ndimage.gaussian_filter(image, 1.0)[::2, ::2, ::2]
    seeds = np.random.default_rng(7).choice(smooth.size, size=8, replace=False)
    pitch = (smooth.size / 8) ** (1 / 3)
    points = [(*(np.array(at) / pitch), grey / 0.35) for at, grey in np.ndenumerate(smooth)]
    away = np.linalg.norm(np.array(points)[:, None] - np.array(points)[seeds], axis=-1)
    nearest = 1 + away.argmin(axis=1).reshape(smooth.shape)
    assert np.array_equal(labels, np.kron(nearest, np.ones((2, 2, 2), int))[:9, :10, :7])


def test_only_cells_that_fill_a_share_are_asked_for() -> None:
    labels = torch.zeros(10, 10, 10, dtype=torch.uint8)
    labels[0] = 3  # 100 voxels
    labels[1, 0] = 2  # 10
    labels[1, 1, 0] = 1  # 1
    assert frequent(labels, share=0.01) == [3, 2]


def test_a_region_lies_inside_and_is_as_large_as_there_is() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        box = region_box(rng, (100, 70, 20), (64, 64, 64))
        assert [b - a for a, b in box] == [80, 70, 20]
        assert all(a >= 0 and b <= n for (a, b), n in zip(box, (100, 70, 20), strict=True))
    begins = {region_box(rng, (100, 70, 20), (64, 64, 64))[0][0] for _ in range(300)}
    assert begins == set(range(21)), "anywhere"


# --- the episodes -----------------------------------------------------------------------------------


def test_without_probabilities_nothing_changes() -> None:
    for plain, same in zip(episodes(10), episodes(10, recolour=0.0), strict=True):
        assert torch.equal(plain.query.image, same.query.image) and not plain.is_made


def test_recoloured_pairs_share_one_curve_and_keep_their_masks() -> None:
    for plain, made in zip(episodes(10), episodes(10, recolour=1.0), strict=True):
        assert made.is_made and made.class_names == plain.class_names
        assert torch.equal(made.reference.masks, plain.reference.masks)
        # equal grey values stay equal, in the pair and across it
        before = torch.cat([plain.reference.image.flatten(), plain.query.image.flatten()])
        after = torch.cat([made.reference.image.flatten(), made.query.image.flatten()])
        for value in before.unique():
            assert after[before == value].unique().numel() == 1


def test_united_masks_are_the_union_of_the_labels() -> None:
    seen = 0
    for made in episodes(unite=1.0):
        for k, name in enumerate(made.class_names):
            values = [CLASSES[part] for part in name.split(" + ")]
            for sample in (made.reference, made.query):
                labels = sample.image[0] % 10  # the image is 10 * case + label
                assert torch.equal(sample.masks[k] > 0, torch.isin(labels, torch.tensor(values).float()))
            seen += len(values) > 1
    assert seen > 10


def test_the_parts_of_a_split_class_are_disjoint_and_make_it_whole() -> None:
    shown, wanted = 0, 0
    for made in episodes(split=1.0):
        first, second = made.class_names[:2]
        assert first.endswith(", first part") and second == first.replace("first", "second")
        assert set(made.class_names[2:]) <= CLASSES.keys() - {first.split(",")[0]}
        value = CLASSES[first.split(",")[0]]
        for sample in (made.reference, made.query):
            assert torch.equal(sample.masks[0] + sample.masks[1], (sample.image[0] % 10 == value).float())
        shown += bool(made.reference.masks[0].any() and made.reference.masks[1].any())
        wanted += bool(made.query.masks[0].any() and made.query.masks[1].any())
    assert shown > 20 and wanted > 10, "both parts"


def test_cells_come_from_one_scan_and_are_shown_by_the_reference() -> None:
    drawn = episodes(20, cells=1.0)
    assert len({len(made.class_names) for made in drawn}) > 4, "of 1 to 8"
    for made in drawn:
        assert made.is_made and made.reference.case_id == made.query.case_id
        assert 1 <= len(made.class_names) <= 8
        assert made.reference.masks.flatten(1).any(1).all()
        assert made.reference.masks.sum(0).max() == 1


def test_the_reference_still_never_is_its_own_query_where_masks_are_annotated() -> None:
    for kind in ("recolour", "unite", "split"):
        assert all(e.reference.subject != e.query.subject for e in episodes(20, **{kind: 1.0}))


@pytest.mark.parametrize("kind", ["recolour", "tones", "turn", "unite", "split", "cells", "bands", "shapes"])
def test_made_tasks_never_enter_the_bank(kind: str) -> None:
    bank = MemoryBank()
    for made in episodes(2, **{kind: 1.0}):
        update_bank(bank, [made], (torch.zeros(1, len(made.class_names), 11, 4),))
    assert not bank.keys()


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"cells": 1.2}, {"unite": 0.6, "split": 0.6}, {"recolour": -0.1}])
def test_impossible_probabilities(values: dict[str, float]) -> None:
    with pytest.raises(
        EpisodeError, match=r"lie between 0 and 1, and unite, split, cells, bands and shapes sum to 1 at most"
    ):
        SyntheticTasks(**values)


def test_the_command_names_its_kinds() -> None:
    assert _synthetic(["split=0.1", "cells=0.2"]) == (("cells", 0.2), ("split", 0.1))
    with pytest.raises(
        ModelError,
        match=r"--synthetic takes the kinds recolour, tones, turn, unite, split, cells, bands, shapes; got supervox",
    ):
        _synthetic(["supervoxels=0.1"])


# --- turned pairs, bands of grey values, scenes ------------------------------------------------------


def test_all_48_orientations_are_drawn_and_each_is_a_numpy_transpose_and_flip() -> None:
    rng = np.random.default_rng(0)
    drawn = {draw_orientation(rng) for _ in range(1500)}
    assert len(drawn) == 48
    array = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for each in drawn:
        expected = np.flip(
            array.numpy().transpose(0, *(1 + axis for axis in each.axes)), [1 + axis for axis in each.flipped]
        )
        assert np.array_equal(each.apply(array).numpy(), expected)


def test_turning_moves_image_and_masks_of_both_alike() -> None:
    plain, turned = episodes(30), episodes(30, turn=1.0)
    moved = 0
    for before, after in zip(plain, turned, strict=True):
        assert after.is_made and before.class_names == after.class_names
        for one, other in ((before.reference, after.reference), (before.query, after.query)):
            # in these stores the image tells the label: 10 * case + label
            labels = other.image.long() % 10
            expected = torch.stack([(labels[0] == CLASSES[name]) for name in after.class_names])
            assert torch.equal(other.masks > 0, expected)
            assert torch.equal(one.masks.sum((1, 2, 3)), other.masks.sum((1, 2, 3)))
            moved += int(not torch.equal(one.image, other.image))
    assert moved >= 50


def test_a_band_is_an_interval_of_the_smoothed_image() -> None:
    rng = np.random.default_rng(4)
    image = torch.zeros(1, 24, 24, 24)
    image[:, :, :, 12:] = 5.0
    shown, wanted = draw_bands(rng, image, image, 3)
    assert shown.shape == wanted.shape and torch.equal(shown, wanted) and 1 <= len(shown) <= 3
    for mask in shown.bool():
        # either side, or a half of it; never both sides
        assert len(set(image[0][mask].tolist())) == 1
        whole = int((image[0] == image[0][mask][0]).sum())
        assert mask.sum() <= whole


def test_a_band_is_of_the_same_grey_values_in_both_images_and_no_spray() -> None:
    image = torch.zeros(1, 24, 24, 24)
    image[:, :, :, 12:] = 5.0
    image[:, 5::6, 5::6, 5::12] += 4.0  # single voxels: smoothed, 0.08 more than round them
    shown, wanted = draw_bands(np.random.default_rng(4), image, image + 20, 3)
    assert len(shown) and not wanted.any(), "nothing of the query is as dark"
    mask = shown.bool()
    between = (mask.roll(1, 1) & mask.roll(-1, 1))[:, 5::6, 5::6, 5::12]
    assert between.any() and mask[:, 5::6, 5::6, 5::12][between].all(), "no holes"


def test_a_band_of_a_few_voxels_is_no_class() -> None:
    """As of a bright cube that fills half a hundredth of the image."""
    image = torch.zeros(1, 24, 24, 24)
    image[:, 10:14, 10:14, 10:14] = 500.0
    for seed in range(5):
        shown, _ = draw_bands(np.random.default_rng(seed), image, image, 3)
        assert all(0.01 <= float(mask.mean()) <= 0.5 for mask in shown)


def test_a_band_in_two_halves_is_cut_at_its_own_middle() -> None:
    image = np.zeros((4, 4, 20))
    image[:, :, 2:12] = 3.0
    upper = _band(image, 3.0, 0.5, (2, True))
    lower = _band(image, 3.0, 0.5, (2, False))
    assert upper[0, 0].nonzero()[0].tolist() == [7, 8, 9, 10, 11]
    assert lower[0, 0].nonzero()[0].tolist() == [2, 3, 4, 5, 6]
    assert np.array_equal(upper | lower, _band(image, 3.0, 0.5, None))


def test_a_band_fills_half_of_the_reference_at_most() -> None:
    flat = torch.zeros(1, 8, 8, 8)
    shown, _ = draw_bands(np.random.default_rng(0), flat, flat, 2)
    assert all(mask.mean() == 0.5 for mask in shown)  # the whole is too much, either half of it is not


@pytest.mark.parametrize("kind", ["cells", "bands", "shapes"])
def test_made_groups_can_be_stacked(kind: str) -> None:
    config = EpisodeConfig(synthetic=SyntheticTasks(**{kind: 1.0}))
    sampler = EpisodeSampler({"a": make_store(patch=(16, 16, 32))}, config=config)
    for index in range(4):
        group = sampler.batch(index, 3)
        stacked = stack_episodes(group)
        assert stacked.query_masks.shape[:2] == (3, len(group[0].class_names))
        assert all(episode.is_made for episode in group)
        if kind == "bands":
            assert all(e.reference.subject != e.query.subject for e in group)
