"""What is read of somebody's folder: every mask and part is taken, or said to be left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_add import SHAPE, box, grey, save

from preprocessing.adding.add import Wishes, propose
from preprocessing.adding.survey import survey_folder
from preprocessing.errors import RawDataError, SpecError


def test_no_mask_is_left_out_without_a_word(tmp_path: Path) -> None:
    names = ("C7", "T1", "T2", "T3")
    for case in ("a", "b"):
        for place in ("apart", "beside"):
            save(tmp_path / place / case / "ct.nii.gz", grey(ord(case)))
        for index, name in enumerate(names):
            mask = box(slice(4 * index, 4 * index + 3))
            for place in (f"apart/{case}/spine", f"beside/{case}"):
                save(tmp_path / place / f"{name}.nii.gz", mask)
    apart = survey_folder(tmp_path / "apart", workers=1, progress=False)
    assert apart.masks == names and not [told for told in apart.remarks if "left out" in told]
    beside = survey_folder(tmp_path / "beside", workers=1, progress=False)
    assert beside.masks == ("C7", "T3")
    assert (
        "Also named as {case}/{class}.nii.gz says, but left out, since such names mean images, all masks in one, or "
        "who drew them: T1, T2. Where they are classes, too, give both patterns with --images and --labels."
    ) in beside.remarks
    told = ("{case}/ct.nii.gz", "{case}/{class}.nii.gz")
    assert survey_folder(tmp_path / "beside", *told, workers=1, progress=False).masks == names


def test_classes_in_flat_names(tmp_path: Path) -> None:
    for case in ("case_1", "case_2"):
        save(tmp_path / f"{case}.nii.gz", grey(int(case[-1])))
        for name, x in (("left_lung", slice(2, 6)), ("liver", slice(9, 12))):
            save(tmp_path / f"{case}_{name}.nii.gz", box(x))
    survey = survey_folder(tmp_path, workers=1, progress=False)
    assert survey.files["labels"] == ("{case}_{class}.nii.gz",)
    assert (survey.ids, survey.masks) == (("case_1", "case_2"), ("left_lung", "liver"))


def test_a_divided_folder_is_one_dataset(tmp_path: Path) -> None:
    for part, cases in (("train", "012"), ("val", "01")):
        for case in cases:
            save(tmp_path / "restart" / part / "images" / f"x{case}.nii.gz", grey(int(case)))
            save(tmp_path / "restart" / part / "labels" / f"x{case}.nii.gz", box(slice(2, 5)))
            save(tmp_path / "on" / f"{part}_images" / f"{part[0]}{case}.nii.gz", grey(int(case)))
            save(tmp_path / "on" / f"{part}_masks" / f"{part[0]}{case}.nii.gz", box(slice(2, 5)))
    save(tmp_path / "on" / "test_images" / "x.nii.gz", grey(9))
    restart = survey_folder(tmp_path / "restart", workers=1, progress=False)
    assert restart.ids == restart.subjects == ("train_x0", "train_x1", "train_x2", "val_x0", "val_x1")
    on = survey_folder(tmp_path / "on", workers=1, progress=False)
    assert on.ids == ("t0", "t1", "t2", "v0", "v1")
    assert propose(on, Wishes(), tmp_path / "raw").spec.files["where"] == {"part": "train|val"}
    assert on.remarks == (
        "The folder is divided into parts (train, val), which are one dataset here: who trains and who tests is drawn "
        "anew, by subject, unless the specification lists it.",
        "1 of 11 scans and masks fit neither pattern and are left out: test_images/x.nii.gz.",
    )


def test_a_second_drawing_is_no_class_and_is_told(tmp_path: Path) -> None:
    for case in "abc":
        save(tmp_path / "raters" / case / "image.nii.gz", grey(ord(case)))
        save(tmp_path / "sets" / "images" / f"{case}.nii.gz", grey(ord(case)))
        for number, place in enumerate(("labels", "labels_auto"), 1):
            save(tmp_path / "raters" / case / f"mask_rater{number}.nii.gz", box(slice(2, 5 + number)))
            save(tmp_path / "sets" / place / f"{case}.nii.gz", box(slice(2, 5 + number)))
    told = "drawn by somebody else or of other structures:"
    for name, taken, rival in (
        ("raters", "{case}/mask_rater1.nii.gz", "{case}/mask_rater2.nii.gz"),
        ("sets", "labels/{case}.nii.gz", "labels_auto/{case}.nii.gz"),
    ):
        survey = survey_folder(tmp_path / name, workers=1, progress=False)
        assert survey.files["labels"] == (taken,) and survey.masks == ()
        assert survey.remarks == (
            f"Other masks pair up with the same images ({rival}), {told} {taken} was taken, one is chosen with "
            "--images and --labels.",
        )
        assert propose(survey, Wishes(), tmp_path / "raw").spec.classes == {"label_1": 1}


def test_patterns_without_a_pair_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.nii.gz", grey(1))
    save(tmp_path / "b" / "y.nii.gz", box(slice(2, 5)))
    with pytest.raises(
        RawDataError, match=r"^No image a/\{case\}\.nii\.gz of \S+ has a mask b/\{case\}\.nii\.gz: say"
    ):
        survey_folder(tmp_path, "a/{case}.nii.gz", "b/{case}.nii.gz", workers=1, progress=False)


def test_patterns_of_the_users_own(tmp_path: Path) -> None:
    for case in ("1", "2"):
        save(tmp_path / "a" / f"x{case}.nii.gz", grey(int(case)))
        save(tmp_path / "b" / f"y{case}-{'liver'}.nii.gz", box(slice(2, 5)))
    survey = survey_folder(
        tmp_path, "a/x{case}.nii.gz", "b/y{case}-{class}.nii.gz", workers=1, progress=False
    )
    assert survey.ids == ("1", "2") and survey.masks == ("liver",)
    with pytest.raises(SpecError, match="two patterns that go together"):
        survey_folder(tmp_path, "a/x{case}.nii.gz", None, workers=1, progress=False)
    with pytest.raises(RawDataError, match=r"No file of \S+ fits b/z\{case\}\{class\} with a name for"):
        survey_folder(tmp_path, "a/x{case}.nii.gz", "b/z{case}{class}", workers=1, progress=False)
    with pytest.raises(SpecError, match=r"'b/y\*' must hold \{case\}"):
        survey_folder(tmp_path, "a/x{case}.nii.gz", "b/y*", workers=1, progress=False)


def test_what_cannot_be_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(RawDataError, match="gone is no folder"):
        survey_folder(tmp_path / "gone")
    for case in ("a", "b"):
        save(tmp_path / "grey" / f"{case}.nii.gz", grey(1))
        save(tmp_path / "grey" / f"{case}_seg.nii.gz", np.abs(grey(2)))
        save(tmp_path / "bare" / f"{case}.nii.gz", grey(1))
        save(tmp_path / "bare" / f"{case}_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(RawDataError, match=r"hold \d+ different values, as images do"):
        survey_folder(tmp_path / "grey", workers=1, progress=False)
    with pytest.raises(RawDataError, match="Every label map that could be read is empty"):
        survey_folder(tmp_path / "bare", workers=1, progress=False)
