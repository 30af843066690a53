"""The table of confidence: what iris_evaluate left beside its rows, as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_pipeline.confidence import JudgedMask, agreement, agreement_of
from iris_pipeline.confidence_table import agreement_path, confidence_table
from preprocessing.errors import EvaluationError
from preprocessing.files import save_json


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
    table = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]})
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
    table = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]})
    assert table is not None
    held_out = table.frame[table.frame["dataset"] == "all held out"]
    assert held_out["strategy"].tolist() == ["ensemble"] and held_out["masks"].tolist() == [3]
    save_json(folder / "lung__one-shot_k1_draw1__confidence.json", agreement_of([judged[0]]))
    again = confidence_table(tmp_path, ["run"], {"run": ["liver_ct", "heart"]})
    assert again is not None
    alone = again.frame[(again.frame["dataset"] == "all held out") & (again.frame["strategy"] == "one-shot")]
    assert alone.empty, "two draws of one dataset are no several datasets"
    plain = confidence_table(tmp_path, ["run"])
    assert plain is not None and not plain.frame["dataset"].str.startswith("all").any()
