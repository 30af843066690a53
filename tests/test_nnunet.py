"""nnU-Net's raw folder as it is: named by its folder, described by dataset.json, split by splits_final.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRaw

from iris_pipeline.nnunet.export import export_dataset
from preprocessing.adapters import find_cases
from preprocessing.choose import choose_specs
from preprocessing.errors import SpecError
from preprocessing.nnunet import nnunet_content, stored_name
from preprocessing.run import plan_and_preprocess
from preprocessing.spec import DatasetSpec, validated
from preprocessing.splits import PARTS, make_splits
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


def test_the_folders_name_goes_on_being_known() -> None:
    given = ("Dataset017_Tiny", "dataset017_tiny", "Task05 Prostate", "my-liver_", "own/My.yaml", "My.yml")
    names = ["dataset017_tiny", "dataset017_tiny", "task05_prostate", "my-liver_", "own/My.yaml", "My.yml"]
    assert [stored_name(each) for each in given] == names


def test_folds_that_are_none(tmp_path: Path) -> None:
    folder = described(tmp_path / FOLDER)
    for folds in ([], [{"val": ["a"]}], [{"train": 1, "val": []}], {"0": 1}, 3):
        (folder / "splits_final.json").write_text(json.dumps(folds))
        with pytest.raises(
            SpecError,
            match=r"splits_final\.json should hold folds with the lists train and val: remove it or",
        ):
            choose_specs([FOLDER], tmp_path)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(SpecError, match=r"dataset\.json cannot be read"):
        choose_specs([FOLDER], tmp_path)


def with_cases(folder: Path, ids: Sequence[str], folds: Any = None) -> DatasetSpec:
    """A folder with files of these cases, which are not read here; its specification."""
    described(folder, channel_names={"0": "MRI"})
    for part, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (folder / part).mkdir(exist_ok=True)
        for case in ids:
            (folder / part / f"{case}{ending}.nii.gz").touch()
    if folds is not None:
        (folder / "splits_final.json").write_text(json.dumps(folds))
    return validated(nnunet_content(folder), "it")


def folds_of(ids: Sequence[str], *parts: Sequence[str]) -> list[dict[str, list[str]]]:
    return [{"train": [case for case in ids if case not in part], "val": list(part)} for part in parts]


def test_people_are_never_torn(tmp_path: Path) -> None:
    """Ten people in two frames each, and the folds that nnU-Net makes of them, which know cases alone."""
    ids = [f"patient{person:03d}_frame{frame:02d}" for person in range(10) for frame in (1, 12)]
    spec = with_cases(tmp_path / FOLDER, ids)
    subjects = {case: spec.subject_of(case) for case in ids}
    assert sorted(set(subjects.values())) == [f"patient{person:03d}" for person in range(10)]
    for split in make_splits(spec, subjects).values():
        parts = [{subjects[case] for case in split[part]} for part in PARTS]
        assert sum(map(len, parts)) == 10 and set.union(*parts) == set(subjects.values())
    assert spec.guesses[:2] == (
        "The modality is MR: dataset.json calls the channel 'MRI'.",
        "Guessed from the names: 10 subjects in 20 cases, by what stands before the visit. A specification may say "
        "otherwise (subject_pattern; iris_add writes one).",
    )
    assert spec.sides == {"left": ("left",), "right": ("right",)} and "left / right" in spec.guesses[2]
    torn = with_cases(tmp_path / FOLDER, ids, folds_of(ids, *(ids[number::5] for number in range(5))))
    assert torn.split == spec.split and torn.guesses[-1] == (
        "splits_final.json is not followed and the splits are drawn by subject: of patient000, who seems to be one "
        "person, some scans are to validate fold 0, and patient000_frame12 is not."
    )
    whole = with_cases(tmp_path / FOLDER, ids, folds_of(ids, *(ids[4 * n : 4 * n + 4] for n in range(5))))
    assert make_splits(whole, subjects)["3"]["validation"] == ids[12:16]


def test_what_is_only_assumed_is_said(tmp_path: Path) -> None:
    content = nnunet_content(described(tmp_path / FOLDER, channel_names={"1": "T1", "0": "noNorm"}))
    assert content["guesses"][:2] == [
        "The modality is MR, as a guess: dataset.json calls the channel 'noNorm'.",
        "Of the channels noNorm, T1 the first is read and no other.",
    ]
    content = nnunet_content(described(tmp_path / FOLDER, channel_names=None))
    assert content["guesses"][0] == "The modality is MR, as a guess: dataset.json names no channel."


@pytest.mark.parametrize(
    ("count", "validation", "told"),
    [
        (1, "aaaaa", "the splits 0 to 4 are its folds 0, 0, 0, 0, 0"),
        (3, "abcab", "the splits 0 to 4 are its folds 0, 1, 2, 0, 1"),
        (5, "abcde", "the splits 0 to 4 are its folds 0, 1, 2, 3, 4"),
        (7, "abcde", "the splits 0 to 4 are its folds 0, 1, 2, 3, 4 (more are there and not used: 2)"),
    ],
)
def test_any_number_of_folds(count: int, validation: str, told: str, tmp_path: Path) -> None:
    ids = list("abcdefghi")
    spec = with_cases(tmp_path / FOLDER, [*ids, "kept"], folds_of(ids, *ids[:count]))
    splits = make_splits(spec, {case: case for case in (*ids, "kept")})
    for name, validated_on in zip(("paper", *"01234"), validation[0] + validation, strict=True):
        rest = [case for case in ids if case != validated_on]
        assert splits[name] == {"train": rest, "validation": [validated_on], "test": ["kept"]}
    assert splits["all"]["train"] == ids
    assert told in spec.guesses[-1] and "in no fold, which are the test part: 1." in spec.guesses[-1]


def test_who_trains_in_a_fold_does_not_validate_it(tmp_path: Path) -> None:
    """As in an export of a few references, which nnU-Net trains and validates on."""
    spec = with_cases(tmp_path / FOLDER, ["a", "b"], [{"train": ["a", "b"], "val": ["a", "b"]}])
    paper = make_splits(spec, {"a": "a", "b": "b"})["paper"]
    assert paper == {"train": ["a", "b"], "validation": [], "test": []}
    assert spec.guesses[-1].endswith("; nobody is tested.")


def test_an_export_is_read_back(tiny_raw: TinyRaw, tiny_store: Store, tmp_path: Path) -> None:
    """Its six folds are the splits that they were made of, without the test part, which is in imagesTs."""
    cases = find_cases(tiny_raw.dataset, tiny_store.manifest.spec)
    done = export_dataset(tiny_store, cases, tmp_path, workers=1, progress=False)
    (spec,) = choose_specs([done.dataset], tmp_path / "nnUNet_raw")
    ids = [case.id for case in find_cases(done.raw, spec)]
    splits = make_splits(spec, {case: spec.subject_of(case) for case in ids})
    for name in ("paper", *"01234"):
        ours = tiny_store.manifest.splits[name]
        assert splits[name] == {"train": ours["train"], "validation": ours["validation"], "test": []}
    assert "the splits 0 to 4 are its folds 1, 2, 3, 4, 5; nobody is tested" in spec.guesses[-1]
