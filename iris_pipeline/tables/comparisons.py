"""Rows side by side: strategies, numbers of references, and two rows tested.

Dice is 0..1. Means and their intervals are those of every table: over classes, then bootstrapped over subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.tables.result_tables import (
    CI_RULE,
    RULE,
    class_means,
    count_notes,
    interval_text,
    row_groups,
    score_text,
    strategy_place,
)
from iris_pipeline.tables.table_format import Table
from iris_pipeline.tables.uncertainty import (
    CI,
    PairedTest,
    bootstrap_mean,
    holm,
    paired_test,
)
from preprocessing.errors import EvaluationError

DRAWS_RULE = (
    "k: the number of references. Over several draws of them: the mean, ± the standard deviation over draws, and in "
    "brackets their number; draws that gave the same masks count once."
)
ONE_OF_MANY = "An ensemble of one reference is one-shot: k = 1 in its row."


def strategies_table(rows: pd.DataFrame) -> Table | None:
    """Rows: run, split, dataset; a column a strategy and number of references. None where no row has two.

    A cell is the mean Dice with its interval; over several draws of the references it is as in `references_table`.
    """
    rows = rows[rows["run"] != BASELINE_RUN]
    rows = rows.assign(
        column=[strategy_and_count(*pair) for pair in zip(rows["base"], rows["references"], strict=True)]
    )
    lines = []
    for (run, split, dataset), group in rows.groupby(["run", "split", "dataset"]):
        cells = {str(name): _over_draws(part) for name, part in group.groupby("column")}
        if len(cells) > 1:
            lines.append({"run": run, "split": split, "dataset": dataset} | cells)
    if not lines:
        return None
    there = sorted(
        {name for line in lines for name in line} - {"run", "split", "dataset"}, key=strategy_place
    )
    frame = pd.DataFrame(lines, columns=["run", "split", "dataset", *there]).fillna("")
    notes = (RULE, CI_RULE, DRAWS_RULE, *count_notes(row_groups(rows)))
    return Table("strategies", "Strategies side by side, Dice", frame, notes)


def references_table(rows: pd.DataFrame) -> Table | None:
    """Rows: run, split, dataset, strategy; a column a number of references. None where that number never varies.

    Rows count that say how many references they had; draws are the same strategy and number with another seed.
    """
    rows = rows[rows["references"].notna() & (rows["run"] != BASELINE_RUN)]
    counts = sorted({int(count) for count in rows["references"]})
    draws = rows.groupby(["run", "split", "dataset", "references"])["draw"].nunique()
    if len(counts) < 2 and not (draws > 1).any():
        return None
    # One-shot and an ensemble of one are the same thing: both stand in the ensemble's row, under 1.
    rows = rows.assign(base=rows["base"].where(rows["base"] != "one-shot", "ensemble"))
    lines = []
    for (run, split, dataset, base), group in rows.groupby(["run", "split", "dataset", "base"]):
        cells = {}
        for count in sorted(set(group["references"])):
            part = group[group["references"] == count]
            cells[f"k = {int(count)}"] = _over_draws(part, interval=False)
        lines.append({"run": run, "split": split, "dataset": dataset, "strategy": base} | cells)
    columns = ["run", "split", "dataset", "strategy", *(f"k = {count}" for count in counts)]
    frame = pd.DataFrame(lines, columns=columns).fillna("")
    return Table(
        "references",
        "Number of references k, Dice",
        frame,
        (RULE, DRAWS_RULE, ONE_OF_MANY, *count_notes(row_groups(rows))),
    )


def comparison_table(rows: pd.DataFrame, pairs: Sequence[Sequence[str]]) -> Table:
    """Pairs of rows, each named RUN or RUN/STRATEGY, tested subject by subject: a line a dataset and pair, then all.

    Of several tests p stands there as it is, and corrected for their number.
    """
    lines, tests = [], []
    for first_name, second_name in pairs:
        first, second = find_row(rows, first_name), find_row(rows, second_name)
        names = sorted(set(first["dataset"]) & set(second["dataset"]))
        if not names:
            raise EvaluationError(
                f"Two rows are compared on datasets that both have; {first_name} has "
                f"{', '.join(sorted(set(first['dataset'])))} and {second_name} "
                f"{', '.join(sorted(set(second['dataset'])))}: predict and evaluate one on the other's."
            )
        for scope in [*names, *(["all"] if len(names) > 1 else [])]:
            test = paired_test(first if scope == "all" else first[first["dataset"] == scope], second)
            tests.append(test.p)
            lines.append(
                {"first": first_name, "second": second_name, "dataset": scope}
                | {"subjects": f"{test.difference.subjects}"}
                | {"mean of first": score_text(test.first), "mean of second": score_text(test.second)}
                | difference_cells(test, "difference")
            )
    note = (
        "Means over subjects of each subject's mean Dice, on the cases and classes that both rows have scored. "
        f"difference: first minus second, with its {CI} by bootstrap over subjects; p: Wilcoxon signed-rank test over "
        "subjects, two-sided, not corrected for the number of lines."
    )
    frame = pd.DataFrame(lines)
    if len(tests) > 1:
        frame["p (Holm)"] = [p_text(p) for p in holm(tests)]
        note += " p (Holm): corrected by Holm's method for all tests of this table."
    return Table("comparison", "Paired comparison, Dice", frame, (note,))


def difference_cells(test: PairedTest, column: str) -> dict[str, str]:
    """The difference of two rows under the name of its column, its interval and p; empty where there is nothing."""
    difference = test.difference
    return {
        column: "" if pd.isna(difference.mean) else f"{difference.mean:+.3f}",
        CI: interval_text(difference),
        "p": p_text(test.p),
    }


def p_text(p: float) -> str:
    """Two digits; "" where nothing could be tested."""
    return "" if pd.isna(p) else f"{p:.2g}"


def find_row(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of RUN (with one strategy and split), RUN/STRATEGY or RUN/STRATEGY/SPLIT; EvaluationError otherwise."""
    groups = {key: part for key, part in row_groups(rows) if key[0] != BASELINE_RUN}
    wanted = name.split("/", 2)
    fits = [key for key in groups if [key[0], key[2], key[1]][: len(wanted)] == wanted]
    if len(fits) != 1:
        known = ", ".join(f"{run}/{strategy}/{split}".rstrip("/") for run, split, strategy in groups)
        raise EvaluationError(
            f"A row is named RUN, RUN/STRATEGY or RUN/STRATEGY/SPLIT, and '{name}' fits {len(fits) or 'none'} of "
            f"{known}: name one of them."
        )
    return groups[fits[0]]


def strategy_and_count(base: str, references: float) -> str:
    """ "tuning, k = 5"; one-shot and the bank have no number to choose."""
    return base if pd.isna(references) or base == "one-shot" else f"{base}, k = {int(references)}"


def drawn_strategy(strategy: str, rows: pd.DataFrame) -> str:
    """Of the rows of one folder of masks: their strategy with its number of references, the same for all draws."""
    return strategy_and_count(rows["base"].iloc[0] or strategy, rows["references"].iloc[0])


def by_draw(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of one strategy and number of references, draw by draw.

    The same draw may lie in two folders ("tuning" and "tuning_k5_draw0"): it counts once, as one of them has it.
    """
    # As whole numbers: seven digits and more would become one in a shorter form.
    draws = rows["draw"].map("{:.0f}".format).where(rows["draw"].notna(), rows["strategy"])
    once = ~rows.assign(one=draws).duplicated(["run", "dataset", "split", "one", "case", "class"])
    return {str(name): part for name, part in rows[once].groupby(draws[once])}


def distinct(draws: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The draws without those that gave every case and class the mask of a former one, by its Dice and voxels.

    Of few cases two seeds may draw the same references, and what was measured once has no spread.
    """
    found: dict[str, pd.DataFrame] = {}
    for name, part in draws.items():
        if not any(_marks(part).equals(_marks(each)) for each in found.values()):
            found[name] = part
    return found


def _marks(rows: pd.DataFrame) -> pd.DataFrame:
    """What a mask is known by; Dice alone is 0 for masks that differ."""
    return rows.set_index(["case", "class"])[["dice", "predicted_voxels"]].sort_index()


def _over_draws(rows: pd.DataFrame, interval: bool = True) -> str:
    """The mean over the draws of one strategy and number of references, with their spread."""
    means = pd.Series([class_means(one).mean() for one in distinct(by_draw(rows)).values()]).dropna()
    if means.empty:
        return ""
    if len(means) > 1:
        return f"{means.mean():.3f} ± {means.std(ddof=1):.3f} ({len(means)})"
    if not interval:
        return f"{means.iloc[0]:.3f} (1)"
    return f"{means.iloc[0]:.3f} {interval_text(bootstrap_mean(rows))}".strip()
