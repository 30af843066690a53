"""A run that ends before its first case is told where the run before told that all was done."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from iris_pipeline.scans.case_report import failure_told, write_report
from preprocessing.errors import LockError, PredictionError
from preprocessing.runtime.lock import only_run_in

YESTERDAY = ("a", "done", "", 3.0)
BEFORE = "The run ended before its first case: "


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of results with yesterday's report."""
    (tmp_path / "predict.json").write_text("{}")
    write_report(tmp_path, [YESTERDAY], ["a"], [])
    return tmp_path


def lines(out: Path) -> list[list[str]]:
    with (out / "report.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))[1:]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PredictionError("There is no case."), "There is no case."),
        (KeyboardInterrupt(), "it was interrupted."),
        (
            OSError(13, "Permission denied", "x.task"),
            "x.task cannot be read or written (Permission denied): mend its permissions, or make room where the disk "
            "is full, then run again.",
        ),
        (RuntimeError("a defect"), "RuntimeError: a defect"),
    ],
)
def test_the_report_and_the_log_tell_why(out: Path, error: BaseException, told: str) -> None:
    with pytest.raises(type(error)) as caught, failure_told(out, lambda: ["b.zip left out."]):
        raise error
    assert caught.value is error
    assert lines(out) == [["", "failed", BEFORE + told, "0.0"], ["", "left out", "b.zip left out.", "0.0"]]
    assert (out / "predict.log").read_text(encoding="utf-8").endswith(f" {BEFORE}{told}\n")
    assert not (out / ".lock").exists()


def test_a_run_that_began_tells_it_itself(out: Path) -> None:
    with pytest.raises(PredictionError), failure_told(out):
        (out / "report.csv").unlink()
        write_report(out, [YESTERDAY], ["a", "b"], [])
        raise PredictionError("It ended.")
    assert [line[:2] for line in lines(out)] == [["a", "done"], ["b", "not reached"]]
    assert not (out / "predict.log").exists()


def test_what_belongs_to_another_run_is_left_alone(out: Path) -> None:
    with only_run_in(out, "wait"), pytest.raises(PredictionError), failure_told(out):
        raise PredictionError("It ended.")
    with pytest.raises(LockError), failure_told(out):
        raise LockError("Another run works there.")
    assert [line[:2] for line in lines(out)] == [["a", "done"]] and not (out / "predict.log").exists()


def test_nothing_is_written_where_no_results_are(tmp_path: Path) -> None:
    """A folder that is not there, or that of the scans."""
    for out in (tmp_path / "gone", tmp_path):
        with pytest.raises(PredictionError), failure_told(out):
            raise PredictionError("It ended.")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_report_rather_than_yesterdays(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iris_pipeline.scans.case_report.write_bytes", full)
    with pytest.raises(PredictionError), failure_told(out):
        raise PredictionError("It ended.")
    assert not (out / "report.csv").exists()
