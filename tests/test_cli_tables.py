"""iris_tables, iris_benchmark and another tool's rows as commands: from files to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iris_pipeline.cli.evaluate import evaluate_main
from iris_pipeline.cli.tables import benchmark_main, tables_main
from iris_pipeline.measures.rows import Origin, Row, write_rows

REPOSITORY = Path(__file__).resolve().parents[1]
EVALUATIONS = "results/**/evaluation"
MEASURES = {"iou": 0.5, "nsd": 0.9, "tolerance_mm": 2.0, "hd95_mm": 3.0, "volume_error_ml": -1.0}


def write_run(results: Path, run: str, strategy: str, dice: float) -> None:
    where = Origin(run, "toy", "paper/test", strategy)
    rows = [Row(where, f"c{n}", f"s{n}", "liver", dice + 0.01 * n, 10, 9, MEASURES) for n in range(6)]
    write_rows(results / run / "evaluation" / f"toy__{strategy}.csv", rows, "Made by a test.")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    for run, tokens, dice in (("ten", 10, 0.7), ("two", 2, 0.6)):
        write_run(results, run, "one-shot", dice)
        record = {"status": "finished", "datasets": ["toy"], "settings": {"seed": 0}, "config": {"m": tokens}}
        (results / run / "run.json").write_text(json.dumps(record))
    write_run(results, "ten", "bank", 0.75)
    return tmp_path


def test_every_table_that_the_runs_fill(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        benchmark_main(
            ["--size", "tiny", "--queries", "1", "--classes", "2", "--edge", "32", "--root", str(root)]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "| ours  | Iris tiny " in said and "sets it beside the 1 measured so far" in said
    assert tables_main(["--root", str(root), "--compare", "ten/one-shot", "two"]) == 0
    page = (root / "results" / "tables.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# Results",
        "## Table 1: in-distribution, Dice in %",
        "## Paired comparison, Dice",
        "## Strategies side by side, Dice",
        "## Runs that differ in network m only, Dice",
        "## Table 3: efficiency",
        "## In-distribution (the paper's Table 1)",
        "## Held-out (the paper's Table 2)",
        "## The paper's columns and the datasets that fill them",
        "## toy",
        "## toy, all measures",
        "## Runs",
    ]
    assert page.count("Made by `iris_tables --root") == 11, "every table ends with its command"
    names = {path.name for path in (root / "results" / "tables").iterdir()}
    assert {"table1.csv", "table1.tex", "table3.tex", "ablation_network_m.csv", "by_class.csv"} <= names
    assert "by_class.tex" not in names
    assert "| ten/one-shot | two    | toy     | 6        | 0.725         | 0.625          | +0.100 " in page
    assert tables_main(["--root", str(root), "--compare", "ten", "two"]) == 1
    assert "'ten' fits 2 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "folder",
    sorted({str(found.parents[1].relative_to(REPOSITORY)) for found in REPOSITORY.glob(EVALUATIONS)}),
)
def test_the_tables_of_the_committed_results_can_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    assert (
        tables_main(["--results", str(REPOSITORY / folder), "-o", str(tmp_path), "--root", str(tmp_path)])
        == 0
    )
    said = capsys.readouterr().out
    assert "## Table 1: in-distribution" in said and f"Written: {tmp_path / 'tables.md'}" in said
    runs = {path.parents[1].name for path in (REPOSITORY / folder).glob("*/evaluation/*.csv")}
    assert all(f"| {run} " in said for run in runs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "a/b", "-d", "toy"], "letters, digits, '.', '_', '\\+' and '-', not baseline, paper"),
        (["--method", "baseline", "-d", "toy"], "got 'baseline'"),
        (["--method", "nnU-Net"], "give the dataset with -d"),
    ],
)
def test_a_method_needs_a_name_and_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    import re

    (tmp_path / "masks").mkdir()
    assert evaluate_main(["-p", str(tmp_path / "masks"), "--root", str(tmp_path), *arguments]) == 1
    assert re.search(says, capsys.readouterr().err)


def test_the_names_of_values_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("masks", "truth"):
        (tmp_path / folder).mkdir()
    arguments = ["-p", str(tmp_path / "masks"), "-g", str(tmp_path / "truth"), "--root", str(tmp_path)]
    assert evaluate_main([*arguments, "--classes", str(tmp_path / "gone.json")]) == 1
    assert "gone.json is none: check it" in capsys.readouterr().err
    (tmp_path / "names.json").write_text('{"labels": {"background": 0, "liver": "one"}}')
    assert evaluate_main([*arguments, "--classes", str(tmp_path / "names.json")]) == 1
    assert 'should name the classes as {"liver": 1}' in capsys.readouterr().err
