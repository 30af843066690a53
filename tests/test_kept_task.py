"""The task that references became is kept beside the masks, and taken again only where nothing was asked otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import load, save
from stub_model import make_task
from test_cli_predict import write_run
from test_cli_tasks import COARSE, references

import iris_pipeline.cli._from_files as command
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.kept_task import keep_task, kept_task, references_digest, request_name
from iris_pipeline.prediction.predict import digest
from iris_pipeline.prediction.query_tasks import encode_files
from iris_pipeline.scans.case_report import LOG, REPORT
from iris_pipeline.scans.references import ReferenceFiles, find_references
from iris_pipeline.search.showing import SEARCHED, Showing
from iris_pipeline.tasks.task_file import load_task
from preprocessing.sources.source import FileSource
from preprocessing.store import Store

OPTIONS = InferenceOptions(overlap=0.25)


def name_of(files: ReferenceFiles, options: InferenceOptions = OPTIONS, **changes: Any) -> str:
    asked = {"model_hash": "a", "strategy": "tuning", "seed": 0, "showing": SEARCHED} | changes
    return request_name(asked.pop("model_hash"), files, options, **asked)


def test_the_name_depends_on_all_that_the_task_depends_on(tiny_raw: Any, tmp_path: Path) -> None:
    folder = references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s4_a"])
    files = find_references(folder)
    first = name_of(files)
    assert first == name_of(find_references(folder)) and len(first) == len("references-.task") + 12
    machine = replace(OPTIONS, device="cuda", autocast=True, batch_size=8)
    assert name_of(files, machine) == first, "where it runs has no say"
    other_person = replace(files.cases[0], subject="somebody")
    others = [
        name_of(files, model_hash="b"),
        name_of(files, strategy="refining"),
        name_of(files, seed=1),
        name_of(files, showing=Showing(looks=1)),
        name_of(files, replace(OPTIONS, overlap=0.5)),
        name_of(replace(files, classes={"left": 1})),
        name_of(replace(files, cases=files.cases[:1])),
        name_of(replace(files, cases=(other_person, *files.cases[1:]))),
    ]
    elsewhere = tmp_path / "moved"
    shutil.copytree(folder, elsewhere)
    assert name_of(find_references(elsewhere)) == first, "where they lie has no say"
    source = files.cases[0].image
    assert isinstance(source, FileSource)
    others += [
        name_of(
            replace(
                files, cases=(replace(files.cases[0], image=replace(source, channel=n)), *files.cases[1:])
            )
        )
        for n in (0, 1)
    ]
    shutil.copy(folder / "labels" / "s1_a.nii.gz", folder / "labels" / "s4_a.nii.gz")  # drawn anew
    others.append(name_of(find_references(folder)))
    assert len({first, *others}) == 1 + len(others)


def test_a_kept_task_is_the_same_and_a_damaged_one_none(tmp_path: Path) -> None:
    path, task = tmp_path / "out" / "references-0123456789ab.task", make_task([1 / 3])
    assert kept_task(path) is None
    keep_task(path, task)
    found = kept_task(path)
    assert found is not None and digest(found) == digest(task)
    others = [path.with_name(name) for name in ("references-ba9876543210.task", "references-mine.task")]
    for other in others:
        shutil.copy(path, other)
    keep_task(path, task)
    assert sorted(path.parent.iterdir()) == [path, others[1]], (
        "a folder holds results of one task; theirs stays"
    )
    whole = path.read_bytes()
    path.unlink()  # what is loaded may lie in the file itself
    path.write_bytes(whole[:-4])
    assert kept_task(path) is None


def test_further_scans_find_the_task_made(
    tiny_raw: Any, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_run(tmp_path / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    refs = references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s4_a"])
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    shown = ["--pose", "upright", "--scale", "1", "--grey", "0", *COARSE]
    predict = ["-i", str(scans), "-o", str(out), "-r", str(refs), "--root", str(tmp_path), *shown]
    calls = []

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(more["strategy"])
        return encode_files(*arguments, **more)

    monkeypatch.setattr(command, "encode_files", counted)
    shutil.copy(tiny_raw.dataset / "imagesTr" / "s2_a.nii.gz", scans)
    assert predict_main(predict) == 0
    said = capsys.readouterr().out
    (kept,) = out.glob("*.task")
    assert f"Kept for further scans, also for -t: {kept}." in said and "Where the masks disappoint" in said
    shutil.copy(tiny_raw.dataset / "imagesTr" / "s3_a.nii.gz", scans)
    assert predict_main(predict) == 0
    said = capsys.readouterr().out
    assert (
        f"It was made before: {kept}; --overwrite makes it anew." in said and "1 segmented, 1 skipped" in said
    )
    assert "Where the masks disappoint" not in said and calls == ["ensemble"]
    assert predict_main([*predict, "--overwrite"]) == 0 and calls == ["ensemble"] * 2
    assert load_task(kept).made_by == "ensemble"
    before = {path: path.read_bytes() for path in out.iterdir() if path.name not in (LOG, REPORT)}
    assert predict_main([*predict, "-k", "1"]) == 1, "results of another task"
    assert "were made otherwise" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before and len(list(out.glob("*.task"))) == 1
    assert ',failed,"The run ended before its first case: One folder holds' in (out / REPORT).read_text()
    with_file = ["-i", str(scans), "-o", str(tmp_path / "by_file"), "-t", str(kept), "--root", str(tmp_path)]
    assert predict_main([*with_file, *COARSE]) == 0
    assert (tmp_path / "by_file" / "s3_a.nii.gz").read_bytes() == (out / "s3_a.nii.gz").read_bytes()


def test_a_retrieval_goes_on_by_another_precision(
    tiny_raw: Any, tiny_store: Store, tmp_path: Path, capsys: Any
) -> None:
    """A nightly job whose machine chooses otherwise; the tokens differ in their last digits, the references do not."""
    write_run(tmp_path / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    refs = references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s4_a"])
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    shown = ["--pose", "upright", "--scale", "1", "--grey", "0", "--looks", "1", *COARSE]
    predict = ["-i", str(scans), "-o", str(out), "-r", str(refs), "--root", str(tmp_path), *shown]
    predict += ["--strategy", "image-retrieval"]
    shutil.copy(tiny_raw.dataset / "imagesTr" / "s2_a.nii.gz", scans)
    assert predict_main([*predict, "--precision", "fp32"]) == 0
    shutil.copy(tiny_raw.dataset / "imagesTr" / "s3_a.nii.gz", scans)
    assert predict_main([*predict, "--precision", "bf16"]) == 0
    assert "1 segmented, 1 skipped" in capsys.readouterr().out
    record = json.loads((out / "predict.json").read_text(encoding="utf-8"))
    assert record["precisions"] == ["bf16", "fp32"]
    assert record["made_from"]["references"] == references_digest(find_references(refs))
    assert "search_rules" not in record["made_from"], "pose, scale and grey weight are said"
    assert predict_main([*predict, "-k", "1"]) == 1
    assert "were made otherwise" in capsys.readouterr().err
    labels, affine = load(refs / "labels" / "s1_a.nii.gz")
    save(
        refs / "labels" / "s1_a.nii.gz", np.where(labels == 5, 0, labels).astype(np.uint8), affine
    )  # corrected
    assert predict_main(predict) == 1
    assert "were made otherwise" in capsys.readouterr().err
