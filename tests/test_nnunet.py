"""nnU-Net's raw folder as it is: named by its folder, described by dataset.json, split by splits_final.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRaw

from preprocessing.choose import choose_specs
from preprocessing.errors import SpecError
from preprocessing.nnunet import nnunet_content
from preprocessing.run import plan_and_preprocess
from preprocessing.store import Store

LABELS = {"background": 0, "left": 1, "right": 2, "core": 5}
FOLDER = "Dataset017_Tiny"


def described(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": LABELS,
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | changes), encoding="utf-8")
    return folder


def test_a_folder_becomes_a_store_with_nnunets_folds(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    folder = described(tmp_path / "nnUNet_raw" / FOLDER)
    for part, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / part).mkdir()
        for case in tiny_raw.cases:
            source = (tiny_raw.dataset / part / f"{case}.nii.gz").read_bytes()
            (folder / part / f"{case}{ending}.nii.gz").write_bytes(source)
            if ending:
                (folder / part / f"{case}_0001.nii.gz").write_bytes(b"the second channel is not read")
    folds = [{"train": [c for c in tiny_raw.cases if c != case], "val": [case]} for case in tiny_raw.cases]
    beside = tmp_path / "nnUNet_preprocessed" / FOLDER
    beside.mkdir(parents=True)
    (beside / "splits_final.json").write_text(json.dumps(folds))
    verdicts = plan_and_preprocess(
        folder.parent, tmp_path / "out", [FOLDER], crop=(32, 32, 32), workers=1, progress=False
    )
    assert [(each.case, each.verdict) for each in verdicts] == [(case, "ok") for case in tiny_raw.cases]
    manifest = Store.open(tmp_path / "out" / "dataset017_tiny").manifest
    assert manifest.classes == {"left": 1, "right": 2, "core": 5} and manifest.modality == "MR"
    for number, case in enumerate(tiny_raw.cases):
        assert manifest.splits[str(number)]["validation"] == [case]
        assert manifest.splits[str(number)]["train"] == sorted(folds[number]["train"])
        assert manifest.splits[str(number)]["test"] == []
    (spec,) = choose_specs(["dataset017_tiny"], folder.parent)
    assert spec == manifest.spec and spec.raw_folder(folder.parent) == folder


@pytest.mark.parametrize(
    ("channels", "modality"),
    [
        ({"0": "CT"}, "CT"),
        ({"0": "PET SUV"}, "PET"),
        ({"0": "noNorm"}, "MR"),
        ({}, "MR"),
        ({"0": "MRI"}, "MR"),
    ],
)
def test_the_modality_is_the_first_channels(channels: dict[str, str], modality: str, tmp_path: Path) -> None:
    content = nnunet_content(described(tmp_path / FOLDER, channel_names=channels))
    assert content["modality"] == modality
    assert content["files"] == {"top": [FOLDER]}


def test_the_decathlons_form_is_read_too(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    content = nnunet_content(
        described(tmp_path / "Task07_Pancreas", channel_names=None, labels=labels, modality={"0": "CT"})
    )
    assert content["classes"] == {"pancreas": 1, "cancer": 2}
    assert (content["name"], content["modality"]) == ("task07_pancreas", "CT")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"background": 0, "whole": [1, 2]}, "'whole' in .*dataset.json is a region of several values"),
        (
            {"background": 0, "a": 1, "ignore": 2},
            "has an ignore label, but every voxel is a class or background",
        ),
        ({"background": 0, "a": "one"}, "'one' in .* has the value 'a'|'a' in .* has the value 'one'"),
        ({}, 'should name the classes under "labels"'),
        (
            {"background": 0, "a": 1, "b": 1},
            r"dataset\.json is not valid: classes: two classes have the same value",
        ),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(
    labels: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    described(tmp_path / FOLDER, labels=labels)
    with pytest.raises(SpecError, match=sentence):
        choose_specs([FOLDER], tmp_path)


def test_folds_that_are_none(tmp_path: Path) -> None:
    folder = described(tmp_path / FOLDER)
    for folds in ([{"train": [], "val": ["a"]}] * 5, [{"val": ["a"]}], {"0": 1}, 3):
        (folder / "splits_final.json").write_text(json.dumps(folds))
        with pytest.raises(
            SpecError, match=r"splits_final\.json should hold 5 folds with the lists train and val"
        ):
            choose_specs([FOLDER], tmp_path)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(SpecError, match=r"dataset\.json cannot be read"):
        choose_specs([FOLDER], tmp_path)
