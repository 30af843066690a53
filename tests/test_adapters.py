"""Raw layouts: every file is found once, shadows are not, and what is missing is reported instead of lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TinyRaw

from preprocessing.adapters import LAYOUTS, find_cases
from preprocessing.adapters.msd import msd_case_ids
from preprocessing.errors import RawDataError, SpecError
from preprocessing.fingerprint import measure_case
from preprocessing.layouts import FORMS
from preprocessing.sources.source import FileSource
from preprocessing.spec import DatasetSpec, parse_spec
from preprocessing.volume import read_labels, read_volume, write_volume


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


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_cases_may_be_numbered_from_0000_on(tmp_path: Path, tiny_raw: TinyRaw, suffix: str) -> None:
    spec = tiny_raw.spec.model_copy(update={"subject_pattern": None})
    touch(tmp_path, *(f"imagesTr/case_{number:04d}{suffix}.nii.gz" for number in range(2)))
    touch(tmp_path, *(f"labelsTr/case_{number:04d}.nii.gz" for number in range(2)))
    assert [
        (case.id, case.image.name, case.labels and case.labels.name) for case in find_cases(tmp_path, spec)
    ] == [
        (f"case_{number:04d}", f"case_{number:04d}{suffix}.nii.gz", f"case_{number:04d}.nii.gz")
        for number in range(2)
    ]


def channel_spec(spec: DatasetSpec, channel: int) -> DatasetSpec:
    return spec.model_copy(update={"subject_pattern": None, "files": {"channel": channel}})


def test_a_channel_may_be_a_file_of_its_own(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    """Ids with a point, and ids that look like channels, are told apart by the label maps."""
    for case in ("pat.01", "pat_0001"):
        touch(tmp_path, *(f"imagesTr/{case}_{number:04d}.nii.gz" for number in range(2)))
        touch(tmp_path, f"labelsTr/{case}.nii.gz")
    found = find_cases(tmp_path, channel_spec(tiny_raw.spec, 1))
    assert [(case.id, case.image, case.labels and case.labels.name) for case in found] == [
        (case, FileSource(tmp_path / "imagesTr" / f"{case}_0001.nii.gz"), f"{case}.nii.gz")
        for case in ("pat.01", "pat_0001")
    ]


def test_or_one_of_a_file_with_four_axes(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    both = np.random.default_rng(0).integers(0, 9, (3, 4, 5, 2)).astype(np.int16)
    for case in ("prostate_0000", "prostate_0001"):
        for part, array in (("imagesTr", both), ("labelsTr", both[..., 0])):
            (tmp_path / part).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / part / f"{case}.nii.gz")
    found = find_cases(tmp_path, channel_spec(tiny_raw.spec, 1))
    assert [case.id for case in found] == ["prostate_0000", "prostate_0001"]
    assert np.array_equal(found[0].image.read().array, both[..., 1].transpose(2, 1, 0))
    assert (
        msd_case_ids(tmp_path, 0) == ["prostate_0000", "prostate_0001"] and msd_case_ids(tmp_path / "x") == []
    )


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


def test_two_files_of_one_case_concern_this_case_alone(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    raw = shutil.copytree(tiny_raw.dataset, tmp_path / "tiny")
    images, labels = raw / "imagesTr", raw / "labelsTr"
    write_volume(images / "s1_a.nii", read_volume(images / "s1_a.nii.gz"))  # the same, not compressed
    other = read_labels(labels / "s3_a.nii.gz")
    write_volume(labels / "s3_a.nii", replace(other, array=other.array[::-1]))
    moved = read_volume(images / "s4_a.nii.gz")
    write_volume(images / "s4_a.nii", replace(moved, affine=moved.affine + 9 * np.eye(4, k=3)))
    cases = find_cases(raw, tiny_raw.spec)
    found = {case.id: measure_case(case, tiny_raw.spec) for case in cases}
    assert {name: (each.verdict, each.why) for name, each in found.items()} == {
        "s1_a": (
            "ok",
            "s1_a.nii and s1_a.nii.gz go by one name and hold the same voxels; the first is used",
        ),
        "s2_a": ("ok", ""),
        "s2_b": ("ok", ""),
        "s3_a": ("refused", "s3_a.nii and s3_a.nii.gz go by one name and differ: keep one."),
        "s4_a": ("refused", "s4_a.nii and s4_a.nii.gz go by one name and differ: keep one."),
    }
    (images / "s1_a.nii").unlink()
    (alone, *_) = find_cases(raw, tiny_raw.spec)
    plain = measure_case(alone, tiny_raw.spec)
    assert plain.content == found["s1_a"].content, "the voxels are those of the one file"
    assert plain.digest != found["s1_a"].digest, "a copy taken away is noticed"


FILES = """\
name: made
title: Made
modality: MR
role: upstream
source: here
licence: none
"""
PAIRS = "layout: files\nfiles: {image: 'images/{case}.nii*', labels: 'labels/{case}.nii*'}\nclasses: {a: 1}\n"
MASKS = (
    "layout: files\nfiles: {image: '{case}/i.nii.gz', labels: '{case}/{class}.nii*'}\nclasses: {a: 1, b: 2}\n"
)
MAPS = (
    "layout: probability_maps\nclasses: {a: 1, b: 2}\n"
    "files: {image: '{case}/i.nii.gz', maps: {a: '{case}/a.nii*', b: '{case}/b.nii*'}}\n"
)
FRAMES = (
    "layout: frames\nclasses: {a: 1}\nfiles: {image: '{case}/i_{frame}.nii*', labels: '{case}/l_{frame}.nii*', "
    "info: '{case}/info', frames: [ED], case: '{case}'}\n"
)


@pytest.mark.parametrize(
    ("layout", "good", "bad", "why"),
    [
        (PAIRS, ["images/1.nii", "labels/1.nii"], "labels/2.nii.gz", "2.nii and 2.nii.gz go by one name and differ"),
        (MASKS, ["1/i.nii.gz", "1/a.nii", "1/b.nii"], "2/b.nii.gz", "b.nii and b.nii.gz go by one name in the class b"),
        (MAPS, ["1/i.nii.gz", "1/a.nii", "1/b.nii"], "2/a.nii.gz", "a.nii and a.nii.gz go by one name in the class a"),
        (FRAMES, ["1/i_1.nii", "1/l_1.nii", "1/info"], "2/i_1.nii.gz", "i_1.nii and i_1.nii.gz go by one name and d"),
    ],
)  # fmt: skip
def test_no_layout_is_refused_for_one_case_that_is_there_twice(
    tmp_path: Path, layout: str, good: list[str], bad: str, why: str
) -> None:
    rng = np.random.default_rng(0)
    for name in [*good, *(name.replace("1", "2", 1) for name in good), bad]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("info"):
            (tmp_path / name).write_text("ED: 1\n")
            continue
        array = rng.integers(0, 2, (4, 4, 4)).astype(np.uint8)
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / name)
    spec = parse_spec(FILES + layout, "made.yaml")
    one, two = (measure_case(case, spec) for case in find_cases(tmp_path, spec))
    assert one.accepted
    assert two.verdict == "refused" and two.why.startswith(why) and two.why.endswith(": keep one.")


def test_every_layout_has_an_adapter_and_a_form() -> None:
    assert set(LAYOUTS) == set(FORMS)


def test_missing_folders_and_unknown_layouts(tmp_path: Path, tiny_raw: TinyRaw) -> None:
    with pytest.raises(RawDataError, match="absent of dataset tiny does not exist"):
        find_cases(tmp_path / "absent", tiny_raw.spec)
    with pytest.raises(RawDataError, match="imagesTr holds no image: the layout 'msd' of dataset tiny needs"):
        find_cases(tmp_path, tiny_raw.spec)
    with pytest.raises(
        SpecError, match="has the layout 'dicom_zip', which is none of dicom_png, files, frames, msd"
    ):
        find_cases(tmp_path, tiny_raw.spec.model_copy(update={"layout": "dicom_zip"}))
