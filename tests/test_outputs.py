"""What is written for a case: label map, masks and probabilities on the scan's own grid, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scans import affine_of, load, save
from stub_model import GreyModel, loaded_with, make_task

from iris_pipeline.confidence.calibration import TABLE, Judgement, judgements_in
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.predict import predict_folder
from iris_pipeline.scans.inputs import InputCase, find_inputs
from iris_pipeline.scans.outputs import Outputs, file_names, is_complete
from iris_pipeline.scans.volumes import TABLE as VOLUMES
from iris_pipeline.scans.volumes import volumes_in
from preprocessing.sources.source import FileSource

EVERYTHING = Outputs(per_class=True, probabilities=True)


class SoftGrey(GreyModel):
    """Probabilities of all sizes."""

    def segment(self, image, tokens):  # type: ignore[no-untyped-def]
        return super().segment(image, tokens) / 20


def test_masks_may_overlap_and_probabilities_are_scaled(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).normal(size=(9, 20, 17)).astype(np.float32)
    source = save(tmp_path / "in" / "a_0000.nii.gz", grey, affine_of("SAL", (1.0, 1.0, 1.0), degrees=7.0))
    task = make_task([0.0, 0.5], ("left/right", "other"), class_values=(3, 8))
    model = SoftGrey(0.6)
    inputs, _ = find_inputs(source)
    verdicts = predict_folder(
        loaded_with(model), task, inputs, tmp_path / "out", outputs=EVERYTHING, progress=False
    )
    assert [v.status for v in verdicts] == ["done"]
    labels, affine = load(tmp_path / "out" / "a.nii.gz")
    stacked = []
    for name in ("left_right.nii.gz", "other.nii.gz"):
        mask, mask_affine = load(tmp_path / "out" / "per_class" / "a" / name)
        stored = nib.load(tmp_path / "out" / "probabilities" / "a" / name)
        assert stored.get_data_dtype() == np.uint8
        scores, scores_affine = load(tmp_path / "out" / "probabilities" / "a" / name)
        assert np.array_equal(mask_affine, affine) and np.array_equal(scores_affine, affine)
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
        assert np.array_equal(mask == 1, np.rint(scores * 255) >= 128)
        stacked.append(scores)
    both = np.stack(stacked)
    assert ((both > 0.505).all(axis=0)).any(), "masks overlap"
    apart = np.abs(both[0] - both[1]) > 0.01
    expected = np.where(both.max(axis=0) > 0.5, np.array([3, 8])[both.argmax(axis=0)], 0)
    assert np.array_equal(labels[apart], expected[apart])
    assert np.allclose(affine, nib.load(source).affine, atol=1e-5)


def test_a_case_is_done_when_all_that_is_asked_for_is_there(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).normal(size=(9, 20, 17)).astype(np.float32)
    path = save(tmp_path / "in" / "a.nii.gz", grey, np.eye(4))
    loaded, task, out = loaded_with(SoftGrey(0.6)), make_task([0.0]), tmp_path / "out"

    def statuses(outputs: Outputs) -> list[str]:
        cases = [InputCase("a", FileSource(path))]
        return [v.status for v in predict_folder(loaded, task, cases, out, outputs=outputs, progress=False)]

    assert statuses(Outputs()) == ["done"] and statuses(Outputs()) == ["skipped"]
    assert not is_complete(out, "a", EVERYTHING)
    assert statuses(EVERYTHING) == ["done"] and statuses(EVERYTHING) == ["skipped"]
    assert statuses(Outputs(per_class=True)) == ["skipped"]
    (out / "a.nii.gz").unlink()
    assert statuses(EVERYTHING) == ["done"]


def test_judged_cases_stand_in_the_table_once(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).normal(size=(9, 20, 17)).astype(np.float32)
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz", grey, np.eye(4))
    (tmp_path / "in" / "torn.nii.gz").write_bytes(b"no scan")
    out, asked = tmp_path / "out", []

    class Counting:
        """Says more of each mask than of the last one; doubts what is there already."""

        def __call__(self, case, image, tasks, result):  # type: ignore[no-untyped-def]
            asked.append(case.id)
            assert result.certainty["class_0"] > 0.5 and tasks[0].class_names == ("class_0",)
            return [Judgement(case.id, "class_0", 0.25 * len(asked), True, {"windows": 0.5})]

        def again(self, former):  # type: ignore[no-untyped-def]
            return [replace(each, predicted_dice=each.predicted_dice / 2) for each in former]

    judge = Counting()

    def go(overwrite: bool) -> list[str]:
        inputs, _ = find_inputs(tmp_path / "in")
        options = InferenceOptions()
        loaded, task = loaded_with(SoftGrey(0.6)), make_task([0.0])
        verdicts = predict_folder(
            loaded, task, inputs, out, options, judge=judge, overwrite=overwrite, progress=False
        )
        return [v.status for v in verdicts]

    assert go(False) == ["done", "done", "refused"] and go(False) == ["skipped", "skipped", "refused"]
    assert asked == ["a", "b"]
    told = [(j.case, j.predicted_dice) for j in judgements_in(out).rows()]
    assert told == [("a", 0.125), ("b", 0.25)], "masks that are there are judged again, and not made again"
    assert go(True) == ["done", "done", "refused"]
    assert [(j.case, j.predicted_dice) for j in judgements_in(out).rows()] == [("a", 0.75), ("b", 1.0)]
    (out / TABLE).unlink()
    assert go(False) == ["done", "done", "refused"], "masks without their judgement are not done"


def test_tables_are_read_once_however_many_masks_are_skipped(tmp_path: Path, opened: list[str]) -> None:
    """As of a nightly job over a folder that grows."""
    grey = np.random.default_rng(1).normal(size=(9, 20, 17)).astype(np.float32)
    for number in range(5):
        save(tmp_path / "in" / f"c{number}.nii.gz", grey, np.eye(4))
    out = tmp_path / "out"

    class Sure:
        def __call__(self, case, image, tasks, result):  # type: ignore[no-untyped-def]
            return [Judgement(case.id, "class_0", 0.9, False, {"windows": 0.5})]

        def again(self, former):  # type: ignore[no-untyped-def]
            return former

    def go(judge: Sure | None) -> list[str]:
        opened.clear()
        inputs, _ = find_inputs(tmp_path / "in")
        loaded, task = loaded_with(SoftGrey(0.6)), make_task([0.0])
        return [v.status for v in predict_folder(loaded, task, inputs, out, judge=judge, progress=False)]

    def reads() -> tuple[int, int]:
        return opened.count(TABLE), opened.count(VOLUMES)

    assert go(Sure()) == ["done"] * 5
    assert go(None) == ["skipped"] * 5 and reads() == (1, 1)
    assert go(Sure()) == ["skipped"] * 5 and reads() == (1, 1)
    (tmp_path / "in" / "c0.nii.gz").rename(tmp_path / "in" / "d.nii.gz")
    assert go(Sure()) == ["skipped"] * 4 + ["done"]
    for table in (judgements_in(out), volumes_in(out)):
        assert [row.case for row in table.rows()] == ["c0", "c1", "c2", "c3", "c4", "d"]


def test_names_of_classes_become_names_of_files() -> None:
    names = ["liver", "Liver", "left lung/upper", "left lung_upper", "../x", "Größe"]
    assert list(file_names(names).values()) == [
        "liver.nii.gz",
        "Liver_2.nii.gz",
        "left_lung_upper.nii.gz",
        "left_lung_upper_2.nii.gz",
        "_x.nii.gz",
        "Größe.nii.gz",
    ]
