"""What a run that broke off leaves, and how it goes on: checkpoints without validation, after errors, after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_pipeline.checkpoint import load_model
from iris_pipeline.run_log import RunLog
from iris_pipeline.train import group_forward, train
from iris_pipeline.train_settings import TrainSettings
from preprocessing.store import Store

CPU = torch.device("cpu")
SHORT = TrainSettings(size="tiny", iterations=4, validate_every=2, validation_episodes=1, precision="fp32")


def run(settings: TrainSettings, stores: dict[str, Store], folder: Path, **options: Any) -> None:
    train(settings, stores, folder, device=CPU, show_progress=False, **options)


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """The run breaks behind this step."""
    original = RunLog.step

    def broken(self: RunLog, iteration: int, *rest: Any) -> None:
        original(self, iteration, *rest)
        if iteration == step:
            raise error

    monkeypatch.setattr(RunLog, "step", broken)


class Killed(BaseException):
    """Nothing is saved on its way out, as by a kill."""


def test_a_run_without_validation_cases_is_saved_on_its_way(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SHORT, split="all")
    run(settings, {"tiny": tiny_store}, tmp_path / "whole")
    break_at(monkeypatch, 3, Killed())
    with pytest.raises(Killed):
        run(settings, {"tiny": tiny_store}, tmp_path / "killed")
    monkeypatch.undo()
    left = load_model(tmp_path / "killed").state
    assert (left.iteration, left.validation) == (2, {})
    run(settings, {"tiny": tiny_store}, tmp_path / "killed", resume=True)
    assert load_model(tmp_path / "killed").model_hash == load_model(tmp_path / "whole").model_hash


def test_an_error_costs_the_step_it_came_in_and_no_more(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, settings = {"tiny": tiny_store}, replace(SHORT, groups=2)
    run(settings, stores, tmp_path / "whole")
    calls = []

    def second_group_of_step_two_breaks(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no room")
        return group_forward(*given)

    monkeypatch.setattr("iris_pipeline.train.group_forward", second_group_of_step_two_breaks)
    with pytest.raises(MemoryError, match="no room"):
        run(settings, stores, tmp_path / "broken")
    monkeypatch.undo()
    left = load_model(tmp_path / "broken")
    log = (tmp_path / "broken" / "train.log").read_text(encoding="utf-8")
    assert left.state.iteration == 1 and "Saved at iteration 1, before the error" in log
    run(settings, stores, tmp_path / "broken", resume=True)
    whole, resumed = load_model(tmp_path / "whole"), load_model(tmp_path / "broken")
    assert whole.model_hash == resumed.model_hash and whole.bank.counts() == resumed.bank.counts()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_half_a_step_is_not_saved(
    error: BaseException, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("iris_pipeline.train.update_bank", broken)
    with pytest.raises(type(error)):
        run(SHORT, {"tiny": tiny_store}, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_an_error_before_the_first_step_leaves_no_checkpoint_in_the_way(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("iris_pipeline.train.group_forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(SHORT, {"tiny": tiny_store}, tmp_path)
    monkeypatch.undo()
    run(replace(SHORT, iterations=1), {"tiny": tiny_store}, tmp_path)  # needs no --resume
    assert load_model(tmp_path).state.iteration == 1


def test_where_the_last_step_cannot_be_saved_the_first_error_is_told(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    break_at(monkeypatch, 1, RuntimeError("the first"))
    monkeypatch.setattr("iris_pipeline.train.save_checkpoint", full)
    with pytest.raises(RuntimeError, match="the first"):
        run(SHORT, {"tiny": tiny_store}, tmp_path)
