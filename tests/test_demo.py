"""The demo's own parts; `make demo` itself runs the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iris_pipeline import demo
from iris_pipeline.measures.rows import Origin, Row, write_rows
from preprocessing.errors import EvaluationError, RawDataError


def row(dataset: str, strategy: str, case: str, klass: str, dice: float, run: str = demo.RUN) -> Row:
    return Row(Origin(run, dataset, "paper/test", strategy), case, case, klass, dice, 10, 10)


def test_mean_is_over_cases_then_classes_then_datasets_and_without_the_baseline(tmp_path: Path) -> None:
    nan = float("nan")
    rows = [
        row("phantom_ct", "bank", "a", "liver", 1.0),
        row("phantom_ct", "bank", "b", "liver", 0.5),
        row("phantom_ct", "bank", "a", "spleen", 0.25),
        row("phantom_ct", "bank", "b", "spleen", nan),  # absent from truth and mask: left out
        row("phantom_pet", "bank", "c", "lesion", 0.1),
        row("phantom_pet", "one-shot", "c", "lesion", 0.4),
        row("phantom_pet", "everything-foreground", "c", "lesion", 0.9, run="baseline"),
    ]
    write_rows(tmp_path / demo.RUN / "evaluation" / "all.csv", rows)
    scores = demo.mean_dice(tmp_path)
    assert scores == pytest.approx({"bank": ((0.75 + 0.25) / 2 + 0.1) / 2, "one-shot": 0.4})


def test_floor_is_met_by_each_strategy_or_the_demo_fails() -> None:
    demo.check_floor({"one-shot": 0.5, "bank": 0.6}, 0.5, 9)
    with pytest.raises(EvaluationError, match=r"at least 0\.50, .*; bank has 0\.499 after 9 training steps"):
        demo.check_floor({"one-shot": 0.6, "bank": 0.499}, 0.5, 9)
    with pytest.raises(EvaluationError, match="one-shot has nan"):
        demo.check_floor({"bank": 0.6}, 0.5, 9)


def test_a_former_demo_is_removed_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo.make_room(folder)
    (folder / "old.txt").write_text("old")
    demo.make_room(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARK]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "scan.nii.gz").write_text("mine")
    with pytest.raises(RawDataError, match="needs a new folder, and .*mine holds something else"):
        demo.make_room(mine)
    assert (mine / "scan.nii.gz").read_text(encoding="utf-8") == "mine"


def test_steps_name_real_commands_and_both_strategies_of_each_dataset() -> None:
    from test_house import PYPROJECT

    folder = Path("somewhere")
    length = ("--minutes", "1")
    steps = [*demo.prepare_steps(folder, 3), demo.train_step(folder, 3, length), *demo.predict_steps(folder)]
    steps += demo.result_steps(folder)
    assert {step.command[0] for step in steps} <= {"python", *PYPROJECT["project"]["scripts"]}
    pairs = {(s.command[4], s.command[6]) for s in demo.predict_steps(folder)}
    assert pairs == {(f"phantom_{k}", s) for k in ("ct", "mr", "pet") for s in ("one-shot", "bank")}


def test_a_step_that_fails_stops_the_demo_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    demo.run_step(demo.Step("Fine", ("python", "-c", "print('said by the step')")))
    assert "$ python -c print('said by the step')" in capfd.readouterr().out
    with pytest.raises(EvaluationError, match="step 'Broken' ended with status 3"):
        demo.run_step(demo.Step("Broken", ("python", "-c", "raise SystemExit(3)")))
    with pytest.raises(RawDataError, match="iris_nothing is not in"):
        demo.run_step(demo.Step("Absent", ("iris_nothing",)))


def test_the_command_line_ends_with_status_1_and_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("mine")
    command = [sys.executable, "-m", "iris_pipeline.demo", "--folder", str(tmp_path)]
    result = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        cwd=Path(__file__).resolve().parents[1],
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The demo needs a new folder") and "Traceback" not in result.stderr
