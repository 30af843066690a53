"""References on disk before use: which can be used, and which are of one person."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of, load, paint, save
from test_inputs import write_dicom

from iris_pipeline.scans.references import ReferenceFiles, find_references
from iris_pipeline.scans.screening import references_told, screen_references, with_people
from preprocessing.errors import ReferenceCaseError

BLOCKS = {2: np.s_[2:6, 6:18, 8:22], 7: np.s_[2:10, 24:36, 12:30]}
IMAGE, LABELS = paint((12, 40, 34), BLOCKS)
AFFINE = affine_of("RAS", (2.0, 1.0, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two references of two people in the plain layout, the second without the class 7."""
    for name, grey, labels in (("one", 0, LABELS), ("two", 1, np.where(LABELS == 2, 2, 0).astype(np.uint8))):
        save(tmp_path / "images" / f"{name}.nii.gz", IMAGE + grey, AFFINE)
        save(tmp_path / "labels" / f"{name}.nii.gz", labels, AFFINE)
    return tmp_path


def test_the_same_scan_twice_is_one_person(folder: Path) -> None:
    """Under another name, in another orientation; two others stay two."""
    turn = nib.orientations.axcodes2ornt("LPS")
    for kind in ("images", "labels"):
        turned = nib.load(folder / kind / "one.nii.gz").as_reoriented(turn)  # type: ignore[attr-defined]
        nib.save(turned, folder / kind / "copy.nii.gz")
    usable, refused = screen_references(with_people(find_references(folder)))
    assert refused == {} and {case.id: case.subject for case in usable.cases} == {
        "copy": "copy",
        "one": "copy",
        "two": "two",
    }
    assert references_told(usable) == (
        "The same scan under several names: copy and one; it counts as one person's: keep one of them."
    )


def test_a_copy_joins_all_visits_of_two_people(folder: Path) -> None:
    """p1_b is p2_a's scan, so that p1_a and p2_b are of one person, too."""
    for kind in ("images", "labels"):
        one, two = (folder / kind / f"{name}.nii.gz" for name in ("one", "two"))
        image, affine = load(one)
        save(folder / kind / "p1_a.nii.gz", image + 3 * (kind == "images"), affine)
        save(folder / kind / "p2_b.nii.gz", image + 4 * (kind == "images"), affine)
        shutil.copy(two, folder / kind / "p1_b.nii.gz")
        two.rename(folder / kind / "p2_a.nii.gz")
        one.rename(folder / kind / "p3_a.nii.gz")
    usable, _ = screen_references(with_people(find_references(folder), "^(?P<subject>p[0-9])_"))
    assert [case.subject for case in usable.cases] == ["p1", "p1", "p1", "p1", "p3"]
    assert references_told(usable) == (
        "The same scan under several names: p1_b and p2_a; it counts as one person's: keep one of them.\n"
        "Of one person, by their names or as the same scan: p1_a and p1_b and p2_a and p2_b; they are never tried on "
        "one another (--subject-pattern says otherwise)."
    )


def test_a_reference_whose_sides_are_swapped_is_left_out(folder: Path) -> None:
    """Two kidneys by their names; in RAS the patient's left has the smaller x."""
    image = np.random.default_rng(0).normal(size=(16, 16, 32)).astype(np.float32)
    right_way, swapped = (np.zeros((16, 16, 32), np.uint8) for _ in range(2))
    for labels, (left, right) in ((right_way, (4, 24)), (swapped, (24, 4))):
        labels[4:12, 4:12, left : left + 6] = 1
        labels[4:12, 4:12, right : right + 6] = 2
    for name, labels in (("good", right_way), ("bad", swapped)):
        save(
            folder / "kidneys" / "images" / f"{name}.nii.gz",
            image + (name == "bad"),
            affine_of("RAS", (2.0,) * 3),
        )
        save(folder / "kidneys" / "labels" / f"{name}.nii.gz", labels, affine_of("RAS", (2.0,) * 3))
    (folder / "kidneys" / "classes.json").write_text('{"left kidney": 1, "right kidney": 2}')
    usable, refused = screen_references(find_references(folder / "kidneys"))
    assert [case.id for case in usable.cases] == ["good"] and list(refused) == ["bad"]
    assert "'left kidney' lies 40 mm to the right of 'right kidney'" in refused["bad"]


def test_a_reference_whose_header_has_no_place_is_doubted(folder: Path) -> None:
    for kind in ("images", "labels"):
        path = folder / kind / "two.nii.gz"
        image = nib.load(path)
        image.header["qform_code"] = image.header["sform_code"] = 0  # type: ignore[index]
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)  # type: ignore[attr-defined]
    usable, refused = screen_references(find_references(folder))
    assert not refused and "Reference 'two': the header does not say how the patient lies" in references_told(
        usable
    )
    assert "'one'" not in references_told(usable)


def test_people_by_the_names_of_references(folder: Path) -> None:
    one, two = find_references(folder).cases
    ids = ["p1_a", "p1_b", "p2_a", "p2_b"]
    files = ReferenceFiles(
        tuple(
            replace(case, id=name, subject=name) for case, name in zip((one, two, one, two), ids, strict=True)
        ),
        {"ball": 2},
    )
    by_pattern = with_people(files, r"(?P<subject>p\d)_.*")
    assert with_people(files, r"^(?P<subject>p\d)_") == by_pattern, "found in the name, as iris_add takes it"
    assert [case.subject for case in by_pattern.cases] == ["p1", "p1", "p2", "p2"]
    assert references_told(by_pattern).startswith(
        "Of one person, by their names or as the same scan: p1_a and p1_b; p2_a and p2_b; they are never"
    )
    assert [case.subject for case in with_people(files, "").cases] == ids and references_told(files) == ""
    with pytest.raises(ReferenceCaseError, match=r"finds none in 'p2_a': correct it, or leave it out"):
        with_people(files, r"(?P<subject>p1)_.")
    with pytest.raises(ReferenceCaseError, match=r"takes a regular expression; '\(' is none"):
        with_people(files, "(")
    visits = ("p1_v1", "p1_v2", "p2_v1", "p2_v2")
    guessed = replace(
        files, cases=tuple(replace(c, id=name) for c, name in zip(files.cases, visits, strict=True))
    )
    assert [case.subject for case in with_people(guessed).cases] == ["p1", "p1", "p2", "p2"], (
        "as for datasets"
    )


def test_a_dicom_series_is_a_reference(folder: Path) -> None:
    (folder / "images" / "two.nii.gz").unlink()
    write_dicom(folder / "images" / "two", IMAGE)
    files = find_references(folder)
    assert [case.id for case in files.cases] == ["one", "two"] and files.unpaired == ()
    assert files.cases[1].image.read_image().shape == IMAGE.shape
    image = files.cases[1].image.read_image()
    save(folder / "labels" / "two.nii.gz", LABELS, image.affine)
    assert screen_references(files)[1] == {}, "the series and its mask are on one grid"
    write_dicom(folder / "images" / "one", IMAGE)
    assert screen_references(find_references(folder))[1]["one"].startswith(
        "Each case has one file; 'one' has "
    )


def test_two_files_of_one_reference_refuse_this_one_alone(folder: Path) -> None:
    shutil.copy(folder / "images" / "one.nii.gz", folder / "images" / "one_0000.nii.gz")
    usable, refused = screen_references(find_references(folder))
    assert [case.id for case in usable.cases] == ["two"]
    assert refused == {
        "one": f"Each case has one file; 'one' has one.nii.gz and one_0000.nii.gz in {folder / 'images'}: keep one of "
        "them."
    }
    (folder / "images" / "one_0000.nii.gz").unlink()
    shutil.copy(folder / "labels" / "two.nii.gz", folder / "labels" / "two.nii")
    files = find_references(folder)
    assert files.classes == {"label_2": 2, "label_7": 7} and list(screen_references(files)[1]) == ["two"]
