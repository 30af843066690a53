"""Tables 1 and 2 in our columns, and the table of all measures: who stands where, and the numbers by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.measure_tables import measures_by_class, measures_table
from iris_pipeline.tables.result_tables import frame_of
from iris_pipeline.tables.role_tables import HELD_OUT, IN_DISTRIBUTION, novelty, role_table
from iris_pipeline.tables.run_facts import RunFacts
from iris_pipeline.tables.uncertainty import CI
from preprocessing.spec import DatasetSpec

NAN = float("nan")


def spec(
    name: str, modality: str = "MR", role: str = "upstream", classes: str = "liver", **more: object
) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {"name": name, "title": name, "modality": modality, "role": role, "source": "x", "licence": "y"}
        | {"classes": {each: number for number, each in enumerate(classes.split(), 1)}}
        | more
    )


SPECS = {
    "trunk": spec("trunk", classes="liver spleen", paper_column="CHAOS"),
    "heart": spec("heart", classes="ventricle"),
    "trunk_ct": spec("trunk_ct", "CT", "held-out"),
    "lung": spec("lung", "CT", "held-out", "lung"),
}
FACTS = {"all": RunFacts("all", ("trunk", "heart"), {}), "one": RunFacts("one", ("trunk",), {})}


def rows(
    run: str,
    dataset: str,
    dice: float,
    strategy: str = "one-shot",
    k: int | None = None,
    draw: int | None = None,
) -> list[Row]:
    name = strategy if draw is None else f"{strategy}_k{k}_draw{draw}"
    where = Origin(run, dataset, "paper/test", name, k, draw, strategy)
    return [Row(where, f"c{n}", f"s{n // 2}", "liver", dice + 0.01 * (n - 5.5), 10, 9) for n in range(12)]


@pytest.fixture
def frame() -> pd.DataFrame:
    return frame_of(
        [
            *(row for name, dice in (("trunk", 0.8), ("heart", 0.6)) for row in rows("all", name, dice)),
            *rows("all", "trunk_ct", 0.5),
            *rows("one", "trunk", 0.7),
            *rows("one", "heart", 0.2),
            *rows("nnU-Net", "trunk", 0.9, "other-tool"),
            *rows("nnU-Net", "trunk_ct", 0.1, "other-tool"),
            *rows("baseline", "trunk", 0.06, "everything-foreground"),
        ]
    )


def test_trained_on_or_not_is_decided_run_by_run(frame: pd.DataFrame) -> None:
    first = role_table(IN_DISTRIBUTION, frame, FACTS, SPECS)
    assert first is not None
    lines = first.frame.set_index(["run", "strategy"])
    assert list(first.frame.columns) == [
        *("run", "split", "strategy", "draws", "heart", "trunk", "mean", "95 % CI")
    ]
    assert list(lines.loc[("all", "one-shot")])[1:5] == ["", "60.00", "80.00", "70.00"]
    assert lines.loc[("all", "one-shot"), "95 % CI"].startswith("[6")
    assert list(lines.loc[("one", "one-shot")])[2:] == ["", "70.00", "", ""], "no mean hides a gap"
    assert list(lines.loc[("nnU-Net", "other-tool")])[2:5] == ["", "90.00", ""]
    assert lines.loc[("baseline", "everything is foreground"), "trunk"] == "6.00"
    second = role_table(HELD_OUT, frame, FACTS, SPECS)
    assert second is not None
    # For `all` the liver is known from MR only; for `one` the heart is new.
    columns = ["heart (new classes)", "trunk_ct (new modality)"]
    assert list(second.frame.columns)[4:6] == columns
    lines = second.frame.set_index("run")
    assert list(lines.loc["one", columns]) == ["20.00", ""] and list(lines.loc["all", columns]) == [
        "",
        "50.00",
    ]
    assert lines.loc["nnU-Net", columns[1]] == "10.00"
    assert "baseline" not in lines.index
    assert role_table(HELD_OUT, frame_of(rows("all", "trunk", 0.5)), FACTS, SPECS) is None


def test_a_dataset_of_one_subject_adds_nothing_to_the_width_of_an_interval() -> None:
    one_person = [row for row in rows("all", "heart", 0.6) if row.subject == "s0"]  # 54.5 and 55.5
    table = role_table(IN_DISTRIBUTION, frame_of([*rows("all", "trunk", 0.8), *one_person]), FACTS, SPECS)
    alone = role_table(IN_DISTRIBUTION, frame_of(rows("one", "trunk", 0.8)), FACTS, SPECS)
    assert table is not None and alone is not None
    low, high = (float(each) for each in table.frame[CI][0].strip("[]").split(", "))
    least, most = (float(each) for each in alone.frame[CI][0].strip("[]").split(", "))
    assert table.frame["mean"][0] == "67.50" and low < 67.5 < high
    # Half of the mean stands still; the other half is drawn anew by another seed.
    assert high - low == pytest.approx((most - least) / 2, abs=0.3)
    assert any("a dataset of one subject adds nothing to the width" in note for note in table.notes)


def test_a_row_has_all_draws_of_a_strategy() -> None:
    drawn = {
        ("trunk", 0): 0.80,
        ("trunk", 1): 0.84,
        ("trunk", 2): 0.76,
        ("heart", 0): 0.60,
        ("heart", 1): 0.70,
    }
    frame = frame_of(
        [
            *(
                row
                for (name, draw), dice in drawn.items()
                for row in rows("all", name, dice, "tuning", 3, draw)
            ),
            *rows("all", "trunk", 0.80, "tuning", 5, 0),
            *(row for name in ("trunk", "heart") for row in rows("all", name, 0.5, "bank")),
        ]
    )
    table = role_table(IN_DISTRIBUTION, frame, FACTS, SPECS)
    assert table is not None
    lines = table.frame.set_index("strategy").drop(columns=["run", "split"])
    assert list(lines.index) == ["tuning, k = 3", "tuning, k = 5", "bank", "Iris", "nnUNet"]
    # 80, 84, 76: deviation 4; 60, 70: sqrt(50). Of draws 0 and 1 the datasets' means are 70 and 77: sqrt(24.5).
    assert list(lines.loc["tuning, k = 3"])[:4] == ["2 to 3", "65.00 ± 7.07", "80.00 ± 4.00", "72.50 ± 4.95"]
    assert list(lines.loc["tuning, k = 5"]) == ["1", "", "80.00", "", ""]
    assert list(lines.loc["bank"])[:4] == ["", "50.00", "50.00", "50.00"]
    assert "all · tuning, k = 3 · paper/test: 60 of 60 case-class pairs scored." in table.notes
    # The interval is of the mean over draws, by subjects: no wider than the subjects' own spread of 2 points.
    low, high = (float(part) for part in lines.loc["tuning, k = 3", "95 % CI"].strip("[]").split(", "))
    assert 69 < low < 72.5 < high < 76


def test_draws_that_are_equal_in_one_dataset_count_in_the_mean_over_all() -> None:
    drawn = {"trunk": (0.80, 0.80, 0.80), "heart": (0.60, 0.70, 0.80)}
    frame = frame_of(
        [
            row
            for name, values in drawn.items()
            for draw, dice in enumerate(values)
            for row in rows("all", name, dice, "tuning", 3, draw)
        ]
    )
    table = role_table(IN_DISTRIBUTION, frame, FACTS, SPECS)
    assert table is not None
    line = table.frame.iloc[0]
    assert list(line[["draws", "heart", "trunk", "mean"]]) == [
        "1 to 3",
        "70.00 ± 10.00",
        "80.00",
        "75.00 ± 5.00",
    ]


def test_the_papers_figures_stand_in_their_own_column_only(frame: pd.DataFrame) -> None:
    table = role_table(IN_DISTRIBUTION, frame, FACTS, SPECS)
    assert table is not None
    theirs = table.frame[table.frame["run"] == "paper"]
    assert list(theirs["strategy"]) == ["Iris", "nnUNet"]
    assert list(theirs["trunk"]) == ["91.85", "91.13"] and set(theirs["heart"]) == set(theirs["mean"]) == {""}
    assert any("the paper's own figures" in note for note in table.notes)
    assert "Cases of subjects: heart 12 of 6, trunk 12 of 6." in table.notes
    elsewhere = SPECS | {"trunk_ct": SPECS["trunk_ct"].model_copy(update={"paper_column": "CHAOS"})}
    table = role_table(HELD_OUT, frame, FACTS, elsewhere)
    assert table is not None and "paper" not in set(table.frame["run"]), "a column of its other table"
    plain = {name: each.model_copy(update={"paper_column": None}) for name, each in SPECS.items()}
    table = role_table(IN_DISTRIBUTION, frame, FACTS, plain)
    assert table is not None and "paper" not in set(table.frame["run"])


def test_what_is_new_about_a_dataset() -> None:
    trained = [SPECS["trunk"], SPECS["heart"]]
    assert novelty(SPECS["trunk_ct"], trained) == "new modality"
    assert novelty(SPECS["lung"], trained) == "new classes"
    assert novelty(spec("other", "MR", "held-out", "Liver ventricle"), trained) == "new domain"
    assert novelty(spec("other", "MR", "held-out", "liver kidney"), trained) == "some new classes"
    assert novelty(spec("other", classes="liver"), [spec("named", classes="Liver")]) == "new domain"
    both = spec("other", classes="liver lung")  # the lung is known from CT alone
    assert novelty(both, [*trained, SPECS["lung"]]) == "new modality"


def test_a_case_of_nobody_known_is_a_subject_of_its_own() -> None:
    where = Origin("all", "trunk", "paper/test", "bank")
    found = frame_of([Row(where, case, "", "liver", 0.7, 10, 9) for case in "ab"])
    table = role_table(IN_DISTRIBUTION, found, FACTS, SPECS)
    assert table is not None and "Cases of subjects: trunk 2 of 2." in table.notes


def measured(strategy: str, nsd: float | None, error: float) -> list[Row]:
    where = Origin("all", "trunk", "paper/test", strategy)
    found = []
    for case, sign in (("a", 1), ("b", -1)):
        values = {
            "iou": 0.5,
            "tolerance_mm": 2.0,
            "hd95_mm": 4.0 + sign,
            "volume_error_percent": sign * error,
        }
        values |= {"lesion_f1": 0.5, "lesions_truth": 2, "lesions_found": 1, "lesions_predicted": 4}
        values |= {"lesions_confirmed": 3} | ({} if nsd is None else {"nsd": nsd})
        found.append(Row(where, case, case, "liver", 0.7, 10, 9, values if nsd is not None else {}))
    return [*found, Row(where, "a", "a", "spleen", NAN, 0, 0, {"tolerance_mm": 3.0})]


def test_all_measures_of_a_dataset() -> None:
    table = measures_table(frame_of(measured("bank", 0.9, 8.0)), "trunk")
    assert table is not None and table.name == "trunk_measures"
    line = table.frame.iloc[0]
    assert (line["Dice"], line["IoU"], line["NSD"], line["HD95 (mm)"]) == ("0.700", "0.500", "0.900", "4.00")
    assert (line["volume error (%)"], line["absolute volume error (%)"]) == ("0.0", "8.0")
    assert line["lesion F1"] == "0.500" and "ASSD (mm)" not in table.frame
    notes = " ".join(table.notes)
    assert "NSD at tolerances in mm: liver 2, spleen 3." in notes
    assert "all · bank: 2 of 4 lesions found, 6 of 8 marks confirmed" in notes
    assert "2 of 3 case-class pairs scored, 1 in neither truth nor mask (left out)" in notes
    assert measures_table(frame_of(measured("bank", None, 8.0)), "trunk") is None, (
        "Dice alone: the first schema"
    )


def test_every_class_as_a_list() -> None:
    table = measures_by_class(frame_of(measured("bank", 0.9, 8.0)))
    assert not table.on_page
    lines = table.frame.set_index(["class", "measure"])
    assert lines.loc[("liver", "hd95_mm"), ["n", "subjects", "mean"]].tolist() == [2, 2, "4"]
    assert (
        lines.loc[("liver", "hd95_mm"), "sd"] == f"{2**0.5:.6g}"
        and lines.loc[("liver", "nsd"), "ci_low"] == ""
    )
    assert "spleen" not in lines.index.get_level_values("class")
