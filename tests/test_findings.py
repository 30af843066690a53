"""What can be wrong with a scan: each finding by its text, on volumes whose answer is known. Arrays are (z,y,x)."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from grids import ALL_48, oblique, small_turn

from preprocessing.adapters import find_cases
from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.findings import (
    check_field,
    check_grey_values,
    check_sides,
    image_hash,
    lost_spacings,
    no_place,
    side_pairs,
    skew,
)
from preprocessing.orientation import Reorientation
from preprocessing.spec import load_spec
from preprocessing.volume import Volume

CLASSES = {"left kidney": 1, "right kidney": 2, "left lung": 3, "right lung": 4, "liver": 5}
SIDES = {"left": ["left kidney", "left lung"], "right": ["right lung", "right kidney"]}


def body(*places: tuple[int, int]) -> Volume:
    """A label map of 1 mm voxels in RAS+: `value` fills the sagittal plane at index x, for each (value, x)."""
    labels = np.zeros((4, 5, 12), np.uint8)
    for value, x in places:
        labels[1:3, 2:4, x] = value
    return Volume(labels, np.eye(4))


def test_left_lies_at_smaller_x() -> None:
    check_sides(body((1, 2), (2, 9)), CLASSES, SIDES, "x.nii.gz")
    with pytest.raises(
        LabelValueError,
        match=r"in x\.nii\.gz 'left kidney' lies 7 mm to the right of 'right kidney': the label values or",
    ):
        check_sides(body((1, 9), (2, 2)), CLASSES, SIDES, "x.nii.gz")


def test_all_swapped_pairs_are_named_and_a_right_one_is_not() -> None:
    with pytest.raises(LabelValueError) as caught:
        check_sides(body((1, 9), (2, 2), (3, 10), (4, 1)), CLASSES, SIDES, "x")
    assert "'left kidney' lies 7 mm" in str(caught.value) and "'left lung' lies 9 mm" in str(caught.value)
    with pytest.raises(LabelValueError) as caught:
        check_sides(body((1, 9), (2, 2), (3, 1), (4, 10)), CLASSES, SIDES, "x")
    assert "'left lung'" not in str(caught.value)


def test_a_class_alone_says_nothing_wherever_it_lies() -> None:
    check_sides(body((1, 11), (4, 0)), CLASSES, SIDES, "x")
    check_sides(body((1, 9), (2, 2)), CLASSES, {}, "x")
    # A patient far to the right of the scanner's middle: only the two organs are compared.
    moved = body((1, 2), (2, 9))
    moved.affine[0, 3] = 400.0
    check_sides(moved, CLASSES, SIDES, "x")


@pytest.mark.parametrize("grid", ALL_48[::5], ids=str)
def test_sides_are_those_of_the_world_however_the_file_lies(
    grid: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    affine = oblique(*grid, small_turn(3), (1.0, 1.0, 1.0))
    index = np.stack(np.meshgrid(*(np.arange(9),) * 3, indexing="ij"), axis=-1)
    world_x = (index @ affine[:3, :3].T + affine[:3, 3])[..., 0]
    labels = np.where(world_x < np.median(world_x), 1, 2).astype(np.uint8).transpose(2, 1, 0)
    check_sides(Volume(labels, affine), CLASSES, SIDES, "x")
    with pytest.raises(LabelValueError, match="'left kidney' lies"):
        check_sides(Volume(3 - labels, affine), CLASSES, SIDES, "x")


def test_a_wrong_direction_in_the_header_is_found_too() -> None:
    """The voxels are right, but the header has the first axis run to the left: the same as swapped values."""
    volume = body((1, 2), (2, 9))
    volume.affine[0, 0] = -1.0
    with pytest.raises(
        LabelValueError, match="the label values or the orientation in the header are swapped"
    ):
        check_sides(volume, CLASSES, SIDES, "x")


@pytest.mark.parametrize(
    ("left", "right", "pairs"),
    [
        (["left kidney", "left lung"], ["right lung", "right kidney"], {"left kidney": "right kidney"}),
        (["kidney_left"], ["kidney_right"], {"kidney_left": "kidney_right"}),
        (["Kidney L"], ["R kidney"], {"Kidney L": "R kidney"}),
        (["LeftLung"], ["RightLung"], {"LeftLung": "RightLung"}),
        (["spleen"], ["liver"], {"spleen": "liver"}),
        (["left eye", "spleen"], ["right eye", "liver"], {"left eye": "right eye", "spleen": "liver"}),
        (["left eye", "spleen"], ["right eye"], {"left eye": "right eye"}),
        (["spleen", "stomach"], ["liver"], {}),
    ],
)
def test_pairs(left: list[str], right: list[str], pairs: dict[str, str]) -> None:
    assert pairs.items() <= dict(side_pairs({"left": left, "right": right})).items()
    if not pairs:
        assert side_pairs({"left": left, "right": right}) == []


def test_axes_off_a_right_angle_are_named_with_the_angle() -> None:
    affine = oblique((2, 0, 1), (1, -1, 1), small_turn(1), (0.7, 1.5, 5.0))
    assert skew(affine) is None
    assert skew(affine.astype(np.float32)) is None, "rounding in a header is nothing to speak of"
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[:3, 2] = 5 * np.array([0.0, np.sin(np.deg2rad(12)), np.cos(np.deg2rad(12))])
    assert skew(affine) == (
        "the direction cosines are not orthonormal (12 degrees off); the axes are taken as orthogonal"
    )


def test_a_header_without_a_place() -> None:
    header = nib.Nifti1Header()
    assert no_place(header) == (
        "the header does not say how the patient lies (qform and sform codes are 0); L,A,S is assumed"
    )
    header["sform_code"] = 1
    assert no_place(header) is None and no_place(None) is None


def test_grey_values_that_show_nothing() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    check_grey_values(array, "a.nii.gz")
    with pytest.raises(
        RawDataError, match=r"^a\.nii\.gz holds the grey value 7 in every voxel, so it shows nothing"
    ):
        check_grey_values(np.full((2, 3, 4), 7.0), "a.nii.gz")
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(
        RawDataError, match=r"^a\.nii\.gz holds values that are not finite \(2 of 24 voxels\)"
    ):
        check_grey_values(array, "a.nii.gz")


@pytest.mark.parametrize(
    ("shape", "spacing", "told"),
    [
        ((100, 200, 200), (0.002, 0.0007, 0.0007), "0.2 x 0.14 x 0.14"),
        ((100, 512, 512), (5.0, 700.0, 700.0), "500 x 3.58e+05 x 3.58e+05"),
    ],
)
def test_fields_of_view_that_no_scan_has(
    shape: tuple[int, ...], spacing: tuple[float, ...], told: str
) -> None:
    sentence = (
        f"The longest edge of a scan is 1 to 3000 mm, but a.nii is {told} mm (z,y,x): its header counts in"
    )
    with pytest.raises(RawDataError, match=re.escape(sentence)):
        check_field(shape, spacing, "a.nii")
    check_field((1, 64, 64), (0.5, 0.05, 0.05), "one slice of a small animal")
    check_field((700, 512, 512), (3.0, 1.4, 1.4), "a whole body")


def test_spacings_that_were_lost_are_those_of_a_few() -> None:
    usual = {f"c{i}": (5.0, 0.7, 0.7) for i in range(4)}
    assert lost_spacings(usual | {"b": (1.0, 1.0, 1.0), "a": (1.0, 1.0, 1.0)}) == ["a", "b"]
    assert lost_spacings({"a": (1.0, 1.0, 1.0), "b": (1.0, 1.0, 1.0)}) == []
    assert lost_spacings(usual | {"a": (1.0, 1.0, 1.01)}) == []
    assert lost_spacings({"a": (1.0, 1.0, 1.0), "c0": (5.0, 0.7, 0.7)}) == [], "one half is not a few"


def test_the_hash_is_of_the_voxels_not_of_how_they_are_stored() -> None:
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-1000, 1000, (4, 5, 6)).astype(np.float32), np.diag([2.0, 1.0, 3.0, 1.0]))
    turned = Volume(image.array[:, ::-1, ::-1].transpose(1, 0, 2), np.eye(4))
    turned.affine[:3, :3] = np.array([[-2.0, 0, 0], [0, 0, -1.0], [0, 3.0, 0]])
    ras = Reorientation.to_ras(turned.affine).apply(turned.array)
    np.testing.assert_array_equal(ras, image.array)
    assert image_hash(turned) == image_hash(image)
    assert image_hash(Volume(image.array.astype(np.int16), image.affine)) == image_hash(image)
    changed = image.array.copy()
    changed[0, 0, 0] += 1
    assert image_hash(Volume(changed, image.affine)) != image_hash(image)
    assert image_hash(Volume(image.array.reshape(5, 4, 6), image.affine)) != image_hash(image)


@pytest.mark.parametrize("dataset", ["chaos_t2", "lung_mr", "openkbp"])
def test_real_label_maps_lie_as_their_specification_says(dataset: str, shared_data: Path) -> None:
    """And with the values of both sides exchanged, every one that holds a pair is refused."""
    spec, pairs = load_spec(dataset), 0
    for case in find_cases(shared_data / dataset, spec)[:6]:
        assert case.labels is not None
        labels = case.labels.read_labels()
        check_sides(labels, spec.classes, spec.sides, case.id)
        for left, right in side_pairs(spec.sides):
            a, b = labels.array == spec.classes[left], labels.array == spec.classes[right]
            if a.any() and b.any():
                pairs += 1
                swapped = np.where(a, spec.classes[right], np.where(b, spec.classes[left], 0))
                with pytest.raises(LabelValueError, match=f"'{left}' lies .* to the right of '{right}'"):
                    check_sides(
                        Volume(swapped.astype(np.uint8), labels.affine), spec.classes, spec.sides, case.id
                    )
    assert pairs >= 5
