"""Signs -> predicted Dice: by hand, against scikit-learn, and on cases that the fit has not seen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from iris_pipeline.confidence.calibration import (
    COLUMNS,
    Agreement,
    Calibration,
    Judgement,
    agreement,
    calibration_path,
    compare_with_truth,
    fit,
    judge,
    judgements_in,
    load_calibration,
    save_calibration,
)
from iris_pipeline.confidence.confidence_fit import PENALTIES, SIGNS, Line, _ridge, left_out, predict
from preprocessing.errors import CheckpointError, PredictionError

HASH = "0123456789abcdef"
NONE = Agreement(
    masks=0, cases=0, pearson=None, spearman=None, mean_absolute_error=0, poor=0, poor_flagged=0, flagged=0
)


def by_hand(**changes: Any) -> Calibration:
    """Dice = 0.6 + 0.1 (windows - 0.8) / 0.2 + 0.2 (cycle - 0.5) / 0.1; 0.5 + 0.3 (cycle - 0.6) / 0.2; 0.4."""
    both = ("windows", "cycle"), (0.8, 0.5), (0.2, 0.1), (0.1, 0.2), 0.6
    one: tuple[Any, ...] = ("cycle",), (0.6,), (0.2,), (0.3,), 0.5
    none: tuple[Any, ...] = (), (), (), (), 0.4
    names = ("signs", "means", "scales", "weights", "intercept")
    values = {
        "model_hash": HASH,
        "lines": tuple(
            Line(**dict(zip(names, each, strict=True)), penalty=1.0, masks=9) for each in (both, one, none)
        ),
        "agreement": NONE,
        "made_from": {},
    }
    return Calibration(**(values | changes))


def some_masks(
    cases: int, noise: float = 0.0, seed: int = 0
) -> tuple[list[dict[str, float]], list[float], list[str]]:
    """Three masks a case whose Dice is a line through two signs; others are chance, some are not known."""
    rng = np.random.default_rng(seed)
    signs, dice, names = [], [], []
    for i in range(3 * cases):
        row = {name: float(rng.uniform(0.3, 1)) for name in SIGNS}
        dice.append(float(np.clip(0.5 * row["windows"] + 0.4 * row["cycle"] + noise * rng.normal(), 0, 1)))
        if i % 4 == 0:
            del row["references"]
        signs.append(row)
        names.append(f"case {i // 3}")
    return signs, dice, names


def test_the_predicted_dice_by_hand() -> None:
    calibration = by_hand()
    assert calibration.predict({"windows": 0.8, "cycle": 0.5}) == pytest.approx(0.6)
    assert calibration.predict({"windows": 0.6, "cycle": 0.6}) == pytest.approx(0.6 - 0.1 + 0.2)
    assert calibration.predict({"cycle": 0.8}) == pytest.approx(0.8), (
        "what is not known has a line without it"
    )
    assert calibration.predict({"cycle": math.nan, "certainty": 0.1}) == pytest.approx(0.4)
    assert calibration.used == {"windows", "cycle"}
    assert calibration.predict({"windows": 1.0, "cycle": 1.0}) == 1.0
    assert calibration.predict({"windows": 0.0, "cycle": 0.0}) == 0.0


def test_an_empty_mask_is_to_be_reviewed() -> None:
    signs: dict[str, dict[str, float]] = {"liver": {"windows": 0.8, "cycle": 0.5}, "spleen": {}}
    found = judge(by_hand(), "a", signs, review_below=0.6)
    assert [(j.class_name, j.predicted_dice, j.review) for j in found] == [
        ("liver", pytest.approx(0.6), False),
        ("spleen", 0.0, True),
    ]


def test_the_fit_is_the_ridge_of_scikit_learn() -> None:
    """Each line is fitted to the masks of which its signs are known, and predicts where no more are."""
    signs, dice, cases = some_masks(12, noise=0.05)
    lines = fit(signs, dice, cases, model_hash=HASH, made_from={"datasets": "x"}).lines
    assert [line.signs for line in lines[:2]] == [tuple(SIGNS), tuple(s for s in SIGNS if s != "references")]
    assert [line.masks for line in lines[:2]] == [27, 36] and len(lines) == 9 and lines[-1].signs == ()
    for line in lines[:-1]:
        whole = [number for number, row in enumerate(signs) if set(line.signs) <= set(row)]
        table = np.array([[signs[number][name] for name in line.signs] for number in whole])
        scaled = (table - table.mean(axis=0)) / table.std(axis=0)
        truth = [dice[number] for number in whole]
        expected = Ridge(alpha=line.penalty, positive=True, tol=1e-9).fit(scaled, truth)
        assert np.allclose(line.weights, expected.coef_, atol=1e-4)
        assert np.allclose(line.means, table.mean(axis=0)) and line.penalty in PENALTIES
        for number, value in zip(whole, expected.predict(scaled).clip(0, 1), strict=True):
            row = {name: signs[number][name] for name in line.signs}
            assert predict(lines, row) == pytest.approx(value, abs=1e-3)
    assert min(weight for line in lines for weight in line.weights) >= 0
    strongest = sorted(zip(lines[0].weights, lines[0].signs, strict=True))[-2:]
    assert {name for _, name in strongest} == {"windows", "cycle"}
    assert lines[-1].intercept == pytest.approx(np.mean(dice))


@pytest.mark.parametrize("penalty", [0.1, 1.0, 50.0])
def test_weights_solve_the_normal_equations_of_ridge_regression(penalty: float) -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(20, 3))
    columns -= columns.mean(axis=0)
    truth = 0.5 + columns @ [0.3, 0.2, 0.1] + 0.01 * rng.normal(size=20)
    weights, intercept = _ridge(columns, truth, penalty)
    expected = np.linalg.solve(columns.T @ columns + penalty * np.eye(3), columns.T @ truth)
    assert expected.min() > 0, "else weights are not those of the plain ridge"
    assert weights == pytest.approx(expected) and intercept == pytest.approx(truth.mean())


def test_a_sign_that_too_few_masks_know_has_no_say() -> None:
    signs, dice, cases = some_masks(10)
    for row in signs[7:]:
        row.pop("references", None)
    calibration = fit(signs, dice, cases, model_hash=HASH, made_from={})
    assert "references" not in calibration.used and {"windows", "cycle"} <= calibration.used
    assert not any("references" in line.signs for line in calibration.lines)


def test_people_are_left_out_with_all_their_cases() -> None:
    """Of two people each is told by the other alone, of whom one person's mean is all that can be said."""
    rng = np.random.default_rng(5)
    signs = [{s: float(rng.uniform()) for s in SIGNS} for _ in range(16)]
    dice, cases = [0.9] * 8 + [0.2] * 8, [f"case {number // 4}" for number in range(16)]
    people = ["p1"] * 8 + ["p2"] * 8
    found = fit(signs, dice, cases, subjects=people, model_hash=HASH, made_from={}).agreement
    assert found.mean_absolute_error == pytest.approx(0.7) and found.cases == 4
    assert (found.poor, found.poor_flagged, found.flagged) == (8, 0, 8)


def test_of_up_to_ten_people_each_is_told_by_all_the_others() -> None:
    """Without a sign that is known the mean Dice of the others is all that can be said."""
    people = np.repeat(np.arange(6), [3, 1, 2, 4, 2, 3])
    truth = np.random.default_rng(2).uniform(size=len(people))
    said = left_out(np.full((len(people), len(SIGNS)), math.nan), truth, people)
    assert said == pytest.approx([truth[people != person].mean() for person in people])


def test_what_is_said_of_unseen_cases_is_honest() -> None:
    signs, dice, cases = some_masks(20)
    assert fit(signs, dice, cases, model_hash=HASH, made_from={}).agreement.pearson > 0.99  # type: ignore[operator]
    # Dice that have nothing to do with the signs, but are the same in all masks of a case: rows of one case must
    # not be told by one another
    rng = np.random.default_rng(3)
    of_case = {
        name: (rng.uniform(), {s: float(rng.uniform()) for s in SIGNS}) for name in dict.fromkeys(cases)
    }
    found = fit(
        [of_case[name][1] for name in cases],
        [of_case[name][0] for name in cases],
        cases,
        model_hash=HASH,
        made_from={},
    )
    assert found.agreement.pearson is None or found.agreement.pearson < 0.4
    assert (found.agreement.masks, found.agreement.cases) == (60, 20)


def test_the_agreement_may_leave_masks_out_that_the_fit_has() -> None:
    signs, dice, cases = some_masks(12, noise=0.05)
    counted = [number % 3 > 0 for number in range(len(dice))]
    fitted = {"model_hash": HASH, "made_from": {}}
    all_told, some_told = (
        fit(signs, dice, cases, **fitted),
        fit(signs, dice, cases, counted=counted, **fitted),
    )  # type: ignore[arg-type]
    assert some_told.lines == all_told.lines
    assert (all_told.agreement.masks, some_told.agreement.masks) == (36, 24)
    assert all_told.agreement_of_all is None and some_told.agreement_of_all == all_told.agreement
    assert some_told.agreement.poor == sum(d < 0.7 for d, told in zip(dice, counted, strict=True) if told)


@pytest.mark.parametrize("count", [7, 0])
def test_too_few_masks(count: int) -> None:
    signs, dice, cases = some_masks(5)
    with pytest.raises(
        PredictionError,
        match=rf"on 8 or more masks of at least two people's validation cases; got {count} of",
    ):
        fit(signs[:count], dice[:count], cases[:count], model_hash=HASH, made_from={})
    with pytest.raises(PredictionError, match="got 15 of 1: name more datasets"):
        fit(signs, dice, ["one"] * 15, model_hash=HASH, made_from={})


def test_agreement_against_scipy_and_by_hand() -> None:
    said, true = [0.9, 0.6, 0.65, 0.2], [0.8, 0.75, 0.5, 0.1]
    found = agreement(said, true, ["a", "a", "b", "c"])
    assert found.pearson == pytest.approx(stats.pearsonr(said, true)[0])
    assert found.spearman == pytest.approx(0.8), "ranks 4 2 3 1 and 4 3 2 1: 1 - 6 * 2 / (4 * 15)"
    assert found.mean_absolute_error == pytest.approx((0.1 + 0.15 + 0.15 + 0.1) / 4)
    assert (found.masks, found.cases, found.poor, found.poor_flagged, found.flagged) == (4, 3, 2, 2, 3)
    assert found.sentence() == (
        "predicted against true Dice of 4 masks in 3 cases: Pearson 0.91, Spearman 0.80, mean error 0.125; below 0.7 "
        "are 2, of which 2 are marked for review, with 1 better ones"
    )
    assert ": predicted against true Dice of 3 masks in 1 case: Pearson" in (
        f": {agreement(said[:3], true[:3], 'aaa').sentence()}"
    )
    assert "Dice of 1 mask in 1 case: Pearson -" in agreement(said[:1], true[:1], "a").sentence()
    assert agreement([0.5, 0.5, 0.5], true[:3], "abc").pearson is None, (
        "without spread there is no correlation"
    )
    with pytest.raises(PredictionError, match="one mask or more; none has both"):
        agreement([], [], [])


def test_only_masks_with_a_true_dice_are_compared() -> None:
    judgements = [
        Judgement(case, "liver", said, said < 0.7, {}) for case, said in (("a", 0.9), ("b", 0.5), ("c", 0.4))
    ]
    found = compare_with_truth(
        judgements, {("a", "liver"): 0.8, ("b", "liver"): math.nan, ("c", "spleen"): 0.3}
    )
    assert (found.masks, found.mean_absolute_error) == (1, pytest.approx(0.1))


def test_marks_are_those_of_the_table_whatever_their_threshold() -> None:
    judgements = [Judgement("a", "liver", 0.9, True, {}), Judgement("b", "liver", 0.6, False, {})]
    found = compare_with_truth(judgements, {("a", "liver"): 0.5, ("b", "liver"): 0.9})
    assert (found.poor, found.poor_flagged, found.flagged) == (1, 1, 1)


def test_a_calibration_lies_with_the_model_and_is_plain_json(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "state.json").write_text("{}")
    path = save_calibration(tmp_path / "run", by_hand(volumes_ml={"x": {"liver": 1500.0}}))
    assert path == tmp_path / "run" / "checkpoint" / "confidence.json"
    assert calibration_path(path.parent) == path
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["lines"][0]["weights"] == [0.1, 0.2] and content["schema_version"] == 2
    assert load_calibration(tmp_path / "run", HASH) == by_hand(volumes_ml={"x": {"liver": 1500.0}})
    with pytest.raises(
        CheckpointError, match=f"was calibrated for model {HASH}, this one is other: run iris_calibrate"
    ):
        load_calibration(tmp_path / "run", "other")
    with pytest.raises(CheckpointError, match=r"does not exist: make it with iris_calibrate -m none"):
        load_calibration(tmp_path / "none", HASH)


def test_judgements_come_back_from_their_file(tmp_path: Path) -> None:
    judgements = [
        Judgement("b", "liver", 0.8125, False, {"windows": 0.5, "volume": 1.0}),
        Judgement("a", "left, upper", 0.0, True, {}),
    ]
    judgements_in(tmp_path).write(judgements)
    lines = (tmp_path / "confidence.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        ",".join(COLUMNS),
        'a,"left, upper",0.0000,yes,,,,,,',
        "b,liver,0.8125,no,0.5000,,,,,1.0000",
    ]
    assert judgements_in(tmp_path).rows() == judgements[::-1]
    assert judgements_in(tmp_path / "none").rows() == []
    (tmp_path / "confidence.csv").write_text("case,class\na,b\n")
    with pytest.raises(PredictionError) as told:
        judgements_in(tmp_path).rows()
    assert str(told.value) == (
        f"{tmp_path / 'confidence.csv'} should have the columns {', '.join(COLUMNS)}: take it away, it is made anew "
        "with --confidence."
    )
