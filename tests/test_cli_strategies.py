"""iris_strategies: which rows are tried, what a row holds, and that a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_cli_predict import write_run

from iris_pipeline.cli.evaluate import evaluate_main
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.cli.strategies import plan_jobs, strategies_main
from preprocessing.store import Store


def test_only_sensible_combinations_the_cheap_ones_first() -> None:
    jobs = plan_jobs(
        ["a", "b"], ["tuning", "bank", "ensemble", "one-shot"], counts=[1, 3], draws=[0, 1], known=["a"]
    )
    said = [(job.dataset, job.experiment.strategy, job.experiment.count, job.experiment.seed) for job in jobs]
    assert said == [
        *((d, "one-shot", 1, draw) for draw in (0, 1) for d in "ab"),
        *((d, "ensemble", 3, draw) for draw in (0, 1) for d in "ab"),
        *((d, "tuning", k, draw) for k in (1, 3) for draw in (0, 1) for d in "ab"),
        ("a", "bank", 0, 0),
    ]


@pytest.fixture
def root(tiny_store: Store, tmp_path: Path) -> Path:
    (tmp_path / "preprocessed").symlink_to(tiny_store.folder.parent)
    write_run(tmp_path / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    return tmp_path


def test_rows_lie_where_the_tables_look_and_are_not_made_twice(
    root: Path, tiny_raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        *("--root", str(root), "--raw", str(tiny_raw.dataset.parent), "-m", "run"),
        *("--strategies", "one-shot", "ensemble", "bank", "-k", "1", "2", "99", "--draws", "0", "1"),
    ]
    assert strategies_main(call) == 0
    captured = capsys.readouterr()
    assert "7 rows; next: iris_evaluate -p run" in captured.out
    assert captured.out.count("ensemble with 99 references is left out, a query has ") == 2
    made = sorted((root / "results" / "run" / "predictions" / "tiny").glob("*/*.nii.gz"))
    rows = sorted({path.parent.name for path in made})
    assert rows == [
        "bank",
        "ensemble_k2_draw0",
        "ensemble_k2_draw1",
        "one-shot_k1_draw0",
        "one-shot_k1_draw1",
    ]
    before = {path: path.stat().st_mtime_ns for path in made}
    made[0].unlink()
    assert strategies_main(call) == 0
    changed = [path for path in made if path.stat().st_mtime_ns != before[path]]
    assert changed == [made[0]]


@pytest.fixture
def shipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only model there is comes with the package."""
    folder = root / "package" / "weights" / "ours"
    folder.parent.mkdir(parents=True)
    shutil.move(root / "results" / "run" / "checkpoint", folder)
    shutil.rmtree(root / "results")
    monkeypatch.setattr("iris_pipeline.checkpoints.shipped.SHIPPED", folder.parent)
    return folder


@pytest.mark.parametrize("named", [[], ["-m", "ours"], ["-m", "{folder}"]])
def test_predictions_of_the_packages_model_lie_under_results(
    root: Path, shipped: Path, tiny_raw: Any, tiny_store: Store, named: list[str], capsys: Any
) -> None:
    before = sorted(shipped.iterdir())
    place = ["--root", str(root), "--raw", str(tiny_raw.dataset.parent)]
    model = [each.replace("{folder}", str(shipped)) for each in named]
    for said in ("1 segmented, 0 skipped", "0 segmented, 1 skipped"):  # the results do not hide the model
        assert predict_main([*place, *model, "--split", "paper", "--overlap", "0"]) == 0
        assert said in capsys.readouterr().out
    assert strategies_main([*place, *model, "--strategies", "one-shot", "-k", "1", "--draws", "0"]) == 0
    assert "next: iris_evaluate -p ours" in capsys.readouterr().out
    (case,) = tiny_store.manifest.splits["paper"]["test"]
    out = root / "results" / "ours" / "predictions" / "tiny"
    assert sorted(out.glob("*/*.nii.gz")) == [
        out / "bank" / f"{case}.nii.gz",
        out / "one-shot_k1_draw0" / f"{case}.nii.gz",
    ]
    assert sorted(shipped.iterdir()) == before
    assert evaluate_main(["-p", "ours", *place]) == 0
    rows = root / "results" / "ours" / "evaluation" / "tiny__bank.csv"
    assert f"\nours,tiny,paper/test,bank,{case}," in rows.read_text(encoding="utf-8")


def test_the_number_of_looks_is_the_banks_too(root: Path, tiny_raw: Any, capsys: Any) -> None:
    place = ["--root", str(root), "--raw", str(tiny_raw.dataset.parent), "--overlap", "0"]
    out = root / "results" / "run" / "predictions" / "tiny" / "bank" / "predict.json"
    for looks in (2, 1):
        more = ["--looks", str(looks), "--overwrite"]
        assert predict_main([*place, "--split", "paper", *more]) == 0
        made = json.loads(out.read_text(encoding="utf-8"))["made_from"]
        assert made.get("looks", 1) == looks
    row = [*place, "--strategies", "bank", "--looks", "1"]
    assert strategies_main([*row, "--overlap", "0.25"]) == 1
    assert "made otherwise" in capsys.readouterr().out
    assert strategies_main([*row, "--overlap", "0.25", "--overwrite"]) == 0
    both = [*place, "--strategies", "bank", "one-shot", "--looks", "1", "--grey", "0"]
    assert strategies_main(both) == 1
    assert (
        "Error: References of tiny are taken as they are in the store, so --grey would change nothing"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("useless", [["--pose", "LIP"], ["--grey", "0"], ["--looks", "1"]])
def test_what_no_reference_would_be_shown_in_is_refused(
    root: Path, tiny_raw: Any, useless: list[str], capsys: Any
) -> None:
    place = ["--root", str(root), "--raw", str(tiny_raw.dataset.parent), *useless]
    says = (
        f"References of tiny are taken as they are in the store, so {useless[0]} would change nothing (for references "
        "of -r and of held-out datasets only): leave it out."
    )
    assert strategies_main([*place, "--strategies", "one-shot"]) == 1
    assert says in capsys.readouterr().err
    assert predict_main([*place, "--split", "paper", "--strategy", "one-shot"]) == 1
    assert says in capsys.readouterr().err
    assert not (root / "results" / "run" / "predictions").exists()


def test_draws_are_counted_from_nought(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        strategies_main(["--draws", "0", "-1"])
    assert stop.value.code == 2
    assert "argument --draws: takes a whole number from 0 on, not '-1'" in capsys.readouterr().err
