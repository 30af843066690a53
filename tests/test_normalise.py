"""Grey values: by hand and against numpy's own percentiles and moments in float64."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preprocessing import normalise as module
from preprocessing.errors import RawDataError
from preprocessing.normalise import Normalisation, normalise, spread_about

CT, MR, PET = (Normalisation.for_modality(modality) for modality in ("CT", "MR", "PET"))


def naive(array: np.ndarray, low: float, high: float) -> np.ndarray:
    clipped = np.clip(array.astype(np.float64), low, high)
    return (clipped - clipped.mean()) / clipped.std()


def test_ct_by_hand() -> None:
    # -2000 -> -990, 3000 -> 500; mean (-990 - 990 + 500 + 500 + 0) / 5 = -196
    values = np.array([-2000, -990, 500, 3000, 0], np.float32).reshape(1, 1, 5)
    clipped = np.array([-990, -990, 500, 500, 0])
    spread = np.sqrt(((clipped + 196.0) ** 2).sum() / 5)
    result = normalise(values, CT)
    assert result.dtype == np.float32 and result.shape == (1, 1, 5)
    assert result.ravel() == pytest.approx((clipped + 196) / spread, abs=1e-6)


def test_spread_is_numpys_in_double_precision_without_a_copy_of_the_volume() -> None:
    values = 1000 + np.random.default_rng(0).normal(0, 3, (60, 64, 64)).astype(np.float32)
    mean = float(values.mean(dtype=float))
    tracemalloc.start()
    spread = spread_about(values, mean)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spread == pytest.approx(float(values.std(dtype=float)), rel=1e-12)
    assert peak < values.nbytes / 4


def test_ct_over_the_body_by_hand() -> None:
    # The body: -100, 0, 100 HU with mean 0 and spread sqrt(20000 / 3); air is moved and scaled with it, not counted.
    # Just -500 HU is not above the limit.
    values = np.array([-1000, -990, -500, -100, 0, 100], np.float32).reshape(1, 2, 3)
    result = normalise(values, Normalisation.for_modality("CT", body=True)).ravel()
    assert result == pytest.approx(np.array([-990, -990, -500, -100, 0, 100]) / np.sqrt(20000 / 3), abs=1e-6)


def test_a_scan_without_body_is_scored_over_the_whole() -> None:
    values = np.array([-900, -800], np.float32).reshape(1, 1, 2)
    assert normalise(values, Normalisation.for_modality("CT", body=True)).ravel().tolist() == [-1, 1]


def test_only_ct_knows_a_body() -> None:
    assert (
        Normalisation.for_modality("MR", body=True) == MR
        and Normalisation.for_modality("PET", body=True) == PET
    )


def test_mr_by_hand() -> None:
    # 0..100: the 2nd percentile is 2, the 98th is 98; mean 50
    values = np.arange(101.0).reshape(1, 1, 101)
    clipped = np.clip(np.arange(101.0), 2, 98)
    result = normalise(values, MR).ravel()
    assert result == pytest.approx((clipped - 50) / clipped.std(), abs=1e-5)
    assert result[0] == result[2] < result[3] and result[97] < result[98] == result[100]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([CT, MR, PET]), st.sampled_from([1e-6, 1.0, 3e4]))
def test_any_volume_against_float64(seed: int, rule: Normalisation, scale: float) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.gamma(2.0, 300.0, (5, 6, 7)) - 700).astype(np.float32)
    if rule.clip is None:
        array *= np.float32(scale)
    low, high = rule.clip or np.percentile(array.astype(np.float64), rule.percentiles)
    before = array.copy()
    result = normalise(array, rule)
    assert np.allclose(result, naive(array, low, high), atol=1e-4)
    assert result.mean(dtype=float) == pytest.approx(0, abs=1e-4)
    assert result.std(dtype=float) == pytest.approx(1, abs=1e-4)
    assert np.array_equal(array, before), "the input was changed"


def test_no_range_is_a_plain_z_score_of_a_copy() -> None:
    array = np.array([1, 2, 3, 6], np.float32).reshape(1, 2, 2)
    result = normalise(array, Normalisation(modality="MR"))
    assert result.ravel() == pytest.approx((np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5), abs=1e-6)
    assert array.ravel().tolist() == [1, 2, 3, 6]


@pytest.mark.parametrize("value", [0.0, -1e-7, 0.1, 4096.0, -3e5])
@pytest.mark.parametrize("rule", [CT, MR, PET])
def test_a_constant_volume_becomes_zeros(value: float, rule: Normalisation) -> None:
    result = normalise(np.full((9, 9, 9), value), rule)
    assert result.dtype == np.float32 and result.shape == (9, 9, 9) and not result.any()


def test_rounding_of_a_constant_is_no_contrast() -> None:
    array = np.full((9, 9, 9), 1000, np.float32)
    array[4, 4, 4] = np.nextafter(np.float32(1000), np.float32(2000))
    for rule in (CT, MR, Normalisation(modality="PET")):
        assert not normalise(array, rule).any()


def test_all_air_becomes_zeros() -> None:
    assert not normalise(np.random.default_rng(0).uniform(-3000, -991, (4, 4, 4)), CT).any()


def test_a_small_object_on_an_empty_background_is_not_clipped_away() -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[4:6, 4:6, 4:6] = 300  # 0.8 % of the voxels: both percentiles are 0
    assert np.allclose(normalise(array, MR), naive(array, 0, 300), atol=1e-5)


@pytest.mark.parametrize(("mean", "spread"), [(1e6, 50), (-3e5, 100), (1e-3, 1e-4), (0, 1e-8), (0, 1e8)])
def test_contrast_far_from_zero_or_of_any_unit_is_kept(mean: float, spread: float) -> None:
    array = np.random.default_rng(2).normal(mean, spread, (7, 8, 9)).astype(np.float32)
    result = normalise(array, Normalisation(modality="MR"))
    assert np.allclose(result, naive(array, -np.inf, np.inf), atol=2e-3)


def test_hounsfield_units_are_absolute_and_those_of_mr_are_not() -> None:
    array = np.random.default_rng(3).normal(40, 300, (7, 8, 9)).astype(np.float32)
    beyond = np.where(array > 500, 9000, np.where(array < -990, -9000, array))
    assert np.array_equal(normalise(array, CT), normalise(beyond, CT))
    assert not np.allclose(normalise(array, CT), normalise(array + 200, CT), atol=0.05)
    assert np.allclose(normalise(array, MR), normalise(array * 3.5 + 1200, MR), atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    array = np.zeros((3, 3, 3))
    array[1, 2, 0] = value
    for rule in (CT, MR, PET):
        with pytest.raises(
            RawDataError, match=r"must be finite, but the image holds NaN or infinity: leave out"
        ):
            normalise(array, rule)


def test_the_papers_ranges_and_the_way_through_json() -> None:
    assert (CT.clip, CT.percentiles) == ((-990, 500), None)
    assert (MR.clip, MR.percentiles) == (PET.clip, PET.percentiles) == (None, (2, 98))
    assert [rule.modality for rule in (CT, MR, PET)] == ["CT", "MR", "PET"]
    for rule in (CT, MR, PET):
        assert Normalisation.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"modality": "CT", "clip": (500, -990)}, r"clip must be \(low, high\) with low < high"),
        ({"modality": "CT", "clip": (5, 5)}, r"clip must be \(low, high\) with low < high"),
        ({"modality": "MR", "percentiles": (98, 2)}, r"percentiles must be \(low, high\) with low < high"),
        (
            {"modality": "MR", "percentiles": (2, 101)},
            r"percentiles must lie in 0\.\.100, but \(2\.0, 101\.0\) came",
        ),
        ({"modality": "MR", "percentiles": (-1, 98)}, r"percentiles must lie in 0\.\.100"),
        (
            {"modality": "CT", "clip": (0, 1), "percentiles": (2, 98)},
            r"clip and percentiles exclude each other",
        ),
        ({"modality": "CT", "clip": (float("nan"), 1)}, r"clip must be"),
        ({"modality": "US"}, r"'CT', 'MR' or 'PET'"),
        ({"modality": "CT", "zscore": True}, r"Extra inputs are not permitted"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Normalisation.model_validate(wrong)


def test_a_rule_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CT.clip = (0.0, 1.0)  # type: ignore[misc]


def test_the_legend_of_the_module_is_true() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 2 and result.failed == 0
