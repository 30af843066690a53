"""The running mean of the weights: its formula, and that it is what predicts while training goes on with its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iris_pipeline.checkpoints.checkpoint import hash_weights, load_model, restore_trained
from iris_pipeline.model import build_iris
from iris_pipeline.training.train import TrainSettings, train
from iris_pipeline.training.weight_mean import WeightMean
from preprocessing.store import Store


def test_the_mean_is_that_of_the_formula() -> None:
    model = build_iris("tiny", seed=0)
    mean = WeightMean(model, 0.5)
    weight = model.encoder.stages[1][1].conv1.weight
    start, expected = weight.detach().clone(), weight.detach().clone()
    for step, share in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13), (100, 0.5)):
        with torch.no_grad():
            weight += 1.0
        mean.update(model, step)
        expected = share * expected + (1 - share) * weight.detach()
    found = mean.model.encoder.stages[1][1].conv1.weight
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad and (found - start).mean() < 4, "it lags behind"


def test_the_mean_predicts_and_the_trained_weights_go_on(tiny_store: Store, tmp_path: Path) -> None:
    settings = TrainSettings(size="tiny", iterations=3, validation_episodes=1, precision="fp32")
    for name, momentum in (("plain", 0.0), ("mean", 0.9)):
        train(
            replace(settings, weight_momentum=momentum),
            {"tiny": tiny_store},
            tmp_path / name,
            device=torch.device("cpu"),
            show_progress=False,
        )
    plain, mean = load_model(tmp_path / "plain"), load_model(tmp_path / "mean")
    assert plain.model_hash != mean.model_hash
    restore_trained(tmp_path / "mean", mean.model)
    assert hash_weights(mean.model) == plain.model_hash, "the mean has no say in the training itself"
    restore_trained(tmp_path / "plain", plain.model)
    assert hash_weights(plain.model) == load_model(tmp_path / "plain").model_hash == plain.model_hash


@pytest.mark.parametrize("step", [1, 5000])
def test_without_memory_the_mean_is_the_model(step: int) -> None:
    model = build_iris("tiny", seed=0)
    mean = WeightMean(build_iris("tiny", seed=1), 0.0)
    mean.update(model, step)
    assert hash_weights(mean.model) == hash_weights(model)
