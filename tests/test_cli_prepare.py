"""The commands before training: their exit status, what goes to stdout and what to stderr."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TinyRaw

from iris_pipeline.cli import prepare
from iris_pipeline.cli.prepare import check_main, datasets_main, plan_and_preprocess_main
from preprocessing import fingerprint, plan, run
from preprocessing.runtime.options import ending
from preprocessing.runtime.paths import Root
from preprocessing.store import Store

FEW = ["--workers", "1", "--quiet"]


def broken_copy(tiny: TinyRaw, folder: Path) -> Path:
    shutil.copytree(tiny.root, folder)
    (folder / "tiny" / "imagesTr" / "s1_a.nii.gz").write_bytes(b"\x1f\x8b\x08 broken")
    return folder


def test_check_says_ok_and_writes_json(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert check_main([str(tiny_raw.root), "-d", str(tiny_raw.spec_path), "--json", str(out), *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 5 ok, 0 repaired, 0 refused" and all(
        line.startswith("  note: ") for line in lines[1:]
    )
    summary = json.loads(out.read_text(encoding="utf-8"))
    assert (summary["schema_version"], summary["remarks"], summary["errors"]) == (2, [], [])
    assert [report["counts"] for report in summary["datasets"]] == [{"ok": 5, "repaired": 0, "refused": 0}]


def test_check_finds_the_broken_case_and_the_unknown_name(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = broken_copy(tiny_raw, tmp_path / "raw")
    assert check_main([str(raw), "-d", "tinny", str(tiny_raw.spec_path), *FEW]) == 1
    printed = capsys.readouterr()
    assert "tiny: 4 ok, 0 repaired, 1 refused\n  s1_a: refused: " in printed.out
    assert printed.err.startswith("Error: Unknown dataset 'tinny': known are ")
    assert check_main([str(raw), "-d", str(tiny_raw.spec_path), "--json", "-", *FEW]) == 1
    assert json.loads(capsys.readouterr().out)["datasets"][0]["cases"][0]["verdict"] == "refused"


def test_check_goes_on_behind_a_dataset_whose_cases_cannot_be_listed(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one word, `all`, stands for both: la2018 comes first and is empty."""
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw.root, raw)
    shutil.copy(tiny_raw.spec_path, raw / "tiny.yaml")
    (raw / "la2018").mkdir()
    assert check_main([str(raw), "-d", "all", *FEW]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "tiny: 5 ok, 0 repaired, 0 refused" and "remark" not in printed.out
    assert printed.err.count("\n") == 1 and "la2018/imagesTr holds no image" in printed.err
    assert check_main([str(raw), "-d", "tiny", "upstream", *FEW]) == 1
    assert capsys.readouterr().out.count("tiny: ") == 1, "named twice, checked once"


def test_check_goes_on_behind_a_dataset_that_the_system_refuses(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw.root, raw)
    shutil.copy(tiny_raw.spec_path, raw / "tiny.yaml")
    (raw / "la2018").mkdir()
    real = prepare.check_dataset

    def refusing(folder: Path, *more: object, **options: object) -> object:
        if folder.name == "la2018":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "check_dataset", refusing)
    assert check_main([str(raw), "-d", "all", *FEW]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "tiny: 5 ok, 0 repaired, 0 refused"
    told = f"Error: {raw / 'la2018'} cannot be read or written (Permission denied): mend its permissions"
    assert printed.err.startswith(told) and printed.err.count("\n") == 1


def test_plan_and_preprocess_finishes_the_good_cases_and_exits_with_1(
    tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = broken_copy(tiny_raw, tmp_path / "raw")
    root = ["--root", str(tmp_path), "--crop", "32", "32", "32", *FEW]
    assert plan_and_preprocess_main(["-d", str(tiny_raw.spec_path), *root]) == 1
    assert "tiny: 4 ok, 0 repaired, 1 refused" in capsys.readouterr().out
    assert len(Store.open(tmp_path / "preprocessed" / "tiny").manifest.cases) == 4
    shutil.copy(tiny_raw.dataset / "imagesTr" / "s1_a.nii.gz", raw / "tiny" / "imagesTr" / "s1_a.nii.gz")
    assert plan_and_preprocess_main(["-d", str(tiny_raw.spec_path), *root]) == 0
    assert len(Store.open(tmp_path / "preprocessed" / "tiny").manifest.cases) == 5


def test_errors_are_one_sentence_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_and_preprocess_main(["-d", "hippocampus", "--root", str(tmp_path), *FEW]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: Unknown dataset 'hippocampus'") and "'msd_hippocampus'?" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        plan_and_preprocess_main(["-d", "la2018", "--workers", "0"])
    assert "the number of processes is at least 1, not '0'" in capsys.readouterr().err


def test_datasets_lists_what_is_known_and_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw" / "la2018").mkdir(parents=True)
    (tmp_path / "raw" / "mine").mkdir()
    (tmp_path / "preprocessed" / "la2018").mkdir(parents=True)
    assert datasets_main(["--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[:-1]}
    assert rows["la2018"] == ["upstream", "MR", "1", "0", "of", "7", "unfinished"]
    assert rows["sts_ct"] == ["held-out", "CT", "1", "-", "-"]
    assert lines[-1] == f"Under {tmp_path / 'raw'} without a specification: mine."


def test_a_dataset_of_ones_own_is_listed_from_its_store(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw" / "tiny").mkdir(parents=True)
    (tmp_path / "preprocessed").symlink_to(tiny_store.folder.parent)
    assert datasets_main(["--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.startswith("tiny "))
    assert row == ["tiny", "upstream", "MR", "3", "0", "of", "5", "finished"]
    assert "without a specification" not in text


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def stopped() -> int:
        raise KeyboardInterrupt

    def defect() -> int:
        raise OSError("nobody knows")

    assert ending(lambda: len((tmp_path / "no").read_text(encoding="utf-8"))) == 1
    assert capsys.readouterr().err == (
        f"Error: {tmp_path / 'no'} cannot be read or written (No such file or directory): give another path or "
        "mend its permissions.\n"
    )
    assert ending(full) == 1
    assert capsys.readouterr().err == (
        "Error: A file cannot be written (No space left on device): make room there.\n"
    )
    assert ending(stopped, "Stopped.") == 130 and capsys.readouterr().err == "Stopped.\n"
    with pytest.raises(OSError, match="nobody knows"):
        ending(defect)


def test_each_stage_runs_alone(tiny_raw: TinyRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["-d", str(tiny_raw.spec_path), "--raw", str(tiny_raw.root), "--root", str(tmp_path), *FEW]
    folder = tmp_path / "preprocessed" / "tiny"
    assert plan.main([*common, "--crop", "32", "32", "32"]) == 1
    assert "fingerprint.json does not exist" in capsys.readouterr().err
    assert fingerprint.main(common) == 0
    assert capsys.readouterr().out == "tiny: 5 ok, 0 repaired, 0 refused\n"
    assert plan.main([*common, "--crop", "32", "32", "32"]) == 0
    assert "finer than the paper's 1.5 mm" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        "fingerprint.json",
        "plan.json",
        "preprocess.log",
    ]
    assert run.main([*common, "--crop", "32", "32", "32"]) == 0
    assert (folder / "manifest.json").is_file()


def test_the_modules_are_commands(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    """With two spawned workers: the worker's functions must be found again from a module that is the main one."""
    options = ["-d", str(tiny_raw.spec_path), "--raw", str(tiny_raw.root), "--root", str(tmp_path)]
    command = [sys.executable, "-m", "preprocessing.fingerprint", *options, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert (done.returncode, done.stdout) == (0, "tiny: 5 ok, 0 repaired, 0 refused\n")
    assert "tiny: reading: 5 of 5 cases after " in done.stderr and "\r" not in done.stderr


def test_the_root_is_option_then_variable_then_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IRIS_ROOT", raising=False)
    assert Root.resolve().raw == Path("raw")
    monkeypatch.setenv("IRIS_ROOT", "/variable")
    assert Root.resolve().preprocessed == Path("/variable/preprocessed")
    assert Root.resolve("/option", "/scans") == Root(
        Path("/scans"), Path("/option/preprocessed"), Path("/option/results")
    )


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    script = "from iris_pipeline.cli.prepare import datasets_main; raise SystemExit(datasets_main(['--root', '.']))"
    call = f'{sys.executable} -u -c "{script}" | head -c 1'
    done = subprocess.run(["bash", "-c", call], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "n" and done.stderr == ""
