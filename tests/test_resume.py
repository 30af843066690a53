"""What a run that broke off leaves, and how it goes on: checkpoints without validation, after errors, after a kill."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iris_pipeline.checkpoints.checkpoint import load_model
from iris_pipeline.training.run_log import RunLog, keep_rows
from iris_pipeline.training.train import group_forward, train
from iris_pipeline.training.train_settings import TrainSettings
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

    monkeypatch.setattr("iris_pipeline.training.train.group_forward", second_group_of_step_two_breaks)
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

    monkeypatch.setattr("iris_pipeline.training.train.update_bank", broken)
    with pytest.raises(type(error)):
        run(SHORT, {"tiny": tiny_store}, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_an_error_before_the_first_step_leaves_no_checkpoint_in_the_way(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("iris_pipeline.training.train.group_forward", broken)
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
    monkeypatch.setattr("iris_pipeline.training.train.save_checkpoint", full)
    with pytest.raises(RuntimeError, match="the first"):
        run(SHORT, {"tiny": tiny_store}, tmp_path)


def rows(folder: Path, table: str = "train.csv") -> list[dict[str, str]]:
    with (folder / table).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_behind_the_last_checkpoint_are_dropped(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {"tiny": tiny_store}
    run(SHORT, stores, tmp_path / "whole")
    break_at(monkeypatch, 3, Killed())
    with pytest.raises(Killed):
        run(SHORT, stores, tmp_path / "killed")
    monkeypatch.undo()
    with (tmp_path / "killed" / "train.csv").open("ab") as file:
        file.write(b"4,,,,,,,0.9\r\n1")  # a later validation, and half a row
    with (tmp_path / "killed" / "validation.csv").open("ab") as file:
        file.write(b"4,tiny,0.9000\n")
    run(SHORT, stores, tmp_path / "killed", resume=True)
    left = [(row["iteration"], row["validation_dice"]) for row in rows(tmp_path / "killed")]
    whole = [(row["iteration"], row["validation_dice"]) for row in rows(tmp_path / "whole")]
    assert left == [*whole[:1], ("4", whole[1][1]), ("4", "")], "row 3 of the killed run is gone"
    assert rows(tmp_path / "killed", "validation.csv") == rows(tmp_path / "whole", "validation.csv")
    assert b"\r\r" not in (tmp_path / "killed" / "train.csv").read_bytes()


def test_a_run_that_was_killed_before_its_first_row_has_a_table_in_the_end(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        left = (tmp_path / "train.csv").read_bytes()
        assert left.startswith(b"iteration,loss") and left.count(b"\n") == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, {"tiny": tiny_store}, tmp_path)
    monkeypatch.undo()
    (tmp_path / "train.csv").write_bytes(b"")  # as a kill left it that came before the header was on the disk
    run(SHORT, {"tiny": tiny_store}, tmp_path, resume=True)
    assert [row["iteration"] for row in rows(tmp_path)] == ["2", "4", "4"]


def test_rows_that_stay_are_left_byte_for_byte(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"iteration,x\r\n10,1\r\n20,2\r\n30,3\r\n")
    assert keep_rows(table, 30) == 30 and keep_rows(table, 25) == 20
    assert table.read_bytes() == b"iteration,x\r\n10,1\r\n20,2\r\n"
    assert keep_rows(table, 5) is None and table.read_bytes() == b"iteration,x\r\n"
    assert keep_rows(tmp_path / "none.csv", 5) is None and not (tmp_path / "none.csv").exists()


def test_the_last_step_is_validated_once(tiny_store: Store, tmp_path: Path) -> None:
    stores = {"tiny": tiny_store}
    for settings, expected in ((SHORT, ["2", "4"]), (replace(SHORT, validate_every=3), ["3", "4"])):
        folder = tmp_path / str(settings.validate_every)
        for resume in (False, True):  # an ended run that is resumed is as it was
            run(settings, stores, folder, resume=resume)
            assert [row["iteration"] for row in rows(folder) if row["validation_dice"]] == expected
            told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            assert told["status"] == "finished"
            assert told["validation"] == load_model(folder).state.validation != {}


def test_datasets_named_in_another_order_are_the_same_run(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"dataset": "other"}))
    stores = {"tiny": tiny_store, "other": other}
    run(SHORT, stores, tmp_path / "whole")
    break_at(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, stores, tmp_path / "broken")
    monkeypatch.undo()
    run(SHORT, dict(reversed(stores.items())), tmp_path / "broken", resume=True)
    whole, broken = load_model(tmp_path / "whole"), load_model(tmp_path / "broken")
    assert whole.bank.counts() == broken.bank.counts() and whole.model_hash == broken.model_hash
    assert list(broken.plans) == ["tiny", "other"]
    told = json.loads((tmp_path / "broken" / "run.json").read_text(encoding="utf-8"))
    assert told["datasets"] == ["tiny", "other"]


def test_a_run_whose_bank_keeps_the_latest_alone(tiny_store: Store, tmp_path: Path) -> None:
    run(replace(SHORT, bank_momentum=0.0, iterations=2), {"tiny": tiny_store}, tmp_path)
    assert load_model(tmp_path).bank.momentum == 0.0
