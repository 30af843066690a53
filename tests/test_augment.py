"""Augmentation: every parameter against a formula or a hand-made volume. Arrays are [D,H,W] = (z,y,x)."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from iris_pipeline.sampling.augment import (
    IDENTITY,
    QUERY_RANGES,
    REFERENCE_RANGES,
    Augmentation,
    AugmentationRanges,
    apply_intensity,
    draw_augmentation,
    sample_patch,
    source_box,
)

PATCH = (16, 16, 16)


def noise_volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_voxel(shape: tuple[int, int, int], position: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(shape, dtype=np.uint8)
    array[position] = 3
    return array


def draws(ranges: AugmentationRanges, count: int, seed: int = 0) -> list[Augmentation]:
    rng = np.random.default_rng(seed)
    return [draw_augmentation(rng, PATCH, ranges) for _ in range(count)]


# --- drawing --------------------------------------------------------------------------------------


def test_the_reference_ranges_are_the_papers() -> None:
    r = REFERENCE_RANGES
    assert (r.scale, r.rotation_degrees, r.brightness) == ((0.9, 1.1), 10.0, (0.9, 1.1))
    assert (r.brightness_shift_sd, r.gamma, r.contrast) == (0.1, (0.8, 1.2), (0.8, 1.2))
    assert (r.blur_sigma, r.noise_sigma) == ((0.7, 1.3), 0.02)


@pytest.mark.parametrize("ranges", [REFERENCE_RANGES, QUERY_RANGES])
def test_draws_fill_their_ranges_and_never_leave_them(ranges: AugmentationRanges) -> None:
    drawn = draws(ranges, 3000)
    spatial = [d for d in drawn if d.is_spatial]
    assert len(spatial) / 3000 == pytest.approx(ranges.p_spatial, abs=0.03)
    limit = np.deg2rad(ranges.rotation_degrees)
    for name, low, high in [
        ("rotation", -limit, limit),
        ("scale", *ranges.scale),
        ("translation", -16 * ranges.translation, 16 * ranges.translation),
    ]:
        values = np.array([getattr(d, name) for d in spatial])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.08, "axes must be drawn independently"
    for name, probability, low, high in [
        ("brightness", ranges.p_brightness, *ranges.brightness),
        ("gamma", ranges.p_gamma, *ranges.gamma),
        ("contrast", ranges.p_contrast, *ranges.contrast),
        ("blur_sigma", ranges.p_blur, *ranges.blur_sigma),
        ("noise_sigma", ranges.p_noise, 0.0, ranges.noise_sigma),
    ]:
        off = getattr(IDENTITY, name)
        values = np.array([getattr(d, name) for d in drawn if getattr(d, name) != off])
        assert len(values) / 3000 == pytest.approx(probability, abs=0.03), name
        assert low <= values.min() < low + 0.05 * (high - low), name
        assert high - 0.05 * (high - low) < values.max() <= high, name
    shifts = np.array([d.brightness_shift for d in drawn if d.brightness_shift != 0.0])
    assert shifts.std() == pytest.approx(ranges.brightness_shift_sd, rel=0.1)
    assert len({d.noise_seed for d in drawn}) == 3000


def test_a_shift_is_a_share_of_its_own_axis() -> None:
    ranges = AugmentationRanges(translation=0.1, p_spatial=1.0)
    rng = np.random.default_rng(0)
    drawn = np.abs([draw_augmentation(rng, (16, 32, 64), ranges).translation for _ in range(500)])
    most = np.array([1.6, 3.2, 6.4])
    assert (drawn.max(0) <= most).all() and (drawn.max(0) > 0.97 * most).all()


def test_the_query_is_perturbed_further_than_the_reference() -> None:
    for name in ("scale", "brightness", "gamma", "contrast"):
        (low, high), (query_low, query_high) = getattr(REFERENCE_RANGES, name), getattr(QUERY_RANGES, name)
        assert query_low <= low and query_high > high, name
    for name in ("rotation_degrees", "translation", "brightness_shift_sd", "noise_sigma"):
        assert getattr(QUERY_RANGES, name) > getattr(REFERENCE_RANGES, name), name


def test_nothing_is_mirrored() -> None:
    assert all(np.linalg.det(d.matrix()) > 0 for d in draws(QUERY_RANGES, 200))


def augmented(params: Augmentation, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Augment a volume about its own centre: image [1,D,H,W] float32, labels [D,H,W] uint8; shapes stay."""
    depth, height, width = labels.shape
    moved, mask = sample_patch(
        params, image[0].numpy(), labels.numpy(), (0, 0, 0), (depth, height, width), float(image.min())
    )
    return apply_intensity(params, moved), mask


def test_the_same_generator_state_gives_the_same_values_whatever_the_global_state() -> None:
    params = draws(AugmentationRanges(p_noise=1.0, p_blur=1.0, p_gamma=1.0), 1, seed=7)[0]
    image, labels = torch.from_numpy(noise_volume(PATCH))[None], torch.zeros(PATCH, dtype=torch.uint8)
    torch.manual_seed(1)
    np.random.seed(1)
    first = augmented(params, image, labels)[0]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    torch.manual_seed(2)
    np.random.seed(2)
    again = draws(AugmentationRanges(p_noise=1.0, p_blur=1.0, p_gamma=1.0), 1, seed=7)[0]
    assert again == params
    assert torch.equal(augmented(again, image, labels)[0], first)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(torch.get_rng_state(), before[0]), "the global generator of torch was used"
    assert np.array_equal(np.random.get_state()[1], before[1]), "the global generator of numpy was used"  # type: ignore[index]


# --- space ----------------------------------------------------------------------------------------


def test_the_identity_changes_nothing() -> None:
    image = torch.from_numpy(noise_volume((16, 18, 20)))[None]
    labels = torch.from_numpy(one_voxel((16, 18, 20), (3, 4, 5)))
    out, mask = augmented(IDENTITY, image, labels)
    assert torch.equal(out, image) and torch.equal(mask, labels)
    assert out.data_ptr() != image.data_ptr()


def test_a_crop_with_a_negative_start_is_padded_with_the_fill_value_and_zero_labels() -> None:
    image = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    labels = np.ones((3, 3, 3), dtype=np.uint8)
    out, mask = sample_patch(IDENTITY, image, labels, (-1, 0, 1), (4, 3, 4), fill=-5.0)
    expected = np.full((4, 3, 4), -5.0, dtype=np.float32)
    expected[1:4, :, :2] = image[:, :, 1:]
    assert np.array_equal(out[0].numpy(), expected)
    assert np.array_equal(mask.numpy(), (expected > -5).astype(np.uint8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_translation_by_one_voxel_reads_the_next_voxel(axis: int) -> None:
    image = noise_volume((16, 18, 20))
    labels = (image > 1).astype(np.uint8) * 7
    shift = [0.0, 0.0, 0.0]
    shift[axis] = 1.0
    params = Augmentation(translation=tuple(shift))  # type: ignore[arg-type]
    out, mask = sample_patch(params, image, labels, (0, 0, 0), (16, 18, 20), fill=-9.0)
    expected = np.roll(image, -1, axis)
    index: list[object] = [slice(None)] * 3
    index[axis] = -1
    expected[tuple(index)] = -9.0  # type: ignore[index]
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(mask.numpy(), np.where(expected > 1, 7, 0))


@pytest.mark.parametrize(
    ("axis", "source", "target"),
    [(0, (8, 8, 12), (8, 12, 8)), (1, (12, 8, 8), (8, 8, 12)), (2, (8, 12, 8), (12, 8, 8))],
)
def test_a_quarter_turn_moves_a_known_voxel_to_a_known_place(
    axis: int, source: tuple[int, int, int], target: tuple[int, int, int]
) -> None:
    # Odd size: the centre is voxel 8. A turn about axis a takes the next axis (cyclic) onto the one after it.
    angles = [0.0, 0.0, 0.0]
    angles[axis] = np.pi / 2
    labels = one_voxel((17, 17, 17), source)
    params = Augmentation(rotation=tuple(angles))  # type: ignore[arg-type]
    image, mask = sample_patch(params, labels.astype(np.float32), labels, (0, 0, 0), (17, 17, 17), 0.0)
    assert [tuple(p) for p in torch.nonzero(mask).tolist()] == [target]
    assert image[0][target].item() == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_the_scale_is_a_magnification(factor: float) -> None:
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[10:30, 10:30, 10:30] = 1
    params = Augmentation(scale=(factor, 1.0, 1.0))
    _, mask = sample_patch(params, labels.astype(np.float32), labels, (0, 0, 0), (40, 40, 40), 0.0)
    assert int(mask.sum()) == round(20 * factor) * 20 * 20
    assert int(mask[:, 20, 20].sum()) == round(20 * factor)


def test_sampling_agrees_with_scipy_and_image_and_labels_stay_together() -> None:
    params = draws(AugmentationRanges(p_spatial=1.0), 1, seed=3)[0]
    volume = ndimage.gaussian_filter(noise_volume((34, 36, 38)), 2.0)
    labels = (volume > 0.02).astype(np.uint8)
    start, patch = (7, 9, 11), (16, 18, 20)
    out, mask = sample_patch(params, volume, labels, start, patch, fill=0.0)
    centre = np.array(start) + (np.array(patch) - 1) / 2 + params.translation
    offset = centre - params.matrix() @ ((np.array(patch) - 1) / 2)
    reference = ndimage.affine_transform(volume, params.matrix(), offset, patch, order=1)
    nearest = ndimage.affine_transform(labels, params.matrix(), offset, patch, order=0)
    np.testing.assert_allclose(out[0].numpy(), reference, atol=1e-4)
    assert (mask.numpy() != nearest).mean() < 1e-3  # float32 against float64 on exact halves only
    assert ((out[0].numpy() > 0.02) == (mask.numpy() > 0)).mean() > 0.95


@pytest.mark.parametrize("seed", range(6))
def test_reading_only_the_source_box_gives_the_same_patch_as_the_whole_volume(seed: int) -> None:
    params = draws(dataclasses.replace(QUERY_RANGES, p_spatial=1.0), 1, seed)[0]
    volume = noise_volume((40, 30, 50), seed)
    labels = (volume > 1).astype(np.uint8)
    start = [(0, 0, 0), (24, 14, 34), (10, 7, 20), (5, -4, 3), (12, 7, 17), (20, 0, 0)][seed]
    box, outside = source_box(params, start, PATCH, volume.shape)
    part = tuple(slice(a, b) for a, b in box)
    inner = tuple(s - a for s, (a, _) in zip(start, box, strict=True))
    whole = sample_patch(params, volume, labels, start, PATCH, fill=-3.0)
    cut = sample_patch(params, volume[part], labels[part], inner, PATCH, fill=-3.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(cut[0].numpy(), whole[0].numpy(), atol=2e-4)
    assert (cut[1] != whole[1]).float().mean() < 1e-3
    assert outside or not (whole[0] == -3.0).any(), "padding was used where none was announced"
    assert volume[part].size < volume.size


def test_rotated_corners_hold_real_voxels_where_the_volume_has_them() -> None:
    params = Augmentation(rotation=(0.17, 0.17, 0.17))
    volume = np.ones((48, 48, 48), dtype=np.float32)
    box, outside = source_box(params, (16, 16, 16), PATCH, volume.shape)
    assert not outside and all(b - a > 16 for a, b in box)
    part = volume[tuple(slice(a, b) for a, b in box)]
    inner = tuple(16 - a for a, _ in box)
    image, _ = sample_patch(params, part, part.astype(np.uint8), inner, PATCH, fill=-100.0)  # type: ignore[arg-type]
    assert image.min() == pytest.approx(1.0, abs=1e-4)


def test_the_source_box_of_the_identity_is_the_patch_clipped_to_the_volume() -> None:
    assert source_box(IDENTITY, (3, 4, 5), PATCH, (40, 40, 40)) == (((3, 19), (4, 20), (5, 21)), False)
    assert source_box(IDENTITY, (-3, 30, 5), PATCH, (40, 40, 40)) == (((0, 13), (30, 40), (5, 21)), True)


# --- intensities ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "shift"), [(1.1, -0.2), (0.9, 0.2), (0.9, 0.0), (1.0, -0.1)])
def test_brightness_multiplies_then_adds(factor: float, shift: float) -> None:
    image = torch.from_numpy(noise_volume(PATCH))[None]
    out = apply_intensity(Augmentation(brightness=factor, brightness_shift=shift), image)
    torch.testing.assert_close(out, image * factor + shift)


@pytest.mark.parametrize("gamma", [0.8, 1.2])
def test_gamma_follows_its_formula_and_keeps_mean_and_deviation(gamma: float) -> None:
    image = torch.from_numpy(noise_volume(PATCH))[None]
    out = apply_intensity(Augmentation(gamma=gamma), image)
    low, high = image.min(), image.max()
    raised = ((image - low) / (high - low)) ** gamma * (high - low) + low
    expected = (raised - raised.mean()) / raised.std() * image.std() + image.mean()
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert (out - image).abs().max() > 0.1


@pytest.mark.parametrize("contrast", [0.8, 1.2])
def test_contrast_stretches_about_the_mean_within_the_old_range(contrast: float) -> None:
    image = torch.from_numpy(noise_volume(PATCH))[None]
    out = apply_intensity(Augmentation(contrast=contrast), image)
    expected = ((image - image.mean()) * contrast + image.mean()).clamp(image.min(), image.max())
    torch.testing.assert_close(out, expected)


def test_blur_is_a_gaussian_and_keeps_constants() -> None:
    constant = torch.full((1, *PATCH), 2.5)
    torch.testing.assert_close(apply_intensity(Augmentation(blur_sigma=1.3), constant), constant)
    image = torch.zeros(1, 24, 26, 28)
    image[0, 12, 13, 14] = 1.0
    out = apply_intensity(Augmentation(blur_sigma=1.2), image)[0].numpy()
    np.testing.assert_allclose(out, ndimage.gaussian_filter(image[0].numpy(), 1.2, truncate=8), atol=1e-6)


def test_noise_has_the_drawn_deviation_and_its_own_seed() -> None:
    image = torch.zeros(1, 32, 32, 32)
    first = apply_intensity(Augmentation(noise_sigma=0.02, noise_seed=1), image)
    assert first.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(first, apply_intensity(Augmentation(noise_sigma=0.02, noise_seed=1), image))
    assert not torch.equal(first, apply_intensity(Augmentation(noise_sigma=0.02, noise_seed=2), image))


def test_one_step_follows_the_other_in_the_order_of_the_legend() -> None:
    steps = (
        {"brightness": 1.2, "brightness_shift": 0.3},
        {"gamma": 0.7},
        {"contrast": 1.3},
        {"blur_sigma": 0.8},
        {"noise_sigma": 0.1, "noise_seed": 5},
    )
    image = torch.from_numpy(noise_volume(PATCH))[None]
    together = apply_intensity(Augmentation(**{name: v for step in steps for name, v in step.items()}), image)
    for step in steps:
        image = apply_intensity(Augmentation(**step), image)
    torch.testing.assert_close(together, image)


def test_the_input_image_is_left_alone() -> None:
    image = torch.from_numpy(noise_volume(PATCH))[None]
    before = image.clone()
    apply_intensity(Augmentation(brightness=1.1, gamma=0.8, contrast=1.2, blur_sigma=1.0), image)
    assert torch.equal(image, before)
