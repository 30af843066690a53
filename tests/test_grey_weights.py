"""Weights of grey values: counted in the windows, found on references that others judge, far better or not taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PATCH, PLAN, blob_reference
from scipy import ndimage
from stub_model import loaded_with, tiny_model
from torch import Tensor

from iris_pipeline.inference.examples import Example, draw_example, encode_example, features_loss
from iris_pipeline.inference.pool import Embedded, EmbeddingCache, embed, restrict
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, class_boxes, ensemble, plan_windows
from iris_pipeline.search import grey_weights
from iris_pipeline.search.grey_weights import (
    WeightSettings,
    find_weights,
    grey_evidence,
    weighed_like,
    with_grey,
)
from iris_pipeline.tasks.grey import BINS, HIGHEST, LOWEST, GreyEvidence
from iris_pipeline.tasks.grey_ratios import log_ratio
from iris_pipeline.tasks.task import TaskEmbedding

OPTIONS = InferenceOptions()
QUICK = WeightSettings(judges=4)


class SaysOf(torch.nn.Module):
    """A network whose logits are a function of grey values, one a class."""

    def __init__(self, *rows: Any):
        super().__init__()
        self.rows = rows

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        return (torch.arange(masks.shape[1]).float().view(1, -1, 1, 1),)

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([row(features[0][:, 0]) for row in self.rows], dim=1)


def nothing(image: Tensor) -> Tensor:
    return torch.zeros_like(image)


def finds_the_place(image: Tensor) -> Tensor:
    """Takes both objects for the class."""
    return 4 * (image.abs() - 1).clamp(-1, 1)


def right(mean: float) -> Any:
    """Knows the object from all else where the scan has no noise, and is sure of it."""
    return lambda image: 60 * (0.5 - (image - mean).abs()).clamp(-0.5, 0.5)


def clean(seed: int, **changes: object) -> PreparedReference:
    """The blobs without noise: grey values tell every voxel's class."""
    reference = blob_reference(seed, **changes)
    values = np.select([reference.labels == 1, reference.labels == 4], [2.0, -2.0], 0.0)
    return replace(reference, image=values.astype(np.float32))


def tasks_of(loaded: Any, references: Sequence[PreparedReference]) -> list[TaskEmbedding]:
    """Of each reference, with its evidence."""
    return [
        replace(task, grey=grey_evidence(reference, task.class_names, PATCH))
        for reference in references
        for task in [embed(loaded, reference, PLAN).task]
    ]


def naive_counts(
    reference: PreparedReference, name: str, patch: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Inside and outside [N], over the windows that the class is encoded from, as far as they lie in the scan."""
    inside, outside = np.zeros(BINS), np.zeros(BINS)
    for window in plan_windows(class_boxes(reference), reference.image.shape, patch):
        if name not in window.classes:
            continue
        places = [set(range(s, s + p)) for s, p in zip(window.start, patch, strict=True)]
        scan = zip(places, reference.image.shape, strict=True)
        crop = np.ix_(*(sorted(place & set(range(size))) for place, size in scan))
        mean = ndimage.uniform_filter(reference.image[crop].astype(float), 3, mode="nearest")
        grey = np.clip(mean, LOWEST, HIGHEST)
        mask = reference.labels[crop] == reference.classes[name]
        inside += np.histogram(grey[mask], BINS, (LOWEST, HIGHEST))[0]
        outside += np.histogram(grey[~mask], BINS, (LOWEST, HIGHEST))[0]
    return inside, outside


@pytest.mark.parametrize("patch", [(32, 32, 32), (16, 16, 16), (40, 24, 8)])
def test_grey_values_are_counted_in_the_windows_of_each_class(patch: tuple[int, int, int]) -> None:
    reference = blob_reference(1)
    evidence = grey_evidence(reference, ["disc", "ball"], patch)
    assert evidence.ratios.dtype == torch.float32 and evidence.weights.tolist() == [1.0, 1.0]
    for name, row in zip(("disc", "ball"), evidence.ratios.numpy(), strict=True):
        inside, outside = naive_counts(reference, name, patch)
        assert inside.sum() > 100 and outside.sum() > 100
        np.testing.assert_allclose(row, log_ratio(inside, outside), atol=1e-3)
        peak = LOWEST + (HIGHEST - LOWEST) * (row.argmax() + 0.5) / BINS
        assert abs(peak - (2.0 if name == "ball" else -2.0)) < 0.7, "met inside far more than outside"


def test_a_class_that_is_not_asked_for_has_no_window_of_its_own() -> None:
    reference = blob_reference(1)
    alone = replace(reference, classes={"ball": 1})
    patch = (12, 32, 32)
    assert plan_windows(class_boxes(reference), reference.image.shape, patch) != plan_windows(
        class_boxes(alone), reference.image.shape, patch
    )
    asked = grey_evidence(reference, ["ball"], patch)
    assert torch.equal(asked.ratios, grey_evidence(alone, ["ball"], patch).ratios)


def test_a_class_without_a_voxel_says_nothing() -> None:
    reference = blob_reference(1, classes={**CLASSES, "ghost": 9})
    evidence = grey_evidence(reference, ["ghost", "ball"], PATCH)
    assert not evidence.ratios[0].any()
    assert torch.equal(evidence.ratios[1], grey_evidence(reference, ["ball"], PATCH).ratios[0])
    empty = replace(reference, labels=np.zeros_like(reference.labels))
    assert not grey_evidence(empty, ["ball", "disc"], PATCH).ratios.any()


def test_a_network_that_says_nothing_or_finds_only_the_place_is_helped() -> None:
    references = [blob_reference(seed) for seed in (1, 2)]
    for says in (nothing, finds_the_place):
        loaded = loaded_with(SaysOf(says, says))
        weights = find_weights(loaded, references, tasks_of(loaded, references), OPTIONS, QUICK)
        assert set(weights) == set(CLASSES) and min(weights.values()) > 0


def test_a_network_that_is_right_is_left_alone_class_by_class() -> None:
    references = [clean(seed) for seed in (1, 2)]
    knows = loaded_with(SaysOf(right(2.0), right(-2.0)))
    weights = find_weights(knows, references, tasks_of(knows, references), OPTIONS, QUICK)
    assert weights == {"ball": 0.0, "disc": 0.0}
    half = loaded_with(SaysOf(right(2.0), nothing))
    weights = find_weights(half, references, tasks_of(half, references), OPTIONS, QUICK)
    assert weights["ball"] == 0 and weights["disc"] > 0


def test_grey_values_that_mislead_are_not_believed() -> None:
    """What is bright in the one scan is dark in the other; what is no object the network tells alone."""
    first, second = blob_reference(1), blob_reference(2)
    references = [first, replace(second, image=-second.image)]
    loaded = loaded_with(SaysOf(*[lambda image: torch.where(image.abs() > 1, 2.0, -9.0)] * 2))
    weights = find_weights(loaded, references, tasks_of(loaded, references), OPTIONS, QUICK)
    assert weights == {"ball": 0.0, "disc": 0.0}
    alike = [first, second]
    weights = find_weights(loaded, alike, tasks_of(loaded, alike), OPTIONS, QUICK)
    assert min(weights.values()) > 0, "it is not the network's doing"


@pytest.mark.parametrize(
    ("tables", "best"),
    [
        ([[1.0, 0.96, 0.97, 0.99, 2.0]], 0.0),
        ([[1.0, 0.96, 0.94, 0.99, 2.0]], 1.0),
        ([[1.0, 0.9, 0.5, 0.5, 0.6]], 1.0),
        ([[1.0, 2.0, 2.0, 2.0, 0.2]], 3.0),
        ([[1.0, 0.8, 0.7, 9.0, 9.0], [1.0, 0.8, 2.0, 9.0, 9.0]], 0.5),  # one crop for, one against: their sum
        ([[0.0, 0.0, 0.0, 0.0, 0.0]], 0.0),
        ([[0.09, 0.081, 0.2, 0.2, 0.2]], 0.0),  # a tenth better, and nothing to speak of
        ([[0.09, 0.079, 0.2, 0.2, 0.2]], 0.5),
    ],
)
def test_the_best_of_all_crops_is_taken_if_it_is_far_better(
    tables: list[list[float]], best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(tables)
    monkeypatch.setattr(
        grey_weights,
        "losses_by_weight",
        lambda *_: {"ball": np.array(next(said)), "disc": np.arange(1.0, 6.0)},
    )
    loaded, references = loaded_with(SaysOf(nothing, nothing)), [blob_reference(1), blob_reference(2)]
    settings = WeightSettings(judges=len(tables))
    found = find_weights(loaded, references, tasks_of(loaded, references), OPTIONS, settings)
    assert found == {"ball": best, "disc": 0.0}


@pytest.mark.parametrize(
    ("best", "alone", "weight"), [(0.86, True, 0.0), (0.84, True, 2.0), (0.86, False, 2.0)]
)
def test_who_is_judged_by_the_own_evidence_has_to_gain_more(
    best: float, alone: bool, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.array([1.0, 0.95, 0.9, best, 1.0])
    monkeypatch.setattr(grey_weights, "losses_by_weight", lambda *_: {"ball": table})
    loaded, references = loaded_with(SaysOf(nothing, nothing)), [blob_reference(1), blob_reference(2)]
    references = references[:1] if alone else references
    tasks = tasks_of(loaded, references)
    assert find_weights(loaded, references, tasks, OPTIONS, WeightSettings(judges=2)) == {"ball": weight}


def test_the_losses_are_those_of_training_one_class_and_weight_at_a_time() -> None:
    loaded, reference = tiny_model(), blob_reference(1)
    (task,) = tasks_of(loaded, [blob_reference(2)])
    example = draw_example(
        reference, task.class_names, PATCH, np.random.default_rng(0), augmented=False, anywhere=0.0
    )
    weights = (0.0, 0.5, 3.0)
    found = grey_weights.losses_by_weight(loaded, task, example, OPTIONS, weights)
    features = encode_example(loaded.model, example, OPTIONS)
    assert list(found) == ["ball", "disc"] and task.grey is not None
    for k, name in enumerate(found):
        alone = replace(example, valid=torch.eye(2)[[k]])
        for weight, loss in zip(weights, found[name], strict=True):
            grey = task.grey.weighed([weight, weight])
            with torch.inference_mode():
                expected = features_loss(loaded.model, task.tokens, features, alone, OPTIONS, grey=grey)
            assert loss == pytest.approx(float(expected), rel=1e-4)
    absent = replace(example, valid=torch.tensor([[1.0, 0.0]]))
    assert list(grey_weights.losses_by_weight(loaded, task, absent, OPTIONS, weights)) == ["ball"], (
        "neither right nor wrong where it is shown nowhere"
    )


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, GreyEvidence, tuple[str, ...]]]:
    """Of each judging crop: its reference, whether it was augmented, the evidence and whose references gave it."""
    seen: list[Any] = []
    draw, losses = grey_weights.draw_example, grey_weights.losses_by_weight

    def drawn(reference: PreparedReference, *given: Any, augmented: bool, **more: Any) -> Example:
        seen.append((reference.id, augmented))
        return draw(reference, *given, augmented=augmented, **more)

    def judged(loaded: Any, task: TaskEmbedding, *given: Any) -> Any:
        seen[-1] += (task.grey, task.reference_hashes)
        return losses(loaded, task, *given)

    monkeypatch.setattr(grey_weights, "draw_example", drawn)
    monkeypatch.setattr(grey_weights, "losses_by_weight", judged)
    return seen


def test_a_reference_is_judged_by_the_evidence_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, loaded = watch(monkeypatch), loaded_with(SaysOf(nothing, nothing))
    # r3 is another scan of the first person, r4 a copy of r2 under another name
    references = [
        blob_reference(1),
        blob_reference(2),
        blob_reference(3, subject="person 1"),
        blob_reference(4, image_hash="hash2"),
    ]
    tasks = tasks_of(loaded, references)
    find_weights(loaded, references, tasks, OPTIONS, QUICK)
    others = {"r1": [1, 3], "r2": [0, 2], "r3": [1, 3], "r4": [0, 2]}
    assert [name for name, *_ in seen] == list(others)
    for name, augmented, grey, hashes in seen:
        assert not augmented
        expected = ensemble([tasks[number] for number in others[name]])
        assert set(hashes) == set(expected.reference_hashes)
        assert expected.grey is not None and torch.allclose(grey.ratios, expected.grey.ratios, atol=1e-6)


@pytest.mark.parametrize("subject", ["person 1", "person 2"])
def test_one_person_is_judged_on_augmented_crops(subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, loaded = watch(monkeypatch), loaded_with(SaysOf(nothing, nothing))
    references = [blob_reference(1), blob_reference(2, subject=subject)]
    find_weights(loaded, references, tasks_of(loaded, references), OPTIONS, QUICK)
    alone = subject == "person 1"
    assert [(name, augmented) for name, augmented, *_ in seen] == [("r1", alone), ("r2", alone)] * 2
    own = [hashes == (f"hash{name[1]}",) for name, _, _, hashes in seen]
    assert own == [alone] * 4


def pool_of(loaded: Any, references: Sequence[PreparedReference]) -> list[Embedded]:
    return [embed(loaded, reference, PLAN) for reference in references]


def test_a_weight_that_is_named_is_given_to_every_class() -> None:
    loaded = loaded_with(SaysOf(nothing, nothing))
    references = {f"r{seed}": blob_reference(seed) for seed in (1, 2)}
    pool = pool_of(loaded, list(references.values()))
    pool[1] = restrict(pool[1], ("disc",)) or pool[1]
    found = with_grey(loaded, pool, references.__getitem__, 2.0)
    for before, after in zip(pool, found, strict=True):
        expected = grey_evidence(references[before.id], before.task.class_names, PATCH)
        assert after.task.grey is not None and torch.equal(after.task.grey.ratios, expected.ratios)
        assert after.task.grey.weights.tolist() == [2.0] * len(before.task.class_names)
        assert replace(after, task=replace(after.task, grey=None)) == before, "and nothing else is changed"

    def prepare(_: str) -> PreparedReference:
        raise AssertionError("nothing is read for a weight of 0")

    for none in (0, 0.0):
        assert all(a is b for a, b in zip(with_grey(loaded, pool, prepare, none), pool, strict=True))


def test_weights_that_were_found_are_used_and_kept_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, cache, asked = loaded_with(SaysOf(nothing, nothing)), EmbeddingCache(), []
    answers = iter([{"ball": 2.0}, {"ball": 0.0, "disc": 0.0}, {"disc": 1.0}, {"ball": 3.0}])

    def found(_: Any, references: Any, tasks: Any, _options: Any, settings: Any, _progress: Any) -> Any:
        asked.append([(r.id, task.class_names) for r, task in zip(references, tasks, strict=True)])
        assert all(each.grey is not None and each.grey.weights.tolist() == [1.0, 1.0] for each in tasks)
        return next(answers)

    monkeypatch.setattr(grey_weights, "find_weights", found)

    def weights(seeds: Sequence[int], prefix: str = "r", **more: Any) -> list[Any]:
        references = {f"{prefix}{seed}": blob_reference(seed, id=f"{prefix}{seed}") for seed in seeds}
        pool = pool_of(loaded, list(references.values()))
        result = with_grey(loaded, pool, references.__getitem__, cache=cache, **more)
        assert [each.id for each in result] == list(references)
        return [each.task.grey and each.task.grey.weights.tolist() for each in result]

    assert weights([1, 2]) == [[2.0, 0.0]] * 2
    assert weights([1, 2], prefix="x") == [[2.0, 0.0]] * 2, "under other names"
    assert len(asked) == 1 == len(cache.grey_weights)
    assert weights([1, 3]) == [None, None], "tasks are as they were where nothing counts"
    assert weights([1, 3]) == [None, None] and len(asked) == 2
    assert weights([1, 2], settings=QUICK) == [[0.0, 1.0]] * 2
    loaded.model_hash = "another"
    assert weights([1, 2]) == [[3.0, 0.0]] * 2
    assert len(asked) == 4 == len(cache.grey_weights)


def test_a_few_different_people_and_the_classes_taken_from_them_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, asked = loaded_with(SaysOf(nothing, nothing)), []

    def found(_: Any, references: Any, tasks: Any, *_more: Any) -> Any:
        asked.append(
            [(r.id, list(r.classes), each.class_names) for r, each in zip(references, tasks, strict=True)]
        )
        return {"ball": 1.0}

    monkeypatch.setattr(grey_weights, "find_weights", found)
    people = {1: "a", 2: "a", 3: "b", 4: "c", 5: "d"}
    references = {f"r{n}": blob_reference(n, subject=person) for n, person in people.items()}
    pool = pool_of(loaded, list(references.values()))
    pool[0] = restrict(pool[0], ("ball",)) or pool[0]
    both, prepare = ("ball", "disc"), references.__getitem__
    for some, names in (
        (pool, ["r1", "r3", "r4"]),
        (pool[:3], ["r1", "r3", "r2"]),
        (pool[:2], ["r1", "r2"]),
    ):
        result = with_grey(loaded, some, prepare)
        shown = {name: ("ball",) if name == "r1" else both for name in names}
        assert asked.pop() == [(name, list(classes), classes) for name, classes in shown.items()]
        assert [each.task.grey.weights.tolist() for each in result if each.task.grey] == [
            [1.0] if each.id == "r1" else [1.0, 0.0] for each in some
        ], "those that were not asked have evidence, too"


def test_a_search_from_beginning_to_end_helps_and_is_repeatable() -> None:
    loaded = loaded_with(SaysOf(finds_the_place, finds_the_place))
    references = {f"r{seed}": blob_reference(seed) for seed in (1, 2, 3)}
    pool = pool_of(loaded, list(references.values()))
    first, again = (with_grey(loaded, pool, references.__getitem__) for _ in range(2))
    tasks = [each.task for each in first]
    for task, other in zip(tasks, again, strict=True):
        assert task.grey is not None and other.task.grey is not None and min(task.grey.weights) > 0
        assert torch.equal(task.grey.weights, other.task.grey.weights)
    query = blob_reference(9)
    image = torch.from_numpy(query.image)[None, None]
    plain = loaded.model.segment_from_features((image,), tasks[0].tokens)
    mean = ensemble(tasks).grey
    assert mean is not None
    for k, value in enumerate(CLASSES.values()):
        truth = query.labels == value
        before, after = (
            2 * (found & truth).sum() / (found.sum() + truth.sum())
            for found in ((logits[0, k] > 0).numpy() for logits in (plain, mean(image, plain)))
        )
        assert before < 0.8 and after > before + 0.1


def test_others_are_weighed_like_a_task() -> None:
    loaded, reference = loaded_with(SaysOf(nothing, nothing)), blob_reference(2)
    task, own = (embed(loaded, each, PLAN).task for each in (blob_reference(1), reference))
    evidence = grey_evidence(blob_reference(1), task.class_names, PATCH)
    for plain in (task, replace(task, grey=evidence.weighed([0.0, 0.0]))):
        assert weighed_like(own, reference, plain) is own
    chosen = replace(task, grey=evidence.weighed([3.0, 0.5])).select(["disc"])
    found = weighed_like(own, reference, chosen).grey
    assert found is not None and found.weights.tolist() == [0.0, 0.5], "of a class that it lacks: nothing"
    assert torch.equal(found.ratios, grey_evidence(reference, own.class_names, PATCH).ratios)
