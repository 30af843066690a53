"""References whose masks are one file a class: in a folder a case, or named CASE_<class>."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of, paint, save
from test_inputs import write_dicom

from iris_pipeline.cli._references import reference_files
from iris_pipeline.prediction.kept_task import references_digest
from iris_pipeline.scans.reference_layout import find_layout
from iris_pipeline.scans.references import find_references
from iris_pipeline.scans.screening import references_told, screen_references
from preprocessing.errors import ReferenceCaseError

BLOCKS = {2: np.s_[2:6, 6:18, 8:22], 7: np.s_[2:10, 24:36, 12:30]}
IMAGE, LABELS = paint((12, 40, 34), BLOCKS)
AFFINE = affine_of("RAS", (2.0, 1.0, 1.0))
FORMS = ("{case}/{name}", "{case}_{name}", "{case}/{case}_{name}")
SPLEEN, LIVER = np.where(LABELS == 2, 255, 0).astype(np.uint8), (LABELS == 7).astype(np.uint8)
JOINED = np.where(LABELS == 7, 1, np.where(LABELS == 2, 2, 0))  # liver 1, spleen 2


def write(folder: Path, form: str = FORMS[0], images: tuple[str, str] = ("one", "two"), **masks: str) -> Path:
    """Two references: "one" shows liver and spleen, "two" the spleen alone. masks: case=CASE, where they differ."""
    for grey, (case, image) in enumerate(zip(("one", "two"), images, strict=True)):
        save(folder / "images" / f"{image}.nii.gz", IMAGE + grey, AFFINE)
        shown = {"spleen": SPLEEN, "liver": LIVER} if case == "one" else {"spleen": SPLEEN}
        for name, mask in shown.items():
            place = form.format(case=masks.get(case, case), name=name)
            save(folder / "labels" / f"{place}.nii.gz", mask, AFFINE)
    return folder


def test_one_image_and_the_folder_of_its_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As TotalSegmentator's data lie: CASE/ct.nii.gz beside CASE/segmentations/<class>.nii.gz."""
    image, masks = tmp_path / "s1" / "ct.nii.gz", tmp_path / "s1" / "segmentations"
    save(image, IMAGE, AFFINE)
    save(masks / "spleen.nii.gz", SPLEEN, AFFINE)
    save(masks / "ct_liver.nii.gz", LIVER, AFFINE)
    given = reference_files([str(image), str(masks)])
    (case,) = given.files.cases
    assert case.id == "ct" and given.files.classes == {"liver": 1, "spleen": 2} and case.labels is not None
    assert np.array_equal(case.labels.read_labels().array, JOINED)
    assert capsys.readouterr().out == "One mask file a class: liver 1, spleen 2.\n"
    (tmp_path / "s1" / "classes.json").write_text('{"spleen": 5}')
    files = reference_files([str(image), str(masks)]).files
    assert files.classes == {"spleen": 5} and "left out, as no class is named so: liver" in files.told
    (tmp_path / "s1" / "none").mkdir()
    with pytest.raises(
        ReferenceCaseError, match=r"one file a class \(<class>\.nii\.gz\); .*none holds none: check"
    ):
        reference_files([str(image), str(tmp_path / "s1" / "none")])


def test_two_folders_are_no_reference(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(
        ReferenceCaseError, match=r"images is a folder of images: give -r the folder in which images/"
    ):
        reference_files([str(tmp_path / "images"), str(tmp_path / "labels")])


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_classes_become_label_maps_numbered_by_name(tmp_path: Path, form: str) -> None:
    files = find_references(write(tmp_path, form))
    assert files.classes == {"liver": 1, "spleen": 2} and files.unpaired == ()
    assert files.told == "One mask file a class: liver 1, spleen 2."
    one, two = files.cases
    assert (one.id, two.id, one.image.name) == ("one", "two", "one.nii.gz")
    assert one.labels is not None and two.labels is not None
    assert np.array_equal(one.labels.read_labels().array, JOINED)
    assert np.array_equal(two.labels.read_labels().array, np.where(LABELS == 2, 2, 0)), "2, not 1, here too"
    usable, refused = screen_references(files)
    assert len(usable.cases) == 2 and refused == {} and references_told(usable) == ""


def test_the_classes_are_told_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(write(tmp_path) / "images" / "three.nii.gz", IMAGE, AFFINE)
    given = reference_files([str(tmp_path)])
    assert [case.id for case in given.files.cases] == ["one", "two"] and given.refused == {}
    assert capsys.readouterr().out == (
        "One mask file a class: liver 1, spleen 2.\nLeft out, for want of an image or a label file: three.\n"
    )


@pytest.mark.parametrize("form", FORMS[:2])
def test_classes_json_gives_the_values(tmp_path: Path, form: str) -> None:
    (write(tmp_path, form) / "classes.json").write_text(json.dumps({"Spleen": 9, "kidney": 3}))
    files = find_references(tmp_path)
    assert files.classes == {"Spleen": 9, "kidney": 3}
    told = "One mask file a class: Spleen 9, kidney 3; left out, as no class is named so: liver."
    assert files.told == told
    one = files.cases[0].labels
    assert one is not None and np.array_equal(one.read_labels().array, np.where(LABELS == 2, 9, 0))
    (tmp_path / "classes.json").write_text('{"heart": 1}')
    says = r"named as the classes\.json .* names them \(heart\); got liver, spleen: rename the files"
    with pytest.raises(ReferenceCaseError, match=says):
        find_references(tmp_path)


def test_where_masks_overlap_the_later_class_wins_aloud(tmp_path: Path) -> None:
    both = LIVER | (LABELS == 2)
    save(write(tmp_path) / "labels" / "one" / "liver.nii.gz", both, AFFINE)
    usable, _ = screen_references(find_references(tmp_path))
    one = usable.cases[0].labels
    assert one is not None and np.array_equal(one.read_labels().array, JOINED)
    shared = int((LABELS == 2).sum())
    assert f"Reference 'one': {shared} voxels lie in several masks and go to the later class." in (
        references_told(usable)
    )


def test_a_mask_that_is_no_mask_costs_its_own_reference(tmp_path: Path) -> None:
    save(write(tmp_path) / "labels" / "one" / "liver.nii.gz", LABELS, AFFINE)
    usable, refused = screen_references(find_references(tmp_path))
    assert [case.id for case in usable.cases] == ["two"] and list(refused) == ["one"]
    assert refused["one"].endswith("holds 2, 7: give one label map a case and name its values.")
    save(tmp_path / "labels" / "one" / "liver.nii", LIVER, AFFINE)
    refused = screen_references(find_references(tmp_path))[1]
    assert refused["one"] == "liver.nii and liver.nii.gz go by one name in the class liver: keep one."


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_images_may_be_numbered_or_have_the_suffix_of_a_channel(
    tmp_path: Path, form: str, suffix: str
) -> None:
    numbered = ("case_0000", "case_0001")
    write(tmp_path, form, (numbered[0] + suffix, numbered[1] + suffix), one=numbered[0], two=numbered[1])
    files = find_references(tmp_path)
    assert [case.id for case in files.cases] == list(numbered) and files.unpaired == ()
    assert files.classes == {"liver": 1, "spleen": 2}


def test_an_image_may_be_a_dicom_series(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images" / "one.nii.gz").unlink()
    write_dicom(tmp_path / "images" / "one", IMAGE.astype(np.int16))
    layout = find_layout(tmp_path)
    assert layout.images["one"].files == (tmp_path / "images" / "one",) and set(layout.labels) == {
        "one",
        "two",
    }


def test_masks_in_two_ways_are_refused(tmp_path: Path) -> None:
    save(write(tmp_path) / "labels" / "one_liver.nii.gz", LIVER, AFFINE)
    says = r"holds one/ \(a folder of masks\) and one_liver\.nii\.gz \(a mask of one class\): keep one way\.$"
    with pytest.raises(ReferenceCaseError, match=says):
        find_references(tmp_path)
    save(tmp_path / "labels" / "two.nii.gz", LABELS, AFFINE)
    says = r"holds two \(a label map\) and one/ \(a folder of masks\): keep one way\.$"
    with pytest.raises(ReferenceCaseError, match=says):
        find_references(tmp_path)


def test_a_mask_that_may_be_of_two_cases_is_refused(tmp_path: Path) -> None:
    save(write(tmp_path, FORMS[1]) / "images" / "one_liver.nii.gz", IMAGE, AFFINE)
    save(tmp_path / "labels" / "one_liver_spleen.nii.gz", SPLEEN, AFFINE)
    (tmp_path / "labels" / "one_liver.nii.gz").unlink()
    says = r"one_liver_spleen\.nii\.gz may be of one or one_liver: put the masks of each case into a folder of its name"
    with pytest.raises(ReferenceCaseError, match=says):
        find_references(tmp_path)


def test_masks_without_an_image_are_told_and_name_no_class(tmp_path: Path) -> None:
    for form in FORMS[:2]:
        folder = write(tmp_path / form[6], form)
        save(folder / "labels" / f"{form.format(case='three', name='heart')}.nii.gz", LIVER, AFFINE)
        files = find_references(folder)
        assert files.classes == {"liver": 1, "spleen": 2}
        assert files.unpaired == (("three",) if "/" in form else ("three_heart",))


def test_second_drawings_beside_label_maps_stay_left_out(tmp_path: Path) -> None:
    save(tmp_path / "images" / "one.nii.gz", IMAGE, AFFINE)
    save(tmp_path / "labels" / "one.nii.gz", LABELS, AFFINE)
    save(tmp_path / "labels" / "one_liver.nii.gz", LIVER, AFFINE)
    files = find_references(tmp_path)
    assert files.classes == {"label_2": 2, "label_7": 7} and files.unpaired == ("one_liver",)
    assert files.told == ""


def test_another_mask_makes_another_task(tmp_path: Path) -> None:
    """The task that is kept beside predictions goes by the content of all masks and by their values."""
    first = references_digest(find_references(write(tmp_path)))
    assert references_digest(find_references(tmp_path)) == first
    (tmp_path / "classes.json").write_text('{"liver": 2, "spleen": 1}')
    assert references_digest(find_references(tmp_path)) != first
    (tmp_path / "classes.json").unlink()
    save(tmp_path / "labels" / "one" / "liver.nii.gz", np.roll(LIVER, 1, 2), AFFINE)
    assert references_digest(find_references(tmp_path)) != first


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReferenceCaseError, match=r"and labels/ .*/nope does not exist: check the name\.$"):
        find_layout(tmp_path / "nope")
    with pytest.raises(ReferenceCaseError, match=r"one image and one label file; \S+ is neither\.$"):
        find_layout(tmp_path)


@pytest.mark.parametrize("place", ["one.nii.gz", "one/liver.nii.gz"])
def test_a_mask_with_a_channel_for_each_class_gets_advice_of_its_own(tmp_path: Path, place: str) -> None:
    """--reference-channel would choose a channel of the image."""
    save(tmp_path / "images" / "one.nii.gz", IMAGE, AFFINE)
    path = tmp_path / "labels" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.stack([LABELS == 2, LABELS == 7], -1).astype(np.uint8), AFFINE), path)
    (tmp_path / "classes.json").write_text('{"spleen": 1, "liver": 2}')
    says = (
        rf"A mask is one label map of three axes \(x,y,z\) with a value for each class, but {path} has several "
        r"channels \(a fourth axis, one for each class perhaps\): join them into one label map\.$"
    )
    with pytest.raises(ReferenceCaseError, match=says):
        screen_references(find_references(tmp_path))
