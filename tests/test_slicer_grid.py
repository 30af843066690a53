"""Where a segmentation of 3D Slicer's lies: cut down to its segments, it is laid on the image's grid or refused.

Arrays are [D,H,W] = (z,y,x); affines map (x,y,z) to RAS+ mm.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of
from segmentations import cropped, save_segmentation

from preprocessing.case import check_same_grid, on_grid_of_image, preprocess_case, whole_where_partial
from preprocessing.errors import GridMismatchError
from preprocessing.formats.slicer import Segmentation
from preprocessing.normalise import Normalisation
from preprocessing.volume import Volume, read_labels

AFFINE = affine_of("PSR", (3.0, 1.5, 0.8), degrees=17)
SHAPE = (4, 5, 6)
IMAGE = Volume(np.arange(120, dtype=np.float32).reshape(SHAPE), AFFINE)
WHOLE = np.zeros(SHAPE, np.uint8)
WHOLE[1:3, 2:4, 3:5] = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
PART = WHOLE[1:4, 2:4, 2:6]  # starts at x, y, z = 2, 2, 1
LAID = "the segmentation covers 3 x 2 x 4 voxels (z,y,x) and is laid on the image's grid"


def part(array: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(array, affine, segments=Segmentation((("liver", 1),)))


def oriented(array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels at the same places with other axes, as nibabel orders them."""
    turn = np.array(list(zip(order, signs, strict=True)), float)
    file = nib.Nifti1Image(array.transpose(), affine).as_reoriented(turn)
    return part(np.asarray(file.dataobj).transpose(), file.affine)


def test_a_part_is_laid_where_its_header_says(tmp_path: Path) -> None:
    segments = [(f"segment {value}", value) for value in range(1, 9)]
    path = save_segmentation(tmp_path / "a.seg.nrrd", PART, cropped(AFFINE, (2, 2, 1)), segments)
    found = on_grid_of_image(IMAGE, read_labels(path))
    assert np.array_equal(found.array, WHOLE) and found.array.dtype == np.uint8
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-9)
    assert found.repairs == (LAID,) and not found.partial and check_same_grid(IMAGE, found) is None
    prepared = preprocess_case(IMAGE, (3.0, 1.0, 1.0), Normalisation(modality="MR"), read_labels(path))
    by_hand = preprocess_case(IMAGE, (3.0, 1.0, 1.0), Normalisation(modality="MR"), Volume(WHOLE, AFFINE))
    assert prepared.labels is not None and by_hand.labels is not None
    assert np.array_equal(prepared.labels, by_hand.labels) and prepared.labels.any()


def test_what_was_told_of_a_part_is_told_of_the_whole() -> None:
    told = replace(part(PART, cropped(AFFINE, (2, 2, 1))), repairs=("mended before",), doubts=("odd",))
    found = on_grid_of_image(IMAGE, told)
    assert (found.repairs, found.doubts) == (("mended before", LAID), ("odd",))


def test_a_part_may_begin_before_the_scan_and_end_behind_it() -> None:
    """From x, y, z = -1, -2, -1 on, two voxels beyond every end; all that is labelled lies inside."""
    larger = np.zeros((7, 9, 9), np.uint8)
    larger[1:5, 2:7, 1:7] = WHOLE
    found = on_grid_of_image(IMAGE, part(larger, cropped(AFFINE, (-1, -2, -1))))
    assert np.array_equal(found.array, WHOLE)
    larger[0, 4, 4] = 1  # z = -1
    outside = part(larger, cropped(AFFINE, (-1, -2, -1)))
    assert on_grid_of_image(IMAGE, outside) is outside
    behind = part(PART, cropped(AFFINE, (3, 4, 1)))  # the last labelled y would be 5 of 0 to 4
    with pytest.raises(
        GridMismatchError, match=r"the image has 4 x 5 x 6 voxels and the label 3 x 2 x 4 \(z,y,x\): export"
    ):
        preprocess_case(IMAGE, (1.0, 1.0, 1.0), Normalisation(modality="MR"), behind)


def test_axes_are_turned_whatever_they_are() -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        labels = oriented(PART, cropped(AFFINE, (2, 2, 1)), order, signs)
        found = on_grid_of_image(IMAGE, labels)
        assert np.array_equal(found.array, WHOLE), (order, signs)
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-9)
    assert found.repairs[0].endswith("is laid on the image's grid (its axes run L,I,A, the image's P,S,R)")


def test_half_way_between_the_bodys_axes_a_part_keeps_the_images() -> None:
    """By 45 degrees and by a hair more the nearest axes of the body are others; image and part share theirs."""
    image = Volume(IMAGE.array, affine_of("RAS", (1.0, 1.0, 1.0)))
    turn = np.eye(4)
    turn[1:3, 1:3] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    image = Volume(image.array, turn @ image.affine)
    for hair in (-1e-9, 1e-9):
        affine = cropped(image.affine, (2, 2, 1))
        affine[2, 1] += hair
        assert np.array_equal(on_grid_of_image(image, part(PART, affine)).array, WHOLE)


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_less_than_half_a_voxel_is_told_and_mended(shift: float) -> None:
    labels = part(PART, cropped(AFFINE, (2, 2, 1 + shift)))
    found = on_grid_of_image(IMAGE, labels)
    assert np.array_equal(found.array, WHOLE)
    assert check_same_grid(IMAGE, found) == (
        "the label's corners lie up to 0.9 mm from the image's, whose geometry is used"
    )


@pytest.mark.parametrize(
    ("what", "affine"),
    [
        ("finer", cropped(AFFINE, (2, 2, 1)) @ np.diag([1, 1, 0.5, 1])),
        ("coarser", cropped(AFFINE, (2, 2, 1)) @ np.diag([2, 1, 1, 1])),
        ("a little", cropped(AFFINE, (2, 2, 1)) @ np.diag([1, 1, 1.3, 1])),
        ("turned", affine_of("PSR", (3.0, 1.5, 0.8), degrees=24)),
    ],
)
def test_another_lattice_is_refused(what: str, affine: np.ndarray) -> None:
    labels = part(WHOLE[1:3, 2:4, 3:5], affine)
    assert on_grid_of_image(IMAGE, labels) is labels, what
    with pytest.raises(GridMismatchError, match="and the label 2 x 2 x 2"):
        preprocess_case(IMAGE, (1.0, 1.0, 1.0), Normalisation(modality="MR"), labels)


def test_one_voxel_of_nothing_is_an_empty_segmentation_anywhere(tmp_path: Path) -> None:
    path = save_segmentation(tmp_path / "a.seg.nrrd", np.zeros((1, 1, 1), np.uint8), np.diag([9.0, 9, 9, 1]))
    found = on_grid_of_image(IMAGE, read_labels(path))
    assert found.shape == SHAPE and not found.array.any()
    assert found.repairs == ("the segmentation is empty",) and check_same_grid(IMAGE, found) is None
    one = on_grid_of_image(IMAGE, part(np.full((1, 1, 1), 7, np.uint8), cropped(AFFINE, (5, 4, 3))))
    assert one.array[3, 4, 5] == 7 and np.count_nonzero(one.array) == 1


def test_what_is_whole_is_left_as_it_is() -> None:
    labels = part(WHOLE, AFFINE)
    found = on_grid_of_image(IMAGE, labels)
    assert found.array is WHOLE and found.repairs == () and not found.partial
    other = Volume(PART, cropped(AFFINE, (2, 2, 1)))
    assert on_grid_of_image(IMAGE, other) is other, "a label map that is no segmentation covers its scan"
    assert whole_where_partial(other, IMAGE) is other
    assert np.array_equal(whole_where_partial(part(PART, other.affine), IMAGE).array, WHOLE)


def test_a_whole_one_of_other_axes_is_turned_as_any_label_map() -> None:
    found = on_grid_of_image(IMAGE, oriented(WHOLE, AFFINE, (2, 0, 1), (1, -1, 1)))
    assert np.array_equal(found.array, WHOLE) and not found.partial
    assert found.repairs[0].startswith("the label's axes are turned to the image's (its axes run ")
