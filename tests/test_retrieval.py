"""Retrieval against brute-force loops: which references are nearest, with which weights, and what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, blob_reference, draw_blobs
from stub_model import HASH, GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.pool import Embedded, embed, image_vector
from iris_pipeline.inference.retrieval import (
    RetrievalSettings,
    image_retrieval,
    object_retrieval,
    retrieve_classes,
)
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, ensemble, one_shot
from preprocessing.errors import ReferenceCaseError, TaskError

OPTIONS = InferenceOptions()


def random_task(seed: int, names: tuple[str, ...], **changes: Any) -> Any:
    """Tokens of two levels, [1,K,3,5] and [1,K,3,2]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(1, len(names), 3, c, generator=generator) for c in (5, 2))
    values = tuple("abc".index(name) + 1 for name in names)
    blank = make_task([0.0] * len(names), names, class_values=values, reference_hashes=(f"h{seed}",))
    return replace(blank, tokens=tokens, **changes)


def naive_cosine(first: Any, second: Any, name: str) -> float:
    """The mean over levels of the cosine between all tokens of a class, number by number."""
    cosines = []
    for a, b in zip(first.tokens, second.tokens, strict=True):
        x = a[0, first.class_names.index(name)].flatten().tolist()
        y = b[0, second.class_names.index(name)].flatten().tolist()
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        cosines.append(dot / math.sqrt(sum(p * p for p in x)) / math.sqrt(sum(q * q for q in y)))
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_per_class_the_nearest_by_cosine_weighted(top: int) -> None:
    shown = [("a", "b", "c"), ("c", "a"), ("b",), ("a", "b"), ("b", "a", "c"), ("a",)]
    pool = [Embedded(f"r{i}", f"s{i}", random_task(i, names)) for i, names in enumerate(shown)]
    seen, start = random_task(50, ("b", "a", "c")), random_task(60, ("a", "b", "c"))
    settings = RetrievalSettings(top=top, temperature=0.3)
    task, choices = retrieve_classes(pool, seen, start, settings)
    for name in "abc":
        ranked = []
        for reference in pool:
            if name in reference.task.class_names:
                ranked.append((naive_cosine(reference.task, seen, name), reference))
        ranked.sort(key=lambda pair: -pair[0])
        ranked = ranked[:top]
        total = sum(math.exp(cosine / 0.3) for cosine, _ in ranked)
        for level in range(2):
            expected = torch.zeros_like(start.tokens[level][0, 0])
            for cosine, reference in ranked:
                row = reference.task.class_names.index(name)
                expected += math.exp(cosine / 0.3) / total * reference.task.tokens[level][0, row]
            found = task.tokens[level][0, task.class_names.index(name)]
            assert torch.allclose(found, expected, atol=1e-6)
        assert [c.id for c in choices[name]] == [reference.id for _, reference in ranked]
        assert sum(c.weight for c in choices[name]) == pytest.approx(1.0)
        assert [c.cosine for c in choices[name]] == pytest.approx([cosine for cosine, _ in ranked], abs=1e-6)
    assert (task.classes, task.made_by) == (start.classes, "object-retrieval")
    assert set(task.reference_hashes) == {f"h{i}" for i in range(6)}, "no query may be one of the pool"


def test_a_class_that_the_query_or_the_pool_lacks_keeps_the_start() -> None:
    pool = [Embedded("r", "s", random_task(1, ("a", "b")))]
    start = random_task(60, ("a", "b", "c"))
    task, choices = retrieve_classes(pool, random_task(50, ("a", "c")), start, RetrievalSettings())
    assert list(choices) == ["a"]
    for level in range(2):
        assert torch.equal(task.tokens[level][0, 0], pool[0].task.tokens[level][0, 0])
        assert torch.equal(task.tokens[level][0, 1:], start.tokens[level][0, 1:])


def grey_pool(greys: list[float]) -> list[Embedded]:
    """References of the grey model, whose only token is the mean grey value under the mask."""
    pool = []
    for number, grey in enumerate(greys):
        image, labels = np.zeros((16, 16, 16), np.float32), np.zeros((16, 16, 16), np.uint8)
        image[4:8, 4:8, 4:8], labels[4:8, 4:8, 4:8] = grey, 1
        reference = PreparedReference(f"r{number}", image, labels, {"a": 1}, f"s{number}", f"h{number}")
        plan = PLAN.model_copy(update={"patch_size": (16, 16, 16)})
        pool.append(embed(loaded_with(GreyModel()), reference, plan))
    return pool


def test_the_query_is_encoded_under_its_own_rough_mask() -> None:
    loaded = loaded_with(GreyModel(width=0.5))
    query = np.zeros((20, 16, 24), np.float32)
    query[2:6, 3:9, 10:20] = 3.2  # as grey as the start task's 3.0, to within the width
    start = make_task([3.0], ("a",))
    rough = label_volume(loaded.model, query, start, OPTIONS)
    assert np.array_equal(rough, (query > 0).astype(np.uint8))
    # cosines of one channel are signs: 1 for bright references, -1 for dark ones
    task, choices = object_retrieval(
        loaded, grey_pool([-4.0, 2.0, 5.0]), query, start, OPTIONS, RetrievalSettings(top=2)
    )
    assert [(c.id, c.cosine) for c in choices["a"]] == [("r1", 1.0), ("r2", 1.0)]
    assert float(task.tokens[0]) == pytest.approx(3.5) and task.references == 2
    # the last mask that was encoded is the rough one, cut to the window
    assert float(loaded.model.masks[-1].sum()) == rough.sum()


def test_the_rough_segmentation_has_an_overlap_of_its_own() -> None:
    """48 planes are 3 windows of 16 without overlap, and 5 that overlap by half."""
    query = np.zeros((48, 16, 16), np.float32)
    query[2:46, 3:9, 1:15] = np.linspace(2.6, 3.4, 44)[:, None, None]  # no window is like another
    for overlap, windows in ((0.0, 3), (0.5, 5)):
        loaded = loaded_with(GreyModel(width=0.5))
        settings = RetrievalSettings(rough_overlap=overlap)
        object_retrieval(
            loaded,
            grey_pool([2.0]),
            query,
            make_task([3.0], ("a",)),
            InferenceOptions(overlap=0.75),
            settings,
        )
        assert len(loaded.model.images) == windows


def test_an_empty_rough_mask_leaves_the_start_as_it_is() -> None:
    start = make_task([30.0], ("a",))
    task, choices = object_retrieval(
        loaded_with(GreyModel()), grey_pool([1.0]), np.zeros((16, 16, 16), np.float32), start, OPTIONS
    )
    assert choices == {} and torch.equal(task.tokens[0], start.tokens[0])
    assert task.made_by == "object-retrieval" and task.reference_hashes == ("h0",)


def test_object_retrieval_of_the_real_network_is_its_parts() -> None:
    loaded = tiny_model()
    pool = [embed(loaded, blob_reference(seed), PLAN) for seed in range(3)]
    start, query = ensemble([r.task for r in pool]), draw_blobs(9)[0]
    choices = object_retrieval(loaded, pool, query, start, OPTIONS)[1]
    rough = label_volume(loaded.model, query, start, OPTIONS)
    assert rough.any(), "an empty rough mask would show nothing"
    own = one_shot(
        loaded.model,
        PreparedReference("q", query, rough, start.classes),
        PLAN,
        model_hash=loaded.model_hash,
    )
    for name in own.class_names:
        cosines = {r.id: naive_cosine(r.task, own, name) for r in pool}
        best = sorted(cosines, key=lambda key: -cosines[key])[:2]
        assert [c.id for c in choices[name]] == best


def test_the_nearest_image_by_a_loop() -> None:
    loaded = tiny_model()
    pool = [embed(loaded, blob_reference(seed), PLAN, with_image=True) for seed in range(4)]
    for seed in range(10, 16):
        query = draw_blobs(seed, (36, 32, 32))[0] * (1 + seed % 3)
        own = image_vector(loaded, query, PLAN.patch_size).tolist()
        best, highest = "", -2.0
        for reference in pool:
            assert reference.image_vector is not None
            cosine = sum(a * b for a, b in zip(reference.image_vector.tolist(), own, strict=True))
            if cosine > highest:
                best, highest = reference.id, cosine
        task = image_retrieval(loaded, pool, query, OPTIONS)
        winner = next(reference for reference in pool if reference.id == best)
        assert all(torch.equal(a, b) for a, b in zip(task.tokens, winner.task.tokens, strict=True))
        assert (task.classes, task.references, task.made_by) == (CLASSES, 1, "image-retrieval")
        assert len(task.reference_hashes) == 4


def test_classes_that_the_nearest_image_lacks_come_from_the_next() -> None:
    loaded = tiny_model()
    full = embed(loaded, blob_reference(0), PLAN, with_image=True)
    image = blob_reference(1).image
    ball_only = blob_reference(1, classes={"ball": 1})
    nearest = embed(loaded, ball_only, PLAN, with_image=True)
    task = image_retrieval(loaded, [full, nearest], image, OPTIONS)
    assert task.classes == CLASSES and task.references == 2
    row = {name: task.class_names.index(name) for name in CLASSES}
    assert torch.equal(task.tokens[0][0, row["ball"]], nearest.task.tokens[0][0, 0])
    assert torch.equal(task.tokens[0][0, row["disc"]], full.task.tokens[0][0, 1])


def test_what_cannot_be_retrieved_from() -> None:
    loaded, query = loaded_with(GreyModel()), np.zeros((16, 16, 16), np.float32)
    with pytest.raises(ReferenceCaseError, match="at least one reference to choose from; got none"):
        object_retrieval(loaded, [], query, make_task([1.0], ("a",)), OPTIONS)
    tiny = tiny_model()
    pool = [embed(tiny, blob_reference(0), PLAN)]
    with pytest.raises(TaskError, match="compares whole images, and the pool was embedded without them"):
        image_retrieval(tiny, pool, blob_reference(1).image, OPTIONS)
    with pytest.raises(TaskError, match="1 reference or more at a temperature above 0; got 0 and 1"):
        RetrievalSettings(top=0, temperature=1)
    assert pool[0].task.model_hash != HASH
