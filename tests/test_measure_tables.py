"""Means of all measures by hand: over cases, then classes; whose rows count; intervals of each measure's own values."""

from __future__ import annotations

import pytest

from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.measure_tables import measures_by_class, measures_table
from iris_pipeline.tables.result_tables import frame_of
from iris_pipeline.tables.uncertainty import bootstrap_mean

NAN = float("nan")


def row(case: str, name: str, dice: float, strategy: str = "bank", **measures: float) -> Row:
    where = Origin("all", "trunk", "paper/test", strategy)
    return Row(where, case, case, name, dice, 10, 9, {"tolerance_mm": 2.0, "nsd": dice, **measures})


def test_a_mean_is_over_the_classes_of_each_ones_mean_over_its_cases() -> None:
    found = [row("a", "liver", 0.6), row("b", "liver", 0.8), row("a", "spleen", 0.2)]
    table = measures_table(frame_of(found), "trunk")
    assert table is not None
    assert (table.frame["Dice"].item(), table.frame["NSD"].item()) == ("0.450", "0.450")


def test_rows_of_dice_alone_are_left_out_and_cases_without_a_mask_are_counted() -> None:
    where = Origin("all", "trunk", "paper/test", "one-shot")
    former = Row(where, "a", "a", "liver", 0.1, 10, 9)
    failed = Row(where, "b", "b", "liver", NAN, 10, None)
    table = measures_table(frame_of([former, failed, row("c", "liver", 0.6, "one-shot")]), "trunk")
    assert table is not None and table.frame["Dice"].item() == "0.600"
    assert any(
        "1 of 2 case-class pairs scored, 1 WITHOUT A USABLE PREDICTION" in note for note in table.notes
    )


def test_each_measure_has_the_interval_of_its_own_values() -> None:
    found = [row(f"c{number}", "liver", 0.5, hd95_mm=2.0 * number) for number in range(6)]
    lines = measures_by_class(frame_of(found)).frame.set_index("measure")
    interval = bootstrap_mean(frame_of(found), "hd95_mm")
    assert interval.low < interval.mean == 5.0 < interval.high
    said = lines.loc["hd95_mm", ["mean", "ci_low", "ci_high"]].astype(float).tolist()
    assert said == pytest.approx([interval.mean, interval.low, interval.high], rel=1e-5)
    assert lines.loc["dice", ["ci_low", "ci_high", "median"]].tolist() == ["0.5", "0.5", "0.5"]
