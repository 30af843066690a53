"""Strategies by name: what each makes of the same references, and how often the encoder runs for it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, blob_reference, draw_blobs
from scans import affine_of, volume
from stub_model import make_task, tiny_model

from iris_pipeline.checkpoints.checkpoint import LoadedModel, RunState, hash_weights
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.inference.pool import Embedded, EmbeddingCache, embed
from iris_pipeline.inference.retrieval import RetrievalSettings
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import one_shot
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.model import build_iris
from iris_pipeline.prediction import query_tasks, rivals
from iris_pipeline.prediction.query_tasks import (
    BEST,
    ONE_TASK,
    PER_QUERY,
    REFERENCE_STRATEGIES,
    fill,
    pooled_task,
    task_for_query,
)
from iris_pipeline.prediction.rivals import RIVALS
from iris_pipeline.scans.scan import segment_scan
from preprocessing.errors import PredictionError, ReferenceCaseError, TaskError
from preprocessing.findings import image_hash
from preprocessing.geometry import Resampling
from preprocessing.normalise import Normalisation, normalise
from preprocessing.orientation import Pose

OPTIONS = InferenceOptions(overlap=0.0)
TUNING = TuningSettings(steps=2, check_every=2, judges=1)


def pool_of(loaded: Any, seeds: range | list[int], **changes: Any) -> tuple[list, dict]:
    references = {f"r{s}": blob_reference(s, image_hash=image_hash(query_of(s)), **changes) for s in seeds}
    return [embed(loaded, r, PLAN, with_image=True) for r in references.values()], references


def query_of(seed: int) -> Any:
    """A scan on its own grid, 1 mm."""
    return volume(draw_blobs(seed)[0], np.eye(4))


def make(strategy: str, loaded: Any, pool: list, references: dict, **changes: Any) -> Any:
    return task_for_query(
        strategy,
        loaded,
        pool,
        list(CLASSES),
        OPTIONS,
        prepare=references.__getitem__,
        tuning=TUNING,
        **changes,
    )


def test_an_ensemble_of_equal_references_is_the_one_shot() -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1])
    alone = one_shot(loaded.model, references["r1"], PLAN, model_hash=loaded.model_hash)
    copies = [replace(pool[0], id=f"copy{i}") for i in range(4)]
    for strategy in ("one-shot", "ensemble", "image-retrieval", "object-retrieval"):
        task = make(strategy, loaded, copies, references)(query_of(5))
        assert task.classes == alone.classes and task.made_by == strategy
        for found, expected in zip(task.tokens, alone.tokens, strict=True):
            assert torch.allclose(found, expected, atol=1e-6), strategy


def test_every_strategy_makes_a_task_for_a_query() -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1, 2, 3])
    query, made = query_of(9), {}
    for strategy in REFERENCE_STRATEGIES:
        task_of = make(strategy, loaded, pool if strategy != "one-shot" else pool[:1], references)
        made[strategy] = task_of(query)
        assert made[strategy].classes == CLASSES
        assert made[strategy].made_by in ((strategy,) if strategy != BEST else RIVALS)
        assert (task_of(query_of(10)) is made[strategy]) == (strategy in ONE_TASK)
        assert segment_scan(loaded, [made[strategy]], query, OPTIONS).labels.shape == query.shape
    best = made.pop(BEST)
    assert torch.equal(best.tokens[0], made[best.made_by].tokens[0]), (
        "it is the task of the strategy it stands for"
    )
    tokens = [task.tokens[0] for task in made.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(tokens) for b in tokens[:i])
    assert made["tuning"].tuned and not made["ensemble"].tuned
    for strategy, task in made.items():
        with pytest.raises(ReferenceCaseError, match="never its own query"):
            segment_scan(loaded, [task], query_of(1), OPTIONS)
        if strategy != "one-shot":  # whoever was in the pool had a say, chosen or not
            with pytest.raises(ReferenceCaseError, match="never its own query"):
                segment_scan(loaded, [task], query_of(3), OPTIONS)


@pytest.mark.parametrize("strategy", PER_QUERY)
def test_a_query_of_the_pool_is_refused_before_it_is_looked_at(strategy: str) -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1, 2])
    task_of = make(strategy, loaded, pool, references)
    before = len(loaded.model.encoded)
    for seed in (1, 2):
        with pytest.raises(
            ReferenceCaseError, match="never its own query; this scan is one of the references"
        ):
            task_of(query_of(seed))
    assert len(loaded.model.encoded) == before
    task_of(query_of(3))
    assert len(loaded.model.encoded) > before


@pytest.mark.parametrize("strategy", ["ensemble", *PER_QUERY])
def test_what_makes_the_task_of_a_query_can_be_sent_to_another_process(strategy: str) -> None:
    model = build_iris("tiny", seed=0).eval()
    loaded = LoadedModel(model, MemoryBank(), {"b": PLAN}, {}, RunState(0, 0.0, 0), hash_weights(model), "0")
    pool, references = pool_of(loaded, [1, 2])
    task_of = make(strategy, loaded, pool, references)
    sent = pickle.loads(pickle.dumps(task_of))
    here, there = task_of(query_of(5)), sent(query_of(5))
    assert there.classes == here.classes == CLASSES and there.made_by == strategy
    assert all(torch.equal(a, b) for a, b in zip(here.tokens, there.tokens, strict=True))


@pytest.mark.parametrize(
    ("strategy", "each_reference", "each_query"),
    # the query fills one window: its segmentation encodes it once; retrieval looks at it once, or segments it
    # roughly and encodes the rough mask
    [("ensemble", 1, 1), ("image-retrieval", 2, 2), ("object-retrieval", 1, 3)],
)
def test_k_references_and_m_queries_cost_k_plus_m(
    strategy: str, each_reference: int, each_query: int
) -> None:
    for k, m in ((1, 1), (3, 1), (1, 4), (3, 4)):
        loaded, cache = tiny_model(), EmbeddingCache()
        loaded.model.decoder.classifier[-1].bias.data[-1] = 2.0  # marks everything: no rough mask is empty
        references = {f"r{seed}": blob_reference(seed) for seed in range(k)}
        for _ in range(2):  # the second time nothing is encoded anew
            pool = [
                embed(loaded, r, PLAN, cache, with_image=strategy == "image-retrieval")
                for r in references.values()
            ]
        assert len(loaded.model.encoded) == k * each_reference
        task_of = make(strategy, loaded, pool, references)
        for seed in range(20, 20 + m):
            segment_scan(loaded, [task_of(query_of(seed))], query_of(seed), OPTIONS)
        assert len(loaded.model.encoded) == k * each_reference + m * each_query


def test_classes_come_in_the_order_asked_for() -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1, 2])
    for strategy in ("ensemble", "image-retrieval", "object-retrieval"):
        task_of = task_for_query(
            strategy, loaded, pool, ["kite", "disc", "ball"], OPTIONS, prepare=references.__getitem__
        )
        assert task_of(query_of(3)).class_names == ("disc", "ball")


def test_the_start_of_object_retrieval_is_filled_up() -> None:
    start = make_task([1.0, 2.0], ("b", "other"), class_values=(2, 9), made_by="bank", references=0)
    mean = make_task([5.0, 6.0, 7.0], ("a", "b", "c"))
    filled = fill(start, mean)
    assert filled.classes == {"a": 1, "b": 2, "c": 3}
    assert filled.tokens[0].flatten().tolist() == [5.0, 1.0, 7.0]
    with pytest.raises(TaskError, match="one model, spacing, patch size and intensities"):
        fill(start, replace(mean, spacing_mm=(2.0, 2.0, 2.0)))


@pytest.mark.parametrize("winner", RIVALS)
def test_best_is_the_strategy_that_wins_on_the_references(
    winner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1, 2, 3])
    given: dict[str, Any] = {"prepare": references.__getitem__, "tuning": TUNING}

    def found(_loaded: Any, held: Any, _known: Any, task: Any, _options: Any) -> dict[str, float]:
        assert held.id not in {
            name for name in references if references[name].image_hash in task.reference_hashes
        }
        return {"x": 0.9 if task.made_by == winner else 0.3}

    monkeypatch.setattr(rivals, "found_dice", found)
    task = pooled_task(BEST, loaded, pool, list(CLASSES), OPTIONS, **given, progress=True)
    plain = pooled_task(winner, loaded, pool, list(CLASSES), OPTIONS, **given)
    assert task.made_by == winner and task.tuned == plain.tuned
    assert all(torch.equal(a, b) for a, b in zip(task.tokens, plain.tokens, strict=True))
    assert f"{winner} 0.900" in capsys.readouterr().err
    with pytest.raises(PredictionError, match="of two or more people"):
        pooled_task(BEST, loaded, pool[:1], list(CLASSES), OPTIONS, **given)


@pytest.mark.parametrize("strategy", ["tuning", "refining"])
def test_the_settings_of_tuning_are_the_callers(strategy: str) -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1, 2])
    own = replace(TUNING, steps=1, check_every=1, learning_rate=0.07, seed=3)
    task = task_for_query(
        strategy, loaded, pool, list(CLASSES), OPTIONS, prepare=references.__getitem__, tuning=own
    )(query_of(5))
    assert [(record.learning_rate, record.seed) for record in task.tuned] == [(0.07, 3)]
    assert (task.head is not None) == (strategy == "refining"), "the name, not the settings, asks for a head"
    again = pooled_task(
        strategy,
        loaded,
        pool,
        list(CLASSES),
        OPTIONS,
        prepare=references.__getitem__,
        tuning=replace(own, refine=strategy == "tuning"),
    )
    assert task.tuned == again.tuned
    assert all(torch.equal(a, b) for a, b in zip(task.tokens, again.tokens, strict=True))


def test_the_settings_of_retrieval_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, given = tiny_model(), []
    pool, references = pool_of(loaded, [1])

    def noted(_loaded: Any, _pool: Any, _query: Any, start: Any, _options: Any, settings: Any) -> Any:
        given.append(settings)
        return start, {}

    monkeypatch.setattr(query_tasks, "object_retrieval", noted)
    for settings in (RetrievalSettings(top=7), None):
        make("object-retrieval", loaded, pool, references, retrieval=settings)(query_of(5))
    assert given == [RetrievalSettings(top=7), None]


def test_names_that_are_no_strategy_here() -> None:
    loaded = tiny_model()
    pool, references = pool_of(loaded, [1])
    with pytest.raises(
        PredictionError, match=r"one of one-shot, ensemble, .*, tuning, refining, best where .*; got 'bank'"
    ):
        make("bank", loaded, pool, references)
    with pytest.raises(
        PredictionError, match="One task for all queries is made by .*; got 'image-retrieval'"
    ):
        pooled_task("image-retrieval", loaded, pool, list(CLASSES), OPTIONS, prepare=references.__getitem__)


@pytest.mark.parametrize("strategy", ["image-retrieval", "object-retrieval"])
def test_retrieval_looks_at_the_query_as_the_references_were_prepared(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spacing, offset and pose are the task's; the file's own axes are others."""
    task = make_task(
        [1.0],
        tuple(CLASSES)[:1],
        spacing_mm=(1.5, 1.0, 2.0),
        normalisation=Normalisation.for_modality("CT"),
        modality="CT",
        intensity_offset=-700.0,
        pose=Pose("LSA"),
    )
    asked: list[np.ndarray] = []

    def noted(_loaded: Any, _pool: Any, query: np.ndarray, *_: Any) -> Any:
        asked.append(query)
        return task if strategy == "image-retrieval" else (task, {})

    monkeypatch.setattr(query_tasks, strategy.replace("-", "_"), noted)
    array = np.random.default_rng(0).normal(700, 200, (12, 20, 16)).astype(np.float32)
    query = volume(array, affine_of("PSR", (1.0, 2.0, 1.5)))
    task_for_query(strategy, None, [Embedded("r", "s", task)], list(CLASSES), OPTIONS, prepare=noted)(query)  # type: ignore[arg-type]
    # (z,y,x) of the file run toward R, S, P: L is its z turned round, S its y, A its x turned round
    turned = (array - 700)[::-1, :, ::-1]
    expected = Resampling.to_spacing(turned.shape, (1.0, 2.0, 1.5), task.spacing_mm)
    wanted = expected.apply_image(normalise(turned, task.normalisation))
    assert wanted.shape == (8, 40, 12)
    np.testing.assert_allclose(asked[0], wanted, atol=1e-5)
