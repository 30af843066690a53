"""The paper's Tables 1 and 2: all columns are there, and a dataset fills its own by its specification alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd
import pytest

from iris_pipeline import paper
from iris_pipeline.tables.paper_tables import (
    columns_table,
    of_reported_classes,
    paper_tables,
    with_paper_tables,
)
from iris_pipeline.tables.table_format import Table
from preprocessing.errors import EvaluationError, SpecError
from preprocessing.spec import DatasetSpec, list_specs, load_spec

NO_ROWS = pd.DataFrame(
    columns=[
        *("run", "dataset", "split", "strategy", "case", "subject", "class"),
        *("dice", "truth_voxels", "predicted_voxels"),
    ]
)


def rows(dataset: str, dice: Mapping[str, float], strategy: str = "one-shot") -> pd.DataFrame:
    """One run, one case, a row a class."""
    lines = [
        ("night", dataset, "paper/test", strategy, "a", "s1", name, value, 10, 10)
        for name, value in dice.items()
    ]
    return pd.DataFrame(lines, columns=NO_ROWS.columns)


def spec(
    name: str, column: str | None, classes: tuple[str, ...], counted: tuple[str, ...] = ()
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        title=name,
        modality="CT",
        role="upstream",
        source="",
        licence="",
        classes={each: value for value, each in enumerate(classes, 1)},
        paper_column=column,
        paper_classes=counted,
        expected_cases=210,
    )


SPECS = {
    "kidneys": spec("kidneys", "KiTS Tumor", ("kidney", "tumour"), ("tumour",)),
    "hearts": spec("hearts", "ACDC", ("left", "right")),
    "own": spec("own", None, ("liver",)),
}


def by_name(tables: list[Table]) -> dict[str, Table]:
    return {table.name: table for table in tables}


def test_without_any_dataset_both_tables_stand_there_with_an_empty_row() -> None:
    tables = by_name(paper_tables(NO_ROWS, SPECS))
    assert list(tables) == ["paper_table1", "paper_table2", "paper_columns"]
    for number in (1, 2):
        frame = tables[f"paper_table{number}"].frame
        order = paper.columns_of(number)
        assert list(frame.columns)[:3] == ["from", "method", "group"] and set(order) <= set(frame.columns)
        assert list(frame["from"]) == ["ours"] + ["paper"] * len(paper.load_table(number))
        assert set(frame.loc[0, order]) == {""} and frame.loc[0, "method"] == "not evaluated yet"
    first = tables["paper_table1"]
    iris = first.frame[first.frame["method"] == "Iris"].iloc[0]
    assert (iris["AMOS CT"], iris["average"]) == ("89.56", "84.52")
    assert any("KiTS Tumor (kidneys), LiTS Tumor (no specification)" in note for note in first.notes)


def test_a_dataset_fills_its_column_and_only_the_classes_it_reports_count() -> None:
    given = pd.concat(
        [
            rows("kidneys", {"kidney": 0.9, "tumour": 0.4}),
            rows("hearts", {"left": 0.9, "right": 0.8}, "bank"),
            rows("own", {"liver": 1.0}),
        ]
    )
    tables = by_name(paper_tables(given, SPECS))
    first, second = tables["paper_table1"], tables["paper_table2"]
    assert list(first.frame["from"]).count("ours") == 1
    assert first.frame.loc[0, "method"] == "night · one-shot · paper/test"
    assert first.frame.loc[0, "KiTS Tumor"] == "40.00" and first.frame.loc[0, "average"] == ""
    assert set(first.frame.loc[0, [name for name in paper.columns_of(1) if name != "KiTS Tumor"]]) == {""}
    assert second.frame.loc[0, "ACDC"] == "85.00"
    assert "Of the classes count, in KiTS Tumor: tumour only." in first.notes
    assert not any("KiTS Tumor (" in note for note in first.notes)
    assert set(of_reported_classes(given, SPECS)["class"]) == {"tumour", "left", "right", "liver"}


def test_validation_cases_fill_no_column() -> None:
    tested = rows("hearts", {"left": 0.5, "right": 0.5})
    for split in ("paper/validation", ""):
        given = pd.concat([tested, rows("hearts", {"left": 0.9, "right": 0.9}).assign(split=split, case="v")])
        tables = by_name(paper_tables(given, SPECS))
        ours = tables["paper_table2"].frame[lambda frame: frame["from"] == "ours"]
        assert ours["ACDC"].tolist() == ["50.00"] and ours["method"].tolist() == [
            "night · one-shot · paper/test"
        ]
        columns = tables["paper_columns"].frame.set_index("column")
        assert columns.loc["ACDC", "evaluated"] == "1"


def test_the_list_of_columns_says_what_is_still_to_be_had() -> None:
    frame = columns_table(
        rows("hearts", {"left": 0.5}), {"hearts": "ACDC", "kidneys": "KiTS Tumor"}, SPECS
    ).frame.set_index("column")
    assert list(frame.index) == [*paper.columns_of(1), *paper.columns_of(2)] and len(frame) == 19
    assert frame.loc["ACDC"].to_dict() == {
        "table": "2",
        "dataset": "hearts",
        "classes": "2",
        "cases": "210",
        "evaluated": "1",
        "paper: Iris": "86.45",
        "paper: nnUNet": "90.97",
    }
    assert frame.loc["KiTS Tumor", ["dataset", "classes", "evaluated"]].tolist() == [
        "kidneys",
        "1",
        "not evaluated yet",
    ]
    assert frame.loc["Brain", "dataset"] == ""


def test_each_column_of_the_paper_has_one_dataset_in_the_package() -> None:
    columns = Counter(load_spec(name).paper_column for name in list_specs())
    del columns[None]
    assert columns == Counter([*paper.columns_of(1), *paper.columns_of(2)])


def test_a_figure_for_some_classes_stands_beside_no_mean_over_all() -> None:
    assert (
        load_spec("kits19").paper_column == "KiTS Tumor" and paper.whole_column(load_spec("kits19")) is None
    )
    assert paper.whole_column(load_spec("amos_ct")) == "AMOS CT"


def test_the_forms_replace_those_of_the_other_tables() -> None:
    other, old = (Table(name, name, pd.DataFrame({"a": ["1"]})) for name in ("overview", "paper_table1"))
    tables = with_paper_tables([other, old], NO_ROWS, SPECS)
    assert [table.name for table in tables] == ["overview", "paper_table1", "paper_table2", "paper_columns"]
    assert tables[1] is not old


def test_wrong_columns_are_refused() -> None:
    with pytest.raises(SpecError, match=r"paper_column of dataset x must be one of AMOS CT, .*'CHAOZ'"):
        paper_tables(NO_ROWS, {"x": spec("x", "CHAOZ", ("a",))})
    twice = {name: spec(name, "ACDC", ("left",)) for name in ("one", "two")}
    given = pd.concat([rows("one", {"left": 1.0}), rows("two", {"left": 1.0})])
    with pytest.raises(
        EvaluationError, match="One dataset at most can fill the paper's column ACDC; one, two do"
    ):
        paper_tables(given, twice)
