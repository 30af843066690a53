"""Checkpoints: what goes in comes back, damage is noticed, no pickle is ever read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iris_pipeline.checkpoint import (
    RunState,
    export_checkpoint,
    hash_weights,
    load_model,
    restore_optimizer,
    save_checkpoint,
)
from iris_pipeline.memory_bank import MemoryBank
from iris_pipeline.model import Iris, IrisConfig, build_iris
from iris_pipeline.optim import build_lamb
from preprocessing.errors import CheckpointError

CONFIG = IrisConfig(
    widths=(4, 8, 8, 8, 16),
    encoder_blocks=(0, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    task_depth=1,
    join=("add", "concat", "concat", "concat"),
)


def trained(seed: int = 0) -> tuple[Iris, torch.optim.Optimizer, MemoryBank]:
    model = build_iris(CONFIG, seed=seed)
    optimizer = build_lamb(model, 1e-3, 1e-5)
    for step in range(2):
        torch.manual_seed(step)
        model(
            torch.randn(1, 1, 16, 16, 32), torch.ones(1, 1, 16, 16, 32), torch.randn(1, 1, 16, 16, 32)
        ).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    bank = MemoryBank(0.99)
    bank.update("ct/left kidney", (torch.randn(11, 16), torch.randn(11, 8)))
    return model, optimizer, bank


def write(folder: Path, seed: int = 0, iteration: int = 2) -> tuple[Iris, torch.optim.Optimizer, MemoryBank]:
    model, optimizer, bank = trained(seed)
    state = RunState(iteration, 12.5, seed, {"size": "tiny"}, {"ct": 0.5})
    save_checkpoint(
        folder, model, bank, state, plans={}, specs={"ct": {"classes": {"liver": 1}}}, optimizer=optimizer
    )
    return model, optimizer, bank


def test_an_exported_model_is_the_rounded_one_and_keeps_the_bank(tmp_path: Path) -> None:
    model, _, bank = write(tmp_path / "run" / "checkpoint")
    exported = export_checkpoint(tmp_path / "run", tmp_path / "half")
    loaded = load_model(tmp_path / "half")
    assert loaded.model_hash == exported != hash_weights(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.half().float())
    (weights,) = (tmp_path / "half").glob("weights-*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    for a, b in zip(bank.get(bank.keys()), loaded.bank.get(bank.keys()), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(
        CheckpointError, match=r"half holds a checkpoint already: give another -o, or remove it"
    ):
        export_checkpoint(tmp_path / "run", tmp_path / "half")
    with pytest.raises(CheckpointError, match="it can predict but not be resumed"):
        restore_optimizer(tmp_path / "half", build_lamb(loaded.model, 1e-3, 1e-5))


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer, bank = write(tmp_path / "checkpoint")
    loaded = load_model(str(tmp_path))  # a run folder finds its checkpoint; a path may be text
    assert not loaded.model.training
    assert loaded.model_hash == hash_weights(model)
    assert loaded.state == RunState(2, 12.5, 0, {"size": "tiny"}, {"ct": 0.5})
    assert loaded.specs == {"ct": {"classes": {"liver": 1}}}
    for a, b in zip(bank.get(bank.keys()), loaded.bank.get(["ct/left kidney"]), strict=True):
        assert torch.equal(a, b)
    again = build_lamb(loaded.model, 1e-3, 1e-5)
    restore_optimizer(tmp_path, again)
    # The next step of the restored pair is the next step of the original pair, bit for bit.
    for m, o in ((model, optimizer), (loaded.model, again)):
        torch.manual_seed(9)
        m.train()(
            torch.randn(1, 1, 16, 16, 32), torch.ones(1, 1, 16, 16, 32), torch.randn(1, 1, 16, 16, 32)
        ).sum().backward()
        o.step()
    assert hash_weights(model) == hash_weights(loaded.model)


def test_a_new_checkpoint_replaces_the_old_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path, iteration=2)
    write(tmp_path, seed=1, iteration=30)
    assert load_model(tmp_path).state.iteration == 30
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "bank-0000030.safetensors",
        "optimizer-0000030.safetensors",
        "state.json",
        "weights-0000030.safetensors",
    ]


def test_a_save_that_dies_half_way_leaves_the_former_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = write(tmp_path, iteration=2)
    monkeypatch.setattr(
        "iris_pipeline.checkpoint.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, seed=1, iteration=30)
    loaded = load_model(tmp_path)
    assert loaded.state.iteration == 2 and loaded.model_hash == hash_weights(model)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    model, _, _ = write(tmp_path, iteration=2)
    (tmp_path / "bank-0000030.safetensors").mkdir()  # stands where the new file is to be
    with pytest.raises(CheckpointError, match=r"cannot be written to .*bank-0000030.*the former one is kept"):
        write(tmp_path, seed=1, iteration=30)
    assert not list(tmp_path.glob("*.tmp"))
    assert load_model(tmp_path).model_hash == hash_weights(model)


def test_hash_depends_on_every_value() -> None:
    model = build_iris(CONFIG, seed=0)
    before = hash_weights(model)
    with torch.no_grad():
        model.decoder.final_norm.bias[0] += 1e-3
    assert hash_weights(model) != before and len(before) == 16


def test_damage_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "weights-0000002.safetensors"
    weights = load_file(path)
    weights["encoder.stem.bias"] = weights["encoder.stem.bias"] + 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="but state.json says .* copy the checkpoint again"):
        load_model(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_model(tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    torch.save({"encoder.stem.bias": torch.zeros(4)}, tmp_path / "weights-0000002.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_model(tmp_path)


def test_missing_and_foreign_versions(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="state.json is missing; train one with iris_train or give another -m"
    ):
        load_model(tmp_path)
    write(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    (tmp_path / "state.json").write_text(json.dumps(state | {"schema_version": 99, "version": "7.0"}))
    with pytest.raises(CheckpointError, match="schema 99, this version reads 1: use iris-pipeline 7.0"):
        load_model(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(tmp_path)


def test_a_second_save_of_the_same_step_leaves_the_first_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = write(tmp_path, iteration=2)
    monkeypatch.setattr(
        "iris_pipeline.checkpoint.write_json", lambda *_: (_ for _ in ()).throw(OSError("killed"))
    )
    with pytest.raises(OSError, match="killed"):
        write(tmp_path, seed=1, iteration=2)
    assert load_model(tmp_path).model_hash == hash_weights(model)
    monkeypatch.undo()
    other, _, _ = write(tmp_path, seed=1, iteration=2)
    assert load_model(tmp_path).model_hash == hash_weights(other)
    assert len(list(tmp_path.glob("weights-*"))) == 1


def test_plans_of_another_schema_or_damaged(tmp_path: Path) -> None:
    write(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    for plan, sentence in (
        ({"schema_version": 7}, r"The plan of ct in .* has schema 7, this version reads 1"),
        ({"schema_version": 1}, r"The plan of ct in .* is damaged \(\d+ fields\): copy the checkpoint again"),
    ):
        (tmp_path / "state.json").write_text(json.dumps(state | {"plans": {"ct": plan}}))
        with pytest.raises(CheckpointError, match=sentence):
            load_model(tmp_path)


def test_weights_without_optimiser_cannot_be_resumed(tmp_path: Path) -> None:
    model, _, bank = trained()
    save_checkpoint(tmp_path, model, bank, RunState(1, 1.0, 0), plans={}, specs={})
    with pytest.raises(CheckpointError, match="it can predict but not be resumed"):
        restore_optimizer(tmp_path, build_lamb(model, 1e-3, 0.0))
