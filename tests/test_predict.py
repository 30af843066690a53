"""Whole scans: the mask comes back on the file's own grid where it belongs; one bad case spoils no other."""

from __future__ import annotations

import csv
import errno
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from grey_scans import BLOCKS, cases_of, grey_task, write_scans
from scans import ORDERS, affine_of, load, paint, save, volume
from stub_model import GreyModel, loaded_with, make_task
from torch import Tensor

from iris_pipeline.prediction import predict as module
from iris_pipeline.prediction.predict import modality_warning, predict_folder, raise_for_refused
from iris_pipeline.scans.inputs import InputCase, find_inputs
from iris_pipeline.scans.scan import segment_scan
from preprocessing.errors import LockError, PredictionError, ReferenceCaseError, TaskError
from preprocessing.findings import image_hash
from preprocessing.normalise import Normalisation, normalise
from preprocessing.runtime.lock import only_run_in
from preprocessing.sources.source import FileSource


@pytest.mark.parametrize("order", ORDERS)
def test_masks_come_back_exactly_from_a_finer_grid(order: str) -> None:
    # Three prepared voxels for each native one: native centres are prepared centres again.
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    query = volume(image, affine_of(order, (3.0, 1.0, 1.0), degrees=11.0))
    found = segment_scan(loaded_with(model), [task], query).labels
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("order", ORDERS)
def test_masks_come_back_from_a_coarser_grid_but_for_corners(order: str) -> None:
    # A block on whole prepared voxels (2 x 2 x 2 native ones); one class, as blurred edges pass through other
    # greys. Linear scores are 0.75 at the outer native voxels: 0.75^2 on an edge, 0.75^3 < 0.5 at a corner.
    image, labels = paint((12, 40, 34), {1: np.s_[2:10, 6:26, 8:22]})
    model, task = grey_task(image, labels, spacing_mm=(2.0, 2.0, 2.0))
    query = volume(image, affine_of(order, (1.0, 1.0, 1.0), degrees=11.0))
    found = segment_scan(loaded_with(model), [task], query).labels
    lost = np.argwhere(found != labels).tolist()
    assert lost == [[z, y, x] for z in (2, 9) for y in (6, 25) for x in (8, 21)]
    assert len(model.images) == 4, "6 x 20 x 17 prepared voxels are four windows of 16"


def test_the_task_spacing_is_that_of_the_turned_axes() -> None:
    # In a PSR file the array's axes (z,y,x) run along R, S, P: 2, 3, 4 mm are S 3, A 4, R 2 in RAS+ (z,y,x).
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels, spacing_mm=(3.0, 4.0, 2.0))
    segment_scan(loaded_with(model), [task], volume(image, affine_of("PSR", (2.0, 3.0, 4.0))))
    inside = np.concatenate([i.numpy().ravel() for i in model.images])
    expected = normalise(image, task.normalisation)
    assert set(np.round(inside, 4).tolist()) == set(np.round(expected, 4).ravel().tolist()), (
        "nothing was interpolated"
    )


@pytest.mark.parametrize("shape", [(4, 9, 7), (16, 16, 16), (17, 16, 45), (40, 33, 20)])
def test_volumes_smaller_and_larger_than_the_window(shape: tuple[int, int, int]) -> None:
    z, y, x = (slice(n // 4, n // 4 + max(2, n // 2)) for n in shape)
    image, labels = paint(shape, {1: (z, y, x)})
    model, task = grey_task(image, labels)
    found = segment_scan(loaded_with(model), [task], volume(image, affine_of("LPS", (1.0, 1.0, 1.0)))).labels
    assert np.array_equal(found, labels)


def test_the_most_probable_class_wins_and_values_are_the_tasks() -> None:
    image, labels = paint((16, 16, 16), {1: np.s_[:8], 2: np.s_[8:]}, grey={1: 40.0, 2: 60.0})
    # z-scores -1 and 1; both classes are above 0.5 at -1 (0.6 and 1.0 away, width 1.2), the nearer one wins
    task = make_task([-0.4, -2.0], ("near", "far"), class_values=(7, 200))
    found = segment_scan(loaded_with(GreyModel(1.2)), [task], volume(image, np.eye(4))).labels
    assert found[labels == 1].tolist() == [7] * int((labels == 1).sum())
    assert found[labels == 2].tolist() == [0] * int((labels == 2).sum())


def test_the_intensity_offset_comes_before_clipping() -> None:
    image = np.full((16, 16, 16), 400.0, np.float32)
    image[5:9], image[9:] = 1000.0, 1700.0
    ct = Normalisation.for_modality("CT")
    model = GreyModel()
    task = make_task([1.0], normalisation=ct, modality="CT", intensity_offset=-1000.0)
    segment_scan(loaded_with(model), [task], volume(image, np.eye(4)))
    # -600, 0 and (clipped) 500 HU: three levels; without the offset all but the first would be clipped to 500
    assert np.array_equal(model.images[0][0, 0].numpy(), normalise(image - 1000, ct))
    assert len(np.unique(model.images[0])) == 3 and len(np.unique(normalise(image, ct))) == 2


def test_a_reference_is_never_its_own_query() -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    reference = volume(image, affine_of("RAS", (3.0, 1.0, 1.0)))
    model, task = grey_task(image, labels, reference_hashes=("other", image_hash(reference)))
    with pytest.raises(ReferenceCaseError, match="never its own query; this scan is one of the references"):
        segment_scan(loaded_with(model), [task], reference)
    # the same scan stored as LPS: x and y reversed
    turned = volume(image[:, ::-1, ::-1].copy(), affine_of("LPS", (3.0, 1.0, 1.0)))
    with pytest.raises(ReferenceCaseError, match="never its own query"):
        segment_scan(loaded_with(model), [task], turned)
    image[0, 0, 0] += 1
    segment_scan(loaded_with(model), [task], volume(image, reference.affine))


def test_a_task_of_another_model_is_refused() -> None:
    with pytest.raises(TaskError, match="serves only the model that encoded it"):
        segment_scan(
            loaded_with(GreyModel(), model_hash="f" * 16),
            [make_task([1.0])],
            volume(np.zeros((4, 4, 4)), np.eye(4)),
        )


@pytest.mark.parametrize(
    ("modality", "minimum", "offset", "text"),
    [
        ("MR", -1000.0, 0.0, "the task is of MR, but values down to -1000 look like CT"),
        ("PET", -900.0, 0.0, "the task is of PET, but values down to -900"),
        ("MR", -3.0, 0.0, ""),
        ("CT", -1000.0, 0.0, ""),
        ("CT", 0.0, 0.0, "the task is of CT, but no value is below -200 HU"),
        ("CT", 0.0, -1000.0, ""),
        ("CT", -199.0, 0.0, "the task is of CT, but no value is below -200 HU"),
    ],
)
def test_another_modality_is_said_aloud(modality: Any, minimum: float, offset: float, text: str) -> None:
    array = np.array([minimum, 100.0], np.float32).reshape(1, 1, 2)
    warning = modality_warning(
        make_task([1.0], modality=modality, intensity_offset=offset), volume(array, np.eye(4))
    )
    assert warning.startswith(text) and bool(warning) == bool(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


def test_a_folder_is_finished_in_spite_of_bad_cases(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels, class_values=(1, 9), names=("ball", "doll"))
    verdicts = predict_folder(loaded_with(model), task, cases_of(folder), folder / "out", progress=False)
    assert [(v.id, v.status) for v in verdicts] == [
        ("a", "done"),
        ("b", "done"),
        ("c", "refused"),
        ("d", "refused"),
        ("e", "done"),
    ]
    assert "c.nii.gz cannot be read" in verdicts[2].why and "d.nii.gz does not exist" in verdicts[3].why
    expected = np.where(labels == 2, 9, labels)
    for name, original in (("a", "a.nii.gz"), ("b", "b.nii.gz"), ("e", "e.nii")):
        found, affine = load(folder / "out" / f"{name}.nii.gz")
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        source = nib.load(folder / "in" / original)
        assert np.allclose(affine, source.affine, atol=1e-5)
        result = nib.load(folder / "out" / f"{name}.nii.gz").header
        for code in ("qform_code", "sform_code", "xyzt_units"):
            assert result[code] == source.header[code], code
    assert json.loads((folder / "out" / "classes.json").read_text(encoding="utf-8")) == {"ball": 1, "doll": 9}
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == [
        "a.nii.gz",
        "b.nii.gz",
        "classes.json",
        "e.nii.gz",
        "predict.json",
        "predict.log",
        "scans.json",
        "volumes.csv",
    ]
    log = (folder / "out" / "predict.log").read_text(encoding="utf-8")
    assert "a: done (" in log and "c: refused: " in log
    with pytest.raises(PredictionError, match=r"2 of 5 cases could not be segmented \(c, d\): predict.log"):
        raise_for_refused(verdicts)
    with pytest.raises(
        PredictionError, match=r"Case 'c' could not be segmented: .*c\.nii\.gz cannot be read"
    ):
        raise_for_refused(verdicts[:3])
    raise_for_refused(verdicts[:2])


def test_existing_results_are_skipped_unless_overwritten(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    cases = [case for case in cases_of(folder) if case.id in "ab"]
    predict_folder(loaded_with(model), task, cases[:1], folder / "out", progress=False)
    before = (folder / "out" / "a.nii.gz").stat().st_mtime_ns
    verdicts = predict_folder(loaded_with(model), task, cases, folder / "out", progress=False)
    assert [v.status for v in verdicts] == ["skipped", "done"] and "--overwrite" in verdicts[0].why
    assert (folder / "out" / "a.nii.gz").stat().st_mtime_ns == before
    verdicts = predict_folder(loaded_with(model), task, cases, folder / "out", overwrite=True, progress=False)
    assert [v.status for v in verdicts] == ["done", "done"]
    assert (folder / "out" / "a.nii.gz").stat().st_mtime_ns > before


def test_a_scan_without_a_place_is_segmented_and_doubted(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    path = folder / "in" / "a.nii.gz"
    header = nib.load(path).header
    header["qform_code"] = header["sform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None, header), path)
    placed, unplaced = predict_folder(
        loaded_with(model), task, cases_of(folder)[1::-1], folder / "out", progress=False
    )
    assert (placed.id, placed.status, placed.why) == ("b", "done", "")
    assert (unplaced.id, unplaced.status) == ("a", "done")
    assert unplaced.why == (
        "the header does not say how the patient lies (qform and sform codes are 0); L,A,S is assumed: look whether "
        "left and right are right."
    )


def test_one_run_at_a_time_writes_into_a_folder(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    with (
        only_run_in(folder / "out", "wait"),
        pytest.raises(LockError, match=r"Another run works in .*out \(process .*give another -o\."),
    ):
        predict_folder(loaded_with(model), task, cases_of(folder)[:1], folder / "out", progress=False)
    assert not (folder / "out").exists()
    predict_folder(loaded_with(model), task, cases_of(folder)[:1], folder / "out", progress=False)
    assert (folder / "out" / "a.nii.gz").is_file() and not (folder / "out" / ".lock").exists()


def test_results_never_land_among_the_inputs(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    with pytest.raises(
        PredictionError, match=r"a folder of their own; .*in holds the input: give another -o"
    ):
        predict_folder(
            loaded_with(model), task, cases_of(folder), folder / "out" / ".." / "in", progress=False
        )
    with pytest.raises(PredictionError, match="no case to segment"):
        predict_folder(loaded_with(model), task, [], folder / "out", progress=False)


def test_a_defect_in_one_case_is_reported_with_its_traceback(folder: Path) -> None:
    class Broken(GreyModel):
        def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
            if not self.images:
                self.images.append(image)
                raise torch.OutOfMemoryError("no memory left")
            return super().segment(image, tokens)

    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    broken = Broken(model.width)
    verdicts = predict_folder(loaded_with(broken), task, cases_of(folder)[:2], folder / "out", progress=False)
    assert [v.status for v in verdicts] == ["refused", "done"]
    assert verdicts[0].why == "OutOfMemoryError: no memory left (where, says predict.log)"
    assert "Traceback" in (folder / "out" / "predict.log").read_text(encoding="utf-8")


def test_what_the_system_refuses_is_one_sentence_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a while: neither a mask nor a line of the log can be written then."""
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    writes, logs = module.write_result, module.append_log

    def full(out: Path, case: str, *given: Any) -> None:
        if case == "a":
            raise OSError(errno.ENOSPC, "No space left on device", str(out / "a.nii.gz"))
        writes(out, case, *given)

    def log(path: Path, text: str) -> None:
        if text.startswith("a: "):
            raise OSError(errno.ENOSPC, "No space left on device")
        logs(path, text)

    monkeypatch.setattr(module, "write_result", full)
    monkeypatch.setattr(module, "append_log", log)
    cases = [*cases_of(folder)[:2], InputCase("n" * 250, cases_of(folder)[0].image)]
    verdicts = predict_folder(loaded_with(model), task, cases, folder / "out", progress=False)
    assert [v.status for v in verdicts] == ["refused", "done", "refused"]
    assert verdicts[0].why == (
        f"{folder / 'out' / 'a.nii.gz'} cannot be read or written (No space left on device): make room on its disk, "
        "then run again."
    )
    told = "cannot be read or written (File name too long): give the scan a shorter name, then run again."
    assert verdicts[2].why.endswith(f"{'n' * 250}.nii.gz {told}")
    assert "Traceback" not in (folder / "out" / "predict.log").read_text(encoding="utf-8")


def test_a_name_that_is_no_text_costs_no_other_scan(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    (folder / "in" / "c.nii.gz").unlink()
    (folder / "in" / "a.nii.gz").rename(folder / "in" / "lat\udcfc1.nii.gz")
    inputs, _ = find_inputs(folder / "in")
    verdicts = predict_folder(loaded_with(model), task, inputs, folder / "out", progress=False)
    assert {v.id: v.status for v in verdicts} == {"b": "done", "e": "done", "lat\\xfc1": "refused"}
    assert "lat\\xfc1: refused: The name of " in (folder / "out" / "predict.log").read_text(encoding="utf-8")


def test_a_report_says_what_became_of_each_case_in_this_call(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    report = folder / "out" / "report.csv"

    def lines() -> list[list[str]]:
        with report.open(encoding="utf-8", newline="") as stream:
            return list(csv.reader(stream))

    cases = cases_of(folder)[:3]
    predict_folder(loaded_with(model), task, cases[:1], folder / "out", progress=False)
    assert not report.exists(), "nobody asked for it"
    predict_folder(
        loaded_with(model), task, cases, folder / "out", progress=False, left_out=["d, \udcfc left out."]
    )
    header, a, b, c, left = lines()
    assert header == ["case", "status", "reason", "seconds"]
    assert a[:2] == ["a", "skipped"] and b[:3] == ["b", "done", ""] and float(b[3]) >= 0
    assert c[:2] == ["c", "refused"] and "c.nii.gz cannot be read" in c[2]
    assert left == ["", "left out", "d, \\udcfc left out.", "0.0"]

    class Interrupted(GreyModel):
        def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
            raise KeyboardInterrupt

    stopped = loaded_with(Interrupted(model.width))
    with pytest.raises(KeyboardInterrupt):
        predict_folder(
            stopped, task, [cases[0], cases_of(folder)[4]], folder / "out", progress=False, left_out=[]
        )
    assert [line[:2] for line in lines()[1:]] == [["a", "skipped"], ["e", "not reached"]]


def test_an_empty_mask_is_said(folder: Path) -> None:
    """A scan of one slice, say: a mask without a voxel is done, and is to be looked at."""
    _, task = grey_task(*paint((12, 40, 34), BLOCKS))
    nowhere = replace(task, tokens=make_task([99.0] * len(task.class_names)).tokens)
    predict_folder(
        loaded_with(GreyModel()), nowhere, cases_of(folder)[:1], folder / "out", progress=False, left_out=[]
    )
    told = "nothing was found: the mask is empty for all classes."
    assert f",done,{told}," in (folder / "out" / "report.csv").read_text(encoding="utf-8")
    assert f": done: {told} (" in (folder / "out" / "predict.log").read_text(encoding="utf-8")


def test_a_single_slice_is_doubted(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    save(folder / "in" / "a.nii.gz", image[4:5], affine_of("RAS", (3.0, 1.0, 1.0)))
    (verdict,) = predict_folder(
        loaded_with(model), task, cases_of(folder)[:1], folder / "out", progress=False
    )
    assert (verdict.status, verdict.why) == (
        "done",
        "the scan is one slice (1 x 40 x 34 voxels, z,y,x), and the model reads volumes: doubt the result.",
    )


def test_a_compressed_text_is_no_scan(folder: Path) -> None:
    (folder / "in" / "c.nii.gz").write_bytes(gzip.compress(b"no scan"))
    verdicts = predict_folder(
        loaded_with(GreyModel()), make_task([1.0]), cases_of(folder)[2:3], folder / "out", progress=False
    )
    assert verdicts[0].status == "refused" and "c.nii.gz" in verdicts[0].why


def test_what_the_intake_refuses_is_not_segmented(tmp_path: Path) -> None:
    """A header in metres or one grey value everywhere gave an empty or a made-up mask without a word."""
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    save(tmp_path / "in" / "flat.nii.gz", np.full_like(image, 7), np.eye(4))
    save(tmp_path / "in" / "metres.nii.gz", image, np.diag([0.001, 0.001, 0.001, 1.0]))
    cases = [InputCase(name, FileSource(tmp_path / "in" / f"{name}.nii.gz")) for name in ("flat", "metres")]
    verdicts = predict_folder(loaded_with(model), task, cases, tmp_path / "out", progress=False)
    assert [v.status for v in verdicts] == ["refused", "refused"]
    assert "holds the grey value 7 in every voxel" in verdicts[0].why
    assert "counts in another unit or has a wrong spacing" in verdicts[1].why
    assert not list((tmp_path / "out").glob("*.nii.gz"))
