"""The mean of several runs: weights and bank by the plain formula, and no mean of what does not go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from iris_pipeline.checkpoints.averaged import averaged
from iris_pipeline.checkpoints.checkpoint import (
    LoadedModel,
    RunState,
    hash_weights,
    load_model,
    save_checkpoint,
)
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.checkpoints.trained_cases import TrainedPart
from iris_pipeline.cli.export import export_model_main
from iris_pipeline.model import build_iris
from preprocessing.errors import CheckpointError


def part(case: str) -> dict[str, tuple[TrainedPart, ...]]:
    return {"ct": (TrainedPart("paper", {case: f"p{case}"}),)}


def one(seed: int, met: dict[str, list[float]], start: int = 0) -> LoadedModel:
    """A run from the weights of `start` that has met these classes with these values of their only token."""
    model, noise = build_iris("tiny", seed=start), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
    bank = MemoryBank(0.5)
    for name, values in met.items():
        for value in values:
            bank.update(f"ct/{name}", (torch.full((2, 3), value), torch.full((2, 1), -value)))
    state = RunState(
        100 + seed,
        60.0,
        seed,
        {"split": "paper", "size": "tiny"},
        {"ct": 0.5},
        part(f"c{seed}"),
        ("ct",) if seed else (),
        {"ct": {"liver": 0.5}},
    )
    plan: Any = SimpleNamespace(digest="d1")
    specs = {"ct": {"classes": {"liver": 1, "spleen": 2}}}
    return LoadedModel(model, bank, {"ct": plan}, specs, state, hash_weights(model), "0")


def test_weights_and_bank_are_plain_means() -> None:
    runs = [
        one(0, {"liver": [1.0, 3.0]}),
        one(1, {"liver": [5.0], "spleen": [7.0]}),
        one(2, {"liver": [2.0]}),
    ]
    found = averaged(runs)
    for name, tensor in found.model.state_dict().items():
        expected = sum(each.model.state_dict()[name].double() for each in runs) / 3
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))
    assert found.model_hash == hash_weights(found.model) not in [each.model_hash for each in runs]
    # momentum 0.5, corrected for its start: (0.25 x 1 + 0.5 x 3) / 0.75 = 7/3 of the first run
    liver, spleen = found.bank.get(["ct/liver"]), found.bank.get(["ct/spleen"])
    torch.testing.assert_close(liver[0], torch.full((1, 1, 2, 3), (7 / 3 + 5 + 2) / 3))
    torch.testing.assert_close(liver[1], torch.full((1, 1, 2, 1), -(7 / 3 + 5 + 2) / 3))
    torch.testing.assert_close(spleen[0], torch.full((1, 1, 2, 3), 7.0))
    assert found.bank.counts() == {"ct/liver": 4, "ct/spleen": 1}


def test_its_state_is_that_of_all() -> None:
    runs = [one(seed, {"liver": [1.0]}) for seed in (0, 1)]
    state = averaged(runs).state
    assert (state.iteration, state.seconds, state.validation) == (201, 120.0, {})
    assert state.settings == {"split": "paper", "size": "tiny", "mean_of": [each.model_hash for each in runs]}
    assert state.trained == {"ct": (*part("c0")["ct"], *part("c1")["ct"])}
    assert state.wide_datasets == ("ct",)
    assert state.pieces is None, "of other cases, perhaps"
    silent = replace(runs[1], state=replace(runs[1].state, trained=None, wide_datasets=None))
    told = averaged([runs[0], silent]).state
    assert (told.trained, told.wide_datasets) == (None, None), "what one does not tell is not known"
    assert averaged(runs[:1]) is runs[0]


def test_no_mean_of_what_does_not_go_together() -> None:
    first = one(0, {})
    other_plan: Any = SimpleNamespace(digest="d2")
    bad = [
        (replace(first, model=build_iris("small")), "network"),
        (replace(first, plans={"ct": other_plan}), "plans"),
        (replace(first, plans={}), "datasets"),
        (replace(first, specs={"ct": {"classes": {"liver": 1}}}), "classes"),
        (replace(first, state=replace(first.state, settings={"split": "0"})), "split"),
        (replace(first, bank=MemoryBank(0.9)), "momentum of the bank"),
    ]
    for other, word in bad:
        with pytest.raises(
            CheckpointError, match=rf"runs of one network on the same data; .* differ in {word}: lea"
        ):
            averaged([first, other])
    with pytest.raises(CheckpointError, match="of one model or more; got none"):
        averaged([])


def test_no_mean_of_runs_that_began_apart() -> None:
    runs = [one(0, {}), one(1, {}), one(2, {}, start=9)]
    says = (
        rf"started from the same weights; those of {runs[0].model_hash} and {runs[2].model_hash} have a cosine of "
        r"-?0\.0\d \(of one start it is near 1\): leave one of them out, or train both with the same --start-from\.$"
    )
    with pytest.raises(CheckpointError, match=says):
        averaged(runs)
    assert averaged(runs[:2]).model_hash != runs[0].model_hash


def test_the_command_writes_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [one(seed, {"liver": [1.0 + seed]}) for seed in (0, 1)]
    for run in runs:
        folder = tmp_path / "results" / f"run_{run.state.seed}" / "checkpoint"
        save_checkpoint(folder, run.model, run.bank, run.state, plans={}, specs=run.specs)
    command = ["run_0", "run_1", "-o", str(tmp_path / "mean"), "--root", str(tmp_path)]
    assert export_model_main(command) == 0
    said = capsys.readouterr().out
    assert (
        "the mean of 2 runs; use it with -m" in said and "names the 2 cases that it has learnt from" in said
    )
    loaded, expected = load_model(tmp_path / "mean"), averaged(runs)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.half().float())
    assert torch.equal(loaded.bank.get(["ct/liver"])[0], expected.bank.get(["ct/liver"])[0])
