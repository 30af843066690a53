"""One folder holds results of one making, and says which; results of another are refused or make way."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grey_scans import BLOCKS, cases_of, grey_task, write_scans
from scans import load, paint, save
from stub_model import loaded_with

from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.predict import predict_cases, predict_folder
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.outputs import Outputs
from iris_pipeline.search.showing import SEARCH_RULES, Showing
from preprocessing.errors import PredictionError, TaskError
from preprocessing.findings import image_hash
from preprocessing.sources.source import FileSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


def test_the_record_says_by_which_precisions_masks_were_made(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    cases = [case for case in cases_of(folder) if case.id in "ab"]

    def predict(chosen: list[InputCase], autocast: bool, overwrite: bool = False) -> list[str]:
        options = InferenceOptions(autocast=autocast)
        out = folder / "out"
        predict_folder(loaded_with(model), task, chosen, out, options, overwrite=overwrite, progress=False)
        return json.loads((out / "predict.json").read_text(encoding="utf-8"))["precisions"]

    assert predict(cases[:1], False) == ["fp32"]
    assert predict(cases[:1], True) == ["fp32"], "there was nothing to make"
    assert predict(cases, True) == ["bf16", "fp32"], "the second case only"
    assert predict(cases[:1], True, overwrite=True) == ["bf16", "fp32"], "the second is still there"
    shutil.rmtree(folder / "out")
    assert predict(cases, True) == ["bf16"]


def test_results_of_two_tasks_or_settings_are_not_mixed(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    cases = [case for case in cases_of(folder) if case.id in "ab"]
    predict_folder(loaded_with(model), task, cases[:1], folder / "out", progress=False)
    other = grey_task(image, labels, class_values=(2, 1))[1]
    with pytest.raises(
        PredictionError, match=r"those in .*out were made otherwise .*: give another -o, or --overwrite"
    ):
        predict_folder(loaded_with(model), other, cases, folder / "out", progress=False)
    uniform = InferenceOptions(weighting="uniform")
    with pytest.raises(PredictionError, match="were made otherwise"):
        predict_folder(loaded_with(model), task, cases, folder / "out", uniform, progress=False)
    # what only changes the speed may change
    predict_folder(
        loaded_with(model), task, cases, folder / "out", InferenceOptions(batch_size=2), progress=False
    )
    verdicts = predict_folder(
        loaded_with(model), other, cases, folder / "out", overwrite=True, progress=False
    )
    assert [v.status for v in verdicts] == ["done", "done"]
    assert set(np.unique(load(folder / "out" / "a.nii.gz")[0])) == {0, 1, 2}


def test_masks_found_by_other_search_rules_are_not_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    cases = [case for case in cases_of(folder) if case.id in "ab"]

    def predict(showing: Showing) -> list[str]:
        verdicts = predict_cases(
            loaded_with(model),
            lambda _case, _image: task,
            cases,
            folder / "out",
            InferenceOptions(),
            classes=task.classes,
            made_from=showing.describe(),
            progress=False,
        )
        return [verdict.status for verdict in verdicts]

    assert predict(Showing()) == ["done", "done"]
    assert predict(Showing()) == ["skipped", "skipped"]
    monkeypatch.setattr("iris_pipeline.search.showing.SEARCH_RULES", SEARCH_RULES + 1)
    with pytest.raises(PredictionError, match="were made otherwise"):
        predict(Showing())
    record = folder / "out" / "predict.json"
    said = json.loads(record.read_text(encoding="utf-8"))
    assert said["made_from"].pop("search_rules") == SEARCH_RULES
    record.write_text(json.dumps(said), encoding="utf-8")  # what a version before had no word for
    assert predict(Showing()) == ["skipped", "skipped"]


def test_results_of_another_task_make_way_before_the_first_is_made_anew(
    folder: Path, monkeypatch: Any
) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    other = grey_task(image, labels, names=("ball", "doll"))[1]
    a, b = (case for case in cases_of(folder) if case.id in "ab")
    out, masks = folder / "out", Outputs(per_class=True)
    predict_folder(loaded_with(model), task, [a, b], out, outputs=masks, progress=False)
    (out / "confidence.csv").write_text("of the first task")
    with pytest.raises(
        PredictionError,
        match=r"--overwrite replaces .* given, and those of others in .*out \(b\) were made otherwise .*: give another",
    ):
        predict_folder(loaded_with(model), other, [a], out, overwrite=True, progress=False)
    assert (out / "a.nii.gz").is_file(), "refused before anything is lost"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("iris_pipeline.prediction.predict.segment_scan", stop)
        predict_folder(loaded_with(model), other, [a, b], out, overwrite=True, progress=False)
    assert not (out / "confidence.csv").exists()
    verdicts = predict_folder(loaded_with(model), other, [a, b], out, outputs=masks, progress=False)
    assert [v.status for v in verdicts] == ["done", "done"], "the first task's masks are not the second's"
    for case in "ab":
        names = sorted(path.name for path in (out / "per_class" / case).iterdir())
        assert names == ["ball.nii.gz", "doll.nii.gz"]


@pytest.mark.parametrize("lack", ["torn", "gone", "own", "no task", "full disk"])
def test_results_of_another_task_stay_where_the_new_run_cannot_start(
    folder: Path, tmp_path: Path, lack: str
) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    (case,) = (case for case in cases_of(folder) if case.id == "a")
    out = folder / "out"
    predict_folder(loaded_with(model), task, [case], out, progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert case.image is not None
    other = grey_task(image, labels, names=("ball", "doll"))[1]
    hashes = (image_hash(case.image.read_image()),)
    (tmp_path / "torn.nii.gz").write_bytes(b"no scan")
    now = {
        "torn": replace(case, image=FileSource(tmp_path / "torn.nii.gz")),
        "gone": replace(case, image=None),
    }

    def no_task(*_: Any) -> Any:
        raise TaskError("There is no reference of another subject.")

    def full_disk() -> None:
        if lack == "full disk":
            raise OSError(errno.ENOSPC, "No space left on device", str(out))

    def predict() -> None:
        predict_cases(
            loaded_with(model),
            no_task if lack == "no task" else lambda _case, _image: replace(other, reference_hashes=own),
            [now.get(lack, case)],
            out,
            InferenceOptions(),
            classes=other.classes,
            made_from={"task": "other"},
            overwrite=True,
            begun=full_disk,
            progress=False,
        )

    own = hashes if lack == "own" else ()
    sentence = {
        "torn": r"^--overwrite replaces .* no scan that is given can be segmented, so they stay: 'a': .*torn",
        "gone": "so they stay: 'a': The raw file of case 'a' is not there",
        "own": "so they stay: 'a': A reference is never its own query",
        "no task": "so they stay: 'a': There is no reference of another subject",
        "full disk": "No space left",
    }[lack]
    with pytest.raises(OSError if lack == "full disk" else PredictionError, match=sentence):
        predict()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    if lack == "full disk":
        lack = "nothing"
        predict()
        assert (out / "classes.json").read_bytes() != before["classes.json"]


def test_a_file_that_happens_to_lie_there_is_no_result(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    cases, out = [case for case in cases_of(folder) if case.id in "ab"], folder / "out"
    save(out / "a.nii.gz", image, np.eye(4))
    with pytest.raises(
        PredictionError, match=r"those in .*out have no predict\.json that says how: give another -o"
    ):
        predict_folder(loaded_with(model), task, cases, out, progress=False)
    assert np.array_equal(load(out / "a.nii.gz")[0], image) and not (out / "predict.json").exists()
    assert [
        v.status for v in predict_folder(loaded_with(model), task, cases, out, overwrite=True, progress=False)
    ] == [
        "done",
        "done",
    ]
    assert np.array_equal(load(out / "a.nii.gz")[0], labels)


def test_a_record_of_before_is_compared_as_far_as_it_goes(folder: Path) -> None:
    image, labels = paint((12, 40, 34), BLOCKS)
    model, task = grey_task(image, labels)
    a, out = cases_of(folder)[:1], folder / "out"

    def predict(made_from: dict[str, Any], **more: Any) -> list[str]:
        verdicts = predict_cases(
            loaded_with(model),
            lambda _case, _image: task,
            a,
            out,
            InferenceOptions(),
            classes=task.classes,
            made_from=made_from,
            progress=False,
            **more,
        )
        return [verdict.status for verdict in verdicts]

    old = {"strategy": "ensemble", "references": ["by floats"]}
    new = {"strategy": "ensemble", "references": "by content", "stored": "x", "encoding": {"seed": 0}}
    assert predict(old) == ["done"]
    for formerly in ({}, {"references": ["by other floats"]}):
        with pytest.raises(PredictionError, match="were made otherwise"):
            predict(new, formerly=formerly)
    assert predict(new, formerly={"references": ["by floats"]}) == ["skipped"]
    assert json.loads((out / "predict.json").read_text(encoding="utf-8"))["made_from"].items() >= new.items()
    for fact in ({"stored": "y"}, {"encoding": {"seed": 1}}, {"references": "of others"}):
        with pytest.raises(PredictionError, match="were made otherwise"):
            predict(new | fact, formerly={"references": ["by floats"]})
    assert predict(new) == ["skipped"], "from then on machines may differ"
