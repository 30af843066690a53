"""The model that comes with the package, by its name, by none, and beside folders of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iris_pipeline import api
from iris_pipeline.checkpoints import checkpoint, shipped
from preprocessing.errors import CheckpointError


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """What is read: a package with the models "ours" and "second", in a folder that holds a run."""
    for name in ("weights/ours", "weights/second", "run/checkpoint"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "state.json").write_text("{}", encoding="utf-8")
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "weights")
    monkeypatch.setattr(checkpoint, "load_model", lambda *given: asked.append(given))
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_shipped_model_by_name_a_run_by_its_folder(read: list[tuple[Path, str]], tmp_path: Path) -> None:
    for model in (None, "second", "run", tmp_path / "run", "run/checkpoint"):
        api.load_model(model)
    api.load_model("ours", "cuda")
    assert read == [
        (tmp_path / "weights" / "ours", "cpu"),
        (tmp_path / "weights" / "second", "cpu"),
        (Path("run"), "cpu"),
        (tmp_path / "run", "cpu"),
        (Path("run/checkpoint"), "cpu"),
        (tmp_path / "weights" / "ours", "cuda"),
    ]


def test_a_folder_of_that_name_goes_first_if_it_holds_a_model(
    read: list[tuple[Path, str]], tmp_path: Path
) -> None:
    (tmp_path / "ours").mkdir()
    api.load_model("ours")
    assert read.pop()[0] == tmp_path / "weights" / "ours", "a folder of tables is no model"
    (tmp_path / "ours" / "state.json").write_text("{}", encoding="utf-8")
    api.load_model("ours")
    assert read == [(Path("ours"), "cpu")]


def test_a_name_there_is_not(read: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    told = "the name of one that comes with the package (ours, second); got 'iris_smal': check the name."
    with pytest.raises(CheckpointError, match=re.escape(told)):
        api.load_model("iris_smal")
    monkeypatch.setattr(shipped, "SHIPPED", Path("nowhere"))
    with pytest.raises(
        CheckpointError, match=r"with the package \(there is none\); got None: check the name"
    ):
        api.load_model()
    assert not read


def test_the_package_s_own_model_can_be_read_by_its_name() -> None:
    name = shipped.shipped_model()
    assert name is not None and shipped.is_shipped(name) and not shipped.is_shipped(name.parent)
    loaded = api.load_model(name.name)
    assert loaded.model_hash == checkpoint.load_model(name).model_hash and not loaded.model.training
