"""Curves over grey values: by hand, smoothing by the naive mean, and what is written where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from preprocessing.case import preprocess_case
from preprocessing.normalise import Normalisation, normalise
from preprocessing.tones import Tones
from preprocessing.volume import Volume

STEEP = Tones(low=0.0, high=100.0, values=(-1.0, 3.0, 1.0), radius=0)
"""-1 at 0, 3 at 50, 1 at 100"""


def test_between_knots_lie_straight_lines_and_beyond_the_ends_nothing_changes() -> None:
    image = np.array([[[-50.0, 0.0, 25.0, 50.0, 75.0, 100.0, 400.0]]], np.float32)
    before = image.copy()
    toned = STEEP(image)
    assert toned.dtype == np.float32 and toned.tolist() == [[[-1.0, -1.0, 1.0, 3.0, 2.0, 1.0, 1.0]]]
    assert np.array_equal(image, before), "the image stays"


@pytest.mark.parametrize("radius", [1, 2])
def test_smoothing_is_the_mean_of_the_voxels_that_are_there(radius: int) -> None:
    image = np.random.default_rng(0).normal(0, 300, (4, 5, 7)).astype(np.float32)
    naive = np.empty_like(image)
    for place in np.ndindex(image.shape):
        cube = tuple(slice(max(0, at - radius), at + radius + 1) for at in place)
        naive[place] = image[cube].mean()
    smoothed = Tones(low=0.0, high=1.0, values=(0.0, 1.0), radius=radius).smoothed(image)
    assert np.allclose(smoothed, naive, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.0, "high": 1.0, "values": (1.0,)},
        {"low": 1.0, "high": 1.0, "values": (0.0, 1.0)},
        {"low": 0.0, "high": 1.0, "values": (0.0, 1.0), "radius": -1},
    ],
)
def test_what_is_no_curve_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="tones are two or more from low to high > low"):
        Tones.model_validate(wrong)


def test_ct_is_looked_up_in_hu_and_mr_in_standard_deviations() -> None:
    array = np.random.default_rng(1).normal(0, 80, (6, 6, 6)).astype(np.float32)
    array[0, 0, 0] = 5000.0
    ct = Normalisation.for_modality("CT", body=True).model_copy(update={"tones": STEEP})
    assert np.array_equal(normalise(array, ct), array.clip(-990, 500)), "clipped and not z-scored"
    plain = Normalisation.for_modality("MR")
    mr = plain.model_copy(update={"tones": STEEP})
    assert np.array_equal(normalise(array, mr), normalise(array, plain))
    for normalisation in (ct, mr):
        prepared = preprocess_case(Volume(array, np.eye(4)), (1.0, 1.0, 1.0), normalisation).image
        assert np.allclose(prepared, STEEP(normalise(array, normalisation)), atol=1e-4)


def test_noise_is_averaged_on_the_prepared_grid() -> None:
    """At half the resolution a cube of 3 voxels is one of 6 in the file."""
    array = np.random.default_rng(2).normal(40, 15, (24, 24, 24)).astype(np.float32)
    tones = Tones(low=-990.0, high=500.0, values=(-990.0, 500.0), radius=1)
    normalisation = Normalisation(modality="CT", clip=(-990.0, 500.0), tones=tones)
    fine = preprocess_case(Volume(array, np.eye(4)), (1.0, 1.0, 1.0), normalisation).image
    coarse = preprocess_case(Volume(array, np.eye(4)), (2.0, 2.0, 2.0), normalisation).image
    assert coarse.shape == (12, 12, 12) and coarse.std() < 0.6 * fine.std() < 0.6 * 15 / 4


def test_without_tones_nothing_is_said_of_them() -> None:
    """Digests of plans and tasks from before there were any stay what they were."""
    plain = Normalisation.for_modality("CT", body=True)
    said = '{"modality":"CT","clip":[-990.0,500.0],"percentiles":null,"body_above":-500.0}'
    assert plain.model_dump_json() == said and "tones" not in str(plain) + repr(plain)
    toned = plain.model_copy(update={"tones": STEEP})
    assert "tones=Tones(" in str(toned)
    assert Normalisation.model_validate_json(toned.model_dump_json()) == toned


def test_tones_are_averaged_at_last_and_a_flat_scan_stays_flat() -> None:
    image = np.random.default_rng(0).uniform(0, 100, (7, 8, 9)).astype(np.float32)
    soft = STEEP.model_copy(update={"blur": 1.5})
    expected = ndimage.gaussian_filter(STEEP(image), 1.5, mode="nearest")
    assert np.array_equal(soft(image), expected) and soft(image).std() < STEEP(image).std() / 2
    assert np.allclose(soft(np.full((5, 5, 5), 50.0)), 3.0)
    with pytest.raises(
        ValidationError, match=r"radius and blur are 0 or more, but 2 from 0 to 1 came, and 1 and -1"
    ):
        Tones(low=0.0, high=1.0, values=(0.0, 1.0), blur=-1.0)
    assert Tones.model_validate({"low": 0.0, "high": 1.0, "values": [0.0, 1.0]}).blur == 0, (
        "as tasks of before say"
    )


def test_tones_are_told_with_their_blur() -> None:
    assert STEEP.told == "tones of its own"
    assert STEEP.model_copy(update={"blur": 3.0}).told == "tones of its own, blurred by 3 voxels"
