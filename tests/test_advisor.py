"""The advisor: which trials are made, what is worked out from them by hand, what it says and draws."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import PLAN
from PIL import Image
from stub_model import GreyModel, loaded_with

from iris_pipeline.evaluation.advisor import Trial, advise, plan_trials, run_trials
from iris_pipeline.inference.pool import embed, people_of
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference
from iris_pipeline.pages.advice_page import add_strategies, advice_markdown, trials_text, write_advice
from iris_pipeline.prediction.rivals import Attempt, comparison_text
from preprocessing.errors import ReferenceCaseError

NAN = float("nan")


def test_every_single_every_leave_one_out_and_some_between() -> None:
    subjects = {name: name for name in "abcdef"}
    planned = plan_trials(subjects, draws=3)
    assert len(set(planned)) == len(planned) == 6 * (5 + 3 + 3 + 5 + 1)
    for query in subjects:
        others = sorted(set(subjects) - {query})
        mine = [references for each, references in planned if each == query]
        assert [m for m in mine if len(m) == 1] == [(other,) for other in others]
        assert [m for m in mine if len(m) == 4] == list(combinations(others, 4))
        assert mine[-1] == tuple(others)
        assert not any(query in references for references in mine)
    assert planned == plan_trials(subjects, draws=3) != plan_trials(subjects, draws=3, seed=1)


def test_thirty_references_are_planned_at_once() -> None:
    """A list of all subsets of 29 would not fit into any memory."""
    subjects = {f"r{i:02}": f"r{i:02}" for i in range(30)}
    planned = plan_trials(subjects)
    mine = [references for query, references in planned if query == "r07"]
    counts = {size: sum(len(each) == size for each in mine) for size in {len(each) for each in mine}}
    assert counts == {1: 29, 2: 3, 3: 3, 5: 3, 8: 3, 12: 3, 20: 3, 28: 29, 29: 1}
    assert len(set(planned)) == len(planned) and planned == plan_trials(subjects)
    assert all(list(each) == sorted(set(each)) and "r07" not in each for each in mine)


def test_a_subjects_other_scan_is_no_reference_for_it() -> None:
    planned = plan_trials({"a1": "a", "a2": "a", "b": "b"})
    assert planned == [("a1", ("b",)), ("a2", ("b",)), ("b", ("a1",)), ("b", ("a2",)), ("b", ("a1", "a2"))]
    with pytest.raises(ReferenceCaseError, match="two or more; got 2 of 1: give more references"):
        plan_trials({"a1": "a", "a2": "a"})


def test_the_same_scan_under_another_name_is_no_reference_for_it() -> None:
    loaded, plan = loaded_with(GreyModel()), PLAN.model_copy(update={"patch_size": (16, 16, 16)})
    one, other = grey_reference("one", 3.0), grey_reference("b", 3.4)
    copy = replace(one, id="copy", subject="copy")
    nobody = replace(other, id="c", subject="", image_hash="")
    pool = [embed(loaded, reference, plan) for reference in (one, copy, other, nobody)]
    assert people_of(pool) == {"one": "one", "copy": "one", "b": "b", "c": "c"}
    planned = plan_trials(people_of(pool[:3]))
    assert [used for query, used in planned if query in ("one", "copy")] == [("b",), ("b",)]
    with pytest.raises(ReferenceCaseError, match="two or more; got 2 of 1: give more references"):
        plan_trials(people_of(pool[:2]))


def trials_of(scores: dict[tuple[str, str], float], name: str = "x") -> list[Trial]:
    """From {(query, "references as letters"): Dice}."""
    return [Trial(query, tuple(used), name, dice) for (query, used), dice in scores.items()]


# c hurts: alone it is poor, and the others do better without it; the others find little in it
THREE = {
    ("a", "b"): 0.8,
    ("a", "c"): 0.4,
    ("a", "bc"): 0.7,
    ("b", "a"): 0.9,
    ("b", "c"): 0.5,
    ("b", "ac"): 0.8,
    ("c", "a"): 0.3,
    ("c", "b"): 0.1,
    ("c", "ab"): 0.2,
}


def test_notes_by_hand() -> None:
    advice = advise(trials_of(THREE), ["a", "b", "c"], ["x"])
    notes = {note.id: note for note in advice.references}
    assert [notes[i].alone for i in "abc"] == pytest.approx([0.6, 0.45, 0.45])
    # a: of b (0.8 - 0.5), of c (0.2 - 0.1); b: of a (0.7 - 0.4), of c (0.2 - 0.3); c: of a, of b -0.1 each
    assert [notes[i].gain for i in "abc"] == pytest.approx([0.2, 0.1, -0.1])
    assert [(notes[i].agreeing, notes[i].queries) for i in "abc"] == [(2, 2), (1, 2), (2, 2)]
    assert [notes[i].verdict for i in "abc"] == ["helps", "no difference to be told", "hurts"]
    assert [notes[i].found for i in "abc"] == pytest.approx([0.7, 0.8, 0.2])
    sizes = {note.size: note for note in advice.sizes}
    # of one: a 0.6, b 0.7, c 0.2; of two: 0.7, 0.8, 0.2
    assert (sizes[1].mean, sizes[1].low, sizes[1].high) == pytest.approx((0.5, 0.2, 0.7))
    assert (sizes[2].mean, sizes[2].low, sizes[2].high) == pytest.approx((1.7 / 3, 0.2, 0.8))
    assert advice.lines == (
        "x: more references still help: Dice 0.50 with 1, 0.57 with 2; further ones may too.",
        "x: a helps most; without it the others lose 0.20 Dice (2 of 2 queries agree).",
        "x: c hurts; without it the others gain 0.10 Dice (2 of 2 queries agree): look at its mask, or leave it out.",
        "x: c is unlike the others, who find it there with Dice 0.20 only (0.70 in the median case): check its "
        "mask, or add references like it.",
    )


def test_enough_is_the_smallest_size_within_the_margin() -> None:
    flat = {key: {1: 0.6, 2: 0.805, 3: 0.81}[len(key[1])] for key in every_trial("abcd")}
    lines = advise(trials_of(flat), list("abcd"), ["x"]).lines
    assert lines == (
        "x: 2 references are enough: Dice 0.81, and 0.81 with 3.",
        "x: between having and lacking a single reference there is no difference to be told.",
    )
    falling = {key: 0.9 - 0.1 * len(key[1]) for key in every_trial("abc")}
    assert advise(trials_of(falling), list("abc"), ["x"]).lines[0] == (
        "x: 1 reference is enough: Dice 0.80, and 0.70 with 2."
    )


def every_trial(ids: str) -> list[tuple[str, str]]:
    return [(query, "".join(used)) for query, used in plan_trials({i: i for i in ids}, draws=99)]


def test_classes_are_told_apart_and_gaps_are_gaps() -> None:
    trials = [*trials_of(THREE, "x"), *trials_of({("a", "b"): 0.5, ("b", "a"): NAN}, "y")]
    advice = advise(trials, ["a", "b", "c"], ["x", "y", "z"])
    y = {note.id: note for note in advice.references if note.class_name == "y"}
    assert y["b"].alone == 0.5 and np.isnan([y["a"].alone, y["a"].gain, y["b"].found]).all()
    assert list(y) == ["a", "b"] and y["b"].verdict == "", "c does not show it; no query tells of b"
    assert advice.lines[-1] == "z: no two references show it, so nothing can be said; add one that does."
    two = advise(trials_of({("a", "b"): 0.5, ("b", "a"): 0.7}), ["a", "b"], ["x"])
    assert two.lines == ("x: one reference reaches Dice 0.60; with a third one, more could be said.",)


def grey_reference(name: str, grey: float) -> PreparedReference:
    image, labels = np.zeros((16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8)
    image[4:9, 4:9, 4:9], labels[4:9, 4:9, 4:9] = grey, 7
    return PreparedReference(name, image, labels, {"x": 7}, name, name)


def test_trials_with_a_model_that_goes_by_grey_values() -> None:
    loaded = loaded_with(GreyModel(width=0.55))
    plan = PLAN.model_copy(update={"patch_size": (16, 16, 16)})
    references = {name: grey_reference(name, grey) for name, grey in (("a", 3.0), ("b", 3.4), ("odd", 5.4))}
    pool = [embed(loaded, reference, plan) for reference in references.values()]
    read: list[str] = []

    def prepare(name: str) -> PreparedReference:
        read.append(name)
        return references[name]

    planned = plan_trials({name: name for name in references})
    trials = run_trials(loaded, pool, prepare, planned, InferenceOptions(), progress=False)
    assert len(loaded.model.masks) == 3, "each reference is encoded once"
    assert read == ["a", "b", "odd"], "and read once as a query"
    # within 0.55 of the mean grey: a and b find one another, odd finds and is found by nobody; a and odd: 4.2
    found = {(t.query, t.references): t.dice for t in trials}
    assert found["a", ("b",)] == found["b", ("a",)] == 1.0
    assert found["a", ("odd",)] == found["odd", ("a",)] == found["odd", ("a", "b")] == 0.0
    assert found["b", ("a", "odd")] == 0.0
    lines = advise(trials, list(references), ["x"]).lines
    assert (
        "x: odd hurts; without it the others gain 1.00 Dice (2 of 2 queries agree): look at its mask, or leave it out."
    ) in lines


def test_references_that_lack_a_class_are_none_of_it(tmp_path: Path) -> None:
    """Two of four show x: of x there is one size, one reference, whatever else took part."""
    loaded = loaded_with(GreyModel(width=0.6))
    plan = PLAN.model_copy(update={"patch_size": (16, 16, 16)})
    references = {name: grey_reference(name, grey) for name, grey in (("a", 3.0), ("b", 3.4))}
    for name in ("c", "d"):
        plain = grey_reference(name, 3.2)
        references[name] = replace(plain, labels=plain.labels // 7 * 5, classes={"y": 5})
    pool = [embed(loaded, reference, plan) for reference in references.values()]
    planned = plan_trials({name: name for name in references})
    trials = run_trials(loaded, pool, references.__getitem__, planned, InferenceOptions(), progress=False)
    assert [(t.query, t.references, t.dice) for t in trials if t.class_name == "x"] == [
        ("a", ("b",), 1.0),
        ("b", ("a",), 1.0),
    ]
    advice = advise(trials, list(references), ["x", "y"])
    assert [(note.class_name, note.size) for note in advice.sizes] == [("x", 1), ("y", 1)]
    assert [
        (note.class_name, note.id, note.alone, note.found, note.verdict) for note in advice.references
    ] == [
        ("x", "a", 1.0, 1.0, ""),
        ("x", "b", 1.0, 1.0, ""),
        ("y", "c", 1.0, 1.0, ""),
        ("y", "d", 1.0, 1.0, ""),
    ]
    assert advice.lines == tuple(
        f"{name}: one reference reaches Dice 1.00; with a third one, more could be said." for name in "xy"
    )
    write_advice(tmp_path, trials, advice, list(references), ["x", "y"], "Made by `iris_advise`.")
    page = (tmp_path / "advice.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("| x ")] == [
        "| x     | a         | 1.000 |      |         |         | 1.000 |",
        "| x     | b         | 1.000 |      |         |         | 1.000 |",
        "| x     | 1          | 1.000 | 1.000      | 1.000     |",
    ]


@pytest.mark.parametrize(
    ("gains", "verdict", "agreeing"),
    [
        ([0.03, 0.02, -0.01], "helps", 2),
        ([0.3, -0.01, -0.02], "no difference to be told", 1),  # one query is all of the mean
        ([0.2, 0.1, -0.01, -0.02], "no difference to be told", 2),  # half is not most
        ([0.02, 0.01, 0.0, 0.0, 0.1], "helps", 3),
        ([0.009, 0.009, 0.009], "no difference to be told", 3),
        ([-0.02, -0.02, NAN], "hurts", 2),
        ([-0.5, NAN, NAN], "no difference to be told", 1),  # one alone
        ([NAN, NAN, NAN], "", 0),
    ],
)
def test_most_queries_agree_where_a_reference_helps_or_hurts(
    gains: list[float], verdict: str, agreeing: int
) -> None:
    """r joins the other queries' references; of r itself nothing is asked."""
    queries = "abcde"[: len(gains)]
    trials = []
    for query, gain in zip(queries, gains, strict=True):
        rest = tuple(each for each in queries if each != query)
        trials += [Trial(query, rest, "x", 0.5), Trial(query, (*rest, "r"), "x", 0.5 + gain)]
    (note,) = [note for note in advise(trials, [*queries, "r"], ["x"]).references if note.id == "r"]
    assert (note.verdict, note.agreeing) == (verdict, agreeing)
    assert note.queries == sum(not np.isnan(gain) for gain in gains)


def test_advice_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    loaded = loaded_with(GreyModel(width=0.6))
    plan = PLAN.model_copy(update={"patch_size": (16, 16, 16)})
    references = {name: grey_reference(name, grey) for name, grey in (("a", 3.0), ("b", 3.4), ("c", 5.0))}
    pool = [embed(loaded, reference, plan) for reference in references.values()]
    planned, memory = plan_trials({name: name for name in references}), tmp_path / "trials.json"

    def run(prepare: Any, some: int = 9, **changes: Any) -> list[Trial]:
        options = InferenceOptions(**changes)
        return run_trials(loaded, pool, prepare, planned[:some], options, memory=memory, progress=False)

    def broken(name: str) -> PreparedReference:
        raise AssertionError(f"{name} is read again")

    first = run(references.__getitem__, some=4)
    whole = run(references.__getitem__)
    assert len(loaded.model.images) == 9 and whole[: len(first)] == first
    assert run(broken) == whole, "all is remembered"
    with pytest.raises(AssertionError, match="a is read again"):
        run(broken, overlap=0.1)
    memory.write_text("{")
    assert run(references.__getitem__) == whole


def test_the_files(tmp_path: Path) -> None:
    ids, classes = ["a", "b", "a rather long name of a case"], ["x", "y|z"]
    renamed = [
        Trial(t.query.replace("c", ids[2]), tuple(r.replace("c", ids[2]) for r in t.references), name, t.dice)
        for name in classes
        for t in trials_of(THREE)
    ]
    renamed[0] = Trial(renamed[0].query, renamed[0].references, "x", NAN)
    advice = advise(renamed, ids, classes)
    write_advice(tmp_path, renamed, advice, ids, classes, "Made by `iris_advise`.")
    lines = (tmp_path / "advice.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines[:-1]))
    assert len(rows) == 18 and rows[0]["dice"] == "" and rows[2]["references"] == f"b+{ids[2]}"
    assert (rows[2]["size"], rows[2]["dice"], lines[-1]) == ("2", "0.7000", "# Made by `iris_advise`.")
    page = (tmp_path / "advice.md").read_text(encoding="utf-8")
    assert page == advice_markdown(advice, "Made by `iris_advise`.")
    assert (
        r"| y\|z  | a                            | 0.600 | +0.200 | 2 of 2  | helps                    | 0.700 |"
        in page
    )
    assert "+0.100 | 1 of 2  | no difference to be told | 0.800 |" in page
    assert (
        "; pose, scale, spacing and the weight of grey values, though, are settled on all references together, "
        "the case among them" in page
    )
    assert all(f"- {line}" in page for line in advice.lines)
    with Image.open(tmp_path / "advice.png") as picture:
        colours = {c for _, c in picture.convert("RGB").getcolors(10**6)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours, "bars of helpers and of those that hurt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["advice.csv", "advice.md", "advice.png"]
    assert trials_text(renamed) in "\n".join(lines) + "\n"


def test_strategies_are_in_the_advice_where_they_were_compared(tmp_path: Path) -> None:
    advice, given = (
        advise(trials_of(THREE), ["a", "b", "c"], ["x"]),
        (trials_of(THREE), ["a", "b", "c"], ["x"]),
    )
    attempts = [
        Attempt("ensemble", "a", {"x": 0.5, "y|z": 0.2}),
        Attempt("tuning", "a", {"x": 0.9, "y|z": NAN}),
        Attempt("ensemble", "b", {"x": 0.7}),
        Attempt("tuning", "b", {"x": 0.8}),
    ]
    add_strategies(tmp_path, advice, attempts, "Made by me.")
    page = (tmp_path / "advice.md").read_text(encoding="utf-8")
    rows = [[c.strip() for c in r.split(" | ")] for r in page.splitlines() if r[:3] in ("| e", "| t")]
    assert rows == [["| ensemble", "0.600", "0.200", "0.400 |"], ["| tuning", "0.850", "", "0.850 |"]]
    assert comparison_text(attempts) in page and "`--strategy best` makes this comparison itself" in page
    lines = (tmp_path / "strategies.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "query,strategy,class,dice" and lines[-1] == "# Made by me."
    assert "a,ensemble,y|z,0.2000" in lines and "a,tuning,y|z," in lines and len(lines) == 8
    write_advice(tmp_path, given[0], advice, given[1], given[2], "Made by me.")
    assert (tmp_path / "strategies.csv").read_text(encoding="utf-8").splitlines() == lines, (
        "it took minutes to make"
    )
    assert "Which strategy" not in (tmp_path / "advice.md").read_text(encoding="utf-8")
