"""Checkpoints: what goes in comes back, damage is noticed, no pickle is ever read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import iris_pipeline
from iris_pipeline.checkpoints.checkpoint import (
    RunState,
    export_checkpoint,
    hash_weights,
    load_model,
    restore_optimizer,
    save_checkpoint,
)
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.checkpoints.trained_cases import TrainedPart
from iris_pipeline.cli.export import export_model_main
from iris_pipeline.model import Iris, IrisConfig, build_iris
from iris_pipeline.training.optim import build_lamb
from preprocessing.errors import CheckpointError

CONFIG = IrisConfig(
    widths=(4, 8, 8, 8, 16),
    encoder_blocks=(0, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    task_depth=1,
    join=("add", "concat", "concat", "concat"),
)
STATE = RunState(
    2,
    12.5,
    0,
    {"size": "tiny", "wide": 0.3},
    {"ct": 0.5},
    {"ct": (TrainedPart("paper", {"c1": "p1"}, "ct"), TrainedPart("0"))},
    ("ct",),
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
    state = replace(STATE, iteration=iteration, seed=seed)
    save_checkpoint(
        folder, model, bank, state, plans={}, specs={"ct": {"classes": {"liver": 1}}}, optimizer=optimizer
    )
    return model, optimizer, bank


def test_an_exported_model_is_the_rounded_one_and_keeps_the_bank(tmp_path: Path) -> None:
    model, _, bank = write(tmp_path / "run" / "checkpoint")
    exported = export_checkpoint(load_model(tmp_path / "run"), tmp_path / "half")
    loaded = load_model(tmp_path / "half")
    assert loaded.model_hash == exported != hash_weights(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.half().float())
    (weights,) = (tmp_path / "half").glob("weights-*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    for a, b in zip(bank.get(bank.keys()), loaded.bank.get(bank.keys()), strict=True):
        assert torch.equal(a, b)
    assert loaded.state == STATE, "what it was trained on goes with it"
    plain = tmp_path / "plain"
    plain.write_text("made as any file is")
    assert {path.stat().st_mode for path in (tmp_path / "half").iterdir()} == {plain.stat().st_mode}, (
        "to be shared"
    )
    with pytest.raises(
        CheckpointError, match=r"half holds a checkpoint already: give another -o, or remove it"
    ):
        export_checkpoint(load_model(tmp_path / "run"), tmp_path / "half")
    with pytest.raises(CheckpointError, match="it can predict but not be resumed"):
        restore_optimizer(tmp_path / "half", build_lamb(loaded.model, 1e-3, 1e-5))


def test_what_a_newer_version_told_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["state"] |= {"tomorrow": 1}
    path.write_text(json.dumps(content | {"version": "9.0"}), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"tells tomorrow, which this version does not know: use iris-pip.* 9\.0"
    ):
        load_model(tmp_path)


def test_an_exported_model_tells_which_classes_are_one_piece(tmp_path: Path) -> None:
    write(tmp_path / "run" / "checkpoint")
    export_checkpoint(load_model(tmp_path / "run"), tmp_path / "half", {"ct": {"liver": 0.97}})
    assert load_model(tmp_path / "half").state.pieces == {"ct": {"liver": 0.97}}
    export_checkpoint(
        load_model(tmp_path / "half"), tmp_path / "again", {"ct": {"liver": 0.5}, "mr": {"spleen": 1.0}}
    )
    known = load_model(tmp_path / "again").state.pieces
    assert known == {"ct": {"liver": 0.97}, "mr": {"spleen": 1.0}}, "what it tells itself stays"
    export_checkpoint(load_model(tmp_path / "run"), tmp_path / "untold")
    assert load_model(tmp_path / "untold").state.pieces is None


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    left = folder / ".weights-0000001.safetensors.4711.tmp"
    left.write_bytes(b"half")
    write(folder)
    assert not left.exists() and load_model(folder).state.iteration == 2


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer, bank = write(tmp_path / "checkpoint")
    loaded = load_model(str(tmp_path))  # a run folder finds its checkpoint; a path may be text
    assert not loaded.model.training
    assert loaded.model_hash == hash_weights(model)
    assert loaded.state == STATE
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


@pytest.mark.parametrize(
    ("wide", "recorded", "knows"),
    [(0.3, ["ct"], True), (0.3, [], False), (0.0, [], False), (0.3, None, True), (0.0, None, False)],
)
def test_the_wide_view_is_known_where_one_was_met(
    wide: float, recorded: list[str] | None, knows: bool, tmp_path: Path
) -> None:
    write(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    state["state"] |= {"settings": {"wide": wide}, "wide_datasets": recorded}
    if recorded is None:  # a checkpoint of before
        del state["state"]["wide_datasets"], state["state"]["trained"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    loaded = load_model(tmp_path)
    assert loaded.knows_wide_view == knows
    assert (loaded.state.trained is None) == (recorded is None)


def test_the_shipped_model_tells_what_trained_it_and_knows_the_wide_view() -> None:
    loaded = load_model(Path(iris_pipeline.__file__).parent / "weights" / "iris_small_6")
    trained = loaded.state.trained
    assert trained is not None and set(trained) == set(loaded.plans) and all(trained.values())
    assert "patient101_frame01" not in trained["acdc_mini"], "a test case of ACDC's"
    assert loaded.knows_wide_view


def test_a_model_is_not_exported_into_a_run_and_nothing_is_measured_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "results" / "run" / "checkpoint")
    monkeypatch.setattr("iris_pipeline.cli.export.averaged", lambda *_: pytest.fail("too late"))
    folder = tmp_path / "results" / "run"
    for out, says in (
        (folder, f"{folder} is a run's folder, whose own model would be hidden: give another -o."),
        (
            folder / "checkpoint",
            f"{folder / 'checkpoint'} holds a checkpoint already: give another -o, or remove it.",
        ),
    ):
        assert export_model_main(["run", "-o", str(out), "--root", str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"Error: {says}\n"
        with pytest.raises(CheckpointError, match=re.escape(says)):
            export_checkpoint(load_model(folder), out)
    assert not (folder / "state.json").exists()


def test_an_exported_model_says_that_it_names_its_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "results" / "run" / "checkpoint")
    assert export_model_main(["run", "-o", str(tmp_path / "out"), "--root", str(tmp_path)]) == 0
    assert (
        "names the 1 cases that it has learnt from, and their subjects: see whether"
        in capsys.readouterr().out
    )


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
        "iris_pipeline.checkpoints.checkpoint.write_json",
        lambda *_: (_ for _ in ()).throw(OSError("disk full")),
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
        "iris_pipeline.checkpoints.checkpoint.write_json", lambda *_: (_ for _ in ()).throw(OSError("killed"))
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
