"""The table of confidence: what iris_evaluate left beside its rows, as it is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from iris_pipeline.confidence.calibration import JudgedMask, agreement, agreement_of
from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.confidence_table import agreement_path, confidence_table
from iris_pipeline.tables.result_tables import frame_of
from preprocessing.errors import EvaluationError
from preprocessing.runtime.files import save_json


def rows_of(*names: str) -> pd.DataFrame:
    """What iris_evaluate writes of these, "dataset__folder"; without numbers in its name a folder is of draw 0."""
    rows = []
    for name in names:
        dataset, _, folder = name.partition("__")
        base = folder.partition("_")[0]
        part = "validation" if "_validation" in folder else "test"
        k = None if base == "bank" else 3 if "_k3" in folder else 1
        draw = None if base == "bank" else int("draw1" in folder)
        where = Origin("run", dataset, f"paper/{part}", folder, k, draw, base)
        rows.append(Row(where, "a", "a", "organ", 0.5, 10, 10))
    return frame_of(rows)


def test_a_line_for_each_judged_row(tmp_path: Path) -> None:
    rows = tmp_path / "run" / "evaluation" / "liver_ct__one-shot_k1_draw0.csv"
    rows.parent.mkdir(parents=True)
    said, true, cases = [0.9, 0.6, 0.5, 0.8], [0.8, 0.5, 0.9, 0.6], ["a", "a", "b", "b"]
    save_json(agreement_path(rows), agreement(said, true, cases))
    save_json(agreement_path(rows.with_name("heart__bank.csv")), agreement([0.5], [0.75], ["c"]))
    table = confidence_table(tmp_path, ["run", "other"])
    assert table is not None and table.name == "confidence"
    first, second = table.frame.to_dict("records")
    assert (first["dataset"], first["strategy"], first["Pearson"]) == ("heart", "bank", "")
    assert (second["run"], second["dataset"], second["strategy"]) == ("run", "liver_ct", "one-shot_k1_draw0")
    # errors 0.1, 0.1, 0.4, 0.2; deviations (.2, -.1, -.2, .1) and (.1, -.2, .2, -.1): -0.01 / 0.1
    assert (second["masks"], second["cases"], second["mean error"], second["Pearson"]) == (
        4,
        2,
        "0.200",
        "-0.10",
    )
    assert (second["poor"], second["poor, marked"], second["better, marked"]) == (2, 1, 1)
    assert confidence_table(tmp_path, ["other"]) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation" / "x__bank__confidence.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"x__bank__confidence.json .*make it again with iris_evaluate"):
        confidence_table(tmp_path, ["run"])


def test_masks_of_several_datasets_are_looked_at_together(tmp_path: Path) -> None:
    """Of seen and of held-out datasets apart; not where a file of before tells no masks."""
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    said = {
        "liver_ct__one-shot_k1_draw0": [("a", 0.9, 0.8), ("a", 0.6, 0.5)],
        "heart__one-shot_k1_draw0": [("a", 0.5, 0.9), ("b", 0.8, 0.6)],
        "lung__one-shot_k1_draw0": [("c", 0.8, 0.75)],
        "lung__ensemble_k3_draw0": [("c", 0.8, 0.75)],
        "brain__ensemble_k3_draw0": [("c", 0.8, 0.75)],
    }
    for name, masks in said.items():
        judged = [JudgedMask(case=c, predicted=p, true=t, marked=p < 0.7) for c, p, t in masks]
        save_json(folder / f"{name}__confidence.json", agreement_of(judged))
    older = agreement([0.8], [0.7], ["x"])
    save_json(folder / "spleen__ensemble_k3_draw0__confidence.json", older)
    rows = rows_of(*said, "spleen__ensemble_k3_draw0", "lung__one-shot_k1_draw1")
    table = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]}, rows)
    assert table is not None and len(table.frame) == len(said) + 1 + 1
    last = table.frame.iloc[-1]
    assert (last["dataset"], last["strategy"], last["masks"], last["cases"]) == ("all seen", "one-shot", 4, 3)
    # the four masks of the first test: one dataset's "a" is not the other's
    assert (last["mean error"], last["Pearson"], last["poor"], last["poor, marked"]) == (
        "0.200",
        "-0.10",
        2,
        1,
    )
    assert "all seen, all held out" in table.notes[-1]
    save_json(folder / "spleen__ensemble_k3_draw0__confidence.json", agreement_of([judged[0]]))
    table = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]}, rows)
    assert table is not None
    held_out = table.frame[table.frame["dataset"] == "all held out"]
    assert held_out["strategy"].tolist() == ["ensemble"] and held_out["masks"].tolist() == [3]
    save_json(folder / "lung__one-shot_k1_draw1__confidence.json", agreement_of([judged[0]]))
    again = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]}, rows)
    assert again is not None
    alone = again.frame[(again.frame["dataset"] == "all held out") & (again.frame["strategy"] == "one-shot")]
    assert alone.empty, "two draws of one dataset are no several datasets"
    for plain in (
        confidence_table(tmp_path, ["run"]),
        confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]}),
    ):
        assert plain is not None and not plain.frame["dataset"].str.startswith("all").any()


def test_masks_of_several_datasets_are_of_test_parts_and_each_counts_once(tmp_path: Path) -> None:
    """The numbers were fitted to validation cases, and a draw may lie in two folders."""
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir(parents=True)
    of_draw = [("a", 0.9, 0.8), ("a", 0.6, 0.5), ("b", 0.5, 0.9)]
    said = {
        "one-shot": of_draw[:2],
        "one-shot_k1_draw0": of_draw,  # the same masks, and those of a case more
        "one-shot_k1_draw1": [("a", 0.8, 0.8)],
        "one-shot_validation": [("v", 0.9, 0.9)],
        "one-shot_validation_k1_draw1": [("v", 0.9, 0.9)],
        "bank": [("a", 0.8, 0.5)],
        "bank_validation": [("v", 0.9, 0.9)],
    }
    for name, masks in said.items():
        judged = [JudgedMask(case=c, predicted=p, true=t, marked=p < 0.7) for c, p, t in masks]
        for dataset in ("heart", "lung"):
            save_json(folder / f"{dataset}__{name}__confidence.json", agreement_of(judged))
    rows = rows_of(*(f"{dataset}__{name}" for dataset in ("heart", "lung") for name in said))
    table = confidence_table(tmp_path, ["run"], {"run": ["heart", "lung"]}, rows)
    assert table is not None
    pooled = table.frame[table.frame["dataset"] == "all seen"].set_index("strategy")
    # one-shot: draw 0 has errors 0.1, 0.1, 0.4, draw 1 has 0, twice each; bank: 0.3
    assert pooled["masks"].to_dict() == {"bank": 2, "one-shot": 8}
    assert pooled["mean error"].to_dict() == {"bank": "0.300", "one-shot": "0.150"}
    assert pooled["cases"].to_dict() == {"bank": 2, "one-shot": 4}
