"""Surface measures by hand on anisotropic grids, against MONAI, and both ways to measure against one another."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import ndimage

from iris_pipeline.measures import surfaces
from iris_pipeline.measures.surfaces import (
    SurfaceScores,
    neighbour_codes,
    surface_distances,
    surface_scores,
    union_box,
)
from preprocessing.errors import EvaluationError

SPACING_MM = (3.0, 1.0, 1.5)
DIAGONAL_MM = 99.0


def scores(prediction: np.ndarray, truth: np.ndarray, tolerance_mm: float = 2.0) -> SurfaceScores:
    return surface_scores(prediction, truth, SPACING_MM, tolerance_mm, DIAGONAL_MM)


def voxel(z: int, y: int, x: int) -> np.ndarray:
    mask = np.zeros((9, 8, 10), bool)
    mask[z, y, x] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int] = (20, 36, 28)) -> np.ndarray:
    """An ellipsoid with a rough surface."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    places = np.indices(shape, float)
    inside = sum(((p - (n - 1) / 2) / (0.36 * n)) ** 2 for p, n in zip(places, shape, strict=True))
    return inside + 0.2 * noise / noise.std() < 1


@pytest.mark.parametrize("value", [1, 2, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_a_mask_of_any_value_and_type_is_the_mask(value: int, kind: type) -> None:
    first, second = blob(1), np.roll(blob(1), 2, axis=1)
    wanted = scores(first, second)
    given = ((mask * value).astype(kind) for mask in (first, second))
    assert surface_scores(*given, list(SPACING_MM), 2.0, DIAGONAL_MM) == wanted  # type: ignore[arg-type]


def test_masks_are_volumes_of_one_shape() -> None:
    with pytest.raises(
        EvaluationError, match=r"\[D,H,W\] of one shape; they have \(9, 8, 10\) and \(8, 8, 10\)"
    ):
        scores(voxel(1, 1, 1), voxel(1, 1, 1)[1:])
    with pytest.raises(EvaluationError, match=r"they have \(8, 10\) and \(8, 10\)"):
        scores(voxel(1, 1, 1)[1], voxel(1, 1, 1)[1])


@pytest.mark.parametrize(("axis", "spacing"), [(0, 3.0), (1, 1.0), (2, 1.5)])
def test_two_voxels_three_apart(axis: int, spacing: float) -> None:
    """Eight equal elements at the corners of each: four lie 2 voxels from the other voxel's, four lie 3 from it."""
    first, second = [1, 1, 1], [1, 1, 1]
    second[axis] += 3
    found = scores(voxel(*second), voxel(*first), tolerance_mm=2 * spacing)
    assert found.nsd == pytest.approx(0.5)
    assert found.hd95_mm == pytest.approx(3 * spacing)
    assert found.assd_mm == pytest.approx(2.5 * spacing)
    assert scores(voxel(*second), voxel(*first), tolerance_mm=2 * spacing - 0.01).nsd == 0.0
    assert scores(voxel(*second), voxel(*first), tolerance_mm=3 * spacing).nsd == 1.0


def test_a_diagonal_distance() -> None:
    """Voxels 2 apart on all axes: nearest corners 1 voxel apart on each, farthest 2."""
    found = scores(voxel(3, 3, 3), voxel(1, 1, 1))
    assert found.hd95_mm == pytest.approx(math.sqrt(6**2 + 2**2 + 3**2))
    nearest = math.sqrt(3**2 + 1**2 + 1.5**2)
    assert surface_distances(voxel(3, 3, 3), voxel(1, 1, 1), SPACING_MM)["distances_gt_to_pred"][0] == nearest


def test_equal_masks_and_masks_at_the_border() -> None:
    whole = np.ones((3, 4, 5), bool)
    assert scores(whole, whole) == SurfaceScores(1.0, 0.0, 0.0)
    assert scores(blob(1), blob(1)) == SurfaceScores(1.0, 0.0, 0.0)


def test_a_slab_made_one_voxel_thicker() -> None:
    """A block of 6x6x6 whose prediction has one more plane on top along z: that face lies 3 mm off, the others 0."""
    truth = np.zeros((12, 10, 10), bool)
    truth[2:8, 2:8, 2:8] = True
    prediction = truth.copy()
    prediction[8, 2:8, 2:8] = True
    found = surface_distances(prediction, truth, SPACING_MM)
    assert found["distances_gt_to_pred"].max() == pytest.approx(3.0), "the middle of the covered face"
    assert found["distances_pred_to_gt"].max() == pytest.approx(3.0)
    assert scores(prediction, truth, tolerance_mm=3.0).nsd == 1.0
    assert 0.5 < scores(prediction, truth, tolerance_mm=1.0).nsd < 1.0


def test_the_area_of_a_block_is_about_its_faces() -> None:
    truth = np.zeros((14, 34, 34), bool)
    truth[2:12, 2:32, 2:32] = True
    areas = surface_distances(truth, truth, SPACING_MM)["surfel_areas_gt"]
    faces = 2 * (30 * 1.0 * 30 * 1.5 + 10 * 3.0 * 30 * 1.0 + 10 * 3.0 * 30 * 1.5)
    assert areas.sum() == pytest.approx(faces, rel=0.06), "edges are cut off, so a little less"
    assert areas.sum() < faces


def test_the_mean_distance_is_weighted_by_area() -> None:
    """One voxel, and the same with its neighbour along x: the far four corners lie 1.5 mm off, all others 0.

    At the eight corners of the first, and at the ends of the second, a surface element is a triangle between the
    middles of three edges; at the four corners between both voxels it is a rectangle along x.
    """
    z, y, x = SPACING_MM
    triangle = math.sqrt((z * y) ** 2 + (y * x) ** 2 + (x * z) ** 2) / 8
    rectangle = x * math.hypot(y / 2, z / 2)
    pair = voxel(1, 2, 3) | voxel(1, 2, 4)
    expected = 4 * triangle * x / (8 * triangle + 8 * triangle + 4 * rectangle)
    assert scores(pair, voxel(1, 2, 3)).assd_mm == pytest.approx(expected)
    assert scores(voxel(1, 2, 3), pair).assd_mm == pytest.approx(expected)
    assert expected < 0.7 * 4 * x / 20, "of the mean over elements"


def test_empty_masks() -> None:
    empty = np.zeros((9, 8, 10), bool)
    assert all(math.isnan(value) for value in vars(scores(empty, empty)).values())
    only_one = SurfaceScores(0.0, DIAGONAL_MM, DIAGONAL_MM)
    assert scores(voxel(1, 1, 1), empty) == scores(empty, voxel(1, 1, 1)) == only_one


def test_neighbour_codes_and_box() -> None:
    codes = neighbour_codes(voxel(1, 2, 3)[1:2, 2:3, 3:4])
    assert codes.ravel().tolist() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert union_box(voxel(1, 6, 3), voxel(4, 2, 9)) == (slice(1, 5), slice(2, 7), slice(3, 10))


@pytest.mark.parametrize("share", [0.002, 0.05])
def test_tree_and_transform_agree(share: float) -> None:
    rng = np.random.default_rng(1)
    marked = [surfaces._is_surface(neighbour_codes(rng.random((14, 22, 18)) < share)) for _ in range(2)]
    tree = surfaces._by_tree(marked[0], marked[1], SPACING_MM)
    transform = surfaces._by_transform(marked[0], marked[1], SPACING_MM)
    for one, other in zip(tree, transform, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), SPACING_MM])
def test_against_monai(spacing_mm: tuple[float, float, float]) -> None:
    """MONAI's NSD with sub-voxels is the same measure; its distances are those between the centres of edge voxels."""
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    prediction, truth = blob(1), blob(2)
    found = surface_scores(prediction, truth, spacing_mm, 2.0, DIAGONAL_MM)
    tensors = [torch.from_numpy(mask[None, None]) for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing_mm}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nsd = monai.compute_surface_dice(*tensors, [2.0], use_subvoxels=True, **options)
        hd95 = monai.compute_hausdorff_distance(*tensors, percentile=95, **options)
        assd = monai.compute_average_surface_distance(*tensors, symmetric=True, **options)
    assert found.nsd == pytest.approx(float(nsd), abs=1e-6)
    half_voxel = 0.5 * float(np.linalg.norm(spacing_mm))
    assert found.hd95_mm == pytest.approx(float(hd95), abs=half_voxel)
    assert found.assd_mm == pytest.approx(float(assd), abs=half_voxel / 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_against_the_librarys_own_distances() -> None:
    """Its distances need parts of scipy that newer releases lack; where they are there, all four arrays are equal."""
    if not hasattr(ndimage, "filters") or not hasattr(ndimage, "morphology"):
        pytest.skip("scipy has no ndimage.filters any more, which surface_distance calls")
    prediction, truth = blob(3), blob(4)
    theirs = surfaces.surface_distance.compute_surface_distances(truth, prediction, SPACING_MM)
    ours = surface_distances(prediction, truth, SPACING_MM)
    for name, values in theirs.items():
        np.testing.assert_allclose(np.sort(ours[name]), np.sort(values), rtol=1e-12, err_msg=name)


def test_a_wrong_order_of_the_axes_would_show() -> None:
    """A shift along z of 3 mm spacing is not the same as one along y of 1 mm."""
    along_z = scores(np.roll(blob(5), 1, axis=0), blob(5))
    along_y = scores(np.roll(blob(5), 1, axis=1), blob(5))
    assert along_z.assd_mm > 1.5 * along_y.assd_mm and along_y.nsd == 1.0 > along_z.nsd
