"""Tables 1 and 2 in the paper's own columns, whether or not a dataset of ours fills them yet.

A specification's `paper_column` names the column that its dataset is, `paper_classes` the classes that the column
reports; so a new dataset fills its column without a change here. The paper's rows are marked as the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from iris_pipeline import paper
from iris_pipeline.tables.result_tables import (
    PAPER_METHODS,
    PAPER_RULE,
    PAPER_RUN,
    of_test_parts,
    paper_table,
    percent_text,
)
from iris_pipeline.tables.table_format import Table
from preprocessing.errors import SpecError
from preprocessing.spec import DatasetSpec

COLUMNS_TITLE = "The paper's columns and the datasets that fill them"
NOT_YET = "not evaluated yet"


def with_paper_tables(
    tables: Sequence[Table], rows: pd.DataFrame, specs: Mapping[str, DatasetSpec]
) -> list[Table]:
    """The tables with both forms of the paper and the list of its columns behind them, each once."""
    ours = paper_tables(rows, specs)
    names = {table.name for table in ours}
    return [table for table in tables if table.name not in names] + ours


def paper_tables(rows: pd.DataFrame, specs: Mapping[str, DatasetSpec]) -> list[Table]:
    """Table 1, Table 2 and the list of columns.

    rows: of evaluations; specs: by name, of all known datasets. Only test parts and the classes that a column reports
    count.
    SpecError for a column that the paper lacks.
    """
    columns = {name: spec.paper_column for name, spec in sorted(specs.items()) if spec.paper_column}
    for name, column in columns.items():
        if paper.table_of(column) is None:
            known = ", ".join(each for number in paper.DICE_TABLES for each in paper.columns_of(number))
            raise SpecError(
                f"paper_column of dataset {name} must be one of {known}; it is '{column}': correct the specification."
            )
    reported = of_reported_classes(of_test_parts(rows), specs)
    forms = [_form(reported, number, columns, specs) for number in paper.DICE_TABLES]
    return [*forms, columns_table(reported, columns, specs)]


def of_reported_classes(rows: pd.DataFrame, specs: Mapping[str, DatasetSpec]) -> pd.DataFrame:
    """The rows without classes that the dataset's column of the paper leaves out (KiTS: kidneys)."""
    kept = pd.Series(True, index=rows.index)
    for name, spec in specs.items():
        if spec.paper_column and spec.paper_classes:
            kept &= (rows["dataset"] != name) | rows["class"].isin(spec.paper_classes)
    return rows[kept]


def columns_table(rows: pd.DataFrame, columns: Mapping[str, str], specs: Mapping[str, DatasetSpec]) -> Table:
    """A row for each column of the paper: the datasets for it, what it reports, how much of it is evaluated."""
    lines = []
    for number in paper.DICE_TABLES:
        for column in paper.columns_of(number):
            names = [name for name, its in columns.items() if its == column]
            evaluated = [name for name in names if (rows["dataset"] == name).any()]
            shown = [specs[name] for name in evaluated or names]
            cases = rows[rows["dataset"].isin(evaluated)]["case"].nunique()
            lines.append(
                {"table": str(number), "column": column, "dataset": ", ".join(spec.name for spec in shown)}
                | {"classes": ", ".join(str(len(spec.paper_classes or spec.classes)) for spec in shown)}
                | {"cases": ", ".join(str(spec.expected_cases or "") for spec in shown)}
                | {"evaluated": str(cases) if evaluated else NOT_YET}
                | {
                    f"{PAPER_RUN}: {method}": percent_text(paper.figure(method, column))
                    for method in PAPER_METHODS
                }
            )
    notes = (
        "cases: as the specification expects them; evaluated: cases with rows of ours, test parts only.",
    )
    return Table("paper_columns", COLUMNS_TITLE, pd.DataFrame(lines), notes)


def _form(
    rows: pd.DataFrame, number: int, columns: Mapping[str, str], specs: Mapping[str, DatasetSpec]
) -> Table:
    """One table in the paper's form; without any dataset of ours its row stands there empty."""
    order = paper.columns_of(number)
    form = paper_table(rows, number, columns) or _empty_form(number)
    filled = {column for name, column in columns.items() if (rows["dataset"] == name).any()}
    waiting = [
        f"{column} ({', '.join(name for name, its in columns.items() if its == column) or 'no specification'})"
        for column in order
        if column not in filled
    ]
    parts = [
        f"{column}: {', '.join(specs[name].paper_classes)} only"
        for name, column in columns.items()
        if column in order and specs[name].paper_classes
    ]
    notes = [f"Empty until its dataset is evaluated: {', '.join(waiting)}."] if waiting else []
    notes += [f"Of the classes count, in {'; '.join(parts)}."] if parts else []
    return Table(form.name, form.title, form.frame, (*form.notes, *notes))


def _empty_form(number: int) -> Table:
    published = paper.load_table(number)
    ours = {"from": "ours", "method": NOT_YET, "group": "in-context"}
    lines: list[dict[str, str]] = [ours]
    for _, line in published.iterrows():
        cells = {
            str(name): line[name] if name in ("method", "group") else percent_text(line[name])
            for name in published.columns
        }
        lines.append({"from": PAPER_RUN} | cells)
    frame = pd.DataFrame(lines, columns=["from", *published.columns]).fillna("")
    note = PAPER_RULE.replace("of the run 'paper'", "from 'paper'")
    return Table(f"paper_table{number}", paper.TITLES[number], frame, ("Dice in %.", note))
