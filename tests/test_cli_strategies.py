"""iris_strategies: which rows are tried, what a row holds, and that a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_cli_predict import write_run

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
