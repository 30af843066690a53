"""A folder of label maps against the truth: scores by hand, the empty-mask rule, and cases that cannot be scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import save
from scipy.spatial.transform import Rotation

from iris_pipeline.evaluation.evaluate import (
    TruthCase,
    compare,
    dataset_spec,
    evaluate_folder,
    everything_foreground,
    image_files,
    measure_options,
    read_origin,
    truth_cases,
    with_values,
)
from iris_pipeline.measures.class_scores import MeasureOptions
from iris_pipeline.measures.rows import COLUMNS, FIRST_COLUMNS, Origin, Row, write_rows
from preprocessing.case import in_axes_of
from preprocessing.errors import EvaluationError, GridMismatchError, LabelValueError, SpecError
from preprocessing.sources.source import FileSource
from preprocessing.spec import load_spec
from preprocessing.store import Store
from preprocessing.volume import Volume

CLASSES = {"liver": 1, "spleen": 2}
ORIGIN = Origin("run", "toy", "paper/test", "one-shot")
SHAPE = (4, 5, 6)  # 120 voxels
AFFINE = np.array([[-1.5, 0.1, 0, 10], [0.1, 1.5, 0, -4], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def label_map(liver: int = 0, spleen: int = 0) -> np.ndarray:
    """The first `liver` voxels of slice 0 are liver, the first `spleen` of slice 2 spleen."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0].reshape(-1)[:liver] = 1
    labels[2].reshape(-1)[:spleen] = 2
    return labels


class Toy:
    """A folder of truth and one of predictions."""

    def __init__(self, root: Path) -> None:
        self.truth, self.predicted = root / "labelsTr", root / "predictions"
        self.truth.mkdir()
        self.predicted.mkdir()
        (self.predicted / "classes.json").write_text(json.dumps(CLASSES))

    def add(self, case: str, truth: np.ndarray, prediction: np.ndarray | None) -> None:
        save(self.truth / f"{case}.nii.gz", truth, AFFINE)
        if prediction is not None:
            save(self.predicted / f"{case}.nii.gz", prediction, AFFINE)

    def rows(self, **options: object) -> dict[tuple[str, str], Row]:
        result = evaluate_folder(self.predicted, truth_cases(self.truth), ORIGIN, progress=False, **options)  # type: ignore[arg-type]
        return {(row.case, row.class_name): row for row in result.rows}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def test_rows_by_hand(toy: Toy) -> None:
    toy.add("a", label_map(liver=10, spleen=4), label_map(liver=6, spleen=4))
    toy.add("b", label_map(liver=8), label_map(spleen=3))
    toy.add("c", label_map(liver=8), label_map(liver=8))
    rows = toy.rows()
    assert list(rows) == [(case, name) for case in "abc" for name in CLASSES]
    liver = rows["a", "liver"]
    assert liver == Row(ORIGIN, "a", "", "liver", 2 * 6 / (10 + 6), 10, 6, liver.measures)
    voxel_ml = abs(np.linalg.norm(AFFINE[:3, 0]) * np.linalg.norm(AFFINE[:3, 1]) * 3.0) / 1000
    assert liver.measures["iou"] == 6 / 10 and liver.measures["tolerance_mm"] == 2.0
    assert liver.measures["truth_ml"] == pytest.approx(10 * voxel_ml)
    assert liver.measures["volume_error_ml"] == pytest.approx(-4 * voxel_ml)
    assert liver.measures["volume_error_percent"] == -40.0 and "lesion_f1" not in liver.measures
    assert (
        rows["b", "spleen"].measures["nsd"] == 0.0
        and "volume_error_percent" not in rows["b", "spleen"].measures
    )
    diagonal = np.linalg.norm(np.array(SHAPE) * np.linalg.norm(AFFINE[:3, :3], axis=0)[::-1])
    assert rows["b", "liver"].measures["hd95_mm"] == pytest.approx(diagonal)
    assert rows["a", "spleen"].dice == 1.0
    assert (rows["b", "liver"].dice, rows["b", "liver"].predicted_voxels) == (0.0, 0)  # truth only
    assert (rows["b", "spleen"].dice, rows["b", "spleen"].truth_voxels) == (0.0, 0)  # mask only
    assert math.isnan(rows["c", "spleen"].dice)  # in neither
    assert (rows["c", "spleen"].truth_voxels, rows["c", "spleen"].predicted_voxels) == (0, 0)


@pytest.mark.parametrize("axes", ["LPS", "SRA"])
def test_a_prediction_whose_axes_lie_otherwise_is_scored_as_it_was(toy: Toy, axes: str) -> None:
    """As nibabel reorients it: the same voxels at the same places in the body."""
    toy.add("a", label_map(liver=10, spleen=4), label_map(liver=6, spleen=4))
    before = toy.rows()["a", "liver"]
    path = toy.predicted / "a.nii.gz"
    file = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(file.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    nib.save(file.as_reoriented(turn), path)
    assert not np.array_equal(nib.load(path).affine, AFFINE)
    assert toy.rows()["a", "liver"] == before and before.dice == 0.75


def test_one_grid_is_one_grid_half_way_between_two_axes() -> None:
    """Turned by 45 degrees and by a hair less: the nearest axes of the body are others, the voxels are the same."""

    def turned(degrees: float) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
        return affine

    labels = label_map(liver=10)
    truth, prediction = Volume(labels, turned(45.01)), Volume(labels, turned(44.99))
    assert in_axes_of(prediction, truth) is not prediction
    assert compare(prediction, truth, CLASSES, CLASSES)["liver"].dice == 1.0


def test_a_partly_labelled_truth_does_not_judge_what_it_lacks(toy: Toy) -> None:
    toy.add("b", label_map(liver=8), label_map(liver=8, spleen=3))
    row = toy.rows(partly_labelled=True)["b", "spleen"]
    assert row.measures == {}, "no measure judges what the truth does not tell"
    assert math.isnan(row.dice) and (row.truth_voxels, row.predicted_voxels) == (0, 3)
    assert toy.rows(partly_labelled=True)["b", "liver"].dice == 1.0
    assert toy.rows()["b", "spleen"].dice == 0.0
    said = evaluate_folder(
        toy.predicted, truth_cases(toy.truth), ORIGIN, partly_labelled=True, progress=False
    )
    assert math.isnan(said.baseline[1].dice) and said.baseline[1].class_name == "spleen"


def test_everything_is_foreground(toy: Toy) -> None:
    toy.add("a", label_map(liver=10, spleen=30), label_map())
    toy.add("b", label_map(liver=10), None)
    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    found = {(row.case, row.class_name): row.dice for row in result.baseline}
    assert found["a", "liver"] == pytest.approx(2 * 10 / (120 + 10))
    assert found["a", "spleen"] == pytest.approx(2 * 30 / (120 + 30))
    assert found["b", "spleen"] == 0.0  # the mask has it, the truth does not
    assert {row.origin for row in result.baseline} == {
        Origin("baseline", "toy", "paper/test", "everything-foreground")
    }
    whole = np.ones(SHAPE, np.uint8)
    truth = Volume(label_map(liver=10), AFFINE)
    by_formula = compare(Volume(whole, AFFINE), truth, {"liver": 1})["liver"].dice
    assert by_formula == everything_foreground(10, 120)


def test_bad_cases_are_named_and_the_others_scored(toy: Toy) -> None:
    toy.add("good", label_map(liver=8), label_map(liver=8))
    toy.add("gone", label_map(liver=8), None)
    toy.add("moved", label_map(liver=8), None)
    elsewhere = AFFINE.copy()
    elsewhere[2, 3] += 2.0
    save(toy.predicted / "moved.nii.gz", label_map(liver=8), elsewhere)
    toy.add("larger", label_map(liver=8), np.zeros((4, 5, 7), np.uint8))
    strange = label_map(liver=8)
    strange[3, 0, 0] = 9
    toy.add("strange", label_map(liver=8), strange)
    toy.add("unnamed", strange, label_map(liver=8))
    toy.add("broken", label_map(liver=8), label_map(liver=8))
    whole = (toy.predicted / "broken.nii.gz").read_bytes()
    (toy.predicted / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])

    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    assert set(result.failures) == {"gone", "moved", "larger", "strange", "unnamed", "broken"}
    assert "There is no prediction for this case" in result.failures["gone"]
    for case in ("moved", "larger"):
        assert "Prediction and truth must lie on one grid" in result.failures[case]
    assert "4 x 5 x 7 voxels" in result.failures["larger"] and "4 x 5 x 6" in result.failures["larger"]
    assert (
        "The prediction holds the value 9, but its classes are 1 liver, 2 spleen"
        in result.failures["strange"]
    )
    assert "The truth holds the value 9" in result.failures["unnamed"]
    assert "broken.nii.gz" in result.failures["broken"]
    assert all(text.count("\n") == 0 for text in result.failures.values())

    rows = {(row.case, row.class_name): row for row in result.rows}
    assert len(rows) == 7 * 2, "a failed case keeps its rows"
    assert rows["good", "liver"].dice == 1.0
    for case in result.failures:
        assert math.isnan(rows[case, "liver"].dice) and rows[case, "liver"].predicted_voxels is None
        assert rows[case, "liver"].truth_voxels == 8


def test_a_truth_that_cannot_be_read_is_one_failure(toy: Toy) -> None:
    toy.add("good", label_map(liver=8), label_map(liver=8))
    toy.add("bad", label_map(liver=8), label_map(liver=8))
    (toy.truth / "bad.nii.gz").write_bytes(b"no gzip")
    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    assert list(result.failures) == ["bad"]
    rows = {(row.case, row.class_name): row for row in result.rows}
    assert rows["bad", "liver"].truth_voxels is None and rows["good", "liver"].dice == 1.0
    assert {row.case for row in result.baseline} == {"good"}


@pytest.mark.parametrize("bad", [2**32 - 1, 300, -1])
def test_a_value_that_no_label_has_costs_its_case_alone(toy: Toy, bad: int) -> None:
    """-1 written as uint32 once asked for 32 GiB, and nothing of the other cases was written."""
    kind = np.uint32 if bad > 0 else np.int16
    strange = label_map(liver=8).astype(kind)
    strange[3, 0, 0] = bad
    toy.add("good", label_map(liver=8), label_map(liver=8))
    toy.add("bad", strange, label_map(liver=8))
    toy.add("gone", strange, None)
    toy.add("masked", label_map(liver=8), strange)
    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    assert list(result.failures) == ["bad", "gone", "masked"]
    assert result.failures["bad"].startswith(f"The truth holds the value {bad}, but its classes are 1 liver")
    assert result.failures["masked"].startswith(f"The prediction holds the value {bad}, but its classes")
    rows = {(row.case, row.class_name): row for row in result.rows}
    assert rows["good", "liver"].dice == 1.0
    assert [rows[case, "liver"].truth_voxels for case in ("bad", "gone", "masked")] == [8, 8, 8]


def test_of_many_strange_values_five_are_named() -> None:
    grey = Volume(np.arange(120, dtype=np.uint8).reshape(SHAPE), AFFINE)
    with pytest.raises(LabelValueError, match=r"^The truth holds the value 3, 4, 5, 6, 7 \.\.\., but its"):
        compare(Volume(label_map(), AFFINE), grey, CLASSES)


def test_two_files_of_one_case_fail_it_as_nobody_knows_which_is_meant(toy: Toy) -> None:
    for case in ("twice", "doubted", "good"):
        toy.add(case, label_map(liver=8), label_map(liver=8))
    save(toy.predicted / "twice.nii", label_map(liver=3), AFFINE)
    save(toy.truth / "doubted.nii", label_map(liver=3), AFFINE)
    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    assert result.failures == {
        case: f"Each case has one file; '{case}' has {case}.nii and {case}.nii.gz in {folder}: keep one of them."
        for case, folder in (("doubted", toy.truth), ("twice", toy.predicted))
    }
    rows = {(row.case, row.class_name): row for row in result.rows}
    assert len(result.rows) == len(rows) == 6, "no case has its rows twice"
    assert (rows["good", "liver"].dice, rows["twice", "liver"].truth_voxels) == (1.0, 8)
    assert math.isnan(rows["twice", "liver"].dice) and rows["doubted", "liver"].truth_voxels is None


def test_cases_may_be_numbered_from_0000_on(toy: Toy) -> None:
    for case in ("case_0000", "case_0001"):
        toy.add(case, label_map(liver=8), label_map(liver=8))
    rows = toy.rows()
    assert [rows[f"case_000{number}", "liver"].dice for number in (0, 1)] == [1.0, 1.0] and len(rows) == 4
    # Masks that another tool named as its images.
    (toy.predicted / "case_0001.nii.gz").rename(toy.predicted / "case_0001_0000.nii.gz")
    assert toy.rows()["case_0001", "liver"].dice == 1.0


def test_classes_are_matched_by_name(toy: Toy) -> None:
    toy.add("a", np.where(label_map(10, 4) == 1, 7, 0).astype(np.uint8), label_map(6, 4))
    toy.add("b", np.where(label_map(9, 4) == 1, 7, 0).astype(np.uint8), None)
    result = evaluate_folder(
        toy.predicted,
        truth_cases(toy.truth),
        ORIGIN,
        truth_classes={"kidney": 3, "liver": 7},
        progress=False,
    )
    first, second = result.rows
    assert (first.class_name, first.dice) == ("liver", 2 * 6 / 16)
    assert (second.class_name, second.truth_voxels) == ("liver", 9), "by the truth's own value"
    assert result.notes == (
        "Class 'kidney' of the truth is not among the predicted classes and is not scored.",
        "Predicted class 'spleen' is not among the truth's classes and is not scored.",
    )


def test_with_values() -> None:
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    moved = with_values(labels, {"liver": 1, "spleen": 2, "aorta": 3}, {"spleen": 1, "liver": 5})
    assert moved.tolist() == [[[0, 5, 1, 0]]]


def test_half_a_voxel_is_one_grid() -> None:
    labels = label_map(liver=8)
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.3
    far[0, 3] += 0.9  # the shortest edge is 1.5 mm
    truth = Volume(labels, AFFINE)
    assert compare(Volume(labels, near), truth, CLASSES)["liver"].dice == 1.0
    with pytest.raises(GridMismatchError, match="predict from the image that belongs to this truth"):
        compare(Volume(labels, far), truth, CLASSES)
    with pytest.raises(LabelValueError, match="its classes are 2 spleen"):
        compare(Volume(labels, AFFINE), truth, {"spleen": 2})


def test_predictions_without_truth_are_noted(toy: Toy) -> None:
    toy.add("a", label_map(liver=8), label_map(liver=8))
    save(toy.predicted / "extra.nii.gz", label_map(), AFFINE)
    result = evaluate_folder(toy.predicted, truth_cases(toy.truth), ORIGIN, progress=False)
    assert not result.failures
    assert result.notes == ("Predictions without a truth here are not scored (1): extra.",)


def test_several_processes_give_the_same_rows_in_order(toy: Toy) -> None:
    for number in range(3):
        toy.add(f"case{number}", label_map(8 + number, 3), label_map(8, 2))
    assert toy.rows(workers=2) == toy.rows()


def test_what_cannot_be_evaluated_at_all(toy: Toy, tmp_path: Path) -> None:
    toy.add("a", label_map(liver=8), label_map(liver=8))
    truths = truth_cases(toy.truth)
    with pytest.raises(EvaluationError, match="nowhere is none: check -p"):
        evaluate_folder(tmp_path / "nowhere", truths, ORIGIN)
    with pytest.raises(EvaluationError, match="no truth to compare with"):
        evaluate_folder(toy.predicted, [], ORIGIN)
    with pytest.raises(
        EvaluationError, match=r"no class in common \(predicted: liver, spleen; truth: lung\)"
    ):
        evaluate_folder(toy.predicted, truths, ORIGIN, truth_classes={"lung": 1})
    (toy.predicted / "classes.json").unlink()
    with pytest.raises(EvaluationError, match="need their class names"):
        evaluate_folder(toy.predicted, truths, ORIGIN)
    with pytest.raises(EvaluationError, match="nowhere is none: check -g"):
        truth_cases(tmp_path / "nowhere")


def test_truth_of_a_decathlon_folder(toy: Toy) -> None:
    toy.add("a", label_map(), None)
    (toy.truth / "._a.nii.gz").write_bytes(b"resource fork")
    (toy.truth / "notes.txt").write_text("no image")
    expected = [TruthCase("a", FileSource(toy.truth / "a.nii.gz"))]
    assert truth_cases(toy.truth) == truth_cases(toy.truth.parent) == expected
    assert image_files(toy.truth) == [toy.truth / "a.nii.gz"]


def test_origin_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "night_run" / "predictions" / "toy" / "bank"
    folder.mkdir(parents=True)
    assert read_origin(folder) == Origin("night_run", "toy", "", "bank")
    made_from = {"dataset": "toy", "split": "paper", "part": "validation", "strategy": "bank"}
    (folder / "predict.json").write_text(json.dumps({"schema_version": 1, "made_from": made_from}))
    assert read_origin(folder) == Origin("night_run", "toy", "paper/validation", "bank", base="bank")
    drawn = folder.with_name("ensemble_k3_draw1")
    drawn.mkdir()
    made_from |= {"strategy": "ensemble", "references": 3, "seed": 1}
    (drawn / "predict.json").write_text(json.dumps({"schema_version": 1, "made_from": made_from}))
    assert read_origin(drawn) == Origin(
        "night_run", "toy", "paper/validation", "ensemble_k3_draw1", 3, 1, "ensemble"
    )
    (drawn / "predict.json").write_text(json.dumps({"made_from": made_from | {"references": 0, "draw": 2}}))
    assert (read_origin(drawn).references, read_origin(drawn).draw) == (None, None), "nothing was drawn"
    loose = tmp_path / "my_masks"
    loose.mkdir()
    assert read_origin(loose) == Origin("", "", "", "my_masks")
    (loose / "predict.json").write_text("{ torn")
    assert read_origin(loose) == Origin("", "", "", "my_masks")


def test_rows_as_text(tmp_path: Path) -> None:
    drawn = Origin("run", "toy", "paper/test", "ensemble_k3", 3, 1, "ensemble")
    rows = [
        Row(ORIGIN, "007", "s1", "liver, left", 2 / 3, 10, 6, {"iou": 0.5, "lesions_predicted": 2}),
        Row(drawn, "b", "", "liver, left", float("nan"), 8, None),
    ]
    assert COLUMNS[:10] == FIRST_COLUMNS and COLUMNS[-3:] == ("references", "draw", "base")
    empty = "," * 13
    write_rows(tmp_path / "deep" / "rows.csv", rows, "Made by `x`.")
    assert (tmp_path / "deep" / "rows.csv").read_text(encoding="utf-8") == (
        ",".join(COLUMNS) + "\n"
        'run,toy,paper/test,one-shot,007,s1,"liver, left",0.666667,10,6,0.500000,,,,,,,,,,,2.000000,,,,one-shot\n'
        f'run,toy,paper/test,ensemble_k3,b,,"liver, left",,8,{empty},3,1,ensemble\n'
        "# Made by `x`.\n"
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.csv"]


def test_measures_follow_the_newest_word_on_them() -> None:
    newest = load_spec("sts_pet")
    before = newest.model_copy(update={"lesions": ()})  # a store made before the key was there
    assert measure_options(before).lesions == measure_options(newest).lesions == ("soft-tissue sarcoma",)
    own = before.model_copy(update={"tolerance_mm": 4.0})
    assert (
        measure_options(own).tolerances_mm == {"soft-tissue sarcoma": 4.0}
        and not measure_options(own).lesions
    )
    renamed = before.model_copy(update={"classes": {"tumour": 1}})
    assert measure_options(renamed).lesions == () and measure_options(None) == MeasureOptions()


def test_specification_of_a_dataset(tiny_store: Store, tmp_path: Path) -> None:
    assert dataset_spec("tiny", tiny_store.folder.parent) == tiny_store.manifest.spec
    assert dataset_spec("chaos_t2", tmp_path) == load_spec("chaos_t2")
    with pytest.raises(SpecError, match="Unknown dataset 'chaos_t3'"):
        dataset_spec("chaos_t3", tmp_path)
