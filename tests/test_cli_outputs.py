"""iris_predict with several tasks, channels, masks, confidence; iris_calibrate: with a real, untrained network."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import load
from test_cli_predict import write_run
from test_inputs import write_dicom

from iris_pipeline.checkpoints.checkpoint import load_model, save_checkpoint
from iris_pipeline.cli.calibrate import calibrate_main
from iris_pipeline.cli.evaluate import evaluate_main
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.confidence.calibration import load_calibration
from iris_pipeline.evaluation.calibrate import ROWS, unfamiliar_showings
from iris_pipeline.prediction.query_tasks import encode_files
from iris_pipeline.scans.references import reference_pair
from iris_pipeline.search.showing import Showing
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.tasks.task_file import save_task
from preprocessing.store import Store
from preprocessing.volume import read_volume


@pytest.fixture(scope="module")
def root(tiny_store: Store, tiny_raw: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with the tiny store, its raw files and one run."""
    root = tmp_path_factory.mktemp("root")
    (root / "preprocessed").symlink_to(tiny_store.folder.parent)
    (root / "raw").symlink_to(tiny_raw.root)
    write_run(root / "results" / "run", tiny_store, 1, "2026-02-01 10:00:00")
    # A fresh network begins near "background"; without that bias it finds something everywhere.
    loaded = load_model(root / "results" / "run")
    last = loaded.model.decoder.classifier[-1]
    with torch.no_grad():
        last.bias[-1] = 0  # type: ignore[index]
    save_checkpoint(
        root / "results" / "run" / "checkpoint",
        loaded.model,
        loaded.bank,
        loaded.state,
        plans=loaded.plans,
        specs=loaded.specs,
    )
    return root


@pytest.fixture(scope="module")
def task(root: Path, tiny_raw: Any) -> TaskEmbedding:
    """left, right, core of one reference."""
    pair = (tiny_raw.dataset / kind / "s1_a.nii.gz" for kind in ("imagesTr", "labelsTr"))
    files = reference_pair(*pair)
    unsearched = Showing.of("upright", 1.0, 0.0)  # an untrained network tells no pose from another
    return encode_files(load_model(root / "results" / "run"), files, showing=unsearched)


def scan_of(tiny_raw: Any, case: str = "s2_a") -> Path:
    return tiny_raw.dataset / "imagesTr" / f"{case}.nii.gz"


def test_two_task_files_in_one_pass(
    root: Path, task: TaskEmbedding, tiny_raw: Any, tmp_path: Path, capsys: Any
) -> None:
    names = task.class_names
    save_task(tmp_path / "one.task", task.select(names[:1]))
    save_task(tmp_path / "two.task", task.select(names[1:]))
    save_task(tmp_path / "both.task", task)
    common = ["-i", str(scan_of(tiny_raw)), "--root", str(root), "-o"]
    files = [str(tmp_path / "one.task"), str(tmp_path / "two.task")]
    assert predict_main([*common, str(tmp_path / "two"), "-t", *files, "--per-class", "--probabilities"]) == 0
    assert predict_main([*common, str(tmp_path / "one"), "-t", str(tmp_path / "both.task")]) == 0
    found, alone = (load(tmp_path / name / "s2_a.nii.gz")[0] for name in ("two", "one"))
    assert np.array_equal(found, alone)
    classes = json.loads((tmp_path / "two" / "classes.json").read_text(encoding="utf-8"))
    assert classes == task.classes
    for name, value in classes.items():
        mask, _ = load(tmp_path / "two" / "per_class" / "s2_a" / f"{name}.nii.gz")
        assert mask.shape == found.shape and (mask[found == value] == 1).all()
        scores, _ = load(tmp_path / "two" / "probabilities" / "s2_a" / f"{name}.nii.gz")
        assert np.array_equal(scores > 0.5, mask == 1)
    record = json.loads((tmp_path / "two" / "predict.json").read_text(encoding="utf-8"))
    assert record["made_from"]["classes"] == classes


def test_channels_and_dicom_are_segmented_on_their_own_grid(
    root: Path, task: TaskEmbedding, tiny_raw: Any, tmp_path: Path, capsys: Any
) -> None:
    save_task(tmp_path / "a.task", task)
    source = nib.load(scan_of(tiny_raw))
    grey = np.asarray(source.dataobj)
    (tmp_path / "in").mkdir()
    nib.save(
        nib.Nifti1Image(np.stack([0 * grey, grey], axis=3), source.affine), tmp_path / "in" / "four.nii.gz"
    )
    nib.save(source, tmp_path / "in" / "plain_0001.nii.gz")
    nib.save(nib.Nifti1Image(grey[::-1].copy(), source.affine), tmp_path / "in" / "plain_0000.nii.gz")
    write_dicom(
        tmp_path / "in" / "patient" / "series", np.random.default_rng(0).integers(0, 300, (6, 20, 30))
    )
    common = ["-i", str(tmp_path / "in"), "-t", str(tmp_path / "a.task"), "--root", str(root), "-o"]
    assert predict_main([*common, str(tmp_path / "none")]) == 1
    said = capsys.readouterr()
    assert (
        "four.nii.gz has 2 and none was named: choose one of 0 to 1 (--channel, of references --reference-channel)"
        in said.err
    )
    assert "2 segmented, 0 skipped as already there, 1 refused." in said.out, "the others are finished"
    assert "plain_0001.nii.gz left out: the model reads one channel, plain_0000" in said.out
    (tmp_path / "in" / "dataset.json").write_text('{"channel_names": {"0": "CT", "1": "LGE"}}')
    assert predict_main([*common, str(tmp_path / "out"), "--channel", "LGE"]) == 1, (
        "the series has one channel"
    )
    assert "patient' could not be segmented" in capsys.readouterr().err
    four, plain = (load(tmp_path / "out" / f"{name}.nii.gz")[0] for name in ("four", "plain"))
    assert np.array_equal(four, plain) and four.any()
    series = read_volume(tmp_path / "in" / "patient" / "series")
    result = read_volume(tmp_path / "none" / "patient.nii.gz")
    assert result.shape == series.shape and np.allclose(result.affine, series.affine, atol=1e-4)


def test_confidence_from_calibration_to_agreement(
    root: Path, tiny_raw: Any, tiny_store: Store, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    predict = [
        "--split",
        "paper",
        "-d",
        "tiny",
        "--strategy",
        "ensemble",
        "--confidence",
        "--root",
        str(root),
    ]
    assert predict_main(predict) == 1
    assert "confidence.json does not exist: make it with iris_calibrate -m run" in capsys.readouterr().err
    # one validation case of three classes is too little; its row is kept
    calibrate = ["-m", "run", "--root", str(root), "--strategies"]
    assert calibrate_main([*calibrate, "bank"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"on 8 or more masks of at least two people's validation cases; got \d of 1", error)
    (made,) = (root / "results" / "run" / ROWS).rglob("*.json")
    first = made.stat().st_mtime_ns
    assert calibrate_main([*calibrate, "bank", "--overwrite"]) == 1
    assert made.stat().st_mtime_ns > first
    assert made.name == "tiny__bank_k0_draw0_looks_2__s1_a.json"
    for values in json.loads(made.read_text(encoding="utf-8"))["classes"].values():
        assert 0 <= values["dice"] <= 1 and {"windows", "cycle", "volume", "references"} <= set(
            values["signs"]
        )
    # A fold with validation cases of two people; rows that are there are not made again and are written here.
    (root / "preprocessed").unlink()
    shutil.copytree(tiny_store.folder, root / "preprocessed" / "tiny")
    manifest = root / "preprocessed" / "tiny" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["splits"]["1"] |= {"train": ["s1_a", "s2_b"], "validation": ["s2_a", "s4_a"]}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    for case in ("s2_a", "s4_a"):
        for draw in (0, 1):
            row = {
                name: {
                    "signs": {"windows": 0.2 + 0.3 * i, "references": i, "certainty": 0.6},
                    "dice": 0.1 + 0.3 * i,
                }
                for i, name in enumerate(("left", "right", "core"))
            }
            content = {"schema_version": 1, "classes": row}
            (made.parent / f"tiny__one-shot_k1_draw{draw}__{case}.json").write_text(json.dumps(content))
    state = root / "results" / "run" / "checkpoint" / "state.json"
    trained = json.loads(state.read_text(encoding="utf-8"))
    trained["state"]["settings"]["split"] = "1"
    state.write_text(json.dumps(trained))
    assert calibrate_main([*calibrate, "one-shot", "--unfamiliar", "0"]) == 0
    said = capsys.readouterr().out
    assert "Note: Rows of a former version, which tell nothing of their files, taken as they are" in said
    assert "12 masks: 0.400 +" in said, "a line through the 12 Dice, whose mean is 0.4"
    # left out in turn, the one of two people is told by the other's mean
    assert (
        "predicted against true Dice of 12 masks in 2 cases: Pearson -, Spearman -, mean error 0.200" in said
    )
    # In ways that no model is trained on: rows more to fit, and what is told is still of the others.
    assert calibrate_main([*calibrate, "one-shot", "--draws", "1", "--unfamiliar", "1"]) == 0
    (showing,) = unfamiliar_showings("tiny", 1)
    odd = [
        made.parent / f"tiny__one-shot_k1_draw0_SAR_{showing.scale}_grey_auto_looks_2__{name}.json"
        for name in ("s2_a", "s4_a")
    ]
    assert all(path.is_file() for path in odd)
    said = capsys.readouterr().out
    assert "not fitted on: predicted against true Dice of 6 masks in 2 cases:" in said
    (of_all,) = re.findall(r"unfamiliar ways: predicted against true Dice of (\d+) masks in 2 cases", said)
    assert int(of_all) > 6
    with pytest.raises(SystemExit):
        calibrate_main([*calibrate, "one-shot", "--unfamiliar", "-1"])
    assert "--unfamiliar: takes a whole number from 0 on, not '-1'" in capsys.readouterr().err
    assert calibrate_main([*calibrate, "one-shot", "--unfamiliar", "0"]) == 0  # by two references again
    model = load_model(root / "results" / "run")
    calibration = load_calibration(root / "results" / "run", model.model_hash)
    assert calibration.used == {"windows", "references"}, "others are the same in all rows"
    assert set(calibration.volumes_ml["tiny"]) == {
        "left",
        "right",
        "core",
    }
    out = tmp_path / "out"
    options = ["-o", str(out), "--review-below", "0.99"]
    assert predict_main([*predict[:1], "1", *predict[2:], *options]) == 0
    told = capsys.readouterr().out
    with (out / "confidence.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert {row["case"] for row in table} == {"s3_a"}
    assert {row["class"] for row in table} <= {"left", "right", "core"}
    shown = [row for row in table if row["windows"]]
    assert shown and all(
        row["references"] and row["likeness"] and row["cycle"] and row["volume"] for row in shown
    )
    assert (
        f"{sum(row['review'] == 'yes' for row in table)} of {len(table)} masks are marked for review in"
        in told
    )
    # Masks that are there stay, and are marked by another threshold.
    marked = {row["class"] for row in table if row["review"] == "yes"}
    assert marked, "otherwise the next check could not fail"
    assert predict_main([*predict[:1], "1", *predict[2:], "-o", str(out), "--review-below", "-1"]) == 0
    assert "0 segmented, 1 skipped" in capsys.readouterr().out
    with (out / "confidence.csv").open(encoding="utf-8") as stream:
        again = list(csv.DictReader(stream))
    assert again == [row | {"review": "no"} for row in table]
    # Without -o the masks lie in the run's folder, and what to review is told of that one.
    assert predict_main([*predict[:1], "1", *predict[2:], "--review-below", "0.99"]) == 0
    own = root / "results" / "run" / "predictions" / "tiny" / "ensemble" / "confidence.csv"
    with own.open(encoding="utf-8") as stream:
        judged = list(csv.DictReader(stream))
    doubted = [f"{row['case']} {row['class']}" for row in judged if row["review"] == "yes"]
    assert doubted, "otherwise the next check could not fail"
    assert (
        f"{len(doubted)} of {len(judged)} masks are marked for review in {own}: {', '.join(doubted)}."
        in capsys.readouterr().out
    )
    assert evaluate_main(["-p", str(out), "-d", "tiny", "--root", str(root)]) == 0
    assert "Confidence, predicted against true Dice of" in capsys.readouterr().out
    agreement = json.loads((out / "evaluation__confidence.json").read_text(encoding="utf-8"))
    assert agreement["cases"] == 1 and agreement["masks"] == len(table)


def test_confidence_from_references_and_task_files(
    root: Path, task: TaskEmbedding, tiny_raw: Any, tmp_path: Path, capsys: Any
) -> None:
    assert (
        predict_main(
            [
                "-i",
                str(scan_of(tiny_raw)),
                "-o",
                str(tmp_path / "x"),
                "--review-below",
                "0.5",
                "--root",
                str(root),
            ]
        )
        == 1
    )
    assert "--review-below is about --confidence: give both or none" in capsys.readouterr().err


def test_calibration_is_for_datasets_the_model_knows(root: Path, capsys: Any) -> None:
    assert calibrate_main(["-m", "run", "--root", str(root), "-d", "liver"]) == 1
    assert "on datasets that the model was trained on (tiny); got liver" in capsys.readouterr().err


def test_the_package_is_not_calibrated_into(tmp_path: Path, capsys: Any) -> None:
    assert calibrate_main(["-m", "iris_small_6", "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "the package is not written to: copy " in told
    assert told.strip().endswith(f"to {tmp_path / 'results' / 'iris_small_6' / 'checkpoint'} first.")


def test_a_run_that_ends_before_its_first_case_is_no_longer_yesterdays(
    root: Path, tiny_raw: Any, tmp_path: Path, capsys: Any
) -> None:
    """A share that is not mounted, a task file that is gone, another setting: nothing of it stood in the report."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    common = ["-o", str(out), "--root", str(root)]
    good = ["-i", str(scan_of(tiny_raw)), *common]

    def lines() -> list[list[str]]:
        with (out / "report.csv").open(encoding="utf-8", newline="") as stream:
            return [line[:3] for line in list(csv.reader(stream))[1:]]

    assert predict_main(["-i", str(empty), *common]) == 1 and not out.exists()
    assert predict_main(good) == 0 and [line[:2] for line in lines()] == [["s2_a", "done"]]
    for arguments in (
        ["-i", str(empty), *common],
        ["-i", str(tmp_path / "nowhere"), *common],
        [*good, "-t", str(tmp_path / "no.task")],
        [*good, "--overlap", "2"],
        [*good, "--overlap", "0.25"],
    ):
        capsys.readouterr()
        assert predict_main(arguments) == 1
        told = capsys.readouterr().err.splitlines()[-1].removeprefix("Error: ")
        (line,) = lines()
        assert line == ["", "failed", f"The run ended before its first case: {told}"]
        assert (out / "predict.log").read_text(encoding="utf-8").endswith(f"{line[2]}\n")
        assert predict_main(good) == 0 and [line[:2] for line in lines()] == [["s2_a", "skipped"]]
