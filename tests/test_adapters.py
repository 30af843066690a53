"""Raw layouts: every file is found once, shadows are not, and what is missing is reported instead of lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TinyRaw

from preprocessing.adapters import LAYOUTS, find_cases
from preprocessing.errors import RawDataError, SpecError
from preprocessing.layouts import FORMS
from preprocessing.source import FileSource


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_images_and_labels_are_paired_and_sorted(tiny_raw: TinyRaw) -> None:
    cases = find_cases(tiny_raw.dataset, tiny_raw.spec)
    assert [case.id for case in cases] == ["s1_a", "s2_a", "s2_b", "s3_a", "s4_a"]
    assert [case.subject for case in cases] == ["s1", "s2", "s2", "s3", "s4"]
    assert cases[2].image == FileSource(tiny_raw.dataset / "imagesTr" / "s2_b.nii.gz")
    assert cases[2].labels == FileSource(tiny_raw.dataset / "labelsTr" / "s2_b.nii.gz")
    assert cases[2].modality == "MR"


def test_nnunet_names_shadows_and_other_files(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    touch(tmp_path, "imagesTr/s1_a_0000.nii.gz", "imagesTr/._s1_a_0000.nii.gz", "imagesTr/notes.txt")
    touch(tmp_path, "labelsTr/s1_a.nii.gz", "labelsTr/.DS_Store")
    (case,) = find_cases(tmp_path, tiny_raw.spec)
    assert (case.id, case.image.name) == ("s1_a", "s1_a_0000.nii.gz")
    assert case.labels is not None and case.labels.name == "s1_a.nii.gz"


def test_a_case_without_a_partner_is_listed(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    touch(
        tmp_path, "imagesTr/s1_a.nii.gz", "imagesTr/s2_a.mha", "labelsTr/s1_a.nii.gz", "labelsTr/s3_a.nii.gz"
    )
    found = {
        case.id: (case.image.name, case.labels and case.labels.name)
        for case in find_cases(tmp_path, tiny_raw.spec)
    }
    assert found == {
        "s1_a": ("s1_a.nii.gz", "s1_a.nii.gz"),
        "s2_a": ("s2_a.mha", None),
        "s3_a": ("s3_a.nii.gz", "s3_a.nii.gz"),
    }


def test_two_files_of_one_case_are_refused(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    touch(tmp_path, "imagesTr/s1_a.nii.gz", "imagesTr/s1_a.nii")
    with pytest.raises(RawDataError, match=r"holds case 's1_a' twice, s1_a\.nii and s1_a\.nii\.gz: keep one"):
        find_cases(tmp_path, tiny_raw.spec)


def test_every_layout_has_an_adapter_and_a_form() -> None:
    assert set(LAYOUTS) == set(FORMS)


def test_missing_folders_and_unknown_layouts(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    with pytest.raises(RawDataError, match="absent of dataset tiny does not exist"):
        find_cases(tmp_path / "absent", tiny_raw.spec)
    with pytest.raises(RawDataError, match="imagesTr holds no image: the layout 'msd' of dataset tiny needs"):
        find_cases(tmp_path, tiny_raw.spec)
    with pytest.raises(
        SpecError, match="has the layout 'dicom_zip': known are dicom_png, files, frames, msd"
    ):
        find_cases(tmp_path, tiny_raw.spec.model_copy(update={"layout": "dicom_zip"}))
