"""iris_encode, iris_predict, iris_tasks with a real, untrained network: what they write, print and return."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import UNSEARCHED, load, save

from iris_pipeline.checkpoints.checkpoint import RunState, load_model, save_checkpoint
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.cli._models import find_run
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.cli.tasks import encode_main, tasks_main
from iris_pipeline.inference.strategies import one_shot
from iris_pipeline.model import build_iris
from iris_pipeline.scans.references import stored_reference
from iris_pipeline.tasks.task_file import load_task
from preprocessing.errors import CheckpointError
from preprocessing.store import Store


def write_run(folder: Path, store: Store, seed: int, finished: str | None) -> None:
    """A run folder with an untrained network whose memory bank has met two of the three classes."""
    model = build_iris("tiny", seed=seed).eval()
    memory = MemoryBank()
    task = one_shot(model, stored_reference(store, "s1_a"), store.plan, model_hash="")
    for k, name in enumerate(("left", "right")):
        memory.update(f"tiny/{name}", tuple(level[0, k] for level in task.tokens))
    specs = {"tiny": store.manifest.spec.model_dump(mode="json")}
    state = RunState(1, 1.0, seed, {"split": "paper"})
    save_checkpoint(folder / "checkpoint", model, memory, state, plans={"tiny": store.plan}, specs=specs)
    record = {"status": "finished", "finished": finished} if finished else {"status": "running"}
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, **record}))


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with the tiny store and three runs, the newest of them unfinished."""
    root = tmp_path_factory.mktemp("root")
    (root / "preprocessed").symlink_to(tiny_store.folder.parent)
    write_run(root / "results" / "old", tiny_store, 0, "2026-01-01 10:00:00")
    write_run(root / "results" / "new", tiny_store, 1, "2026-02-01 10:00:00")
    write_run(root / "results" / "unfinished", tiny_store, 2, None)
    return root


@pytest.fixture
def refs(tiny_raw: Any, tmp_path: Path) -> Path:
    """A folder of two references with named classes."""
    for kind in ("images", "labels"):
        (tmp_path / "refs" / kind).mkdir(parents=True)
        for case in ("s1_a", "s4_a"):
            source = tiny_raw.dataset / f"{kind}Tr" / f"{case}.nii.gz"
            shutil.copy(source, tmp_path / "refs" / kind / f"{case}.nii.gz")
    (tmp_path / "refs" / "classes.json").write_text(json.dumps({"links": 1, "rechts": 2, "mitte": 5}))
    return tmp_path / "refs"


@pytest.fixture
def scans(tiny_raw: Any, tmp_path: Path) -> Path:
    """Two scans under nnU-Net's names."""
    (tmp_path / "scans").mkdir()
    for case in ("s2_a", "s3_a"):
        shutil.copy(
            tiny_raw.dataset / "imagesTr" / f"{case}.nii.gz", tmp_path / "scans" / f"{case}_0000.nii.gz"
        )
    return tmp_path / "scans"


def test_encode_then_predict(root: Path, refs: Path, scans: Path, tmp_path: Path, capsys: Any) -> None:
    task_file = tmp_path / "tasks" / "organs.task"
    assert encode_main(["-r", str(refs), "-o", str(task_file), "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "Task: links, rechts, mitte from 2 references (mitte from 1) at " in said
    assert "modality MR (guessed" in said
    new = load_model(root / "results" / "new")
    task = load_task(task_file, new.model_hash)
    assert task.classes == {"links": 1, "rechts": 2, "mitte": 5} and task.made_by == "ensemble"
    assert len(task.reference_hashes) == 2 and task.created == ""
    assert task_file.stat().st_size < 100_000

    out = tmp_path / "out"
    arguments = ["-i", str(scans), "-o", str(out), "-t", str(task_file), "--root", str(root)]
    assert predict_main(arguments) == 0
    assert "2 segmented, 0 skipped as already there, 0 refused." in capsys.readouterr().out
    report = (out / "report.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in report[1:]] == [["s2_a", "done"], ["s3_a", "done"]]
    for case in ("s2_a", "s3_a"):
        found, affine = load(out / f"{case}.nii.gz")
        image, raw_affine = load(scans / f"{case}_0000.nii.gz")
        assert found.shape == image.shape and np.allclose(affine, raw_affine, atol=1e-5)
        assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2, 5}
    assert json.loads((out / "classes.json").read_text(encoding="utf-8")) == {
        "links": 1,
        "rechts": 2,
        "mitte": 5,
    }
    assert predict_main(arguments) == 0
    assert "0 segmented, 2 skipped as already there, 0 refused." in capsys.readouterr().out


def test_predicting_from_references_is_encoding_and_predicting(
    root: Path, refs: Path, scans: Path, tmp_path: Path
) -> None:
    pair = [str(refs / "images" / "s1_a.nii.gz"), str(refs / "labels" / "s1_a.nii.gz")]
    common = ["--root", str(root), "-m", "old"]
    assert encode_main(["-r", *pair, "-o", str(tmp_path / "a.task"), *common, *UNSEARCHED]) == 0
    assert load_task(tmp_path / "a.task").made_by == "one-shot"
    scan = str(scans / "s2_a_0000.nii.gz")
    assert predict_main(["-i", scan, "-o", str(tmp_path / "t"), "-t", str(tmp_path / "a.task"), *common]) == 0
    assert predict_main(["-i", scan, "-o", str(tmp_path / "r"), "-r", *pair, *common, *UNSEARCHED]) == 0
    by_file, by_references = (load(tmp_path / name / "s2_a.nii.gz")[0] for name in "tr")
    assert np.array_equal(by_file, by_references)


def test_the_memory_bank_is_the_default(root: Path, scans: Path, tmp_path: Path, capsys: Any) -> None:
    scan, out = str(scans / "s2_a_0000.nii.gz"), tmp_path / "out"
    assert predict_main(["-i", scan, "-o", str(out), "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "Task: left, right from the memory bank" in said and f"{root / 'results' / 'new'}" in said
    assert json.loads((out / "classes.json").read_text(encoding="utf-8")) == {"left": 1, "right": 2}
    assert (out / "s2_a.nii.gz").is_file()


def test_a_split_becomes_a_folder_of_the_run(
    root: Path, tiny_raw: Any, tiny_store: Store, capsys: Any
) -> None:
    arguments = ["--split", "paper", "-d", "tiny", "--strategy", "one-shot", "--root", str(root), "-m", "old"]
    assert predict_main(arguments) == 1
    assert "the raw scans are needed: there is no" in capsys.readouterr().err
    assert predict_main([*arguments, "--raw", str(tiny_raw.root)]) == 0
    out = root / "results" / "old" / "predictions" / "tiny" / "one-shot"
    test = tiny_store.manifest.splits["paper"]["test"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in test]
    for case in test:
        found, affine = load(out / f"{case}.nii.gz")
        truth, raw_affine = load(tiny_raw.dataset / "labelsTr" / f"{case}.nii.gz")
        assert found.shape == truth.shape and np.allclose(affine, raw_affine, atol=1e-5)


def test_a_reference_among_the_scans_is_refused_and_the_others_finished(
    root: Path, refs: Path, scans: Path, tmp_path: Path, capsys: Any
) -> None:
    image, affine = load(refs / "images" / "s4_a.nii.gz")
    save(scans / "renamed.nii.gz", image, affine)
    (scans / "torn.nii.gz").write_bytes((scans / "s2_a_0000.nii.gz").read_bytes()[:500])
    shutil.copy(scans / "s3_a_0000.nii.gz", scans / "s3_a.nii.gz")
    status = predict_main(
        ["-i", str(scans), "-o", str(tmp_path / "out"), "-r", str(refs), "--root", str(root), *UNSEARCHED]
    )
    assert status == 1
    captured = capsys.readouterr()
    assert "Error: 3 of 4 cases could not be segmented (renamed, s3_a, torn): predict.log" in captured.err
    assert "1 segmented, 0 skipped as already there, 3 refused." in captured.out
    log = (tmp_path / "out" / "predict.log").read_text(encoding="utf-8")
    assert "renamed: refused: A reference is never its own query" in log
    assert "torn: refused: " in log and "torn.nii.gz cannot be read" in log
    assert "s3_a: refused: Each case has one file; 's3_a' has s3_a.nii.gz and s3_a_0000.nii.gz in " in log


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["-i", "nowhere", "-o", "out"],
            "The input nowhere does not exist; give a scan or a folder of scans.",
        ),
        (
            ["-i", "SCANS", "-o", "out", "-t", "no.task"],
            "There is no task file no.task; make one with iris_encode",
        ),
        (["-i", "SCANS", "-o", "out", "-r", "nowhere"], "References are a folder with images/ and labels/"),
        (
            ["-i", "SCANS", "-o", "out", "-r", "a", "b", "c"],
            "-r takes one folder of references, or one image and",
        ),
        (
            ["-i", "SCANS", "-o", "out", "-d", "liver"],
            "The model was trained on tiny; it has no memory of 'liver'",
        ),
        (["-i", "SCANS", "-o", "SCANS"], "Results need a folder of their own;"),
        (
            ["-i", "SCANS", "-o", "out", "-m", "best"],
            "(new, old, unfinished) or a run's folder, or iris_small_6, which comes with the package; got 'best'.",
        ),
        (["-i", "SCANS", "-o", "out", "--overlap", "1"], "under 1 (0.5 is half a window); got 1.0"),
        (
            ["-i", "SCANS", "-o", "out", "-t", "x", "--strategy", "bank"],
            "--strategy bank goes with -d, not with -t or -r",
        ),
        (
            ["-i", "SCANS", "-o", "out", "-t", "x", "--strategy", "one-shot"],
            "A task file has its strategy in it",
        ),
        (["--split", "paper", "-r", "REFS"], "--split is a split of a dataset: it goes with -d"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    sentence: str,
    root: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(scans) if a == "SCANS" else a for a in arguments]
    assert predict_main([*arguments, "--root", str(root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") or "Error: " in error.splitlines()[-1]
    assert sentence in error and "Traceback" not in error


def test_arguments_that_exclude_one_another(root: Path, capsys: Any) -> None:
    for arguments in (["-i", "a", "-o", "b", "-t", "c", "-d", "e"], ["-i", "a"], ["-o", "b"]):
        with pytest.raises(SystemExit) as stop:
            predict_main([*arguments, "--root", str(root)])
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        predict_main(["-i", "a", "-o", "b", "--strategy", "luck"])
    assert "invalid choice: 'luck'" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_one_sentence(
    root: Path, scans: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "note.txt").write_text("no folder")
    for out in (tmp_path / "note.txt", tmp_path / "note.txt" / "masks"):
        assert predict_main(["-i", str(scans), "-o", str(out), "--root", str(root)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"Error: {tmp_path / 'note.txt'}") and "give another folder" in error
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "no folder"


def test_no_references_cannot_be_drawn(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        predict_main(["-i", "a", "-o", "b", "-r", "c", "--references", "0"])
    assert "--references: takes a whole number from 1 on, not '0'" in capsys.readouterr().err


def test_another_models_task_is_refused(
    root: Path, refs: Path, scans: Path, tmp_path: Path, capsys: Any
) -> None:
    task_file = str(tmp_path / "x.task")
    assert encode_main(["-r", str(refs), "-o", task_file, "--root", str(root), "-m", "old", *UNSEARCHED]) == 0
    assert (
        predict_main(["-i", str(scans), "-o", str(tmp_path / "out"), "-t", task_file, "--root", str(root)])
        == 1
    )
    assert "serves only the model that encoded it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_encoding_that_cannot_be_is_one_sentence(
    root: Path, refs: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(refs / "labels" / "s1_a.nii.gz", refs / "labels" / "s4_a.nii.gz")
    (refs / "images" / "s1_a.nii.gz").unlink()
    assert encode_main(["-r", str(refs), "-o", str(tmp_path / "x.task"), "--root", str(root)]) == 1
    assert (
        "Error: At least one reference must be usable, and none of 1 is: 's4_a': Image and label must have the same"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "x.task").exists()


def test_tasks_lists_what_is_known(root: Path, refs: Path, tmp_path: Path, capsys: Any) -> None:
    assert tasks_main(["--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "left: met in 1 episodes" in said and "core: never met: not in the memory bank" in said
    task_file = str(tmp_path / "x.task")
    encode_main(["-r", str(refs), "-o", task_file, "--root", str(root), "-m", "old", *UNSEARCHED])
    capsys.readouterr()
    assert tasks_main([task_file]) == 0
    said = capsys.readouterr().out
    assert f"{task_file}: links, rechts, mitte from 2 references (mitte from 1) at " in said
    assert tasks_main([task_file, "-m", "new", "--root", str(root)]) == 1


def test_without_a_run_the_package_s_own_model_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "weights" / "ours"
    shipped.mkdir(parents=True)
    (shipped / "state.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("iris_pipeline.checkpoints.shipped.SHIPPED", tmp_path / "weights")
    assert find_run(tmp_path / "none", None) == shipped == find_run(tmp_path / "none", "ours")
    assert "No finished run in" in capsys.readouterr().out
    tables_only = tmp_path / "results" / "ours"
    tables_only.mkdir(parents=True)
    assert find_run(tmp_path / "results", "ours") == shipped, "a folder of tables is no model"
    (tables_only / "checkpoint").mkdir()
    (tables_only / "checkpoint" / "state.json").write_text("{}", encoding="utf-8")
    assert find_run(tmp_path / "results", "ours") == tables_only
    with pytest.raises(
        CheckpointError, match=r"-m names a run under .*, or ours, which comes .* got 'theirs'"
    ):
        find_run(tmp_path / "none", "theirs")


def test_a_run_of_which_only_the_tables_were_kept_is_no_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh clone, whose results/ holds runs without their weights."""
    monkeypatch.setattr("iris_pipeline.checkpoints.shipped.SHIPPED", tmp_path / "weights")
    bare = tmp_path / "results" / "night"
    bare.mkdir(parents=True)
    shutil.copy(root / "results" / "new" / "run.json", bare)
    with pytest.raises(CheckpointError, match="No finished run in"):
        find_run(tmp_path / "results", None)
    (tmp_path / "weights" / "ours").mkdir(parents=True)
    (tmp_path / "weights" / "ours" / "state.json").write_text("{}", encoding="utf-8")
    assert find_run(tmp_path / "results", None) == tmp_path / "weights" / "ours"


def test_the_results_are_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict_main(["-i", "scan.nii.gz", "-o", "mask.nii.gz", "-t", "x.task"])
    assert "-o is the folder of the results, not a file; got mask.nii.gz" in capsys.readouterr().err


def test_runs_are_found_by_name_path_or_age(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iris_pipeline.checkpoints.shipped.SHIPPED", tmp_path / "nothing")
    results = root / "results"
    assert find_run(results, None) == results / "new"
    assert find_run(results, "unfinished") == results / "unfinished"
    assert find_run(results, os.fspath(results / "old")) == results / "old"
    with pytest.raises(
        CheckpointError, match=r"No finished run in .*: train one with iris_train, or name a model"
    ):
        find_run(tmp_path, None)


@pytest.mark.parametrize(
    ("content", "version"),
    [('{"schema_version": 2, "status": "finished", "finished": "2027"}', "2"), ("[1]", "None")],
)
def test_a_run_of_another_schema_version_is_told_and_left_out(
    root: Path, tmp_path: Path, content: str, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shutil.copytree(root / "results", tmp_path / "results")
    (results / "new" / "run.json").write_text(content)
    assert find_run(results, None) == results / "old"
    assert capsys.readouterr().out == (
        f"Left out: {results / 'new' / 'run.json'} has schema version {version}, this version reads 1; name the run "
        "with -m to use it all the same.\n"
    )
    assert find_run(results, "new") == results / "new"


# --- references that cannot be used ------------------------------------------------------------------


def test_a_bad_reference_is_told_the_others_serve_and_the_command_fails(
    root: Path, refs: Path, scans: Path, tmp_path: Path, capsys: Any
) -> None:
    (refs / "labels" / "s4_a.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "masks"
    predict = ["-i", str(scans), "-o", str(out), "-r", str(refs), "--root", str(root), "-k", "7"]
    assert predict_main([*predict, *UNSEARCHED]) == 1
    captured = capsys.readouterr()
    assert "Reference 's4_a' is left out: " in captured.err
    assert (
        "1 of 2 references could not be used (s4_a), as told above; the results are made from the others"
        in captured.err
    )
    assert "Note: -k asks for 7 references and there are 1; all of them are used." in captured.out
    assert "2 segmented, 0 skipped as already there, 0 refused." in captured.out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["s2_a.nii.gz", "s3_a.nii.gz"]
    task = tmp_path / "x.task"
    encode = ["-r", str(refs), "--root", str(root), *UNSEARCHED, "-o"]
    assert encode_main([*encode, str(task)]) == 1
    assert load_task(task).references == 1
    (refs / "classes.json").rename(refs / "names.json")  # the values are then read from the good label files
    nameless = tmp_path / "nameless.task"
    assert encode_main([*encode, str(nameless)]) == 1
    assert "Reference 's4_a' is left out: " in (told := capsys.readouterr().err)
    assert (
        "1 of 2 references could not be used (s4_a), as told above; the results are made from the others"
        in told
    )
    assert load_task(nameless).class_names == ("label_1", "label_2", "label_5")
    (refs / "names.json").rename(refs / "classes.json")
    (refs / "labels" / "s1_a.nii.gz").write_bytes(b"no scan either")
    assert encode_main([*encode, str(tmp_path / "y.task")]) == 1
    assert "At least one reference must be usable, and none of 2 is: 's1_a': " in capsys.readouterr().err
    assert not (tmp_path / "y.task").exists()
