"""One step of tuning against the naive formula: which crops it takes, and where their gradients lead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import PLAN, blob_reference
from stub_model import tiny_model

from iris_pipeline.inference.examples import draw_example, tokens_loss
from iris_pipeline.inference.pool import embed
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.inference.tuning import JUDGE_STREAM, TRAIN_STREAM, TuningSettings, _Tutor

PATCH = (16, 16, 32)  # as small as the network takes


def test_a_step_follows_the_mean_over_its_crops_which_are_drawn_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two crops step s has the crops 2s and 2s + 1, of the references in turn."""
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)  # Adam's steps tell no sum from a mean
    loaded, options = tiny_model(), InferenceOptions()
    references = [blob_reference(seed) for seed in (1, 2, 3)]
    plan = PLAN.model_copy(update={"patch_size": PATCH})
    task = ensemble([embed(loaded, reference, plan).task for reference in references])
    settings = TuningSettings(steps=2, crops=2, learning_rate=0.5, seed=4)
    tutor = _Tutor(loaded, task, options, settings)
    (found, _), steps, _, _ = tutor.descend((task.tokens, None), task, references, [], 2, False)

    tokens = [level.clone() for level in task.tokens]
    for numbers in ((0, 1), (2, 3)):
        leaves = [level.requires_grad_() for level in tokens]
        losses = []
        for number in numbers:
            rng = np.random.default_rng((4, TRAIN_STREAM, number))
            reference = references[number % 3]
            example = draw_example(reference, task.class_names, PATCH, rng, augmented=True)
            losses.append(tokens_loss(loaded.model, leaves, example, options))
        slopes = torch.autograd.grad((losses[0] + losses[1]) / 2, leaves)
        tokens = [(level - 0.5 * slope).detach() for level, slope in zip(tokens, slopes, strict=True)]
    assert steps == 2
    for level, expected, begun in zip(found, tokens, task.tokens, strict=True):
        assert torch.allclose(level, expected, atol=1e-6)
        assert not torch.allclose(level, begun, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 3])
def test_crops_that_judge_are_drawn_by_the_seed_and_apart_from_those_learned_from(seed: int) -> None:
    loaded, references = tiny_model(), [blob_reference(1), blob_reference(2)]
    plan = PLAN.model_copy(update={"patch_size": PATCH})
    task = ensemble([embed(loaded, reference, plan).task for reference in references])
    tutor = _Tutor(loaded, task, InferenceOptions(), TuningSettings(judges=3, seed=seed))
    judges = [example for example, _ in tutor.judging(references, augmented=True)]
    for number, example in enumerate(judges):
        rng = np.random.default_rng((seed, JUDGE_STREAM, number))
        expected = draw_example(references[number % 2], task.class_names, PATCH, rng, augmented=True)
        assert torch.equal(example.image, expected.image) and torch.equal(example.masks, expected.masks)
    assert len(judges) == 3 and JUDGE_STREAM != TRAIN_STREAM
