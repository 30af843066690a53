"""Rows over the draws of their references, by hand."""

from __future__ import annotations

import pandas as pd

from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.draws_table import class_draws_table, dataset_draws_table
from iris_pipeline.tables.result_tables import frame_of


def row(
    strategy: str, draw: int | None, name: str, dice: float, dataset: str = "toy", voxels: int = 10
) -> Row:
    """Of the one case; ensembles are of three references, one-shot of one."""
    references = None if draw is None else 3 if strategy == "ensemble" else 1
    folder = strategy if draw is None else f"{strategy}_k{references}_draw{draw}"
    where = Origin("night", dataset, "paper/test", folder, references, draw, strategy)
    return Row(where, "c", "s", name, dice, 10, voxels)


def frame(*more: Row) -> pd.DataFrame:
    """One-shot by two draws, the ensemble by one, the bank without any, of two classes."""
    one_shot = [row("one-shot", 0, "liver", 0.8), row("one-shot", 0, "spleen", 0.5)]
    one_shot += [row("one-shot", 1, "liver", 0.6), row("one-shot", 1, "spleen", 0.5)]
    ensemble = [row("ensemble", 0, "liver", 0.9), row("ensemble", 0, "spleen", 0.7)]
    bank = [row("bank", None, "liver", 0.4), row("bank", None, "spleen", 0.2)]
    floor = Row(
        Origin("baseline", "toy", "paper/test", "everything-foreground"), "c", "s", "liver", 0.1, 10, 90
    )
    return frame_of([*one_shot, *ensemble, *bank, floor, *more])


def test_classes_over_draws() -> None:
    """One-shot: liver 0.8 and 0.6, standard deviation 0.1414; the means of the draws are 0.65 and 0.55."""
    table = class_draws_table(frame(), "toy")
    assert table is not None
    assert list(table.frame.columns) == ["run", "split", "strategy", "draws", "liver", "spleen", "mean"]
    cells = table.frame.set_index("strategy")
    assert list(cells.index) == ["one-shot", "ensemble, k = 3", "bank", "everything is foreground"]
    assert cells.loc["one-shot"].tolist()[2:] == ["2", "0.700 ± 0.141", "0.500 ± 0.000", "0.600 ± 0.071"]
    assert cells.loc["ensemble, k = 3"].tolist()[2:] == ["", "0.900", "0.700", "0.800"]
    assert cells.loc["bank"].tolist()[2:] == ["", "0.400", "0.200", "0.300"]
    assert "night · ensemble, k = 3; bank · paper/test: 2 of 2 case-class pairs scored." in table.notes
    assert cells.loc["everything is foreground"].tolist()[2:] == ["", "0.100", "", "0.100"]


def test_the_papers_figures_stand_under_them() -> None:
    table = class_draws_table(frame(), "toy", "AMOS CT")
    assert table is not None
    theirs = table.frame[table.frame["run"] == "paper"]
    assert theirs["strategy"].tolist() == ["Iris", "nnUNet"] and (theirs["draws"] == "").all()
    assert any("paper's own figures" in note for note in table.notes)


def test_draws_that_gave_the_same_masks_count_once() -> None:
    """A third draw with the masks of the first changes nothing; one with other masks of the same Dice is a third."""
    same = [row("one-shot", 2, "liver", 0.8), row("one-shot", 2, "spleen", 0.5)]
    table = class_draws_table(frame(*same), "toy")
    assert table is not None and table.frame.iloc[0]["draws"] == "2"
    other = [row("one-shot", 2, "liver", 0.8, voxels=11), row("one-shot", 2, "spleen", 0.5)]
    table = class_draws_table(frame(*other), "toy")
    assert table is not None and table.frame.iloc[0]["draws"] == "3"
    assert table.frame.iloc[0]["liver"] == "0.733 ± 0.115"


def test_without_a_second_draw_there_is_no_such_table() -> None:
    drawn_once = frame()[lambda rows: rows["draw"] != 1]
    assert class_draws_table(drawn_once, "toy") is None and dataset_draws_table(drawn_once) is None


def test_datasets_over_draws() -> None:
    """The other dataset has one draw of one-shot: its mean has no spread, and only one-shot has a mean of both."""
    table = dataset_draws_table(frame(row("one-shot", 0, "liver", 0.2, "other")))
    assert table is not None
    assert list(table.frame.columns) == ["run", "split", "strategy", "draws", "other", "toy", "mean"]
    cells = table.frame.set_index("strategy")
    assert cells.loc["one-shot"].tolist()[2:] == ["1 to 2", "0.200", "0.600 ± 0.071", "0.400"]
    assert cells.loc["ensemble, k = 3"].tolist()[2:] == ["", "", "0.800", ""]
