"""Geometry of images: against hand-made arrays, nibabel, scipy, SimpleITK. Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

import doctest
from itertools import product
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from grids import ALL_48, FEW, SHAPES, oblique, positions, sampled, small_turn
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from preprocessing import geometry, orientation
from preprocessing.geometry import CropPad, Resampling, cubic_matrix, linear_matrix, smoothing_matrix
from preprocessing.orientation import Reorientation

# Reorientation


def test_a_file_in_psr_by_hand() -> None:
    # File axes: i towards Posterior, j towards Superior, k towards Right. shape (z,y,x) = (k,j,i) = (2,3,4).
    affine = np.array([[0, 0, 4.0, 10], [-2, 0, 0, 20], [0, 3, 0, 30], [0, 0, 0, 1]])
    array = np.arange(24).reshape(2, 3, 4)
    turn = Reorientation.to_ras(affine)
    upright = turn.apply(array)
    assert upright.shape == (3, 4, 2)
    # superior 2, anterior 1 (i = 4 - 1 - 1 = 2), right 1: file voxel k=1, j=2, i=2
    assert upright[2, 1, 1] == array[1, 2, 2]
    assert upright[0, 0, 0] == array[0, 0, 3]
    assert np.array_equal(
        turn.apply_affine(affine, (2, 3, 4)), [[4, 0, 0, 10], [0, 2, 0, 14], [0, 0, 3, 30], [0, 0, 0, 1]]
    )


@pytest.mark.parametrize(("order", "signs"), ALL_48)
def test_all_48_orientations_agree_with_nibabel_and_come_back(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    seed = ALL_48.index((order, signs))
    affine = oblique(order, signs, small_turn(seed), (0.7, 1.3, 5.0), shear=0.02)
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    turn = Reorientation.to_ras(affine)
    upright, upright_affine = turn.apply(array), turn.apply_affine(affine, (3, 4, 5))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.int32), affine))
    assert np.array_equal(upright, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    assert np.allclose(upright_affine, canonical.affine, atol=1e-4)  # nibabel's went through float32
    assert nib.aff2axcodes(upright_affine) == ("R", "A", "S")
    assert np.array_equal(turn.undo(upright), array)
    assert upright.flags.c_contiguous and turn.undo(upright).flags.c_contiguous


@FEW
@given(st.integers(0, 10**6), SHAPES)
def test_under_any_rotation_every_voxel_keeps_its_place_in_the_world(
    seed: int, shape: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    order, signs = ALL_48[seed % 48]
    affine = oblique(
        order, signs, Rotation.random(random_state=seed), tuple(rng.uniform(0.4, 9, 3)), shear=0.1
    )
    array = np.arange(np.prod(shape)).reshape(shape)
    turn = Reorientation.to_ras(affine)
    upright = turn.apply(array)
    where = {int(upright[tuple(index)]): index for index in np.argwhere(upright >= 0)}
    native = np.argwhere(array >= 0)
    matched = np.array([where[int(array[tuple(index)])] for index in native])
    world = nib.affines.apply_affine(affine, native[:, ::-1])
    upright_affine = turn.apply_affine(affine, shape)
    assert np.allclose(nib.affines.apply_affine(upright_affine, matched[:, ::-1]), world)
    assert np.array_equal(turn.undo(upright), array)
    assert Reorientation.to_ras(upright_affine) == Reorientation((0, 1, 2), (False, False, False))


# Resampling: grids


def test_shapes_and_spacings_by_hand() -> None:
    # 30 * 7.7 / 1.5 = 154; 200 * 1.25 / 1.5 = 166.7; 3 * 0.4 / 1.5 = 0.8
    resampling = Resampling.to_spacing((30, 200, 3), (7.7, 1.25, 0.4), (1.5, 1.5, 1.5))
    assert resampling == Resampling((30, 200, 3), (154, 167, 1))
    assert resampling.out_spacing((7.7, 1.25, 0.4)) == pytest.approx((1.5, 250 / 167, 1.2))
    assert Resampling.to_spacing((1, 1, 1), (0.1, 0.1, 0.1), (5, 5, 5)).shape_out == (1, 1, 1)
    assert Resampling.to_spacing((9, 8, 7), (2, 1, 1), (2.0, 1.0, 1.0)).is_identity
    assert not resampling.is_identity


@FEW
@given(SHAPES, SHAPES, st.integers(0, 10**6))
def test_the_outer_faces_stay_where_they_were(
    shape_in: tuple[int, int, int], shape_out: tuple[int, int, int], seed: int
) -> None:
    affine = oblique((2, 0, 1), (1, -1, 1), Rotation.random(random_state=seed), (0.7, 1.3, 5.0), shear=0.1)
    resampling = Resampling(shape_in, shape_out)
    new = resampling.apply_affine(affine)
    for corner in product((0, 1), repeat=3):
        before = np.array(corner) * shape_in[::-1] - 0.5
        after = np.array(corner) * shape_out[::-1] - 0.5
        world = nib.affines.apply_affine(affine, before)
        assert np.allclose(nib.affines.apply_affine(new, after), world)
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    assert np.allclose(np.linalg.norm(new[:3, :3], axis=0)[::-1], resampling.out_spacing(spacing))


def test_arrays_of_another_shape_are_refused() -> None:
    resampling = Resampling((2, 3, 4), (4, 6, 8))
    for function in (resampling.apply_image, resampling.apply_labels):
        with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) \(z,y,x\) is needed, but \(4, 6, 8\) came"):
            function(np.zeros((4, 6, 8), np.uint8))
    for function in (resampling.undo_scores, resampling.undo_labels):
        with pytest.raises(ValueError, match=r"shape \(4, 6, 8\) \(z,y,x\) is needed, but \(2, 3, 4\) came"):
            function(np.zeros((2, 3, 4), np.uint8))


# Resampling: images


@pytest.mark.parametrize(
    "shape_out",
    [(9, 22, 31), (5, 6, 7), (12, 11, 13), (24, 6, 13), (36, 33, 39), (13, 12, 12), (1, 1, 1), (4, 1, 29)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_cubic_values_are_simpleitk_bspline_values_everywhere(
    shape_out: tuple[int, int, int], seed: int
) -> None:
    """Both grids under one oblique affine; up, down and mixed; also between the centres and the outer faces."""
    shape_in = (12, 11, 13)
    array = np.random.default_rng(seed).normal(100, 40, shape_in)
    turn = small_turn(seed, 60)
    affine = oblique((0, 1, 2), (1, 1, 1), turn, (0.8, 1.1, 2.5))
    resampling = Resampling(shape_in, shape_out)

    def as_itk(values: np.ndarray, matrix: np.ndarray) -> sitk.Image:
        image = sitk.GetImageFromArray(values)
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(matrix[:3, 3].tolist())
        return image

    target = as_itk(np.zeros(shape_out), resampling.apply_affine(affine))
    moving = as_itk(array, affine)
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, target, sitk.Transform(), sitk.sitkBSpline, -1e6))
    result = resampling.apply_image(array.astype(np.float32), antialias=False)
    assert result.dtype == np.float32
    assert np.abs(expected).max() < 1e4, "SimpleITK called a voxel outside: the fields of view differ"
    assert np.abs(result - expected).max() < 1e-3


@FEW
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 1000))
def test_one_axis_of_any_length_has_scipys_spline_values(n_in: int, n_out: int, seed: int) -> None:
    line = np.random.default_rng(seed).normal(size=n_in)
    expected = ndimage.map_coordinates(line, [positions(n_in, n_out)], order=3, mode="mirror")
    assert np.allclose(cubic_matrix(n_in, n_out) @ line, expected, atol=1e-10)


@pytest.mark.parametrize("shape_out", [(5, 20, 4), (9, 6, 25), (18, 12, 10), (3, 3, 3)])
def test_coarser_axes_are_smoothed_by_scipys_gaussian_first(shape_out: tuple[int, int, int]) -> None:
    shape_in = (18, 12, 25)
    array = np.random.default_rng(3).normal(size=shape_in).astype(np.float32)
    sigma = [max(0.0, (i / o - 1) / 2) for i, o in zip(shape_in, shape_out, strict=True)]
    resampling = Resampling(shape_in, shape_out)
    smoothed = ndimage.gaussian_filter(array.astype(float), sigma, mode="mirror")
    expected = resampling.apply_image(smoothed.astype(np.float32), antialias=False)
    assert np.allclose(resampling.apply_image(array), expected, atol=1e-5)
    assert not np.allclose(expected, resampling.apply_image(array, antialias=False), atol=0.05)


def test_antialiasing_by_hand() -> None:
    # 12 -> 4: sigma = (3 - 1) / 2 = 1 voxel. Weights exp(-k^2 / 2), normalised, in the middle of the axis.
    weights = np.exp(-(np.arange(-4.0, 5) ** 2) / 2)
    assert smoothing_matrix(12, 4)[5, 1:10] == pytest.approx(weights / weights.sum())
    assert np.array_equal(smoothing_matrix(4, 12), np.eye(4))
    # Stripes one voxel wide hold no detail a grid three times as coarse can show: what is left is their mean.
    stripes = np.broadcast_to((np.arange(30) % 2 * 2.0 - 1)[:, None, None], (30, 2, 2))
    resampling = Resampling((30, 2, 2), (10, 2, 2))
    assert np.abs(resampling.apply_image(stripes)).max() < 0.02
    assert np.abs(resampling.apply_image(stripes, antialias=False)).max() > 0.9


@FEW
@given(SHAPES, SHAPES)
def test_a_constant_stays_and_a_slope_keeps_its_mean(
    shape_in: tuple[int, int, int], shape_out: tuple[int, int, int]
) -> None:
    resampling = Resampling(shape_in, shape_out)
    assert np.allclose(resampling.apply_image(np.full(shape_in, 7.5)), 7.5, atol=1e-4)
    assert np.allclose(resampling.undo_scores(np.full(shape_out, 0.25)), 0.25, atol=1e-6)
    slope = np.broadcast_to(np.arange(shape_in[1])[:, None], shape_in)
    middle = (shape_in[1] - 1) / 2
    assert resampling.apply_image(slope).mean() == pytest.approx(middle, abs=1e-4)


def test_equal_shapes_leave_every_value_as_it_is() -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    identity = Resampling((4, 5, 6), (4, 5, 6))
    for result in (identity.apply_image(array), identity.undo_scores(array), identity.apply_labels(array)):
        assert np.array_equal(result, array)


def test_linear_values_are_scipys() -> None:
    resampling = Resampling((7, 12, 5), (13, 5, 5))
    scores = np.random.default_rng(1).uniform(size=(13, 5, 5)).astype(np.float16)
    result = resampling.undo_scores(scores)
    assert result.dtype == np.float32 and result.shape == (7, 12, 5)
    assert np.allclose(result, sampled(scores, (7, 12, 5), 1, "nearest"), atol=1e-6)
    # two voxels to four: a quarter of the way from each centre, the outermost hold
    assert linear_matrix(2, 4).tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


@pytest.mark.parametrize(("n_in", "n_out"), [(300, 140), (300, 700), (512, 171)])
def test_no_weight_is_a_denormal_number(n_in: int, n_out: int) -> None:
    """They slow a product down 15 times; a spline has them by the thousand."""
    matrix = geometry._image_matrix(n_in, n_out, True)
    assert matrix is not None and matrix.dtype == np.float32
    assert np.abs(matrix[matrix != 0]).min() > 1e-30
    assert np.allclose(matrix, cubic_matrix(n_in, n_out) @ smoothing_matrix(n_in, n_out), atol=1e-7)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


# CropPad


def test_crop_and_pad_by_hand() -> None:
    array = np.arange(12).reshape(2, 2, 3)
    both = CropPad((2, 2, 3), start=(1, -1, 1), shape_out=(2, 3, 1))
    assert both.apply(array, fill=-1).tolist() == [[[-1], [7], [10]], [[-1], [-1], [-1]]]
    assert both.undo(both.apply(array), fill=9).tolist() == [[[9] * 3] * 2, [[9, 7, 9], [9, 10, 9]]]


@FEW
@given(SHAPES, st.tuples(*[st.integers(-14, 14)] * 3), SHAPES, st.integers(0, 1000))
def test_crop_and_pad_anywhere_against_the_voxel_loop(
    shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).integers(1, 100, shape)
    crop = CropPad(shape, start, size)
    result = crop.apply(array, fill=0)
    back = np.full(shape, -5)
    for index in product(*(range(n) for n in size)):
        source = tuple(a + b for a, b in zip(index, start, strict=True))
        inside = all(0 <= a < n for a, n in zip(source, shape, strict=True))
        assert result[index] == (array[source] if inside else 0)
        if inside:
            back[source] = array[source]
    assert np.array_equal(crop.undo(result, fill=-5), back)
    assert result.dtype == array.dtype


@FEW
@given(SHAPES, st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
def test_padding_comes_back_exactly(
    shape: tuple[int, int, int], before: tuple[int, int, int], after: tuple[int, int, int]
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    low, size = tuple(-n for n in before), tuple(np.add(np.add(shape, before), after).tolist())
    crop = CropPad(shape, low, size)  # type: ignore[arg-type]
    padded = np.pad(array, list(zip(before, after, strict=True)), constant_values=3)
    assert np.array_equal(crop.apply(array, fill=3), padded)
    assert np.array_equal(crop.undo(padded), array)


def test_a_crop_of_another_shape_is_refused() -> None:
    crop = CropPad((2, 2, 2), (0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\) \(z,y,x\) is needed, but \(3, 2, 2\) came"):
        crop.apply(np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1\) \(z,y,x\) is needed, but \(2, 2, 2\) came"):
        crop.undo(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(("module", "examples"), [(geometry, 2), (orientation, 4)])
def test_the_legends_of_the_modules_are_true(module: ModuleType, examples: int) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= examples and result.failed == 0
