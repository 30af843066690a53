"""The wide view against averages worked out by hand. Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.sampling.episodes import EpisodeConfig, EpisodeSampler
from iris_pipeline.sampling.halved import (
    HalvedStore,
    halve_image,
    halve_labels,
    halved_patch,
    wide_view,
    window_edges,
)
from iris_pipeline.sampling.synthetic import SyntheticTasks
from iris_pipeline.training.train import update_bank
from preprocessing.grid_types import Box
from preprocessing.store import Store


def with_patch(store: Store, patch: tuple[int, int, int]) -> Store:
    plan = store.plan.model_copy(update={"patch_size": patch})
    return Store(store.folder, store.manifest.model_copy(update={"plan": plan}))


def test_halving_is_the_mean_of_eight_voxels() -> None:
    image = np.random.default_rng(0).normal(size=(4, 6, 8))
    expected = image.reshape(2, 2, 3, 2, 4, 2).mean((1, 3, 5))
    np.testing.assert_allclose(halve_image(image), expected, atol=1e-6)


def test_an_odd_last_plane_counts_twice() -> None:
    image = np.arange(3.0).reshape(3, 1, 1)
    assert halve_image(image).ravel().tolist() == [0.5, 2.0]


def test_a_class_has_a_voxel_where_it_fills_half_and_never_vanishes() -> None:
    labels = np.zeros((2, 2, 6), dtype=np.uint8)
    labels[:, :, 0] = 1  # 4 of the first 8 voxels
    labels[0, 0, 2:4] = 2  # 2 of the next 8: too few, but there is no other place for it
    labels[:, :, 4:6] = 1
    assert halve_labels(labels, [1, 2]).ravel().tolist() == [1, 2, 1]
    labels[:, :, 4:6] = 2
    assert halve_labels(labels, [1, 2]).ravel().tolist() == [1, 0, 2]


def test_of_two_halves_the_last_class_wins() -> None:
    labels = np.array([1, 1, 1, 1, 2, 2, 2, 2], dtype=np.uint8).reshape(2, 2, 2)
    assert halve_labels(labels, [1, 2]).item() == 2 and halve_labels(labels, [2, 1]).item() == 1


@pytest.mark.parametrize(
    ("places", "halved"),
    [
        # per place of the halved map, the classes of its eight voxels, class by class: one voxel each
        ([[1, 2], [2]], [1, 2]),
        ([[1], [1, 2], [2]], [1, 2, 2]),  # nobody is lost: the last class takes all, as ever
        ([[1], [1, 2], [2, 3], [3]], [1, 2, 3, 3]),
        ([[1, 2], [2, 3], [3]], [1, 2, 3]),  # 2 moves on to make room, 3 shares
        (
            [[1, 2, 3], [3, 4], [4]],
            [1, 3, 4],
        ),  # of three classes in one place one finds another, one has none
        ([[1, 2]], [2]),
    ],
)
def test_no_class_takes_the_last_place_of_another(places: list[list[int]], halved: list[int]) -> None:
    labels = np.zeros((2, 2, 2 * len(places)), dtype=np.uint8)
    for number, classes in enumerate(places):
        for k, value in enumerate(classes):
            labels[k // 2, k % 2, 2 * number] = value
    assert halve_labels(labels, [1, 2, 3, 4]).ravel().tolist() == halved


def test_two_classes_of_half_of_every_place_share_them() -> None:
    labels = np.zeros((2, 8, 2), dtype=np.uint8)
    labels[0], labels[1] = 1, 2
    found = halve_labels(labels, [1, 2]).ravel().tolist()
    assert sorted(found) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("patch", "shape", "edges"),
    [
        ((64, 64, 64), (23, 88, 74), (32, 64, 64)),
        ((64, 64, 64), (64, 65, 16), (64, 64, 16)),
        ((64, 64, 64), (9, 9, 9), (16, 16, 32)),
    ],
)
def test_windows_are_no_larger_than_the_scan_needs(
    patch: tuple[int, int, int], shape: tuple[int, ...], edges: tuple[int, int, int]
) -> None:
    assert window_edges(patch, shape) == edges


def test_the_patch_fits_95_of_100_scans() -> None:
    shapes: list[tuple[int, ...]] = [(46, 175, 147)] * 99 + [(400, 400, 400)]
    assert halved_patch((64, 64, 64), shapes) == (32, 64, 64)


def test_a_halved_store_reads_what_halving_gives(tiny_store: Store) -> None:
    store, view = tiny_store, HalvedStore(tiny_store)
    assert view.plan.spacing_mm == tuple(2 * mm for mm in store.plan.spacing_mm)
    for entry in store.manifest.cases:
        half, image, labels = view.entry(entry.id), view.image(entry.id), view.labels(entry.id)
        assert image.shape == labels.shape == half.shape
        np.testing.assert_allclose(image, halve_image(store.image(entry.id)), atol=2e-3)  # float16
        box = ((1, 3), (0, 2), (2, 5))
        np.testing.assert_array_equal(view.image(entry.id, box), image[1:3, 0:2, 2:5])
        found = ndimage.find_objects(labels)
        for name, described in half.classes.items():
            value = store.manifest.classes[name]
            for part, (low, high) in zip(found[value - 1], described.bbox, strict=True):
                assert low <= part.start and part.stop <= high <= low + (part.stop - part.start) + 2


def test_a_class_of_a_few_voxels_is_still_there_in_the_halved_store(tiny_store: Store) -> None:
    first, *others = tiny_store.manifest.cases
    name, found = next(iter(first.classes.items()))
    few = found.model_copy(update={"voxels": 7, "bbox": ((3, 6), (4, 5), (7, 9))})
    cases = (first.model_copy(update={"classes": {name: few}}), *others)
    view = HalvedStore(Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"cases": cases})))
    half = view.entry(first.id).classes[name]
    assert (half.voxels, half.bbox, half.ml) == (1, ((1, 3), (2, 3), (3, 5)), found.ml)


def test_a_halved_store_keeps_the_latest_cases_only(tiny_store: Store) -> None:
    read: list[str] = []

    class Watched(Store):
        def image(self, case_id: str, box: Box | None = None) -> np.ndarray:
            read.append(case_id)
            return super().image(case_id, box)

    store = Watched(tiny_store.folder, tiny_store.manifest)
    one, two, three = (entry.id for entry in store.manifest.cases[:3])
    size = {case: 3 * HalvedStore(tiny_store).labels(case).size for case in (one, two, three)}
    view = HalvedStore(store, keep_bytes=size[one] + max(size[two], size[three]))
    whole = HalvedStore(tiny_store)
    for case in (one, two, one, one, three, one, two):
        np.testing.assert_array_equal(view.image(case), whole.image(case))
        np.testing.assert_array_equal(view.labels(case), whole.labels(case))
    assert read == [one, two, three, two], "one was used after two, so two made room for three"
    tight = HalvedStore(store, keep_bytes=1)
    read.clear()
    for case in (one, one, two, two, one):
        tight.labels(case)
    assert read == [one, two, one], "the case that was asked for last is always kept"


def test_small_scans_have_no_wide_view(tiny_store: Store) -> None:
    assert wide_view(with_patch(tiny_store, (64, 64, 64))) is None
    assert wide_view(with_patch(tiny_store, (16, 16, 32))) is not None


@pytest.mark.parametrize(("large", "worth"), [(2, False), (3, True)])
def test_the_median_scan_decides_about_the_wide_view(large: int, worth: bool, tiny_store: Store) -> None:
    """Of five scans these hold just two patches, the others one voxel less; one is huge either way."""
    store = with_patch(tiny_store, (16, 16, 32))
    shapes = [(16, 16, 640), *[(32, 16, 32)] * (large - 1), *[(1, 16 * 64 - 1, 16)] * (5 - large)]
    cases = tuple(
        entry.model_copy(update={"shape": shape})
        for entry, shape in zip(store.manifest.cases, shapes, strict=True)
    )
    several = Store(store.folder, store.manifest.model_copy(update={"cases": cases}))
    assert (wide_view(several) is not None) == worth


def test_wide_episodes_go_to_the_bank_under_a_key_of_their_own(tiny_store: Store) -> None:
    store = with_patch(tiny_store, (16, 16, 32))
    name = store.manifest.dataset
    sampler = EpisodeSampler({name: store}, config=EpisodeConfig(wide_probability=1.0))
    episode = sampler.episode(0)
    view = wide_view(store)
    assert view is not None and episode.wide
    assert tuple(episode.query.image.shape[1:]) == view.plan.patch_size
    bank = MemoryBank(0.5)
    update_bank(bank, [episode], (episode.reference.masks.flatten(1)[None, :, None, :4],))
    assert bank.keys() == sorted(f"{name}/{each}@wide" for each in episode.class_names)
    made = EpisodeConfig(wide_probability=1.0, synthetic=SyntheticTasks(cells=1.0))
    assert EpisodeSampler({name: store}, config=made).episode(0).wide
    never = EpisodeSampler({name: store}, config=EpisodeConfig(wide_probability=0.0))
    assert not any(never.episode(i).wide for i in range(20))
