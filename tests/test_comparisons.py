"""Strategies, numbers of references, ablations and pairs of rows: which rows meet, and their values by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.ablations import ablation_tables, only_difference, parts_tables
from iris_pipeline.tables.comparisons import (
    by_draw,
    comparison_table,
    distinct,
    find_row,
    references_table,
    strategies_table,
)
from iris_pipeline.tables.left_out import left_out_tables
from iris_pipeline.tables.result_tables import frame_of
from iris_pipeline.tables.run_facts import RunFacts, run_facts
from preprocessing.errors import EvaluationError


def rows(
    dice: float,
    run: str = "night",
    dataset: str = "toy",
    strategy: str = "one-shot",
    references: int | None = None,
    draw: int | None = None,
    base: str = "",
) -> list[Row]:
    """Six subjects with Dice around `dice`."""
    where = Origin(run, dataset, "paper/test", strategy, references, draw, base)
    return [Row(where, f"c{n}", f"s{n}", "liver", dice + 0.01 * (n - 2.5), 10, 10) for n in range(6)]


def test_strategies_stand_side_by_side() -> None:
    frame = frame_of(
        [
            *(*rows(0.8), *rows(0.7, strategy="bank"), *rows(0.6, strategy="object-retrieval")),
            *rows(0.5, dataset="other"),
            *rows(0.1, run="baseline", strategy="everything-foreground"),
        ]
    )
    table = strategies_table(frame)
    assert table is not None
    assert list(table.frame.columns) == ["run", "split", "dataset", "one-shot", "object-retrieval", "bank"]
    assert len(table.frame) == 1, "other has one strategy only"
    folded = "night · object-retrieval; bank · paper/test: 6 of 6 case-class pairs scored."
    assert folded in table.notes, "rows of a run with the same counts share a line"
    cell = table.frame.iloc[0]["one-shot"]
    assert cell.startswith("0.800 [0.78") and cell.endswith("]")
    assert strategies_table(frame_of(rows(0.8))) is None


def test_a_strategys_draws_share_a_cell() -> None:
    drawn = [
        *rows(0.5, strategy="tuning", references=3, draw=0),
        *rows(0.5, strategy="tuning_k3_draw0", references=3, draw=0, base="tuning"),  # the same draw again
        *rows(0.7, strategy="tuning_k3_draw1", references=3, draw=1, base="tuning"),
        *rows(0.9, strategy="tuning_k5_draw0", references=5, draw=0, base="tuning"),
        *rows(0.4, strategy="one-shot", references=1, draw=0),
    ]
    table = strategies_table(frame_of(drawn))
    assert table is not None
    assert list(table.frame.columns)[3:] == ["one-shot", "tuning, k = 3", "tuning, k = 5"]
    line = table.frame.iloc[0]
    assert line["tuning, k = 3"] == "0.600 ± 0.141 (2)" and line["tuning, k = 5"].startswith("0.900 [")


def test_mean_and_spread_over_draws() -> None:
    drawn = [
        *rows(0.5, strategy="one-shot", references=1, draw=0),
        *rows(0.7, strategy="one-shot_draw1", references=1, draw=1, base="one-shot"),
        *rows(0.8, strategy="ensemble_k3_draw0", references=3, draw=0, base="ensemble"),
        *rows(0.6, strategy="bank"),
    ]
    table = references_table(frame_of(drawn))
    assert table is not None
    assert list(table.frame.columns) == ["run", "split", "dataset", "strategy", "k = 1", "k = 3"]
    # sd of 0.5 and 0.7 with n - 1: 0.1 * sqrt(2)
    assert list(table.frame.iloc[0]) == [
        "night",
        "paper/test",
        "toy",
        "ensemble",
        "0.600 ± 0.141 (2)",
        "0.800 (1)",
    ]
    assert len(table.frame) == 1, "the bank draws nothing"
    assert references_table(frame_of(rows(0.5, references=1, draw=0))) is None


def test_seeds_of_many_digits_are_draws_of_their_own() -> None:
    """A date as the seed: 2.02611e+07 would be all of these."""
    drawn = [
        row
        for seed, dice in ((20261127, 0.9), (20261128, 0.2), (20261129, 0.4))
        for row in rows(dice, strategy=f"ensemble_k3_draw{seed}", references=3, draw=seed, base="ensemble")
    ]
    assert list(by_draw(frame_of(drawn))) == ["20261127", "20261128", "20261129"]
    table = references_table(frame_of(drawn))
    assert table is not None and table.frame.iloc[0]["k = 3"] == "0.500 ± 0.361 (3)"  # sd of 0.4, -0.3, -0.1


def test_draws_that_gave_the_same_masks_count_once() -> None:
    drawn = [
        row
        for draw, dice in ((0, 0.5), (1, 0.7), (2, 0.5))
        for row in rows(dice, strategy=f"tuning_k3_draw{draw}", references=3, draw=draw, base="tuning")
    ]
    table = strategies_table(frame_of([*drawn, *rows(0.6, strategy="bank")]))
    assert table is not None and table.frame.iloc[0]["tuning, k = 3"] == "0.600 ± 0.141 (2)"
    alike = [row for row in drawn if row.origin.draw != 1]
    table = strategies_table(frame_of([*alike, *rows(0.6, strategy="bank")]))
    assert table is not None and table.frame.iloc[0]["tuning, k = 3"].startswith("0.500 [")
    # The same Dice of other masks, as where all miss, is another measurement.
    missed = [replace(row, predicted_voxels=row.predicted_voxels + row.origin.draw) for row in alike]
    table = strategies_table(frame_of([*missed, *rows(0.6, strategy="bank")]))
    assert table is not None and table.frame.iloc[0]["tuning, k = 3"] == "0.500 ± 0.000 (2)"


def test_a_draw_that_lies_in_two_folders_counts_as_one_of_them_has_it() -> None:
    twice = [
        *rows(0.5, strategy="tuning", references=3, draw=0),
        *rows(0.9, strategy="tuning_k3_draw0", references=3, draw=0, base="tuning"),
    ]
    (draw,) = by_draw(frame_of(twice)).values()
    assert set(draw["strategy"]) == {"tuning"} and len(draw) == 6


def test_draws_are_compared_case_by_case_in_whatever_order_they_stand() -> None:
    first = rows(0.5, strategy="tuning", references=3, draw=0)
    again = rows(0.5, strategy="tuning_k3_draw1", references=3, draw=1, base="tuning")[::-1]
    assert len(distinct(by_draw(frame_of([*first, *again])))) == 1


def test_a_cell_is_the_mean_over_classes() -> None:
    """Six cases of the liver, one of a spleen."""
    liver = rows(0.8, strategy="bank")
    spleen = replace(liver[0], class_name="spleen", dice=0.2)
    table = strategies_table(frame_of([*liver, spleen, *rows(0.6)]))
    assert table is not None and table.frame.iloc[0]["bank"].startswith("0.500 [")


def facts(name: str, datasets: tuple[str, ...] = ("toy",), **settings: str) -> RunFacts:
    common = {"size": "small", "seed": "0", "network context_tokens": "10"} | settings
    return RunFacts(name, datasets, common | {"training datasets": ", ".join(datasets)})


def test_runs_that_differ_in_one_thing() -> None:
    plain, tokens = facts("plain"), facts("tokens", **{"network context_tokens": "2"})
    both = facts("both", size="tiny", **{"network context_tokens": "2"})
    assert only_difference(plain, tokens) == "network context_tokens"
    assert only_difference(tokens, both) == "size"
    assert only_difference(plain, both) is None and only_difference(plain, plain) is None
    old = RunFacts("old", ("toy",), {"size": "small", "seed": "0", "training datasets": "toy"})
    assert only_difference(old, tokens) is None
    assert only_difference(old, facts("plain", seed="1")) is None, "what else differs was not recorded"


def test_ablations_are_found_and_laid_out() -> None:
    runs = [
        facts("m10"),
        facts("m2", **{"network context_tokens": "2"}),
        facts("m0", **{"network context_tokens": "0"}),
        facts("two sets", datasets=("other", "toy")),
    ]
    frame = frame_of(
        [
            row
            for run, dice in (("m10", 0.8), ("m2", 0.7), ("m0", 0.6), ("two sets", 0.9))
            for row in rows(dice, run)
        ]
        + rows(0.3, "two sets", "other")
        + rows(0.5, "unknown")
    )
    tables = {table.name: table for table in ablation_tables(frame, {one.name: one for one in runs})}
    assert sorted(tables) == ["ablation_network_context_tokens", "ablation_training_datasets"]
    tokens = tables["ablation_network_context_tokens"].frame
    assert list(tokens["network context_tokens"]) == ["0", "2", "10"], "numbers in their own order"
    assert list(tokens["run"]) == ["m0", "m2", "m10"]
    assert list(tokens["mean of shared"]) == ["0.600", "0.700", "0.800"]
    sets = tables["ablation_training_datasets"].frame
    assert list(sets["training datasets"]) == ["1 (toy)", "2 (other, toy)"]
    assert list(sets["other"]) == ["", "0.300"] and list(sets["mean of shared"]) == ["0.800", "0.900"]


def test_a_run_beside_those_that_lack_a_part() -> None:
    whole = {"network foreground_token": "true", "network full_resolution_masking": "true"}
    runs = [
        facts("full", ("other", "toy"), **whole),
        facts("pooled not", ("other", "toy"), **(whole | {"network foreground_token": "false"})),
        facts("coarse", ("other", "toy"), **(whole | {"network full_resolution_masking": "false"})),
        facts("m3", ("other", "toy"), **(whole | {"network context_tokens": "3"})),
        facts("m0", ("other", "toy"), **(whole | {"network context_tokens": "0"})),
        facts("less", **whole),
    ]
    dice = {"full": 0.8, "pooled not": 0.7, "coarse": 0.5, "m3": 0.75, "m0": 0.6, "less": 0.4}
    frame = frame_of(
        [row for name, value in dice.items() for row in rows(value, name)] + rows(0.3, "full", "other")
    )
    (table,) = parts_tables(frame, {one.name: one for one in runs})
    assert table.name == "parts_full"
    assert dict(zip(table.frame["change"], table.frame["mean of shared"], strict=True)) == {
        "none: the whole": "0.800",
        "3 context tokens": "0.750",
        "no context tokens": "0.600",
        "no foreground token": "0.700",
        "masks at the features' resolution": "0.500",
        "1 training dataset": "0.400",
    }
    assert table.frame.iloc[0]["run"] == "full" and table.frame.iloc[0]["other"] == "0.300"
    assert parts_tables(frame, {one.name: one for one in runs[:2]}) == [], "one setting is a table of its own"


def test_what_a_part_is_called() -> None:
    sets = ("a", "b", "c", "d")
    made = {"synthetic": '[["cells", 0.1], ["turn", 0.2]]'}
    runs = [
        facts("full", sets, **made),
        facts("no d", sets[:3], **made),
        facts("one", sets[:1], **made),
        facts("turned", sets, synthetic='[["turn", 0.2]]'),
        facts("turned more", sets, synthetic='[["turn", 0.3]]'),
        facts("nothing made", sets, synthetic="[]"),
    ]
    frame = frame_of([row for run in runs for row in rows(0.5, run.name, "a")])
    tables = {table.name: table.frame for table in parts_tables(frame, {one.name: one for one in runs})}
    assert dict(zip(tables["parts_full"]["run"], tables["parts_full"]["change"], strict=True)) == {
        "full": "none: the whole",
        "no d": "without d",
        "one": "1 training dataset",
        "turned": "no made tasks of the kind cells",
        "turned more": "made tasks: turn 0.3",
        "nothing made": "no made tasks",
    }


def test_leaving_one_dataset_out() -> None:
    runs = [
        facts("all", ("brain", "heart", "liver")),
        facts("no heart", ("brain", "liver")),
        facts("no liver", ("brain", "heart")),
        facts("liver alone", ("liver",)),
        facts("other seed", ("brain", "liver"), seed="1"),
    ]
    dice = {
        "all": {"brain": 0.6, "heart": 0.8, "liver": 0.7, "lung": 0.5},
        "no heart": {"brain": 0.6, "heart": 0.3, "liver": 0.72, "lung": 0.4},
        "no liver": {"brain": 0.5, "heart": 0.8, "liver": 0.2},
        "liver alone": {"liver": 0.9},
        "other seed": {"brain": 0.9},
    }
    frame = frame_of(
        [row for run, each in dice.items() for name, value in each.items() for row in rows(value, run, name)]
    )
    tables = {table.name: table for table in left_out_tables(frame, {run.name: run for run in runs})}
    assert sorted(tables) == ["left_out_all", "left_out_no_heart"]
    assert set(tables["left_out_no_heart"].frame["run"]) == {"liver alone"}, "another seed is another setting"
    lines = tables["left_out_all"].frame.set_index("left out")
    assert list(lines.index) == ["heart", "liver"] and list(lines["run"]) == ["no heart", "no liver"]
    assert list(lines.loc["heart"])[3:9] == ["0.800", "0.300", "0.650", "0.660", "0.500", "0.400"]
    assert list(lines.loc["liver"])[3:] == ["0.700", "0.200", "0.700", "0.650", "", "", "", "", ""]
    assert list(lines.loc["heart"])[9:] == ["+0.100", "[0.100, 0.100]", f"{2 / 2**6:.2g}"]
    assert "as all was, on all of its datasets but one" in tables["left_out_all"].notes[0]


def test_a_change_of_the_network_counts_once(tmp_path: Path) -> None:
    for name, tokens in (("a", 10), ("b", 3)):
        (tmp_path / name).mkdir()
        record = {
            "datasets": ["toy"],
            "settings": {"size": "tiny", "context_tokens": None if name == "a" else tokens},
            "config": {"context_tokens": tokens, "join": ["add"]},
            "command": "iris_train paper",
        }
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    first, second = (run_facts(tmp_path / name) for name in "ab")
    assert first is not None and second is not None
    assert only_difference(first, second) == "network context_tokens"


def test_a_comparison_names_rows_and_tests_them() -> None:
    better = [*rows(0.8), *rows(0.9, dataset="other")]
    worse = [*rows(0.7, strategy="bank"), *rows(0.6, strategy="bank", dataset="other")]
    frame = frame_of([*better, *worse, *rows(0.2, "day")])
    table = comparison_table(frame, [["night/one-shot", "night/bank"], ["night/bank", "day"]])
    assert list(table.frame["dataset"]) == ["other", "toy", "all", "toy"]
    assert list(table.frame["difference"]) == ["+0.300", "+0.100", "+0.200", "+0.500"]
    assert list(table.frame["subjects"]) == ["6", "6", "12", "6"]
    assert table.frame.iloc[0]["p"] == f"{2 / 2**6:.2g}"
    # Four tests of 6, 6, 12 and 6 subjects that all differ one way: the least times 4, and no other below 3 * 2 / 2^6.
    assert list(table.frame["p (Holm)"]) == [
        "0.094",
        "0.094",
        f"{4 * float(table.frame.iloc[2]['p']):.2g}",
        "0.094",
    ]
    assert table.notes[0].endswith("p (Holm): corrected by Holm's method for all tests of this table.")
    assert "p (Holm)" not in comparison_table(frame, [["night/bank", "day"]]).frame, (
        "one test needs no correction"
    )
    assert set(find_row(frame, "day")["run"]) == {"day"}
    with pytest.raises(EvaluationError, match="'night' fits 2 of day/one-shot/paper/test, night/one-shot"):
        find_row(frame, "night")
    with pytest.raises(EvaluationError, match="'evening' fits none of"):
        find_row(frame, "evening")
    apart = frame_of([*rows(0.8), *rows(0.7, "day", "elsewhere")])
    with pytest.raises(EvaluationError, match="night has toy and day elsewhere: predict and evaluate"):
        comparison_table(apart, [["night", "day"]])


def test_facts_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "night"
    (folder / "checkpoint").mkdir(parents=True)
    record = {
        "datasets": ["toy", "hearts"],
        "settings": {"size": "tiny", "workers": 4, "weights": {"toy": 2.0}, "minutes": None},
        "command": "iris_train paper --start-from before --name night",
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "checkpoint" / "state.json").write_text(json.dumps({"config": {"context_tokens": 10}}))
    found = run_facts(folder)
    assert found == RunFacts(
        "night",
        ("toy", "hearts"),
        {
            "size": "tiny",
            "weights": '{"toy": 2.0}',
            "minutes": "null",
            "network context_tokens": "10",
            "training datasets": "hearts, toy",
            "start from": "before",
        },
    )
    record |= {"config": {"context_tokens": 2}, "command": "iris_train paper --start-from=early"}
    (folder / "run.json").write_text(json.dumps(record))
    own = run_facts(folder)
    assert own is not None
    assert (own.settings["network context_tokens"], own.settings["start from"]) == ("2", "early")
    assert run_facts(tmp_path / "nothing") is None
    (folder / "run.json").write_text("[1]")
    assert run_facts(folder) is None


def test_rows_without_draws_are_no_numbers() -> None:
    frame = frame_of(rows(0.5))
    assert frame["references"].isna().all() and isinstance(frame, pd.DataFrame)
    assert references_table(frame) is None
