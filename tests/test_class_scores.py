"""All measures of label maps by hand, lesions counted one by one, and what the specification asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from iris_pipeline.measures.class_scores import MEASURES, MeasureOptions, class_measures
from iris_pipeline.measures.lesions import LesionCounts, count_lesions
from iris_pipeline.measures.metrics import label_overlaps
from preprocessing.spec import load_spec
from preprocessing.volume import Volume

CLASSES = {"liver": 1, "tumour": 7, "cyst": 9}
AFFINE = np.diag([2.0, 1.0, 4.0, 1.0])  # spacing (z,y,x) 4, 1, 2 mm
SHAPE = (6, 10, 12)


def measured(
    prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray = AFFINE, **options: object
) -> dict[str, dict[str, float]]:
    overlaps = label_overlaps(prediction, truth, CLASSES)
    return class_measures(
        prediction,
        Volume(truth, affine),
        overlaps,
        CLASSES,
        MeasureOptions(**options),  # type: ignore[arg-type]
    )


def test_by_hand() -> None:
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[1:3, 2:6, 2:6] = 1  # 32 voxels of 8 mm^3
    prediction[1:3, 2:6, 3:6] = 1  # 24 of them
    truth[4, 1, 1] = 7
    prediction[4, 1, 4] = 7
    found = measured(prediction, truth, tolerances_mm={"tumour": 4.0}, lesions=("tumour",))
    liver, tumour, cyst = found["liver"], found["tumour"], found["cyst"]
    assert liver["iou"] == 24 / 32 and liver["tolerance_mm"] == 2.0
    assert liver["truth_ml"] == pytest.approx(0.256) and liver["volume_error_ml"] == pytest.approx(-0.064)
    assert liver["volume_error_percent"] == -25.0
    assert liver["hd95_mm"] == 2.0 and liver["nsd"] == 1.0, "one face lies one voxel of 2 mm off"
    assert "lesion_f1" not in liver
    # Two voxels three apart along x: see test_surfaces.
    assert (tumour["tolerance_mm"], tumour["nsd"]) == (4.0, pytest.approx(0.5))
    assert (tumour["hd95_mm"], tumour["assd_mm"]) == (pytest.approx(6.0), pytest.approx(5.0))
    assert tumour["iou"] == 0.0 and tumour["volume_error_ml"] == 0.0
    assert [tumour[f"lesions_{name}"] for name in ("truth", "found", "predicted", "confirmed")] == [
        1,
        0,
        1,
        0,
    ]
    assert tumour["lesion_f1"] == 0.0
    assert cyst == {"tolerance_mm": 2.0, "truth_ml": 0.0}, "in neither: nothing to score"
    assert set(liver) | set(tumour) == set(MEASURES)


def test_volumes_under_a_tilted_gantry() -> None:
    """Slices that are shifted by the tilt: the voxels are no boxes, and 250 of 20 mm^3 become 5 ml times its cosine."""
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[:5, :5, :10] = 1
    prediction[:5, :5, :5] = 1
    tilt = np.deg2rad(20)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 2] = 0, 5 * np.sin(tilt), 5 * np.cos(tilt)
    liver = measured(prediction, truth, affine)["liver"]
    assert liver["truth_ml"] == pytest.approx(5 * np.cos(tilt)) == pytest.approx(4.698, abs=1e-3)
    assert liver["volume_error_ml"] == pytest.approx(-2.5 * np.cos(tilt))
    assert liver["volume_error_percent"] == -50.0


def test_only_one_has_it() -> None:
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[0, 0, :5] = 1
    prediction[5, 0, :5] = 9
    found = measured(prediction, truth, lesions=("cyst",))
    diagonal = math.sqrt((6 * 4.0) ** 2 + (10 * 1.0) ** 2 + (12 * 2.0) ** 2)
    for name in ("liver", "cyst"):
        assert found[name]["iou"] == found[name]["nsd"] == 0.0
        assert found[name]["hd95_mm"] == found[name]["assd_mm"] == pytest.approx(diagonal)
    assert found["liver"]["volume_error_percent"] == -100.0
    assert found["cyst"]["volume_error_ml"] == pytest.approx(0.04)
    assert "volume_error_percent" not in found["cyst"], "in % of nothing"
    assert found["cyst"]["lesion_f1"] == 0.0 and found["cyst"]["lesions_truth"] == 0


def test_lesions_by_hand() -> None:
    truth, prediction = np.zeros((5, 12, 20), bool), np.zeros((5, 12, 20), bool)
    truth[1, 1, 1:11] = True  # a line of 10
    truth[3, 8, 3] = truth[4, 9, 4] = True  # two voxels that touch at a corner: one lesion
    truth[1, 6, 15] = True  # missed
    prediction[1, 1, 10] = (
        True  # a tenth of the line: not more than a tenth, so not found, yet itself confirmed
    )
    prediction[3, 8, 3:9] = True  # finds the second, a sixth of it is true: confirmed
    prediction[1, 10, 18] = True  # false
    counts = count_lesions(prediction, truth)
    assert counts == LesionCounts(lesions=3, found=1, marked=3, confirmed=2)
    assert counts.f1 == pytest.approx(2 * (2 / 3) * (1 / 3) / (2 / 3 + 1 / 3))
    prediction[1, 1, 9] = True
    assert count_lesions(prediction, truth).found == 2
    numbers = count_lesions(prediction.astype(np.uint8) * 255, truth.astype(np.float32) * 2)
    assert numbers == count_lesions(prediction, truth), "masks of other values and types are the same masks"
    assert count_lesions(truth, truth).f1 == 1.0


def test_one_mark_over_two_lesions_finds_both() -> None:
    truth = np.zeros((3, 3, 9), bool)
    truth[1, 1, [1, 2, 6, 7]] = True
    mark = np.zeros((3, 3, 9), bool)
    mark[1, 1, 1:8] = True
    assert count_lesions(mark, truth) == LesionCounts(lesions=2, found=2, marked=1, confirmed=1)
    assert count_lesions(truth, mark) == LesionCounts(lesions=1, found=1, marked=2, confirmed=2)


def test_empty_masks_have_no_lesions() -> None:
    empty, one = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert math.isnan(count_lesions(empty, empty).f1)
    assert count_lesions(one, empty).f1 == count_lesions(empty, one).f1 == 0.0


def test_options_of_a_specification() -> None:
    options = MeasureOptions.of(load_spec("sts_pet"))
    assert options == MeasureOptions({"soft-tissue sarcoma": 2.0}, ("soft-tissue sarcoma",))
    assert MeasureOptions.of(load_spec("chaos_t2")).lesions == ()
