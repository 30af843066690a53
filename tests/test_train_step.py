"""One training step: pairs that keep to themselves, gradients that are averaged and clipped; and the validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iris_pipeline.model import Iris, build_iris
from iris_pipeline.sampling.episode import Episode
from iris_pipeline.sampling.episodes import EpisodeSampler
from iris_pipeline.training import train as module
from iris_pipeline.training.losses import episode_loss
from iris_pipeline.training.optim import build_lamb
from iris_pipeline.training.train import TrainSettings, group_forward, train, validate
from preprocessing.store import Store

CPU = torch.device("cpu")
ONE_STEP = TrainSettings(size="tiny", iterations=1, groups=2, validation_episodes=1, precision="fp32")


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_pairs_of_a_group_keep_to_themselves(both_ways: bool, tiny_store: Store) -> None:
    model = build_iris("tiny", seed=0)
    episodes = EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 2)
    logits, masks, valid = [], [], []
    for r, q in ((e.reference, e.query) for e in episodes):
        for shown, asked in ((r, q), (q, r))[: 1 + both_ways]:
            logits.append(model(shown.image[None], shown.masks[None], asked.image[None]))
            masks.append(asked.masks[None])
            valid.append(shown.masks.flatten(1).any(-1)[None])
    expected = episode_loss(torch.cat(logits), torch.cat(masks), torch.cat(valid))
    result = group_forward(model, episodes, CPU, both_ways)
    torch.testing.assert_close(result.loss.total, expected.total, rtol=1e-4, atol=1e-5)
    for number, episode in enumerate(episodes):
        alone = model.encode_task(episode.reference.image[None], episode.reference.masks[None])
        for level, own in zip(result.tokens, alone, strict=True):
            torch.testing.assert_close(level[number], own[0], rtol=1e-4, atol=1e-5)


def test_a_step_goes_down_the_mean_of_its_groups(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, forward = [], module.group_forward

    def noted(model: Iris, episodes: list[Episode], *rest: object) -> module.GroupResult:
        groups.append(episodes)
        return forward(model, episodes, *rest)  # type: ignore[arg-type]

    def compared(model: Iris, *_: object) -> float:
        losses = [forward(model, episodes, CPU, True).loss.total for episodes in groups]
        expected = torch.autograd.grad(sum(losses) / 2, list(model.parameters()))  # type: ignore[arg-type]
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
        return 0.0

    monkeypatch.setattr(module, "group_forward", noted)
    monkeypatch.setattr(module, "optimise", compared)
    train(ONE_STEP, {"tiny": tiny_store}, tmp_path, device=CPU, show_progress=False)
    assert [episodes[0].index for episodes in groups] == [0, 1]


def test_a_gradient_that_is_no_number_takes_no_step() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = build_lamb(layer, lr=0.1, weight_decay=0.0)
    before = [parameter.clone() for parameter in layer.parameters()]
    for wrong in (float("nan"), float("inf")):
        layer(torch.full((1, 3), wrong)).sum().backward()
        norm = module.optimise(layer, optimizer, 0.1, 1.0)
        assert not norm < float("inf") and all(parameter.grad is None for parameter in layer.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    layer(torch.ones(1, 3)).sum().backward()
    # six weights and two biases, each of gradient 1
    assert module.optimise(layer, optimizer, 0.1, 1.0) == pytest.approx(8**0.5)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert not torch.equal(before[0], layer.weight)


def test_gradients_are_clipped_and_the_rate_is_that_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = build_lamb(layer, lr=0.1, weight_decay=0.0)
    seen = []

    def step() -> None:
        norm = sum(float(p.grad.square().sum()) for p in layer.parameters() if p.grad is not None) ** 0.5
        seen.append((norm, {group["lr"] for group in optimizer.param_groups}))

    monkeypatch.setattr(optimizer, "step", step)
    for factor in (1.0, 0.1):
        (factor * layer(torch.ones(1, 3)).sum()).backward()
        module.optimise(layer, optimizer, 0.025, 1.0)
    assert seen == [(pytest.approx(1.0), {0.025}), (pytest.approx(0.1 * 8**0.5), {0.025})]


def test_a_class_in_neither_truth_nor_mask_leaves_the_validation_as_it_is(tiny_store: Store) -> None:
    (episode,) = EpisodeSampler({"tiny": tiny_store}, seed=1).batch(0, 1)
    truth = torch.zeros(2, *episode.query.masks.shape[1:])
    truth[0, :4] = 1
    predicted = torch.full_like(truth, -1.0)
    predicted[0, :2] = (
        0.1  # just above 0, a probability of 0.5; half of the first class, nothing of the second
    )
    asked = replace(episode, class_names=("a", "b"), query=replace(episode.query, masks=truth))

    class Told(torch.nn.Module):
        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            return predicted[None]

    assert validate(Told(), [asked], CPU, "fp32") == {"tiny": pytest.approx(2 / 3)}  # type: ignore[arg-type]
