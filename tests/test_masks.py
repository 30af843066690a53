"""A mask file for each class: merged in the order of the classes, refused where that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocessing.adapters import find_cases
from preprocessing.errors import GridMismatchError, LabelValueError, SpecError
from preprocessing.fingerprint import measure_case
from preprocessing.sources.masks import MaskFiles
from preprocessing.spec import DatasetSpec, parse_spec

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SPEC = """\
name: made
title: Made
modality: CT
role: upstream
source: here
licence: none
layout: files
files:
  image: "{case}/ct.nii.gz"
  labels: "{case}/segmentations/{class}.nii.gz"
classes: {liver: 4, left lung: 2, tumour: 9}
"""


def save(path: Path, array_xyz: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz, affine), path)
    return path


def mask(x: slice, value: int = 1) -> np.ndarray:
    array = np.zeros((6, 3, 2), np.uint8)
    array[x] = value
    return array


def test_masks_are_merged_and_the_later_class_wins(tmp_path: Path) -> None:
    liver = save(tmp_path / "liver.nii.gz", mask(slice(0, 4)))
    tumour = save(tmp_path / "tumour.nii.gz", mask(slice(3, 5), 255))
    source = MaskFiles(((4, liver), (9, tumour)))
    volume = source.read_labels()
    assert volume.array.shape == (2, 3, 6)
    assert volume.array[0, 0].tolist() == [4, 4, 4, 9, 9, 0]
    assert volume.repairs == ("6 voxels lie in several masks and go to the later class",)
    assert source.files == (liver, tumour) and str(source) == f"{tmp_path} (2 mask files)"
    np.testing.assert_allclose(volume.affine, AFFINE)
    apart = MaskFiles(((4, liver), (9, save(tmp_path / "other.nii.gz", mask(slice(5, 6)))))).read()
    assert apart.repairs == ()


def test_what_is_no_mask_of_one_class(tmp_path: Path) -> None:
    one = save(tmp_path / "a.nii.gz", mask(slice(0, 2)))
    several = mask(slice(0, 2))
    several[4] = 2
    with pytest.raises(
        LabelValueError, match=r"one class holds 0 and one other value, but \S+b\.nii\.gz holds 1, 2"
    ):
        MaskFiles(((1, one), (2, save(tmp_path / "b.nii.gz", several)))).read()
    elsewhere = save(tmp_path / "c.nii.gz", mask(slice(0, 2)), AFFINE + 9 * np.eye(4, k=3))
    with pytest.raises(
        GridMismatchError, match=r"must have one grid, but \S+c\.nii\.gz lies on another than a\.nii\.gz"
    ):
        MaskFiles(((1, one), (2, elsewhere))).read()


def test_cases_with_a_mask_file_a_class(tmp_path: Path) -> None:
    """The specification's names choose the files; a class without one is not in the case."""
    for case in ("p1", "p2"):
        grey = np.random.default_rng(len(case)).integers(-1000, 400, (6, 3, 2)).astype(np.int16)
        save(tmp_path / case / "ct.nii.gz", grey)
        save(tmp_path / case / "segmentations" / "liver.nii.gz", mask(slice(0, 2)))
        save(tmp_path / case / "segmentations" / "spleen.nii.gz", mask(slice(5, 6)))
    save(tmp_path / "p2" / "segmentations" / "left lung.nii.gz", mask(slice(3, 4)))
    save(tmp_path / "p3" / "ct.nii.gz", grey)
    spec = parse_spec(SPEC, "made.yaml")
    cases = find_cases(tmp_path, spec)
    assert [case.id for case in cases] == ["p1", "p2", "p3"]
    found = [measure_case(case, spec) for case in cases]
    assert [{name: each.voxels for name, each in one.classes.items()} for one in found] == [
        {"liver": 12},
        {"liver": 12, "left lung": 6},
        {},
    ]
    assert found[2].verdict == "refused" and "no label file" in found[2].why
    changed = DatasetSpec.model_validate(spec.model_dump() | {"classes": {"liver": 1}})
    (first, *_) = find_cases(tmp_path, changed)
    assert measure_case(first, changed).digest != found[0].digest, "the values belong to what is measured"


def test_subjects_from_the_path_and_the_more_exact_pattern(tmp_path: Path) -> None:
    for name in ("p1/scan1", "p1/scan2", "p2/scan1"):
        save(tmp_path / f"{name}.nii.gz", mask(slice(0, 3)))
        save(tmp_path / f"{name}_seg.nii.gz", mask(slice(0, 2), 4))
    text = SPEC.replace('"{case}/ct.nii.gz"', '"{subject}/{case}.nii.gz"')
    text = text.replace('"{case}/segmentations/{class}.nii.gz"', '"{subject}/{case}_seg.nii.gz"')
    spec = parse_spec(
        text.replace("classes:", '  case: "{subject}_{case}"\n  subject: "{subject}"\nclasses:'), "x"
    )
    cases = find_cases(tmp_path, spec)
    assert [(case.id, case.subject) for case in cases] == [
        ("p1_scan1", "p1"),
        ("p1_scan2", "p1"),
        ("p2_scan1", "p2"),
    ]
    assert [case.image.name for case in cases] == ["scan1.nii.gz", "scan2.nii.gz", "scan1.nii.gz"]
    assert all(case.labels is not None and case.labels.name.endswith("_seg.nii.gz") for case in cases)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "{case}/ct",
            "{case}/{class}",
            r"\{class\} stands in all patterns of labels or in none, and never in image",
        ),
        (
            "classes:",
            '  subject: "{visit}"\nclasses:',
            r"subject: '\{visit\}' is made of named parts of case",
        ),
    ],
)
def test_patterns_that_cannot_be_meant(old: str, new: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        parse_spec(SPEC.replace(old, new), "x.yaml")
