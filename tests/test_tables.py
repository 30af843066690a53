"""Tables from rows: means and counts by hand, the paper's rows apart from ours, the command under each table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from iris_pipeline import __version__, paper, provenance
from iris_pipeline.measures.rows import COLUMNS, FIRST_COLUMNS, Origin, Row, write_rows
from iris_pipeline.tables.result_tables import (
    Counts,
    class_means,
    collect_rows,
    count_pairs,
    dataset_table,
    frame_of,
    of_test_parts,
    overview_table,
    paper_table,
    read_rows,
    read_run,
    result_tables,
    runs_table,
    strategy_place,
)
from iris_pipeline.tables.table_format import Table, to_csv, to_latex, to_markdown, write_tables
from preprocessing.errors import EvaluationError

NAN = float("nan")
MADE_BY = "Made by `iris_tables` at commit abc."


def rows(
    dataset: str, run: str = "night", strategy: str = "one-shot", split: str = "paper/test"
) -> list[Row]:
    """Two cases and two classes. liver: 0.9, 0.6; spleen: 0 (mask only) and NaN (in neither)."""
    where = Origin(run, dataset, split, strategy)
    return [
        Row(where, "a", "s1", "liver", 0.9, 100, 90),
        Row(where, "a", "s1", "spleen", 0.0, 0, 7),
        Row(where, "b", "s2", "liver", 0.6, 50, 60),
        Row(where, "b", "s2", "spleen", NAN, 0, 0),
    ]


def baseline(dataset: str, split: str = "paper/test") -> list[Row]:
    where = Origin("baseline", dataset, split, "everything-foreground")
    return [Row(where, case, "s", "liver", 0.1, 50, 950) for case in "ab"]


def cells(table: Table, row: int) -> list[str]:
    return list(table.frame.iloc[row])


def test_means_are_over_cases_then_classes() -> None:
    frame = frame_of(rows("toy"))
    assert class_means(frame).to_dict() == {"liver": pytest.approx(0.75), "spleen": 0.0}
    table = dataset_table(frame, "toy")
    assert list(table.frame.columns)[:-1] == ["run", "split", "strategy", "cases", "liver", "spleen", "mean"]
    assert cells(table, 0) == ["night", "paper/test", "one-shot", "2", "0.750", "0.000", "0.375", ""]


def test_counts_of_the_empty_mask_rule() -> None:
    where = Origin("r", "toy", "", "s")
    frame = frame_of(
        [
            *rows("toy"),
            Row(where, "c", "", "liver", 0.0, 30, 0),  # truth only
            Row(where, "c", "", "spleen", NAN, 0, 12),  # the truth does not tell
            Row(where, "d", "", "liver", NAN, 30, None),  # no usable prediction
            Row(where, "d", "", "spleen", NAN, None, None),  # nor a usable truth
        ]
    )
    counts = count_pairs(frame)
    assert counts == Counts(pairs=8, scored=4, absent=1, truth_only=1, mask_only=1, unknown=1, failed=2)
    assert counts.sentence() == (
        "4 of 8 case-class pairs scored, 1 in neither truth nor mask (left out), 1 in the truth only (0), "
        "1 in the mask only (0), 1 with a truth that does not tell (left out), "
        "2 WITHOUT A USABLE PREDICTION (left out: this row is incomplete)"
    )
    note = "night · one-shot · paper/test: 3 of 4 case-class pairs scored, 1 in neither"
    assert any(line.startswith(note) for line in dataset_table(frame, "toy").notes)


def test_a_case_without_prediction_is_no_case_of_the_row() -> None:
    where = Origin("night", "toy", "paper/test", "one-shot")
    frame = frame_of([*rows("toy"), Row(where, "c", "", "liver", NAN, 30, None)])
    assert cells(dataset_table(frame, "toy"), 0)[3:5] == ["2", "0.750"]


def test_strategies_stand_in_one_order_with_the_baseline_last() -> None:
    frame = frame_of(
        [row for name in ("bank", "ensemble", "one-shot", "my own") for row in rows("toy", strategy=name)]
        + baseline("toy")
        + rows("toy", run="evening")
    )
    table = dataset_table(frame, "toy")
    assert list(table.frame["run"]) == ["evening", "night", "night", "night", "night", "baseline"]
    assert list(table.frame["strategy"])[1:] == [
        "one-shot",
        "ensemble",
        "bank",
        "my own",
        "everything is foreground",
    ]
    assert not any("baseline" in note for note in table.notes), "nobody counts what it leaves out"
    assert cells(table, 5)[4:] == ["0.100", "", "0.100", ""]
    names = ["tuning", "bank", "object-retrieval", "ensemble_k3", "tuningfork", "one-shot"]
    assert sorted(names, key=strategy_place) == [
        *("one-shot", "ensemble_k3", "object-retrieval", "tuning", "bank", "tuningfork"),
    ]


def test_the_papers_figures_stand_in_rows_of_their_own() -> None:
    table = dataset_table(frame_of(rows("toy")), "toy", "CHAOS")
    assert cells(table, 0)[-2] == "0.375", "ours is not touched"
    assert cells(table, 1) == ["paper", "Table 1, CHAOS", "Iris", "", "", "", "0.918", ""]
    assert cells(table, 2)[2:-1] == ["nnUNet", "", "", "", "0.911"]
    assert any("the paper's own figures" in note for note in table.notes)
    with pytest.raises(
        EvaluationError, match="paper_column of dataset toy must be one of AMOS CT, .*'CHAOZ'"
    ):
        dataset_table(frame_of(rows("toy")), "toy", "CHAOZ")


def test_overview_has_a_mean_only_where_nothing_is_missing() -> None:
    frame = frame_of([*rows("toy"), *rows("other"), *rows("toy", strategy="bank")])
    table = overview_table(frame)
    assert list(table.frame.columns) == ["run", "split", "strategy", "other", "toy", "mean"]
    assert cells(table, 0) == ["night", "paper/test", "one-shot", "0.375", "0.375", "0.375"]
    assert cells(table, 1) == ["night", "paper/test", "bank", "", "0.375", ""]


def test_paper_form_is_filled_by_our_datasets() -> None:
    frame = frame_of([*rows("toy"), *rows("hearts"), *baseline("toy")])
    assert paper_table(frame, 1, {}) is None
    assert paper_table(frame, 2, {"toy": "CHAOS"}) is None
    table = paper_table(frame, 1, {"toy": "CHAOS", "hearts": "M&Ms", "elsewhere": "BCV"})
    assert table is not None
    assert list(table.frame.columns) == ["from", "method", "group", *paper.columns_of(1), "average"]
    ours = table.frame[table.frame["from"] == "ours"]
    assert len(ours) == 1, "the baseline is no method of the paper's form"
    line = ours.iloc[0]
    assert (line["CHAOS"], line["M&Ms"], line["BCV"], line["average"]) == ("37.50", "37.50", "", "")
    theirs = table.frame[table.frame["from"] == "paper"].reset_index(drop=True)
    published = paper.load_table(1)
    assert list(theirs["method"]) == list(published["method"])
    assert theirs.loc[theirs["method"] == "Iris", "average"].item() == "84.52"
    assert "Of ours, toy fills CHAOS, hearts fills M&Ms." in table.notes


def test_a_full_paper_row_has_an_average() -> None:
    columns = {f"set{number}": column for number, column in enumerate(paper.columns_of(1))}
    table = paper_table(frame_of([row for name in columns for row in rows(name)]), 1, columns)
    assert table is not None and table.frame.iloc[0]["average"] == "37.50"
    table = paper_table(frame_of(rows("toy")), 2, {"toy": "Pelvic"})
    assert table is not None and "average" not in table.frame, "the paper's Table 2 has none"
    table = paper_table(frame_of([*rows("toy"), *rows("toy", "theirs", "my own")]), 1, {"toy": "CHAOS"})
    assert table is not None and list(table.frame["group"])[:2] == ["in-context", "another tool"]


def test_the_test_part_of_any_split_and_no_other() -> None:
    splits = ["paper/test", "0/test", "paper/validation", "test/train", ""]
    frame = frame_of([row for split in splits for row in rows("toy", split=split)])
    assert list(dict.fromkeys(of_test_parts(frame)["split"])) == ["paper/test", "0/test"]


def test_two_datasets_cannot_fill_one_column() -> None:
    frame = frame_of([*rows("toy"), *rows("other")])
    with pytest.raises(EvaluationError, match="paper's column CHAOS; toy, other do"):
        paper_table(frame, 1, {"toy": "CHAOS", "other": "CHAOS"})


def test_the_papers_tables_as_published() -> None:
    assert [len(paper.load_table(number)) for number in (1, 2, 3)] == [11, 11, 3]
    assert len(paper.columns_of(1)) == 12 and len(paper.columns_of(2)) == 7
    assert paper.figure("Iris", "MSD Pancreas") == 28.28
    assert paper.figure("nnUNet-generalize", "Pelvic") is None
    assert paper.figure("Iris", "no such column") is None
    assert paper.load_table(3).set_index("method").loc["Iris", "parameters_m"] == 69.4
    # A slip in copying would show: averages are the means of their columns, but for two known rows.
    table = paper.load_table(1).set_index("method")
    apart = (table[paper.columns_of(1)].mean(axis=1) - table["average"]).abs()
    assert list(apart.index[apart > 0.006]) == ["SAM", "SAM-Med2D"]
    mine = paper.load_table(1)
    mine.loc[:, "CHAOS"] = 0.0
    assert paper.figure("Iris", "CHAOS") == 91.85, "a caller cannot change the facts"


def test_markdown_has_aligned_cells_notes_and_the_command() -> None:
    table = Table("toy", "A title", pd.DataFrame({"run": ["a|b", "c"], "n": ["1", "22"]}), ("A note.",))
    assert to_markdown(table, MADE_BY) == (
        "## A title\n\n"
        "| run  | n   |\n"
        "|------|-----|\n"
        "| a\\|b | 1   |\n"
        "| c    | 22  |\n\n"
        "- A note.\n"
        f"- {MADE_BY}\n"
    )
    assert to_csv(table, MADE_BY) == f"run,n\na|b,1\nc,22\n# A note.\n# {MADE_BY}\n"


def test_latex_is_what_booktabs_takes() -> None:
    frame = pd.DataFrame(
        {"run": ["a_b", "paper"], "mean ± sd": ["0.81 [0.79, 0.83]", ""], "share of 50%": ["words", "x & y"]}
    )
    table = Table("toy", "Set #1, Dice in %", frame, ("50 % of {a}.",))
    assert to_latex(table, "Made by `iris_tables --root x_y` at commit abc.") == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{Set \#1, Dice in \%}",
            r"\label{tab:toy}",
            r"\begin{tabular}{lrl}",
            r"\toprule",
            r"run & mean $\pm$ sd & share of 50\% \\",
            r"\midrule",
            r"a\_b & 0.81 [0.79, 0.83] & words \\",
            r"\midrule",
            r"paper &  & x \& y \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip\footnotesize\raggedright",
            r"50 \% of \{a\}.\par",
            r"Made by \texttt{iris\_tables {-}{-}root x\_y} at commit abc.\par",
            r"\end{table}",
            "",
        ]
    )


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    where = Origin("night", "toy", "", "one-shot")
    written = [
        Row(where, "007", "001", "NA", 0.5, 10, 6),
        Row(where, "1e3", "", "nan", NAN, 10, None),
        Row(where, "#9", "", "#", 1.0, 10, 10),
    ]
    write_rows(tmp_path / "rows.csv", written, MADE_BY)
    frame = read_rows(tmp_path / "rows.csv")
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["case"]) == ["007", "1e3", "#9"] and list(frame["class"]) == ["NA", "nan", "#"]
    assert list(frame["subject"]) == ["001", "", ""]
    assert frame["dice"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(frame, frame_of(written))


def test_files_of_the_first_schema_are_still_read(tmp_path: Path) -> None:
    text = ",".join(FIRST_COLUMNS) + "\nnight,toy,paper/test,bank,007,s1,liver,0.5,10,6\n# Made by x.\n"
    (tmp_path / "rows.csv").write_text(text)
    frame = read_rows(tmp_path / "rows.csv")
    assert list(frame.columns) == list(COLUMNS)
    line = frame.iloc[0]
    assert (line["case"], line["dice"], line["predicted_voxels"], line["base"]) == ("007", 0.5, 6, "bank")
    assert frame.loc[0, ["nsd", "hd95_mm", "references"]].isna().all()
    write_rows(tmp_path / "new.csv", rows("toy"))
    both = pd.concat([frame, read_rows(tmp_path / "new.csv")], ignore_index=True)
    assert both.dtypes["nsd"] == "float64" and len(both) == 5


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", ",".join(COLUMNS) + "\n" + "x," * 7 + "good,1,2\n"])
def test_other_files_are_no_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(EvaluationError, match=r"rows\.csv .*again with iris_evaluate"):
        read_rows(tmp_path / "rows.csv")


def write_run(results: Path, run: str, *evaluations: list[Row]) -> None:
    for found in evaluations:
        where = found[0].origin
        write_rows(results / run / "evaluation" / f"{where.dataset}__{where.strategy}.csv", found, MADE_BY)


def test_rows_of_all_runs_with_one_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "night", rows("toy"), baseline("toy"))
    write_run(tmp_path, "evening", rows("toy", run="evening"), baseline("toy"))
    frame = collect_rows(tmp_path)
    assert frame["run"].value_counts().to_dict() == {"night": 4, "evening": 4, "baseline": 2}
    assert set(collect_rows(tmp_path, ["night"])["run"]) == {"night", "baseline"}
    with pytest.raises(EvaluationError, match="evaluated: evening, night; asked for morning: name others"):
        collect_rows(tmp_path, ["night", "morning"])
    with pytest.raises(EvaluationError, match=r"holds no .*run iris_evaluate first"):
        collect_rows(tmp_path / "night", ["night"])
    write_run(tmp_path, "day", rows("toy", run="day", split="0/test"), baseline("toy", "0/test"))
    of_splits = collect_rows(tmp_path).query("run == 'baseline'")["split"].value_counts()
    assert of_splits.to_dict() == {"paper/test": 2, "0/test": 2}, "one a split"


def test_written_tables(tmp_path: Path) -> None:
    frame = frame_of([*rows("toy"), *rows("hearts")])
    (tmp_path / "tables").mkdir()
    former = Table("gone", "Gone", pd.DataFrame({"a": ["1"]}), ("A note.",))
    write_tables([former], tmp_path, "Made by `iris_tables --results x_y -o z` at commit abc.")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"gone.csv", "gone.tex"}
    theirs = {
        "patients.csv": "name,age\nA,1\n",
        "notes.tex": "Made by hand.\n",
        "grown.csv": (tmp_path / "tables" / "gone.csv").read_text(encoding="utf-8")
        + "one,line,more\nand,another,one\n",
        "scan.csv": "\udcff",
    }
    for name, text in theirs.items():
        (tmp_path / "tables" / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "tables" / "folder.csv").mkdir()
    page = write_tables(result_tables(frame, {"toy": "CHAOS"}), tmp_path, MADE_BY)
    assert all((tmp_path / "tables" / name).exists() for name in (*theirs, "folder.csv"))
    names = sorted(
        path.name for path in (tmp_path / "tables").iterdir() if path.name not in (*theirs, "folder.csv")
    )
    assert names == [
        f"{name}.{ending}"
        for name in ("hearts", "overview", "paper_table1", "toy")
        for ending in ("csv", "tex")
    ]
    text = page.read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == [
        "# Results",
        "## All datasets, draw by draw, Dice",
        "## hearts",
        "## toy",
        "## In-distribution (the paper's Table 1)",
    ]
    assert text.count(MADE_BY) == 4
    back = pd.read_csv(tmp_path / "tables" / "toy.csv", comment="#", dtype=str)
    assert back.loc[0, "liver"] == "0.750"
    assert (tmp_path / "tables" / "toy.csv").read_text(encoding="utf-8").endswith(f"# {MADE_BY}\n")
    assert [table.name for table in result_tables(frame_of(rows("toy")))] == ["toy"]


def test_runs_are_described_by_their_own_record(tmp_path: Path) -> None:
    (tmp_path / "night").mkdir()
    record = {
        "status": "finished",
        "datasets": ["toy", "hearts"],
        "settings": {"size": "tiny", "split": "paper", "seed": 0},
        "command": "iris_train paper -d toy --root " + str(tmp_path / "elsewhere"),
        "iterations": 300,
        "seconds": 90.0,
    }
    (tmp_path / "night" / "run.json").write_text(json.dumps(record))
    assert read_run(tmp_path / "night") == {
        "trained on": "toy, hearts",
        "size": "tiny",
        "split": "paper",
        "seed": "0",
        "iterations": "300",
        "minutes": "1.5",
        "status": "finished",
        "command": "iris_train paper -d toy --root .../elsewhere",
    }
    assert read_run(tmp_path / "morning") == {}
    table = runs_table(tmp_path, ["night", "baseline"])
    assert table is not None and list(table.frame["run"]) == ["night"]
    assert runs_table(tmp_path, ["baseline"]) is None


def test_a_command_without_the_machines_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--root", str(tmp_path / "my data"), "--raw", str(tmp_path.parent / "raw"), "-d", "toy"]
    assert provenance.command_line("iris_x", arguments) == "iris_x --root 'my data' --raw .../raw -d toy"
    assert provenance.command_line("iris_x", [f"--root={tmp_path / 'a'}"]) == "iris_x --root=a"
    line = f"iris_x --root {tmp_path / 'a'} --raw=../b c/d https://x.org/y"
    assert provenance.without_machine(line) == "iris_x --root a --raw=../b c/d https://x.org/y"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_codes_state(tmp_path: Path) -> None:
    for name in provenance.CODE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    assert provenance.revision(tmp_path) == f"iris-pipeline {__version__}", "no repository"
    git(tmp_path, "init")
    assert provenance.revision(tmp_path) == f"iris-pipeline {__version__}", "somebody else's repository"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--no-verify", "-m", "first")
    git(tmp_path, "tag", "v9")
    (tmp_path / "results.md").write_text("a result is no code")
    assert provenance.revision(tmp_path) == "commit v9"
    (tmp_path / "preprocessing" / "new.py").write_text("")
    assert provenance.revision(tmp_path) == "commit v9 with uncommitted changes"
    line = provenance.made_by("iris_tables", ["--root", "demo"])
    assert line.startswith("Made by `iris_tables --root demo` at ")
