"""`iris_train` beside another run: the one it starts from gives its network, the one it goes on with its settings."""

from __future__ import annotations

import csv
import doctest
import json
import shutil
from pathlib import Path

import pytest

from iris_pipeline.checkpoints.checkpoint import export_checkpoint, load_model
from iris_pipeline.cli import _training
from iris_pipeline.cli._training import given_options
from iris_pipeline.cli.train import _parser, train_main
from iris_pipeline.model import IrisConfig, build_config
from iris_pipeline.training.train_settings import TrainSettings, network_options, size_of
from preprocessing.runtime.files import save_json
from preprocessing.store import Store

SMALL_STEP = ["--iterations", "1", "--learning-rate", "1e-9", "--precision", "fp32"]
SHAPED = ["--size", "tiny", "--decoder-blocks", "0", "1", "1", "1", "--rectified-stem", "--task-levels", "4"]


@pytest.fixture
def root(tiny_store: Store, tmp_path: Path) -> Path:
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / "tiny").symlink_to(tiny_store.folder)
    return tmp_path


def run(root: Path, *options: str, fold: str = "paper") -> int:
    return train_main([fold, "--root", str(root), *options])


def first(root: Path) -> Path:
    """An untrained run of a network of its own shape."""
    assert run(root, *SHAPED, "--coarse-masking", "--iterations", "0", "--name", "first") == 0
    return root / "results" / "first"


def test_doctests() -> None:
    result = doctest.testmod(_training)
    assert result.attempted >= 1 and result.failed == 0


def test_what_the_command_line_says_is_told_from_defaults() -> None:
    assert given_options(_parser(), ["paper"]) == {"fold"}
    said = ["1", "--size", "small", "--iter", "5", "--resume", "--seed=0"]
    assert given_options(_parser(), said) == {"fold", "size", "iterations", "resume", "seed"}


def test_a_network_in_the_words_of_options() -> None:
    assert [size_of(build_config(name)) for name in ("tiny", "small", "paper")] == ["tiny", "small", "paper"]
    odd = IrisConfig((1, 2, 3, 4, 5), (1, 1, 1, 1, 1), (1, 1, 1, 1), foreground_token=False)
    assert size_of(odd) is None
    assert list(network_options(odd).values()) == [
        "--size of another kind",
        "--task-levels 4 3",
        "--context-tokens 10",
        "--decoder-blocks 1 1 1 1",
        "--no-rectified-stem",
        "--no-foreground-token",
        "no --coarse-masking",
    ]


@pytest.mark.parametrize(("size", "rectified"), [("tiny", True), ("small", True), ("paper", False)])
def test_the_stem_is_rectified_where_no_block_follows_at_full_resolution(size: str, rectified: bool) -> None:
    network = TrainSettings(size=size).network()
    assert network.rectified_stem == rectified == (network.encoder_blocks[0] == 0)
    for told in (True, False):
        assert TrainSettings(size=size, rectified_stem=told).network().rectified_stem == told


@pytest.mark.parametrize("exported", [False, True])
def test_the_network_is_that_of_the_start(exported: bool, root: Path) -> None:
    start = first(root)
    name = "first"
    if exported:
        export_checkpoint(load_model(start), root / "out")
        name = str(root / "out")
    assert run(root, *SMALL_STEP, "--start-from", name) == 0
    heir = load_model(root / "results" / "tiny_tiny_paper")  # named by the size that it takes over
    assert heir.config == load_model(start).config
    told = TrainSettings.from_json(heir.state.settings)
    assert (told.size, told.decoder_blocks, told.task_levels) == ("tiny", (0, 1, 1, 1), (4,))
    assert (told.rectified_stem, told.full_resolution_masking, told.context_tokens) == (True, False, None)
    assert set(heir.state.trained or ()) == {"tiny"}


def test_options_that_say_another_network_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = first(root)
    capsys.readouterr()
    other = ["--decoder-blocks", "1", "1", "1", "1", "--size", "small", "--name", "b"]
    assert run(root, "--start-from", "first", *other) == 1
    assert capsys.readouterr().err == (
        f"Error: The run to start from, {start}, has another network than this one; its own has --size tiny, "
        "--decoder-blocks 0 1 1 1: give that, or leave these options out, and they are as its own.\n"
    )
    assert run(root, "--start-from", "nobody", "--name", "b") == 1
    assert "--start-from names a run under" in capsys.readouterr().err
    (root / "results" / "bare").mkdir()
    assert run(root, "--start-from", "bare", "--name", "b") == 1
    assert "bare, which holds no model: give another one." in capsys.readouterr().err


def test_a_run_goes_on_though_the_one_it_started_from_is_gone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = first(root)
    command = [*SMALL_STEP, "--start-from", "first", "--name", "heir"]
    assert run(root, *command) == 0
    shutil.rmtree(start)
    assert run(root, *command, "--resume") == 0
    heir = load_model(root / "results" / "heir").state
    assert heir.iteration == 1 and heir.trained is not None and len(heir.trained["tiny"]) == 1
    state = root / "results" / "heir" / "checkpoint" / "state.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["state"]["trained"]  # as an older version left it
    state.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert run(root, *command, "--resume") == 1
    assert "--start-from names a run under" in capsys.readouterr().err
    assert run(root, *command, "--name", "new") == 1, "a new run needs it"


def test_resume_refuses_what_would_be_ignored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [
        "--size",
        "tiny",
        "--iterations",
        "2",
        "--name",
        "r",
        "--weights",
        "tiny=2",
        "--precision",
        "fp32",
    ]
    assert run(root, *tiny) == 0
    before = load_model(root / "results" / "r").model_hash
    capsys.readouterr()
    assert run(root, "--size", "small", "--one-way", "--name", "r", "--resume", fold="0") == 1
    assert capsys.readouterr().err == (
        "Error: --resume goes on with r as it was set; got fold 0 where it has paper, --one-way where it has none, "
        "--size small where it has tiny: give what it has, or another --name.\n"
    )
    assert run(root, "--iterations", "3", "--weights", "tiny=1", "--name", "r", "--resume") == 1
    assert capsys.readouterr().err == (
        "Error: --resume goes on with r as it was set; got --iterations 3 where it has 2, --weights tiny 1 where it "
        "has tiny 2: give what it has, or another --name. The learning rate falls over the length that a run began "
        "with; to train for longer, start another one from it: --start-from r --name OTHER.\n"
    )
    assert run(root, "--no-rectified-stem", "--name", "r", "--resume") == 1
    assert (
        "got --no-rectified-stem where it has --rectified-stem: give what it has" in capsys.readouterr().err
    )
    assert run(root, *tiny, "--rectified-stem", "--resume") == 0, "that is what it has"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "r had come to its end, so nothing is trained; to train on, start another run from it: --start-from r "
        "--name OTHER."
    )
    assert said[1].startswith("Training tiny on tiny (paper); log: ")
    assert load_model(root / "results" / "r").model_hash == before


def test_what_may_be_otherwise_on_the_way_is_taken(
    tiny_store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--size", "tiny", "--iterations", "3", "--name", "r", "--precision", "fp32", "--seed", "4"]
    assert run(root, *command) == 0
    state = root / "results" / "r" / "checkpoint" / "state.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    content["state"]["iteration"] = 1  # as if it had been stopped there
    state.write_text(json.dumps(content), encoding="utf-8")
    shutil.copytree(tiny_store.folder, root / "preprocessed" / "later")
    later = tiny_store.manifest.model_copy(update={"dataset": "later"})
    save_json(root / "preprocessed" / "later" / "manifest.json", later)
    capsys.readouterr()
    more = ["--name", "r", "--resume", "--validate-every", "1", "--workers", "1", "--precision", "bf16"]
    assert run(root, *more) == 0, "what is not said is as it was: size, length, seed, datasets"
    assert capsys.readouterr().out.startswith("Training tiny on tiny (paper); log: ")
    settings = load_model(root / "results" / "r").state.settings
    assert (settings["workers"], settings["validate_every"], settings["precision"]) == (1, 1, "bf16")
    assert (settings["size"], settings["iterations"], settings["seed"]) == ("tiny", 3, 4)
    with (root / "results" / "r" / "train.csv").open(encoding="utf-8") as file:
        validated = [row["iteration"] for row in csv.DictReader(file) if row["validation_dice"]]
    assert validated == ["2", "3"], "those of before were of later steps than it went on from"
