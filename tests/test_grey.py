"""Grey evidence: log ratios and lookups against naive ones, what is added to logits, exact mixing, its way into masks
and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from stub_model import GreyModel, make_task, tiny_model
from torch import Tensor

from iris_pipeline.inference.examples import Example, encode_example, features_loss
from iris_pipeline.inference.focus import wide_task
from iris_pipeline.inference.sliding_window import InferenceOptions, segment_volume
from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.prediction.predict import describe, digest
from iris_pipeline.scans.scan import unite
from iris_pipeline.tasks.grey import (
    BINS,
    HIGHEST,
    LIMIT,
    LOWEST,
    GreyEvidence,
    Share,
    bins_of,
    mix_evidence,
    weigh,
    weights_of,
)
from iris_pipeline.tasks.grey_ratios import RARE, log_ratio
from iris_pipeline.tasks.task import merge
from iris_pipeline.tasks.task_file import load_task, save_task
from iris_pipeline.tasks.voxel_head import VoxelHead
from iris_pipeline.training.losses import episode_loss

STEP = (HIGHEST - LOWEST) / BINS
MIDDLES = LOWEST + STEP * (np.arange(BINS) + 0.5)


def drawn(classes: int, seed: int, weights: Sequence[float] | None = None) -> GreyEvidence:
    generator = torch.Generator().manual_seed(seed)
    evidence = GreyEvidence(3 * torch.randn(classes, BINS, generator=generator), torch.ones(classes))
    return evidence.weighed(weights) if weights is not None else evidence


def constant(*values: float, weights: Sequence[float] | None = None) -> GreyEvidence:
    """One ratio a class, whatever the grey value."""
    ratios = torch.tensor(values)[:, None].repeat(1, BINS)
    return GreyEvidence(ratios, torch.tensor(list(weights) if weights else [1.0] * len(values)))


def drawn_image(shape: tuple[int, int, int] = (7, 6, 5), seed: int = 3) -> np.ndarray:
    """Grey values within the bins and beyond them on both sides."""
    return np.random.default_rng(seed).normal(1, 12, shape).astype(np.float32)


def naive_ratio(evidence: GreyEvidence, image: np.ndarray) -> np.ndarray:
    """[K,D,H,W] by scipy and numpy: the mean of 3^3 voxels, looked up between the middles of bins."""
    mean = ndimage.uniform_filter(image.astype(float), 3, mode="nearest")
    return np.stack([np.interp(mean, MIDDLES, row) for row in evidence.ratios.double().numpy()])


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Shares under a bell of one bin, cut at four bins; the outermost bins go on for ever."""
    shares, bell = counts / counts.sum(), np.exp(-0.5 * np.arange(-4, 5) ** 2)
    found = np.zeros(len(counts))
    for place in range(len(counts)):
        for offset, weight in zip(range(-4, 5), bell / bell.sum(), strict=True):
            found[place] += weight * shares[min(max(place + offset, 0), len(counts) - 1)]
    return found


def test_a_log_ratio_is_that_of_smoothed_shares() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, BINS), rng.integers(0, 900, BINS)
    expected = np.log((smoothed(inside) + RARE) / (smoothed(outside) + RARE))
    np.testing.assert_allclose(log_ratio(inside, outside), expected, atol=1e-9)
    apart = log_ratio(np.eye(BINS)[10], np.eye(BINS)[30])
    # the top of the bell is 0.399; nothing of the other class comes near
    assert apart[10] == pytest.approx(np.log((0.39894 + RARE) / RARE), abs=1e-3) == -apart[30]
    assert apart[20] == 0 and apart[0] == 0, "as rare inside as outside"
    assert np.allclose(log_ratio(5 * inside, outside), log_ratio(inside, outside)), (
        "shares, not sizes, are told apart"
    )


def test_what_was_never_seen_says_nothing() -> None:
    some, none = np.arange(BINS), np.zeros(BINS)
    for inside, outside in ((none, some), (some, none), (none, none)):
        assert np.array_equal(log_ratio(inside, outside), none)
    assert np.allclose(log_ratio(some, some), none)


def test_a_grey_value_counts_in_its_bin_and_beyond_them_in_the_last() -> None:
    assert bins_of(torch.from_numpy(MIDDLES)).tolist() == list(range(BINS))
    assert bins_of(torch.tensor([LOWEST - 9, LOWEST, HIGHEST, HIGHEST + 9])).tolist() == [
        0,
        0,
        BINS - 1,
        BINS - 1,
    ]
    within = torch.tensor([LOWEST + STEP * 7 + 0.01, LOWEST + STEP * 8 - 0.01])
    assert bins_of(within).tolist() == [7, 7]


def test_the_ratio_of_a_voxel_is_the_naive_lookup() -> None:
    evidence, images = drawn(3, 1), np.stack([drawn_image(seed=seed) for seed in (3, 4)])
    images[0, :3] = 1e4
    images[1, :3] = -1e4
    found = evidence.of_image(torch.from_numpy(images)[:, None])
    assert found.shape == (2, 3, 7, 6, 5) and found.dtype == torch.float32
    for sample in range(2):
        np.testing.assert_allclose(
            found[sample].numpy(), naive_ratio(evidence, images[sample]), atol=1e-3, rtol=1e-4
        )
    flat = torch.full((1, 1, 3, 3, 3), float(MIDDLES[5]))
    torch.testing.assert_close(
        evidence.of_image(flat)[0, :, 1, 1, 1], evidence.ratios[:, 5], atol=1e-4, rtol=0
    )


def test_weights_scale_what_is_added_and_0_leaves_logits_exactly() -> None:
    logits = torch.tensor([30.0, -30.0, 2.0, 1.25e9]).repeat(3, 1).view(1, 3, 1, 1, 4)
    ratios = torch.tensor([1.5, 1.5, -1.0, 0.0]).repeat(3, 1).view(1, 3, 1, 1, 4)
    found = weigh(logits, ratios, torch.tensor([0.0, 2.0, 0.5]))
    assert torch.equal(found[:, 0], logits[:, 0])
    assert found[0, 1].flatten().tolist() == [LIMIT + 3, -LIMIT + 3, 0.0, LIMIT]
    assert found[0, 2].flatten().tolist() == [LIMIT + 0.75, -LIMIT + 0.75, 1.5, LIMIT]
    half = weigh(logits[..., :3].bfloat16(), ratios[..., :3], torch.tensor([0.0, 2.0, 0.5]))
    assert half.dtype == torch.float32 and torch.equal(half, found[..., :3])


def test_a_window_is_answered_in_full_precision_by_both_together() -> None:
    evidence, image = drawn(2, 1, [1.0, 2.0]), torch.from_numpy(drawn_image())[None, None]
    logits = torch.randn(1, 2, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = logits.numpy()[0] + np.array([1.0, 2.0])[:, None, None, None] * naive_ratio(
        evidence, image[0, 0].numpy()
    )
    np.testing.assert_allclose(evidence(image, logits)[0].numpy(), expected, atol=2e-3, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(evidence(image, logits), evidence(image.clone(), logits.clone()))
        inside = evidence(image, logits)
    assert inside.dtype == torch.float32 and torch.equal(inside, evidence(image, logits))


def test_classes_are_chosen_in_the_order_asked_for() -> None:
    evidence = drawn(3, 1, [1.0, 2.0, 3.0])
    chosen = evidence.select([2, 0])
    assert torch.equal(chosen.ratios, evidence.ratios[[2, 0]]) and chosen.weights.tolist() == [3.0, 1.0]
    lighter = evidence.weighed([0.5, 0.0, 9.0])
    assert torch.equal(lighter.ratios, evidence.ratios) and lighter.weights.tolist() == [0.5, 0.0, 9.0]
    assert weights_of(lighter, "abc") == {"a": 0.5, "b": 0.0, "c": 9.0}
    assert weights_of(lighter.weighed([0, 0, 0]), "abc") == weights_of(None, "abc") == {}


def added(evidence: GreyEvidence | None, row: int) -> Tensor:
    """[N]: what one class's evidence adds to a logit, by grey value."""
    return evidence.weights[row] * evidence.ratios[row] if evidence is not None else torch.zeros(BINS)


@pytest.mark.parametrize("weights", [[2.0, 0.5], [0.0, 3.0]])
def test_mixing_is_the_mean_of_what_evidence_adds(weights: list[float]) -> None:
    first, second = drawn(2, 1, weights), drawn(2, 2, [1.0, 1.5])
    classes: list[list[Share]] = [
        [(first, 0, 0.25), (second, 1, 0.75)],
        [(first, 1, 0.5), (None, 3, 0.5)],
        [(None, 0, 1.0)],
        [(second, 0, 1.0)],
    ]
    mixed = mix_evidence(classes)
    assert mixed is not None and mixed.ratios.shape == (4, BINS)
    for row, shares in enumerate(classes):
        expected = sum((part * added(each, old) for each, old, part in shares), start=torch.zeros(BINS))
        torch.testing.assert_close(added(mixed, row), expected, atol=1e-5, rtol=1e-5)
    assert mixed.weights.tolist() == pytest.approx(
        [0.25 * weights[0] + 0.75 * 1.5, 0.5 * weights[1], 0.0, 1.0]
    )


def test_ratios_that_add_nothing_are_kept_for_whoever_weighs_them_anew() -> None:
    first, second = drawn(1, 1, [0.0]), drawn(1, 2, [0.0])
    mixed = mix_evidence([[(first, 0, 0.25), (second, 0, 0.75)], [(None, 0, 1.0)]])
    assert mixed is not None and mixed.weights.tolist() == [0.0, 0.0]
    torch.testing.assert_close(mixed.ratios[0], (first.ratios[0] + second.ratios[0]) / 2)
    assert not mixed.ratios[1].any()
    assert mix_evidence([[(None, 0, 1.0)], [(None, 0, 0.5), (None, 1, 0.5)]]) is None


def test_tasks_that_are_chosen_from_joined_or_averaged_keep_their_evidence() -> None:
    task = make_task([1.0, 2.0], ("a", "b"), grey=constant(5.0, 7.0, weights=[1.0, 2.0]))
    chosen = task.select(["b"]).grey
    assert chosen is not None and added(chosen, 0)[0] == 14.0
    plain = make_task([3.0], ("c",), class_values=(3,))
    for joined in (merge([task, plain]), unite([task, plain])[0]):
        assert joined.grey is not None and joined.class_names == ("a", "b", "c")
        assert [float(added(joined.grey, row)[0]) for row in range(3)] == [5.0, 14.0, 0.0]
    again = make_task([1.5], ("a",), references=3, class_references=(3,), grey=constant(1.0))
    for one, mean in ((merge([task, again]), (5.0 + 3 * 1.0) / 4), (ensemble([task, again]), 3.0)):
        assert one.grey is not None
        assert [float(added(one.grey, row)[0]) for row in range(2)] == [mean, 14.0]
    assert merge([make_task([1.0], ("a",)), plain]).grey is None
    assert ensemble([make_task([1.0], ("a",)), make_task([2.0], ("a",))]).grey is None
    wide = replace(task, wide_tokens=task.tokens)
    assert wide_task(wide, (20, 20, 20)).grey is None and wide.grey is not None


def one_window_probability(image: np.ndarray, grey: GreyEvidence, head: VoxelHead | None) -> np.ndarray:
    """[2,16,16,16] of the grey model at means of 0 and 1, by its formula and the naive lookup."""
    logits = 40 * (0.5 - np.abs(image - np.array([0.0, 1.0])[:, None, None, None]))
    weights, ratios = grey.weights.numpy(), naive_ratio(grey, image)
    for row, weight in enumerate(weights):
        if weight:
            logits[row] = np.clip(logits[row], -LIMIT, LIMIT) + weight * ratios[row]
    given = torch.from_numpy(logits).float()[None]
    if head is not None:
        given = head(torch.from_numpy(image)[None, None], given)
    return given[0].sigmoid().numpy()


@pytest.mark.parametrize("headed", [False, True])
def test_a_mask_is_what_logits_and_grey_values_say(headed: bool) -> None:
    image = np.random.default_rng(0).normal(0.5, 1, size=(16, 16, 16)).astype(np.float32)
    head = None
    if headed:  # it hears the logits with what grey values added to them
        outer = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
        head = replace(VoxelHead.begin(2), outer=outer)
    grey = drawn(2, 1, [0.0, 1.5])
    task = make_task([0.0, 1.0], grey=grey, head=head)
    found = segment_volume(GreyModel(), image, task).astype(float)
    np.testing.assert_allclose(found, one_window_probability(image, grey, head), atol=2e-3)
    without = segment_volume(GreyModel(), image, replace(task, grey=None)).astype(float)
    assert np.abs(found[1] - without[1]).max() > 0.5
    assert np.array_equal(found[0], without[0]), "of weight 0"


def test_the_evidence_has_its_say_in_every_window_of_a_batch() -> None:
    image = np.random.default_rng(0).normal(size=(20, 18, 40)).astype(np.float32)
    task = make_task([0.0, 1.0])
    plain = segment_volume(GreyModel(), image, task, batch_size=3)
    none = segment_volume(GreyModel(), image, replace(task, grey=drawn(2, 1, [0.0, 0.0])), batch_size=3)
    assert np.array_equal(plain, none)
    raised = replace(task, grey=constant(-1.0, 1.0, weights=[100.0, 100.0]))
    found = segment_volume(GreyModel(), image, raised, batch_size=3)
    assert found[0].max() == 0 and found[1].min() == 1
    several = segment_volume(GreyModel(), image, replace(task, grey=drawn(2, 1)), batch_size=3)
    one_by_one = segment_volume(GreyModel(), image, replace(task, grey=drawn(2, 1)))
    np.testing.assert_allclose(several.astype(float), one_by_one.astype(float), atol=2e-3)


def test_the_loss_of_a_task_counts_it_and_teaches_the_tokens() -> None:
    loaded, generator = tiny_model(), torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 32, 32, 32, generator=generator)
    example = Example(image, (image > 1).float().repeat(1, 2, 1, 1, 1), torch.tensor([[1.0, 1.0]]))
    tokens = loaded.model.encode_task(image, example.masks)
    tokens = tuple(level.detach().requires_grad_() for level in tokens)
    features, grey = encode_example(loaded.model, example, InferenceOptions()), constant(2, 9, weights=[1, 0])
    found = features_loss(loaded.model, tokens, features, example, InferenceOptions(), grey=grey)
    logits = loaded.model.segment_from_features(features, tokens).detach()
    expected = episode_loss(logits + torch.tensor([2.0, 0.0])[:, None, None, None], example.masks).total
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(found.item() - episode_loss(logits, example.masks).total.item()) > 0.1
    found.backward()
    assert tokens[0].grad is not None and tokens[0].grad.abs().sum() > 0
    assert not grey.ratios.requires_grad


def test_files_hold_the_evidence(tmp_path: Path) -> None:
    task = make_task([1.0, 2.0], ("a", "b"), grey=drawn(2, 1, [0.5, 3.0]))
    plain = replace(task, grey=None)
    for name in ("x.task", "y.task"):
        save_task(tmp_path / name, task)
    save_task(tmp_path / "plain.task", plain)
    assert (tmp_path / "x.task").read_bytes() == (tmp_path / "y.task").read_bytes()
    read = load_task(tmp_path / "x.task")
    assert read.grey is not None and task.grey is not None and read.head is None
    assert all(torch.equal(a, b) for a, b in zip(read.grey.parts, task.grey.parts, strict=True))
    assert load_task(tmp_path / "plain.task").grey is None
    both = replace(task, head=VoxelHead.begin(2))
    save_task(tmp_path / "both.task", both)
    read = load_task(tmp_path / "both.task")
    assert read.grey is not None and read.head is not None and digest(read) == digest(both)


def test_the_evidence_counts_for_what_a_result_depends_on() -> None:
    plain = make_task([1.0, 2.0], ("a", "b"))
    assert digest(plain) == "49b5e721485cfa26", "results of tasks without it are as they were"
    tasks = [
        replace(plain, grey=grey)
        for grey in (drawn(2, 1), drawn(2, 2), drawn(2, 1, [1.0, 2.0]), drawn(2, 1, [0.0, 0.0]))
    ]
    assert len({digest(each) for each in [plain, *tasks]}) == 5
    assert describe(tasks[2])["grey_weights"] == {"a": 1.0, "b": 2.0}
    assert describe(tasks[3])["grey_weights"] == describe(plain)["grey_weights"] == {}
    assert "grey" not in describe(tasks[0])
