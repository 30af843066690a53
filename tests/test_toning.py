"""Tones from references: the curve by hand, and a class that lies between darker and brighter things."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from stub_model import loaded_with
from test_showing import KnowsOneSize, plan_at

from iris_pipeline.inference.strategies import PreparedReference
from iris_pipeline.search.showing import SearchSettings, Showing, _settled, settle_showing
from iris_pipeline.search.toning import curve_of, toned_plan
from iris_pipeline.tasks.grey_ratios import log_ratio
from iris_pipeline.tasks.tone_curves import BLURS, DEPTH, KNOTS, curve_between, told_apart
from preprocessing.errors import PredictionError
from preprocessing.normalise import Normalisation
from preprocessing.orientation import UPRIGHT
from preprocessing.plan import Plan

LOW, HIGH = 0.0, 256.0  # bins of 1, their middles at 0.5, 1.5, ...
GREY = {"air": 10, "fat": 80, "tumour": 120, "muscle": 140, "bone": 250}


def scan(name: str = "a", tumour: int = 120) -> PreparedReference:
    """A block of muscle in air, with fat, bone and a tumour in it."""
    image = np.full((24, 24, 24), GREY["air"], np.float32)
    image[2:22, 2:22, 2:22] = GREY["muscle"]
    image[2:6, 2:22, 2:22] = GREY["fat"]
    image[10:14, 16:20, 4:20] = GREY["bone"]
    labels = np.zeros(image.shape, np.uint8)
    labels[10:18, 6:14, 6:14] = 1
    image[labels == 1] = tumour
    image += np.random.default_rng(len(name)).normal(0, 2, image.shape).astype(np.float32)
    return PreparedReference(name, image, labels, {"tumour": 1}, name)


def test_the_curve_is_the_log_ratio_with_a_floor_scaled_to_the_references() -> None:
    reference = scan()
    curve = curve_of([reference], LOW, HIGH)
    assert curve is not None and (curve.low, curve.high, len(curve.values)) == (0.5, 255.5, KNOTS)
    inside = np.histogram(reference.image[reference.labels == 1], 256, (0, 256))[0]
    outside = np.histogram(reference.image[reference.labels == 0], 256, (0, 256))[0]
    ratios = log_ratio(inside, outside)
    ratios = np.maximum(ratios, ratios.max() - DEPTH)
    slope, shift = np.polyfit(ratios, curve.values, 1)
    assert slope > 0 and np.allclose(slope * ratios + shift, curve.values, atol=1e-3), "but for its scale"
    exact = curve.model_copy(update={"radius": 0})(reference.image)
    assert abs(exact.mean()) < 0.05 and exact.std() == pytest.approx(1.0, abs=0.05)
    bone, muscle = exact[12, 18, 12], exact[15, 17, 2]
    assert exact[13, 9, 9] > 2 > 0 > muscle and bone == pytest.approx(muscle, abs=0.05), (
        "bone was the brightest"
    )


def test_told_apart_is_the_dice_of_the_best_threshold() -> None:
    image, inside = np.array([[[0.0, 1.0, 2.0, 3.0]]]), np.array([[[False, True, False, True]]])
    # Above 2.5: 2 * 1 / (1 + 2); above 1.5: 2 * 1 / (2 + 2); above 0.5: 2 * 2 / (3 + 2).
    assert told_apart([(image, inside)]) == pytest.approx(0.8)
    assert told_apart([(image, image > 1)]) == 1.0
    # One threshold for both scans, the mean of what it reaches in each: 0.5 has 0.8 and 0.8, 1.5 has 0.5 and 1.
    assert told_apart([(image, inside), (image, image > 1)]) == pytest.approx(0.8)
    assert told_apart([(np.zeros((1, 1, 4)), inside)]) == 0.0


def test_tones_are_blurred_where_only_many_voxels_tell_the_class() -> None:
    rng, grid = np.random.default_rng(0), np.indices((24, 24, 24))
    block = (np.abs(grid - 11.5) < 6).all(0)
    sheet = grid[0] == 12
    for mask, noise, blurs in (
        (block, 3.0, (2.0, 3.0, 4.0)),
        (block, 0.1, (0.0, 1.0)),
        (sheet, 0.4, (0.0, 1.0)),
    ):
        image = (mask + rng.normal(0, noise, mask.shape)).astype(np.float32)
        curve = curve_between([(image, mask)], float(image.min()), float(image.max()))
        assert curve is not None and curve.blur in blurs and curve.blur in BLURS
        shown = curve.model_copy(update={"radius": 0})(image)
        assert shown.mean() == pytest.approx(0, abs=0.01) and shown.std() == pytest.approx(1, abs=0.01)
        assert shown[mask].mean() > 1 > 0 > shown[~mask].mean()


def test_references_count_alike_whatever_their_size() -> None:
    """Of a large and a small reference whose tumours differ both tones are as bright."""
    small, large = scan("a", 100), scan("b", 200)
    large = PreparedReference(
        "b", np.tile(large.image, (2, 2, 2)), np.tile(large.labels, (2, 2, 2)), {"t": 1}, "b"
    )
    curve = curve_of([small, large], LOW, HIGH)
    assert curve is not None
    assert curve.values[100] == pytest.approx(curve.values[200], abs=0.1) and curve.values[150] < 0


@pytest.mark.parametrize("value", [0, 1])
def test_nothing_or_nothing_else_gives_no_curve(value: int) -> None:
    image = np.zeros((4, 4, 4), np.float32)
    assert (
        curve_of([PreparedReference("a", image, np.full(image.shape, value, np.uint8), {"x": 1})], 0, 1)
        is None
    )
    assert curve_of([], 0, 1) is None


def test_a_plan_gets_the_curve_of_its_references_as_they_are_on_its_grid() -> None:
    plan = plan_at(1.0).model_copy(
        update={"modality": "CT", "normalisation": Normalisation(modality="CT", clip=(0.0, 256.0))}
    )
    asked: list[Plan] = []

    def prepare_at(at: Plan) -> Callable[[str], PreparedReference]:
        asked.append(at)
        return scan

    toned = toned_plan(plan, ["a", "b"], prepare_at)
    assert toned.normalisation.tones == curve_of([scan("a"), scan("b")], 0.0, 256.0)
    assert toned.model_copy(update={"normalisation": plan.normalisation}) == plan, "all else stays"
    (measured,) = asked
    assert measured.normalisation.tones is not None
    assert measured.normalisation.tones.values == (0.0, 256.0), "measured in their own grey values, smoothed"
    empty = PreparedReference("a", scan().image, np.zeros((24, 24, 24), np.uint8), {"tumour": 1})
    assert toned_plan(plan, ["a"], lambda _: lambda _: empty) is plan


@pytest.mark.parametrize(
    ("tones", "plain", "toned", "found"),
    [
        ("auto", 0.59, 0.1, ("RAS", 1.0, False)),  # read well enough
        ("auto", 0.8, 0.69, ("RAS", 1.0, False)),  # not better by 0.15
        ("auto", 0.8, 0.67, ("LIP", 1.6, True)),
        ("always", 0.1, 0.9, ("LIP", 1.6, True)),
        ("never", 0.9, 0.1, ("RAS", 1.0, False)),
    ],
)
def test_other_tones_are_for_references_that_are_read_badly(
    tones: str, plain: float, toned: float, found: tuple[str, float, bool]
) -> None:
    assert (SearchSettings.badly, SearchSettings.tones_gain) == (0.6, 0.15)
    own, other = (lambda at: plan_at(at)), (lambda at: plan_at(2 * at))

    def search(plan_of: Callable[[float], Plan]) -> tuple[str, float, float]:
        if plan_of is own:
            return "RAS", 1.0, plain
        if tones == "never" or (tones == "auto" and plain < 0.6):
            pytest.fail("the second search takes a minute, and nobody needs it")
        return "LIP", 1.6, toned

    assert _settled(search, own, other, tones) == found


@pytest.mark.parametrize(("tones", "toned"), [("always", True), ("auto", False), ("never", False)])
def test_what_is_wanted_is_done_and_kept(tones: str, toned: bool) -> None:
    def prepare_at(plan: Plan) -> Callable[[str], PreparedReference]:
        return scan

    def settle() -> Plan:
        return settle_showing(
            loaded_with(KnowsOneSize(9.0)),
            plan_at,
            Showing(UPRIGHT, 1.0, tones=tones),
            ["a", "b"],
            prepare_at,
            np.eye(4),
        )

    plan = settle()
    assert (plan.normalisation.tones is not None) == toned
    assert plan == settle()


def test_another_word_is_refused_in_a_sentence() -> None:
    with pytest.raises(PredictionError, match="Tones are one of auto, always, never; got 'yes'."):
        Showing.of("auto", "auto", tones="yes")
    assert "tones" not in Showing().describe() and Showing(tones="never").describe()["tones"] == "never"
