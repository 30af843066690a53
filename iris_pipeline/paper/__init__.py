"""Result tables of the paper (Gao et al., CVPR 2025, arXiv 2503.19359) as published, to stand beside ours.

table1.csv: Dice in %, in-distribution, 12 datasets. table2.csv: Dice in %, held-out datasets. table3.csv:
efficiency. The averages of SAM and SAM-Med2D in table1.csv are not the means of their columns; all others are.
They are the paper's data and splits; a row of theirs is marked as such and never averaged with a
row of ours.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import pandas as pd

from preprocessing.spec import DatasetSpec

DICE_TABLES = (1, 2)
NOT_DATASETS = ("method", "group", "average")
TITLES = {
    1: "In-distribution (the paper's Table 1)",
    2: "Held-out (the paper's Table 2)",
    3: "Efficiency (the paper's Table 3)",
}


@cache
def _read(number: int) -> pd.DataFrame:
    with (resources.files(__name__) / f"table{number}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def load_table(number: int) -> pd.DataFrame:
    """Table 1, 2 or 3 as printed; Dice in %, an empty cell where the paper has none."""
    return _read(number).copy()


def columns_of(number: int) -> list[str]:
    """The dataset columns of table 1 or 2, in the paper's order."""
    return [name for name in _read(number).columns if name not in NOT_DATASETS]


def table_of(column: str) -> int | None:
    """The number of the Dice table that has this dataset column; None where no table has."""
    return next((number for number in DICE_TABLES if column in columns_of(number)), None)


def whole_column(spec: DatasetSpec) -> str | None:
    """The column of a dataset where it counts all its classes, so that a mean over all of them may stand beside it."""
    return None if spec.paper_classes else spec.paper_column


def figure(method: str, column: str) -> float | None:
    """Dice in % of a method in a dataset column; None where the paper gives none."""
    number = table_of(column)
    if number is None:
        return None
    table = _read(number)
    found = table.loc[table["method"] == method, column].dropna()
    return None if found.empty else float(found.iloc[0])
