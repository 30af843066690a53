"""Who judges the weights of grey values: others, the reference itself for what it alone shows, all who are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PATCH, PLAN, blob_reference
from stub_model import loaded_with
from torch import Tensor

from iris_pipeline.inference.pool import Embedded, EmbeddingCache, embed, restrict
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference
from iris_pipeline.search import grey_weights
from iris_pipeline.search.grey_weights import WeightSettings, find_weights, grey_evidence, with_grey
from iris_pipeline.tasks.grey import bins_of
from iris_pipeline.tasks.task import TaskEmbedding

OPTIONS = InferenceOptions()


class SaysNothing(torch.nn.Module):
    """A network whose logits are 0, for as many classes as there are tokens."""

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        return (torch.zeros(1, masks.shape[1], 1, 1),)

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        return features[0].new_zeros(1, tokens[0].shape[1], *features[0].shape[2:])


LOADED = loaded_with(SaysNothing())


def task_of(reference: PreparedReference) -> TaskEmbedding:
    task = embed(LOADED, reference, PLAN).task
    return replace(task, grey=grey_evidence(reference, task.class_names, PATCH))


def pool_of(references: Sequence[PreparedReference]) -> list[Embedded]:
    return [embed(LOADED, reference, PLAN) for reference in references]


def balls(seed: int, **changes: object) -> PreparedReference:
    """A reference that shows the ball only."""
    return blob_reference(seed, classes={"ball": CLASSES["ball"]}, **changes)


def test_a_class_that_one_person_alone_shows_is_weighed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    references = [blob_reference(1), balls(2)]
    asked: list[tuple[str, tuple[str, ...], bool]] = []
    draw = grey_weights.draw_example

    def drawn(reference: PreparedReference, names: Any, *more: Any, augmented: bool, **options: Any) -> Any:
        asked.append((reference.id, tuple(names), augmented))
        return draw(reference, names, *more, augmented=augmented, **options)

    monkeypatch.setattr(grey_weights, "draw_example", drawn)
    tasks = [task_of(reference) for reference in references]
    weights = find_weights(LOADED, references, tasks, OPTIONS, WeightSettings(judges=4))
    first, second = (reference.id for reference in references)
    assert asked == [(first, ("ball",), False), (first, ("disc",), True), (second, ("ball",), False)] * 2, (
        "the ball by the other's evidence, the disc by its own on augmented crops"
    )
    assert set(weights) == {"ball", "disc"} and min(weights.values()) > 0


def test_what_has_to_be_gained_counts_the_crops_that_judged_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same loss a crop, in all of eight crops and in three of them: the same weight."""
    table, number = np.array([0.20, 0.18, 0.19, 0.3, 0.4]), iter(range(8))
    monkeypatch.setattr(
        grey_weights,
        "losses_by_weight",
        lambda *_: {"ball": table} if next(number) > 2 else {"ball": table, "disc": table},
    )
    references = [blob_reference(1), blob_reference(2)]
    tasks = [task_of(reference) for reference in references]
    found = find_weights(LOADED, references, tasks, OPTIONS, WeightSettings(judges=8))
    assert found == {"ball": 0.5, "disc": 0.5}


def test_more_are_asked_where_the_first_lack_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def found(_: Any, references: Any, *_more: Any) -> dict[str, float]:
        asked.append([reference.id for reference in references])
        return {}

    monkeypatch.setattr(grey_weights, "find_weights", found)
    references = {f"r{n}": blob_reference(n) for n in (1, 2, 3, 4, 5)}
    pool = pool_of(list(references.values()))
    partly = [restrict(each, ("ball",)) or each for each in pool]
    for some, names in (
        (pool, ["r1", "r2", "r3"]),
        (partly, ["r1", "r2", "r3"]),
        ([*partly[:3], *pool[3:]], ["r1", "r2", "r3", "r4"]),
    ):
        with_grey(LOADED, some, references.__getitem__)
        assert asked.pop() == names


def test_the_same_scans_of_other_people_are_weighed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = iter([{"ball": 1.0}, {"ball": 2.0}])
    monkeypatch.setattr(grey_weights, "find_weights", lambda *_: next(weights))
    cache, seen = EmbeddingCache(), []
    for people in (("a", "b"), ("a", "a"), ("c", "d"), ("e", "e")):
        references = {f"r{n}": balls(n, subject=person) for n, person in enumerate(people, start=1)}
        result = with_grey(LOADED, pool_of(list(references.values())), references.__getitem__, cache=cache)
        seen.append([each.task.grey.weights.item() for each in result if each.task.grey])
    assert seen == [[1.0, 1.0], [2.0, 2.0]] * 2


def test_the_weights_that_were_found_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    references = {f"r{n}": balls(n) for n in (1, 2)}
    pool, cache = pool_of(list(references.values())), EmbeddingCache()
    for _ in range(2):
        result = with_grey(LOADED, pool, references.__getitem__, cache=cache, progress=True)
    assert result[0].task.grey is not None
    said = f"Grey values of the references count, by weight: ball {result[0].task.grey.weights.item():g}."
    assert capsys.readouterr().err.count(said) == 1


def test_air_and_lung_of_a_ct_are_told_apart() -> None:
    """Scaled by the body alone (its spread is some 150 HU), air at -1000 HU lies near -7 and lung near -5."""
    air, lung, body = bins_of(torch.tensor([-7.0, -5.0, 0.0]))
    assert 0 < air < lung < body
