"""Dice by hand, the empty-mask rule, and the one-pass counts against the formula mask by mask."""

from __future__ import annotations

import math

import numpy as np
import pytest

from iris_pipeline.measures.metrics import Overlap, dice, label_overlaps
from preprocessing.errors import EvaluationError


def test_dice_of_masks_worked_out_by_hand() -> None:
    truth = np.zeros((2, 2, 3), bool)
    prediction = np.zeros((2, 2, 3), bool)
    truth[0, 0] = True  # 3 voxels
    prediction[0, 0, :2] = True  # 2 of them
    prediction[1, 1, 0] = True  # and 1 elsewhere
    assert dice(prediction, truth) == pytest.approx(2 * 2 / (3 + 3))
    assert dice(truth, truth) == 1.0
    assert dice(~truth, truth) == 0.0


def test_any_number_but_zero_is_inside() -> None:
    assert dice(np.array([0, 3, 0.2]), np.array([0, 1, 0])) == pytest.approx(2 / 3)
    assert dice(np.array([0, -1, 0]), np.array([0, -2, 0])) == 1.0


def test_empty_masks() -> None:
    empty, full = np.zeros((2, 2, 2)), np.ones((2, 2, 2))
    assert math.isnan(dice(empty, empty))
    assert dice(full, empty) == 0.0
    assert dice(empty, full) == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(EvaluationError, match=r"one shape; they have \(2, 3, 4\) and \(4, 3, 2\)"):
        dice(np.zeros((2, 3, 4)), np.zeros((4, 3, 2)))
    with pytest.raises(EvaluationError, match="one shape"):
        label_overlaps(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 5), np.uint8), {"liver": 1})


def test_label_maps_worked_out_by_hand() -> None:
    truth = np.array([[[1, 1, 1, 0], [2, 2, 0, 0]]], np.uint8)
    prediction = np.array([[[1, 1, 2, 0], [2, 0, 0, 7]]], np.uint8)
    found = label_overlaps(prediction, truth, {"liver": 1, "spleen": 2, "kidney": 7, "gall bladder": 9})
    assert found == {
        "liver": Overlap(truth=3, predicted=2, both=2),
        "spleen": Overlap(truth=2, predicted=2, both=1),
        "kidney": Overlap(truth=0, predicted=1, both=0),
        "gall bladder": Overlap(truth=0, predicted=0, both=0),
    }
    assert found["liver"].dice == pytest.approx(4 / 5)
    assert found["spleen"].dice == pytest.approx(1 / 2)
    assert found["kidney"].dice == 0.0
    assert math.isnan(found["gall bladder"].dice)


def test_fractions_are_no_labels() -> None:
    truth = np.array([[[1, 1, 0]]], np.uint8)
    with pytest.raises(
        EvaluationError, match="^Label maps hold whole numbers, but the prediction holds fractions: "
    ):
        label_overlaps(truth * 0.9, truth, {"liver": 1})
    assert label_overlaps(truth.astype(float), truth, {"liver": 1}) == {"liver": Overlap(2, 2, 2)}


@pytest.mark.parametrize("kinds", [(np.uint8, np.uint8), (np.int16, np.uint8), (np.uint16, np.int64)])
def test_one_pass_equals_mask_by_mask(kinds: tuple[type, type]) -> None:
    rng = np.random.default_rng(3)
    classes = {f"class {value}": value for value in (1, 2, 17, 254, 255)}
    values = np.array([0, *classes.values()])
    prediction = rng.choice(values, (7, 6, 5)).astype(kinds[0])
    truth = rng.choice(values, (7, 6, 5)).astype(kinds[1])
    for name, overlap in label_overlaps(prediction, truth, classes).items():
        inside, true = prediction == classes[name], truth == classes[name]
        assert overlap == Overlap(int(true.sum()), int(inside.sum()), int((inside & true).sum()))
        assert overlap.dice == dice(inside, true)


@pytest.mark.parametrize(("wrong", "says"), [(300, "the truth has 0 to 300"), (-1, "the truth has -1 to 0")])
def test_values_outside_a_byte_are_refused(wrong: int, says: str) -> None:
    truth = np.zeros((2, 2, 2), np.int16)
    truth[0, 0, 0] = wrong
    with pytest.raises(EvaluationError, match=says):
        label_overlaps(np.zeros((2, 2, 2), np.uint8), truth, {"liver": 1})
