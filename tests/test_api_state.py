"""What a notebook has set for itself stays as it was, and what it has set changes no result."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, draw_blobs
from stub_model import tiny_model

from iris_pipeline.api import (
    InferenceOptions,
    LabelledScan,
    Scan,
    TuningSettings,
    encode,
    load_model,
    segment,
)
from iris_pipeline.checkpoints.checkpoint import hash_weights
from iris_pipeline.model import build_iris
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.training.train import train
from iris_pipeline.training.train_settings import TrainSettings
from preprocessing.store import Store

SPACING = (1.0, 1.0, 1.0)
OPTIONS = InferenceOptions(overlap=0.0)


def refined(loaded: Any) -> TaskEmbedding:
    references = [LabelledScan(*draw_blobs(seed), SPACING) for seed in (1, 2)]
    tuning = TuningSettings(steps=1, judges=1)
    return encode(
        loaded, references, CLASSES, strategy="refining", pose="upright", scale=1, grey=1, tuning=tuning
    )


def model() -> Any:
    loaded = tiny_model()
    loaded.plans = {"blobs": PLAN}
    return loaded


@pytest.fixture(scope="module")
def wanted() -> TaskEmbedding:
    return refined(model())


def same(one: TaskEmbedding, other: TaskEmbedding, atol: float = 0.0) -> bool:
    assert one.head is not None and other.head is not None
    pairs = [*zip(one.tokens, other.tokens, strict=True), *zip(one.head.parts, other.head.parts, strict=True)]
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@contextmanager
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_is_loaded_without_the_callers_random_numbers() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_model()
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, doubles])
def test_what_is_switched_for_the_whole_notebook_changes_no_task_and_no_mask(
    wanted: TaskEmbedding, context: Callable[[], AbstractContextManager[Any]]
) -> None:
    loaded, scan = model(), Scan(draw_blobs(5)[0], SPACING)
    mask = segment(loaded, wanted, scan, OPTIONS)
    with context():
        made = refined(loaded)
        found = segment(loaded, wanted, scan, OPTIONS)
        fresh = load_model()
    assert same(made, wanted, atol=1e-4 if context is doubles else 0.0)
    assert {level.dtype for level in made.tokens} == {torch.float32} and np.array_equal(found, mask)
    assert {parameter.dtype for parameter in fresh.model.parameters()} == {torch.float32}
    assert not any(parameter.is_inference() for parameter in fresh.model.parameters())


def test_tuning_in_threads_gives_what_it_gives_alone_and_leaves_no_gradients(wanted: TaskEmbedding) -> None:
    loaded, made = model(), []
    threads = [Thread(target=lambda: made.append(refined(loaded))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and all(same(each, wanted) for each in made)
    assert not [name for name, each in loaded.model.named_parameters() if each.grad is not None]


def test_training_goes_on_where_gradients_are_switched_off_and_takes_texts(
    tiny_store: Store, tmp_path: Path
) -> None:
    short = TrainSettings(size="tiny", iterations=1, validation_episodes=1, precision="fp32")
    with torch.inference_mode():
        made = train(short, {"tiny": tiny_store}, str(tmp_path / "run"), device="cpu", show_progress=False)
    learned = load_model(str(made))
    assert made == tmp_path / "run" / "checkpoint" and learned.state.iteration == 1
    assert learned.model_hash != hash_weights(build_iris("tiny", seed=short.seed))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_draws_nothing_from_the_callers_random_numbers_and_gives_the_same(
    tiny_store: Store, tmp_path: Path, workers: int
) -> None:
    short = TrainSettings(size="tiny", iterations=1, validation_episodes=1, precision="fp32", workers=workers)
    hashes = set()
    for seed in (5, 6) if workers == 0 else (5,):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        made = train(short, {"tiny": tiny_store}, tmp_path / str(seed), device="cpu", show_progress=False)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
        hashes.add(load_model(made).model_hash)
    assert len(hashes) == 1
