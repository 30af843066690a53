"""Training in tones: what looks like the reference's class is bright in both images, whatever it was before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from memory_store import MemoryStore, make_store
from torch import Tensor

from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.sampling.episodes import EpisodeSampler
from iris_pipeline.sampling.made_tones import NOISE, SHARE, MadeTones, draw_made_tones
from iris_pipeline.sampling.synthetic import SyntheticTasks, draw_tasks
from iris_pipeline.tasks.tone_curves import curve_between
from preprocessing.tones import Tones

CLEAR = MadeTones(noise=0.0, grain=1.0, blur=0.0, share=0.05, one=None, seed=0)
GREY = {"air": -2.0, "organ": 0.0, "lesion": 0.6, "bone": 3.0}


def scene(shift: int = 0) -> tuple[Tensor, Tensor]:
    """Image [1,20,20,20] of an organ with a lesion and a bone in it, and the lesion's and the organ's mask [2,...]."""
    grey = np.full((20, 20, 20), GREY["air"], np.float32)
    grey[2:18, 2:18, 2:18] = GREY["organ"]
    grey[12:16, 4:16, 4:16] = GREY["bone"]
    grey[4:10, 4 + shift : 10 + shift, 4:10] = GREY["lesion"]
    masks = np.stack([grey == np.float32(GREY["lesion"]), grey == np.float32(GREY["organ"])])
    return torch.from_numpy(grey)[None], torch.from_numpy(masks).float()


def test_a_lesion_between_darker_and_brighter_things_becomes_the_brightest_in_both() -> None:
    (image, masks), (query, _) = scene(), scene(shift=5)
    first, second = CLEAR(image, masks[:1], query)
    lesion, organ = (0, 7, 7, 7), (0, 7, 12, 7)
    assert first[lesion] == second[organ] > 3, "each keeps its own places"
    assert first[organ] == second[lesion] < 0
    assert first[0, 14, 10, 10] == first[0, 0, 0, 0] == first.min(), "bone was the brightest"
    assert first.dtype == second.dtype == torch.float32


def test_tones_are_the_curve_of_the_reference_scaled_for_the_share_that_was_drawn() -> None:
    (image, masks), inside = scene(), scene()[1][0].bool().numpy()
    image += 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    first, second = CLEAR(image, masks[:1], image)
    low, high = float(image.min()), float(image.max())
    smooth = Tones(low=low, high=high, values=(low, high), radius=1).smoothed(image[0].numpy())
    curve = curve_between([(smooth, inside)], low, high, 0.05, (0.0,))
    assert curve is not None
    expected = torch.from_numpy(curve(image[0].numpy()))[None]
    assert torch.equal(first, expected) and torch.equal(second, expected)
    parts = [expected[0].numpy()[side] for side in (inside, ~inside)]
    assert 0.05 * parts[0].mean() + 0.95 * parts[1].mean() == pytest.approx(0, abs=0.05)
    assert sum(
        share * np.square(part).mean() for share, part in zip((0.05, 0.95), parts, strict=True)
    ) == pytest.approx(1, abs=0.05)


def test_the_curve_is_of_all_classes_or_of_the_one_that_was_drawn() -> None:
    image, masks = scene()
    lesion, organ = (7, 7, 7), (7, 14, 7)
    for one, bright, dark in ((0.49, lesion, organ), (0.5, organ, lesion)):
        shown, _ = MadeTones(0.0, 1.0, 0.0, 0.05, one, 0)(image, masks, image)
        assert shown[0][bright] > shown[0][dark] + 1
    both, _ = CLEAR(image, masks, image)
    assert min(both[0][lesion], both[0][organ]) > both[0, 14, 10, 10] + 1


def test_noise_is_as_strong_as_drawn_the_same_by_its_seed_and_another_in_the_query() -> None:
    image, masks = scene()
    noisy = MadeTones(noise=0.5, grain=0.7, blur=0.0, share=0.05, one=None, seed=3)
    noise = noisy._noisy(np.random.default_rng(3), image, float(image.std())) - image[0].numpy()
    assert noise.std() == pytest.approx(0.5 * float(image.std()), rel=1e-4)
    first, second = noisy(image, masks[:1], image)
    again, _ = noisy(image, masks[:1], image)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(first, MadeTones(0.5, 0.7, 0.0, 0.05, None, 4)(image, masks[:1], image)[0])


def test_where_there_is_nothing_or_nothing_else_images_stay_as_they_are() -> None:
    image, masks = scene()
    for empty in (torch.zeros_like(masks[:1]), torch.ones_like(masks[:1])):
        first, second = CLEAR(image, empty, image)
        assert torch.equal(first, image) and torch.equal(second, image)
    flat = torch.zeros_like(image)
    assert all(torch.equal(each, flat) for each in CLEAR(flat, masks[:1], flat))


def test_draws_lie_in_their_ranges_and_half_are_of_one_class() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_made_tones(rng) for _ in range(1000)]
    assert all(NOISE[0] <= each.noise <= NOISE[1] and SHARE[0] <= each.share <= SHARE[1] for each in drawn)
    assert np.mean([each.one is None for each in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.median([each.share for each in drawn]) == pytest.approx(np.sqrt(SHARE[0] * SHARE[1]), rel=0.2)


def test_tones_go_with_annotated_tasks_alone_and_in_place_of_a_curve() -> None:
    rng = np.random.default_rng(1)
    tasks = SyntheticTasks(recolour=0.5, tones=0.4, split=0.2, cells=0.2, bands=0.2, shapes=0.2)
    drawn = [draw_tasks(rng, tasks) for _ in range(3000)]
    toned = [each for each in drawn if each.tones is not None]
    assert {each.structure for each in toned} == {"", "split"} and all(each.curve is None for each in toned)
    assert len(toned) / len(drawn) == pytest.approx(0.4 * 0.4, abs=0.03)


def test_without_tones_the_same_is_drawn_as_before_there_were_any() -> None:
    """A run that goes on meets the episodes that it would have met."""
    rng, before = np.random.default_rng(2), np.random.default_rng(2)
    tasks = SyntheticTasks(recolour=0.5, cells=0.3)
    for _ in range(50):
        drawn = draw_tasks(rng, tasks)
        assert (drawn.structure == "cells") == (before.random() < 0.3)
        recoloured = before.random() < 0.5
        assert (drawn.curve is not None) == recoloured
        if recoloured:
            before.normal(size=6)
        before.random()  # whether it is turned


def test_episodes_in_tones_keep_their_masks_and_are_made_ones() -> None:
    plain, toned = (
        EpisodeSampler({"a": faint_store()}, config=EpisodeConfig(augment=False, synthetic=tasks))
        for tasks in (SyntheticTasks(), SyntheticTasks(tones=1.0))
    )
    for index in range(20):
        before, after = plain.episode(index), toned.episode(index)
        assert after.is_made and not before.is_made and before.class_names == after.class_names
        for one, other in ((before.reference, after.reference), (before.query, after.query)):
            assert torch.equal(one.masks, other.masks) and one.case_id == other.case_id
            assert not torch.equal(one.image, other.image)


def faint_store() -> MemoryStore:
    """The usual one, but grey values within a few standard deviations."""
    store = make_store()
    for case, (subject, image, labels) in list(store.volumes.items()):
        store.volumes[case] = (subject, image / 20, labels)
    return store
