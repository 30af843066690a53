"""Sliding windows: against the answer for the whole volume, and against the naive weighted mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stub_model import GreyModel, make_task
from torch import Tensor

from iris_pipeline.inference.sliding_window import axis_weights, segment_volume, window_starts
from preprocessing.errors import ModelError

FLOAT16 = 6e-4  # what rounding to float16 may change in a probability


class PlaceModel(GreyModel):
    """Probabilities that depend on the place in the window too, so that every weight counts."""

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        d, h, w = image.shape[2:]
        place = torch.linspace(-2, 2, d)[:, None, None] + torch.linspace(0, 3, h)[:, None] * torch.ones(w)
        place[:, :, w // 2 :] -= 1.5
        return image * tokens[0][..., 0, 0][:, :, None, None, None] + place


def naive(
    model: GreyModel, image: np.ndarray, means: list[float], window: tuple[int, ...], sigma: float | None
):
    """sum_w g_w p_w / sum_w g_w with a full 3D weight, float64, window by window."""
    starts = [window_starts(n, w, 0.5) for n, w in zip(image.shape, window, strict=True)]
    grid = np.stack(np.meshgrid(*(np.arange(w) - (w - 1) / 2 for w in window), indexing="ij"))
    scaled = grid / (np.array(window)[:, None, None, None] * (sigma or 1))
    weight = np.exp(-0.5 * (scaled**2).sum(0)) if sigma else np.ones(window)
    top, bottom = np.zeros((len(means), *image.shape)), np.zeros(image.shape)
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                box = np.s_[z : z + window[0], y : y + window[1], x : x + window[2]]
                tokens = (torch.tensor(means, dtype=torch.float64).reshape(1, -1, 1, 1),)
                logits = model.segment(torch.from_numpy(image[box].astype(np.float64))[None, None], tokens)
                top[(slice(None), *box)] += weight * torch.sigmoid(logits)[0].numpy()
                bottom[box] += weight
    return top / bottom


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (9, 4, 0.5, [0, 2, 3, 5]),  # 5 voxels left after the first window, steps of at most 2: three more
        (9, 4, 0.0, [0, 2, 5]),
        (8, 4, 0.0, [0, 4]),
        (8, 4, 0.75, [0, 1, 2, 3, 4]),
        (5, 4, 0.5, [0, 1]),
        (4, 4, 0.5, [0]),
        (3, 4, 0.5, [0]),
    ],
)
def test_window_starts_by_hand(length: int, window: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(length, window, overlap) == expected


def test_windows_cover_everything_and_overlap_enough() -> None:
    for length in range(1, 70):
        for window, overlap in [(16, 0.5), (16, 0.0), (7, 0.3), (16, 0.9)]:
            starts = window_starts(length, window, overlap)
            assert starts[0] == 0 and starts[-1] == max(0, length - window)
            steps = np.diff(starts)
            assert (steps <= math.ceil(max(1, window * (1 - overlap)))).all() and (steps >= 1).all()


def test_axis_weights_are_the_gaussian_over_its_sum() -> None:
    starts = [0, 2, 4]
    weights = axis_weights(8, 4, starts, "gaussian")
    profile = [math.exp(-0.5 * ((i - 1.5) / 0.5) ** 2) for i in range(4)]
    # voxel 3: last voxel of the first window, second of the second
    assert weights[0, 3] == pytest.approx(profile[3] / (profile[3] + profile[1]), rel=1e-6)
    assert weights[1, 1] == pytest.approx(profile[1] / (profile[3] + profile[1]), rel=1e-6)
    assert weights[0, :2] == pytest.approx([1, 1])
    total = np.zeros(8)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + 4] += row
    assert total == pytest.approx(np.ones(8), abs=1e-6)
    assert axis_weights(8, 4, starts, "uniform")[:, :2].tolist() == [[1, 1], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("shape", [(40, 19, 33), (16, 16, 16), (16, 50, 17)])
@pytest.mark.parametrize("weighting", ["gaussian", "uniform"])
def test_a_voxelwise_model_gives_the_answer_for_the_whole_volume(
    shape: tuple[int, ...], weighting: str
) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    means = [-1.0, 0.5]
    result = segment_volume(GreyModel(), image, make_task(means), weighting=weighting)  # type: ignore[arg-type]
    expected = 1 / (1 + np.exp(-40 * (0.5 - np.abs(image[None] - np.array(means)[:, None, None, None]))))
    assert result.shape == (2, *shape) and result.dtype == np.float16
    assert np.abs(result - expected).max() < FLOAT16


@pytest.mark.parametrize(("weighting", "sigma"), [("gaussian", 1 / 8), ("uniform", None)])
def test_overlaps_are_the_naive_weighted_mean(weighting: str, sigma: float | None) -> None:
    image = np.random.default_rng(1).normal(size=(37, 16, 29)).astype(np.float32)
    task = make_task([0.7, -1.2], patch_size=(16, 16, 16))
    expected = naive(PlaceModel(), image, [0.7, -1.2], (16, 16, 16), sigma)
    for batch_size in (1, 2, 3):  # of three windows a plane two leave one over
        result = segment_volume(PlaceModel(), image, task, weighting=weighting, batch_size=batch_size)  # type: ignore[arg-type]
        assert np.abs(result - expected).max() < FLOAT16
    other = naive(PlaceModel(), image, [0.7, -1.2], (16, 16, 16), None if sigma else 1 / 8)
    assert np.abs(other - expected).max() > 0.05, "the test cannot tell the two weightings apart"


def test_an_anisotropic_window_is_z_y_x() -> None:
    image = np.random.default_rng(2).normal(size=(20, 40, 50)).astype(np.float32)
    model = GreyModel()
    segment_volume(model, image, make_task([0.0], patch_size=(16, 32, 48)))
    assert {tuple(i.shape) for i in model.images} == {(1, 1, 16, 32, 48)}
    assert len(model.images) == 2 * 2 * 2


def test_a_small_volume_is_padded_with_its_minimum_and_cropped_back() -> None:
    image = np.random.default_rng(3).uniform(5, 6, size=(7, 20, 10)).astype(np.float32)
    model = GreyModel()
    result = segment_volume(model, image, make_task([5.2]))
    assert result.shape == (1, 7, 20, 10)
    seen = model.images[0][0, 0].numpy()
    assert seen.shape == (16, 16, 16)
    assert np.array_equal(seen[5:12, :, 3:13], image[:, :16])  # 9 and 6 voxels are missing: 5 and 3 before
    outside = np.ones(seen.shape, bool)
    outside[5:12, :, 3:13] = False
    assert (seen[outside] == image.min()).all()
    expected = 1 / (1 + np.exp(-40 * (0.5 - np.abs(image - 5.2))))
    assert np.abs(result[0] - expected).max() < FLOAT16


def test_no_overlap_uses_each_window_once() -> None:
    image = np.random.default_rng(4).normal(size=(32, 16, 48)).astype(np.float32)
    model = PlaceModel()
    result = segment_volume(model, image, make_task([1.0]), overlap=0.0)
    tokens = (torch.ones(1, 1, 1, 1),)
    for z in (0, 16):
        for x in (0, 16, 32):
            piece = torch.from_numpy(image[z : z + 16, :, x : x + 16])[None, None]
            expected = torch.sigmoid(model.segment(piece, tokens))[0, 0].numpy()
            assert np.abs(result[0, z : z + 16, :, x : x + 16] - expected).max() < FLOAT16


def test_precision_is_float32_unless_asked() -> None:
    seen = []

    class Probe(GreyModel):
        def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), image.dtype))
            return super().segment(image, tokens)

    image = np.zeros((16, 16, 16))
    for autocast in (False, True):
        segment_volume(Probe(), image, make_task([0.0]), autocast=autocast)
    assert seen == [(False, True, torch.float32), (True, True, torch.float32)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"overlap": 1.0}, "overlap of windows must be 0 or more and under 1 .*; got 1.0"),
        ({"overlap": -0.1}, "got -0.1"),
        ({"weighting": "square"}, "must be gaussian or uniform; got 'square'"),
        ({"batch_size": 0}, "must be 1 or more; got 0"),
    ],
)
def test_options_that_cannot_be(changes: dict, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        segment_volume(GreyModel(), np.zeros((16, 16, 16)), make_task([0.0]), **changes)


def test_a_volume_without_voxels_is_refused() -> None:
    with pytest.raises(ModelError, match=r"must be \[D,H,W\] .*; got shape \[4, 0, 4\]"):
        segment_volume(GreyModel(), np.zeros((4, 0, 4)), make_task([0.0]))
