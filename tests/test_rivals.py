"""Strategies compared on references left out in turn: means by hand, who shows whom, what is chosen and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import PLAN
from scans import affine_of, paint, save
from stub_model import GreyModel, loaded_with, make_task

from iris_pipeline.inference.pool import Embedded, embed, people_of
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, ensemble
from iris_pipeline.prediction.query_tasks import encode_files, file_tasks
from iris_pipeline.prediction.rivals import (
    MOST_LEFT_OUT,
    RIVALS,
    Attempt,
    _left_out,
    best_strategy,
    compare_strategies,
    comparison_text,
    found_dice,
    mean_dice,
)
from iris_pipeline.scans.references import ReferenceFiles, find_references
from iris_pipeline.scans.screening import with_people
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.errors import PredictionError

NAN = float("nan")


def test_means_by_hand() -> None:
    """Of classes, not of masks: x is in both queries, y in one of them."""
    attempts = [
        Attempt("ensemble", "a", {"x": 0.6, "y": 0.1}),
        Attempt("tuning", "a", {"x": 0.8, "y": NAN}),
        Attempt("ensemble", "b", {"x": 0.8}),
        Attempt("tuning", "b", {"x": 0.6}),
        Attempt("refining", "b", {}),
    ]
    means = mean_dice(attempts)
    assert means["ensemble"] == pytest.approx((0.7 + 0.1) / 2)
    assert means["tuning"] == pytest.approx(0.7) and np.isnan(means["refining"])
    assert best_strategy(attempts) == "tuning"
    assert comparison_text(attempts) == (
        "Mean Dice on 2 references, each segmented from the others: ensemble 0.400, tuning 0.700, refining nan. "
        "Best, or as good and cheaper: tuning."
    )


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.70, 0.709, 0.71), "ensemble"),  # within the margin: the cheapest
        ((0.70, 0.72, 0.725), "tuning"),
        ((0.70, 0.69, 0.92), "refining"),
        ((0.80, 0.79, 0.65), "ensemble"),
        ((NAN, 0.5, NAN), "tuning"),
        ((NAN, NAN, NAN), "ensemble"),
    ],
)
def test_the_cheapest_of_the_best(scores: tuple[float, ...], best: str) -> None:
    attempts = [Attempt(name, "a", {"x": dice}) for name, dice in zip(RIVALS, scores, strict=True)]
    assert best_strategy(attempts) == best


def grey_reference(name: str, grey: float, **changes: str) -> PreparedReference:
    """A cube of one grey value; the class is the cube."""
    image, labels = np.zeros((16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8)
    image[4:9, 4:9, 4:9], labels[4:9, 4:9, 4:9] = grey, 7
    return replace(PreparedReference(name, image, labels, {"x": 7}, name, name), **changes)


class Bench:
    """References of the grey model; what was made of whom is noted in `made`."""

    def __init__(self, *references: PreparedReference):
        self.loaded = loaded_with(GreyModel(width=0.55))
        plan = PLAN.model_copy(update={"patch_size": (16, 16, 16)})
        self.references = {reference.id: reference for reference in references}
        self.pool = [embed(self.loaded, reference, plan) for reference in references]
        self.made: list[tuple[str, tuple[str, ...]]] = []

    def make(self, strategy: str, some: Sequence[Embedded]) -> TaskEmbedding:
        """Tuning is spoilt: it looks for a grey that nobody has."""
        self.made.append((strategy, tuple(each.id for each in some)))
        mean = ensemble([each.task for each in some])
        return mean if strategy == "ensemble" else replace(mean, tokens=make_task([99.0]).tokens)

    def compare(self, **changes: object) -> list[Attempt]:
        return compare_strategies(
            self.loaded,
            self.pool,
            self.make,
            InferenceOptions(),
            prepare=self.references.__getitem__,
            **changes,  # type: ignore[arg-type]
        )


def test_each_is_segmented_by_what_the_others_become() -> None:
    bench = Bench(grey_reference("a", 3.0), grey_reference("b", 3.4), grey_reference("c", 3.2))
    attempts = bench.compare(strategies=("ensemble", "tuning"))
    # within 0.55 of the mean grey of the others, everybody is found whole; at 99 nobody
    assert {(a.query, a.strategy): a.dice["x"] for a in attempts} == {
        (query, strategy): 1.0 if strategy == "ensemble" else 0.0
        for query in "abc"
        for strategy in ("ensemble", "tuning")
    }
    assert sorted(set(bench.made)) == [
        (strategy, others)
        for strategy in ("ensemble", "tuning")
        for others in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    assert best_strategy(attempts) == "ensemble"


def test_nobody_is_shown_their_own_other_scan() -> None:
    """Of a person with two scans one is left out, and the other does not show it; nor does a copy of it."""
    first, second = grey_reference("a1", 3.0, subject="a"), grey_reference("a2", 3.1, subject="a")
    copy = grey_reference("copy", 3.0, image_hash="a1")
    bench = Bench(first, second, copy, grey_reference("b", 3.2))
    attempts = bench.compare(strategies=("ensemble",))
    assert {attempt.query for attempt in attempts} == {"a1", "b"}
    assert sorted(others for _, others in bench.made) == [("a1", "a2", "copy"), ("b",)]
    with pytest.raises(
        PredictionError, match="of two or more people who share a class.*got 3 of 1: give more"
    ):
        Bench(first, second, copy).compare()


def test_of_many_people_some_are_left_out_by_seed() -> None:
    bench = Bench(*(grey_reference(f"p{i}", 3.0 + i / 100) for i in range(9)))
    drawn = [{a.query for a in bench.compare(strategies=("ensemble",), seed=s)} for s in (0, 0, 1)]
    assert len(drawn[0]) == MOST_LEFT_OUT and drawn[0] == drawn[1] != drawn[2]
    assert all(len(others) == 8 for _, others in bench.made)


def test_crumbs_count_as_in_prediction() -> None:
    """A class that is one piece in the references keeps its largest piece, unless all pieces are asked for."""
    bench = Bench(grey_reference("a", 3.0), grey_reference("b", 3.2))
    crumbed = bench.references["a"].image.copy()
    crumbed[12:15, 12:15, 12:15] = 3.0  # looks the same, and is not the object
    held = replace(bench.references["a"], image=crumbed)
    task = bench.pool[1].task
    assert list(task.one_piece()) == ["x"]
    whole, crumb = 5**3, 3**3
    kept = InferenceOptions(all_pieces=True)
    assert found_dice(bench.loaded, held, ["x"], task, InferenceOptions()) == {"x": 1.0}
    assert found_dice(bench.loaded, held, ["x"], task, kept) == {
        "x": pytest.approx(2 * whole / (2 * whole + crumb))
    }


def test_who_shares_no_class_is_not_tried() -> None:
    """Its labels may hold the class: what counts is what it was embedded with."""
    bench = Bench(grey_reference("a", 3.0), grey_reference("b", 3.2), grey_reference("c", 3.1))
    bench.pool[1] = replace(bench.pool[1], task=replace(bench.pool[1].task, class_names=("y",)))
    assert _left_out(bench.pool, people_of(bench.pool), 0) in (["a", "c"], ["c", "a"])
    bench.pool.pop()
    with pytest.raises(PredictionError, match="two or more people who share a class.*got 2 of 2"):
        bench.compare()
    assert not bench.made, "nothing is tuned that no Dice can be taken of"
    known = found_dice(bench.loaded, bench.references["a"], ["x"], bench.pool[1].task, InferenceOptions())
    assert known == {} and not bench.loaded.model.images


def test_the_order_of_the_references_makes_no_difference() -> None:
    two = replace(grey_reference("a2", 3.05), subject="a1")
    some = (grey_reference("a1", 3.0), two, grey_reference("b", 3.2), grey_reference("c", 3.1))
    ways = [Bench(*some), Bench(*some[::-1])]
    assert ways[0].compare(strategies=("ensemble",)) == ways[1].compare(strategies=("ensemble",))
    assert ways[0].made == ways[1].made


class Searched(Exception):
    """Minutes would be spent."""


def on_disk(folder: Path, **cases: tuple[float, int]) -> ReferenceFiles:
    """name=(grey, label): references of one block each, whose people their names tell."""
    for name, (grey, value) in cases.items():
        image, labels = paint((12, 20, 24), {value: np.s_[2:9, 4:15, 5:18]}, {value: grey})
        save(folder / "images" / f"{name}.nii.gz", image, affine_of("RAS", (2.0, 1.0, 1.0)))
        save(folder / "labels" / f"{name}.nii.gz", labels, affine_of("RAS", (2.0, 1.0, 1.0)))
    return with_people(find_references(folder), "^(?P<subject>p[0-9])")


@pytest.mark.parametrize(
    ("cases", "people"),
    [
        ({"p1_a": (50.0, 1), "p1_b": (60.0, 1)}, 1),
        ({"p1_a": (50.0, 1), "p2_a": (50.0, 1)}, 1),  # the same scan
        ({"p1_a": (50.0, 1), "p2_a": (60.0, 2)}, 2),  # no class in common
        ({"p1_a": (50.0, 1), "p2_a": (60.0, 1)}, 0),
    ],
)
def test_references_that_cannot_be_compared_are_refused_before_a_pose_is_searched(
    cases: dict[str, tuple[float, int]], people: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: Any, **__: Any) -> None:
        raise Searched

    monkeypatch.setattr("iris_pipeline.scans.references.settle_showing", search)
    files, loaded = on_disk(tmp_path, **cases), loaded_with(GreyModel(width=0.55))
    says = rf"two or more people who share a class, .*; got 2 of {people}: give more references"
    with pytest.raises(PredictionError if people else Searched, match=says if people else None):
        encode_files(loaded, files, strategy="best")
    with pytest.raises(PredictionError if people else Searched, match=says if people else None):
        file_tasks("best", loaded, files, InferenceOptions())
    with pytest.raises(PredictionError, match=r"; got 1 of 1: give more references"):
        encode_files(loaded, replace(files, cases=files.cases[:1]), strategy="best")
    with pytest.raises(Searched):
        encode_files(loaded, files, strategy="refining")
