"""Parts of the page by value: which cases, which metrics, in which order; the figures at the top."""

from __future__ import annotations

import pandas as pd

from iris_pipeline.measures.class_scores import MEASURES
from iris_pipeline.pages.report_parts import (
    case_table,
    class_table,
    first_strategy,
    headline,
    ordered_strategies,
    pick_cases,
)


def test_best_median_and_worst() -> None:
    def scores(**means: float) -> pd.DataFrame:
        return pd.DataFrame({"case": list(means), "dice": list(means.values())})

    assert pick_cases(scores(a=0.1, b=0.9, c=0.5, d=0.6, e=float("nan"))) == [
        ("best", "b"),
        ("median", "d"),
        ("worst", "a"),
    ]
    assert pick_cases(scores(a=0.1, b=0.9)) == [("best", "b"), ("worst", "a")]
    assert pick_cases(scores(a=0.5)) == [("best", "a")]
    assert pick_cases(scores(b=0.5, a=0.5, c=0.5)) == [("best", "a"), ("median", "b"), ("worst", "c")]
    assert pick_cases(scores(a=float("nan"))) == []


def rows() -> pd.DataFrame:
    """Two datasets; the second lacks the strategy "bank"; one pair has no Dice; some measures besides."""
    lines = []
    for dataset, strategy, shift in (("a", "one-shot", 0.0), ("a", "bank", 0.1), ("b", "one-shot", 0.2)):
        for number, case in enumerate(("007", "c2")):
            for name in ("liver", "spleen"):
                dice = 0.5 + shift + number / 10 if (case, name) != ("c2", "spleen") else float("nan")
                lines.append(
                    {"run": "night", "dataset": dataset, "split": "paper/test", "strategy": strategy}
                    | {"case": case, "subject": case, "class": name, "dice": dice}
                    | {"truth_voxels": 9.0, "predicted_voxels": 8.0, **dict.fromkeys(MEASURES, float("nan"))}
                    | {"base": strategy, "references": float("nan"), "draw": float("nan")}
                    | {"hd95_mm": 2.0 + number, "lesion_f1": 0.5, "volume_error_percent": 10.0 - 30 * number}
                )
    lines.append(lines[0] | {"run": "baseline", "strategy": "everything-foreground", "dice": 0.01})
    return pd.DataFrame(lines)


def test_the_spread_of_each_class() -> None:
    part = rows()[lambda frame: (frame["dataset"] == "a") & (frame["strategy"] == "one-shot")]
    table = class_table(part, "a").frame.set_index("class")
    assert table.loc["liver"].to_dict() == {
        "cases": "2",
        "Dice": "0.550",
        "sd": "0.071",  # of 0.5 and 0.6: 0.1 / sqrt(2)
        "median": "0.550",
        "lowest": "0.500",
        "highest": "0.600",
        "HD95 (mm)": "2.50",
        "volume error (%)": "-5.0",
        "absolute volume error (%)": "15.0",
        "lesion F1": "0.500",
    }
    assert table.loc["spleen", ["cases", "Dice", "sd"]].tolist() == ["1", "0.500", "not scored"]


def test_all_cases_worst_first() -> None:
    part = rows()[lambda frame: (frame["dataset"] == "a") & (frame["strategy"] == "one-shot")]
    frame = case_table(part, "a").frame
    assert frame.columns.tolist() == ["case", "liver", "spleen", "mean"]
    assert frame.to_numpy().tolist() == [["007", "0.500", "0.500", "0.500"], ["c2", "0.600", "", "0.600"]]


def test_the_figures_at_the_top() -> None:
    assert headline(rows()) == [
        ("2", "datasets"),
        ("4", "scans segmented"),
        ("4", "classes"),
        # Means over classes of means over cases: a (0.55 + 0.5) / 2, b (0.75 + 0.7) / 2.
        ("0.625", "mean Dice, one-shot"),
    ], "the bank did not do all datasets, so it has no mean over them"


def test_draws_of_one_strategy_are_one_figure_at_the_top() -> None:
    first = rows()[lambda frame: frame["strategy"] == "one-shot"]
    drawn = [
        first.assign(
            strategy=f"tuning_k3_draw{draw}",
            base="tuning",
            references=3.0,
            draw=float(draw),
            dice=first["dice"] + up,
        )
        for draw, up in ((0, 0.1), (1, 0.2))
    ]
    assert headline(pd.concat([rows(), *drawn]))[3:] == [
        ("0.625", "mean Dice, one-shot"),
        ("0.775", "mean Dice, tuning, k = 3, 2 draws"),  # 0.725 and 0.825
    ]


def test_draws_that_gave_the_same_masks_count_once_at_the_top() -> None:
    first = rows()[lambda frame: frame["strategy"] == "one-shot"]
    other = first["dataset"] == "b"
    drawn = [
        first.assign(
            strategy=f"ensemble_k3_draw{draw}",
            base="ensemble",
            references=3.0,
            draw=float(draw),
            dice=first["dice"] + up * other,
        )
        for draw, up in ((0, 0.0), (1, 0.1), (2, 0.2))
    ]
    # a has one draw three times, 0.525; b has 0.725, 0.825 and 0.925.
    assert headline(pd.concat(drawn))[3:] == [("0.675", "mean Dice, ensemble, k = 3, 1 to 3 draws")]
    assert headline(pd.concat([drawn[0], drawn[2][other]]))[3:] == [
        (
            "0.675",
            "mean Dice, ensemble, k = 3, 1 to 2 draws",
        )  # 0.525; 0.725 and 0.925: both datasets have some
    ]


def test_the_figures_at_the_top_are_of_test_parts() -> None:
    """What was tuned on would flatter what is tested."""
    test = rows()[lambda frame: frame["strategy"] == "one-shot"].assign(
        base="ensemble", references=5.0, draw=0.0
    )
    told = [("2", "datasets"), ("4", "scans segmented"), ("4", "classes")]
    validation = test.assign(
        split="paper/validation",
        strategy="ensemble_validation",
        case="v" + test["case"],
        dice=test["dice"] + 0.2,
    )
    assert headline(pd.concat([test, validation])) == [*told, ("0.625", "mean Dice, ensemble, k = 5")]
    alone = [*told, ("0.825", "mean Dice, ensemble, k = 5, paper/validation")]
    assert headline(validation) == alone, "where nothing else was measured, it is named"
    fold = test.assign(split="0/test", dice=test["dice"] - 0.1)
    assert headline(pd.concat([test, fold]))[3:] == [
        ("0.525", "mean Dice, ensemble, k = 5, 0/test"),
        ("0.625", "mean Dice, ensemble, k = 5, paper/test"),
    ]
    own = test.assign(split="")
    assert headline(own)[3:] == [("0.625", "mean Dice, ensemble, k = 5")], "of a folder that tells no split"


def test_order_of_strategies() -> None:
    frame = pd.DataFrame({"strategy": ["mine", "bank", "one-shot"]})
    assert ordered_strategies(frame) == ["one-shot", "bank", "mine"]
    assert first_strategy(frame) == "one-shot" and first_strategy(frame[:0]) == ""
