"""preprocess_case: order of its steps, places in the world, masks that come back; grids that do not fit."""

from __future__ import annotations

import doctest
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing import case as module
from preprocessing.case import check_same_grid, in_axes_of, in_axes_of_image, preprocess_case
from preprocessing.errors import GridMismatchError, LabelValueError, RawDataError
from preprocessing.geometry import Resampling
from preprocessing.normalise import Normalisation, normalise
from preprocessing.volume import Volume, read_labels, read_volume, write_volume

ALL_48 = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
PLAIN = Normalisation(modality="MR")
CT = Normalisation.for_modality("CT")


def affine_of(orientation: int, spacing_xyz: tuple[float, ...], degrees: float = 17.0) -> np.ndarray:
    """One of the 48 orientations of a file's axes, turned about (1,2,3)."""
    direction = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(*ALL_48[orientation], strict=True)):
        direction[row, column] = sign
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([1, 2, 3]) / np.sqrt(14)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ direction * np.array(spacing_xyz)
    affine[:3, 3] = (20.0, -31.5, 112.0)
    return affine


def speckles(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Lone voxels of four classes: nothing survives here that is not exact."""
    return np.random.default_rng(seed).integers(0, 5, shape, dtype=np.uint8)


def centre_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.argwhere(mask)[:, ::-1]).mean(axis=0)


@pytest.mark.parametrize("orientation", range(48))
@pytest.mark.parametrize("spacing_mm", [(3.0, 1.2, 0.9), (0.8, 0.7, 0.9), (1.5, 1.2, 0.41)])
def test_a_mask_comes_back_voxel_by_voxel(orientation: int, spacing_mm: tuple[float, float, float]) -> None:
    """Every orientation, oblique; prepared at the native spacing or finer, each axis by its own ratio."""
    # native voxels: 0.9 mm along right-left, 1.2 along anterior-posterior, 3 along superior-inferior
    world = (0.9, 1.2, 3.0)
    order = ALL_48[orientation][0]
    spacing_xyz = tuple(world[row] for row in order)
    labels = Volume(speckles((5, 6, 7), orientation), affine_of(orientation, spacing_xyz))
    image = Volume(labels.array * np.float32(100), labels.affine)
    case = preprocess_case(image, spacing_mm, PLAIN, labels)
    assert case.labels is not None and case.labels.dtype == np.uint8
    assert case.labels.shape == case.image.shape
    assert all(a >= b for a, b in zip(case.image.shape, case.trace.resampling.shape_in, strict=True))
    back = case.trace.undo_labels(case.labels)
    assert back.dtype == np.uint8 and np.array_equal(back, labels.array)
    assert nib.aff2axcodes(case.affine) == ("R", "A", "S")


def test_at_the_native_spacing_scores_come_back_exactly_too() -> None:
    labels = speckles((5, 6, 7))
    image = Volume(labels.astype(np.float32), affine_of(13, (0.9, 1.2, 3.0)))
    native_zyx = Volume(np.zeros((1, 1, 1)), affine_of(0, (0.9, 1.2, 3.0))).spacing_mm
    order = ALL_48[13][0]
    target = tuple(native_zyx[2 - order.index(row)] for row in (2, 1, 0))
    case = preprocess_case(image, target, PLAIN, Volume(labels, image.affine))  # type: ignore[arg-type]
    assert case.trace.resampling.is_identity and case.labels is not None
    for value in (1, 2, 3, 4):
        scores = case.trace.undo_scores((case.labels == value).astype(np.float16))
        assert np.array_equal(scores, labels == value)
    back = case.trace.undo_scores(case.image)
    assert np.array_equal(back, normalise(image.array, PLAIN))


@pytest.mark.parametrize("orientation", range(0, 48, 5))
@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.5])
def test_coarse_or_fine_a_ball_stays_at_its_place_in_the_world(orientation: int, spacing: float) -> None:
    shape, affine = (20, 26, 24), affine_of(orientation, (1.4, 1.9, 2.2))
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., ::-1]
    world = nib.affines.apply_affine(affine, index)
    middle = nib.affines.apply_affine(affine, [11.0, 13.5, 10.0])
    ball = (np.linalg.norm(world - middle, axis=-1) < 13).astype(np.uint8)
    case = preprocess_case(Volume(ball * 50.0, affine), (spacing,) * 3, PLAIN, Volume(ball, affine))
    assert case.labels is not None
    assert np.linalg.norm(centre_mm(case.labels == 1, case.affine) - middle) < 0.3 * spacing  # whole voxels
    bright = case.image > (case.image.max() + case.image.min()) / 2
    assert np.linalg.norm(centre_mm(bright, case.affine) - middle) < 0.25 * spacing
    assert np.allclose(np.linalg.norm(case.affine[:3, :3], axis=0)[::-1], case.spacing_mm)
    assert np.allclose(case.spacing_mm, spacing, rtol=0.05)
    turned = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    kept = case.affine[:3, :3] / np.linalg.norm(case.affine[:3, :3], axis=0)
    assert np.allclose(np.abs(turned.T @ kept).max(axis=0), 1), "the oblique axes themselves were turned"
    back = case.trace.undo_labels(case.labels)
    dice = 2 * (back & ball).sum() / (back.sum() + ball.sum())
    assert dice == 1 if spacing == 1.0 else dice > 0.9
    assert np.linalg.norm(centre_mm(back == 1, affine) - middle) < 0.25 * spacing


def test_offset_then_clip_then_z_score_on_native_voxels_then_cubic() -> None:
    array = np.random.default_rng(0).uniform(-500, 3000, (6, 8, 10)).astype(np.float32)
    case = preprocess_case(
        Volume(array, np.diag([1.0, 1.5, 2.0, 1.0])), (1.0, 1.0, 2.0), CT, intensity_offset=-1000
    )
    clipped = np.clip(array.astype(float) - 1000, -990, 500)
    expected = Resampling((6, 8, 10), (12, 12, 5)).apply_image((clipped - clipped.mean()) / clipped.std())
    assert case.image.dtype == np.float32 and np.allclose(case.image, expected, atol=1e-4)
    assert case.labels is None
    assert case.spacing_mm == (1.0, 1.0, 2.0)
    assert case.trace.native_shape == (6, 8, 10)
    assert np.array_equal(case.trace.native_affine, np.diag([1.0, 1.5, 2.0, 1.0]))


def test_the_mask_does_not_change_the_image_that_prediction_sees() -> None:
    image = Volume(
        np.random.default_rng(4).normal(size=(6, 8, 10)).astype(np.float32), affine_of(9, (1, 2, 3))
    )
    labels = Volume(speckles((6, 8, 10)), image.affine)
    for spacing in (0.7, 1.5, 2.5):
        store = preprocess_case(image, (spacing,) * 3, Normalisation.for_modality("MR"), labels)
        alone = preprocess_case(image, (spacing,) * 3, Normalisation.for_modality("MR"))
        assert np.array_equal(store.image, alone.image) and np.array_equal(store.affine, alone.affine)
        assert store.spacing_mm == alone.spacing_mm


def test_percentiles_are_those_of_the_scan_not_of_the_resampled_one() -> None:
    array = np.random.default_rng(4).normal(size=(6, 8, 10)).astype(np.float32)
    rule = Normalisation.for_modality("MR")
    case = preprocess_case(Volume(array, np.eye(4)), (2.0, 2.0, 2.0), rule)
    resampling = Resampling((6, 8, 10), (3, 4, 5))
    assert np.allclose(case.image, resampling.apply_image(normalise(array, rule)), atol=1e-6)
    assert not np.allclose(case.image, normalise(resampling.apply_image(array), rule), atol=0.1)


def test_target_spacing_is_of_the_upright_axes_not_of_the_files() -> None:
    # file axes i -> S, j -> R, k -> A with 1 (i), 2 (j), 3 (k) mm; wanted: S 2, A 3, R 1 mm
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    case = preprocess_case(Volume(np.zeros((4, 5, 6), np.float32), affine), (2.0, 3.0, 1.0), PLAIN)
    assert case.image.shape == (3, 4, 10) and case.spacing_mm == (2.0, 3.0, 1.0)
    assert case.trace.native_shape == (4, 5, 6) and case.trace.resampling.shape_in == (6, 4, 5)


def test_the_input_is_left_as_it_is() -> None:
    labels = Volume(speckles((4, 4, 4)), np.eye(4))
    image = Volume(labels.array.astype(np.float32), np.eye(4))
    case = preprocess_case(image, (1, 1, 1), PLAIN, labels, intensity_offset=5)
    assert case.labels is not None
    case.labels[:] = 9
    case.image[:] = 9
    assert np.array_equal(labels.array, speckles((4, 4, 4))) and np.array_equal(image.array, labels.array)


def test_a_mask_comes_back_through_files_with_the_scans_header(tmp_path: Path) -> None:
    affine = affine_of(29, (0.9, 1.1, 4.0))
    for name, array in (("scan", np.arange(120, dtype=np.int16)), ("mask", speckles((4, 5, 6)).ravel())):
        nib.save(nib.Nifti1Image(array.reshape(4, 5, 6).T, affine), tmp_path / f"{name}.nii.gz")
    image, labels = read_volume(tmp_path / "scan.nii.gz"), read_labels(tmp_path / "mask.nii.gz")
    case = preprocess_case(image, (0.9, 0.9, 0.9), PLAIN, labels)
    assert case.labels is not None
    result = Volume(case.trace.undo_labels(case.labels), case.trace.native_affine, image.header)
    write_volume(tmp_path / "back.nii.gz", result)
    before, after = nib.load(tmp_path / "mask.nii.gz"), nib.load(tmp_path / "back.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    assert np.array_equal(after.affine, before.affine)


# Grids


def grids(shift_voxels: float = 0.0, shape: tuple[int, int, int] = (4, 5, 6)) -> tuple[Volume, Volume]:
    affine = affine_of(3, (1.0, 2.0, 10.0))
    other = affine.copy()
    other[:3, 3] += affine[:3, 2] * shift_voxels  # along the file's third axis, 10 mm a voxel
    return Volume(np.zeros((4, 5, 6), np.float32), affine), Volume(np.zeros(shape, np.uint8), other)


def test_equal_grids_and_float32_noise_are_equal() -> None:
    assert check_same_grid(*grids()) is None
    assert check_same_grid(*grids(5e-5)) is None  # 0.0005 mm


def test_less_than_half_a_voxel_is_mended_by_the_images_geometry() -> None:
    image, labels = grids(0.4)
    assert check_same_grid(image, labels) == (
        "the label's corners lie up to 4 mm from the image's, whose geometry is used"
    )
    case = preprocess_case(image, (1.0, 1.0, 1.0), PLAIN, labels)
    assert np.array_equal(case.trace.native_affine, image.affine)


def test_more_than_half_a_voxel_is_refused() -> None:
    text = r"a corner of the label lies 0\.6 voxels \(6\.0 mm\) from the image's: export"
    for function in (check_same_grid, lambda image, labels: preprocess_case(image, (1, 1, 1), PLAIN, labels)):
        with pytest.raises(GridMismatchError, match=text):
            function(*grids(0.6))


def test_another_spacing_moves_the_far_corners() -> None:
    image = Volume(np.zeros((3, 3, 101), np.float32), np.eye(4))
    labels = Volume(np.zeros((3, 3, 101), np.uint8), np.diag([1.004, 1, 1, 1]))
    assert check_same_grid(image, labels) is not None  # 100 * 0.004 = 0.4 voxels
    with pytest.raises(GridMismatchError, match=r"lies 0\.7 voxels \(0\.7 mm\)"):
        check_same_grid(image, Volume(labels.array, np.diag([1.007, 1, 1, 1])))


def test_another_shape_or_a_flipped_header_is_refused() -> None:
    with pytest.raises(
        GridMismatchError, match=r"the image has 4 x 5 x 6 voxels and the label 4 x 5 x 7 \(z,y,x\)"
    ):
        check_same_grid(*grids(shape=(4, 5, 7)))
    image, labels = grids()
    with pytest.raises(GridMismatchError, match=r"lies 10\.0 voxels \(10\.0 mm\)"):
        check_same_grid(image, Volume(labels.array, labels.affine @ np.diag([-1, 1, 1, 1])))


@pytest.mark.parametrize("axes", ["LPS", "SRA", "PIL"])
def test_a_label_map_of_other_axes_comes_to_the_images_as_nibabel_brings_it(axes: str) -> None:
    """Oblique, of three different edges and spacings; every world position keeps its value."""
    image = Volume(np.zeros((4, 5, 6), np.float32), affine_of(3, (1.0, 2.0, 10.0)))
    labels = Volume(np.arange(120, dtype=np.uint8).reshape(4, 5, 6), image.affine)
    file = nib.Nifti1Image(labels.array.transpose(), labels.affine)
    start, end = nib.io_orientation(file.affine), nib.orientations.axcodes2ornt(tuple(axes))
    turned = file.as_reoriented(nib.orientations.ornt_transform(start, end))
    moved = Volume(np.asarray(turned.dataobj).transpose(), turned.affine)
    assert moved.shape != labels.shape or not np.array_equal(moved.array, labels.array)
    found = in_axes_of(moved, image)
    assert np.array_equal(found.array, labels.array)
    np.testing.assert_allclose(found.affine, labels.affine, atol=1e-9)
    assert in_axes_of(labels, image) is labels
    # What prepares a case does so, and says it.
    brought = in_axes_of_image(image, moved)
    assert np.array_equal(brought.array, labels.array)
    theirs, ours = (",".join(nib.aff2axcodes(each.affine)) for each in (moved, image))
    assert brought.repairs == (
        f"the label's axes are turned to the image's (its axes run {theirs}, the image's {ours})",
    )
    spacing = (2.0, 1.0, 10.0)
    one, other = (preprocess_case(image, spacing, PLAIN, each).labels for each in (labels, moved))
    assert one is not None and other is not None and np.array_equal(one, other) and one.any()
    assert in_axes_of_image(image, labels) is labels
    told = in_axes_of_image(image, replace(moved, repairs=("mended before",), doubts=("odd",)))
    assert (told.repairs, told.doubts) == (("mended before", *brought.repairs), ("odd",))
    away = Volume(moved.array, np.diag([1.0, 1.0, 1.0, 1.0]) + 5 * np.eye(4, k=3))
    assert in_axes_of_image(image, away) is away
    with pytest.raises(GridMismatchError, match="must have the same grid"):
        preprocess_case(image, spacing, PLAIN, away)


# Labels and grey values that cannot be used


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ([0, 256], np.uint16, r"Labels must lie in 0\.\.255, but 0\.\.256 came: renumber them\."),
        ([-1, 3], np.int16, r"Labels must lie in 0\.\.255, but -1\.\.3 came: renumber them\."),
        ([0, 1], np.float32, r"must hold whole numbers, but float32 came: read them as labels\."),
    ],
)
def test_labels_outside_one_byte_are_refused(values: list[int], kind: type, text: str) -> None:
    labels = Volume(np.array(values, kind).reshape(1, 1, 2), np.eye(4))
    with pytest.raises(LabelValueError, match=text):
        preprocess_case(Volume(np.zeros((1, 1, 2), np.float32), np.eye(4)), (1, 1, 1), PLAIN, labels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, bool])
def test_labels_of_any_whole_type_become_uint8(kind: type) -> None:
    labels = Volume(np.array([0, 1, 1], kind).reshape(1, 1, 3), np.eye(4))
    case = preprocess_case(Volume(np.ones((1, 1, 3), np.float32), np.eye(4)), (1, 1, 1), PLAIN, labels)
    assert (
        case.labels is not None
        and case.labels.dtype == np.uint8
        and case.labels.ravel().tolist() == [0, 1, 1]
    )


def test_nan_is_refused() -> None:
    with pytest.raises(RawDataError, match="holds NaN or infinity"):
        preprocess_case(Volume(np.full((2, 2, 2), np.nan), np.eye(4)), (1, 1, 1), PLAIN)


# Real scans


@pytest.mark.parametrize("name", ["msd_hippocampus", "acdc_mini", "mscmr", "lung_mr", "sts_pet"])
def test_real_masks_come_back_at_their_finest_spacing(shared_data: Path, name: str) -> None:
    path = sorted((shared_data / name / "labelsTr").glob("*.nii.gz"))[0]
    image, labels = read_volume(shared_data / name / "imagesTr" / path.name), read_labels(path)
    finest = min(image.spacing_mm)
    case = preprocess_case(image, (finest, finest, finest), Normalisation.for_modality("MR"), labels)
    assert case.labels is not None and labels.array.any()
    assert np.array_equal(case.trace.undo_labels(case.labels), labels.array)


def test_the_legend_of_the_module_is_true() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3 and result.failed == 0
