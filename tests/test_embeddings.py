"""Embeddings: which rows there are, what a vector is, when they are made anew, and what a damaged file says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from iris_pipeline.checkpoints.checkpoint import LoadedModel, RunState, load_model, save_checkpoint
from iris_pipeline.checkpoints.memory_bank import MemoryBank, bank_key
from iris_pipeline.inference.strategies import one_shot
from iris_pipeline.model import IrisConfig, build_iris
from iris_pipeline.pages import embeddings
from iris_pipeline.pages.embeddings import (
    FILE,
    Embeddings,
    compute_embeddings,
    draw_cases,
    read_embeddings,
    run_embeddings,
    vector_of,
    write_embeddings,
)
from iris_pipeline.scans.references import stored_reference
from preprocessing.errors import CheckpointError, EvaluationError
from preprocessing.store import Store

CONFIG = IrisConfig(
    widths=(2, 4, 6, 8, 10),
    encoder_blocks=(0, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1),
    task_levels=(4, 3),
    context_tokens=3,
    task_depth=1,
    join=("add", "concat", "concat", "concat"),
)


@pytest.fixture
def run(tiny_store: Store, tmp_path: Path) -> Iterator[Path]:
    """A run of an untrained network that knows `tiny`; its bank has met two of the three classes."""
    bank = MemoryBank(0.9)
    generator = torch.Generator().manual_seed(3)
    for name in ("left", "core"):
        tokens = tuple(
            torch.randn(4, CONFIG.widths[level], generator=generator) for level in CONFIG.task_levels
        )
        bank.update(bank_key("tiny", name), tokens)
    folder = tmp_path / "results" / "night"
    save_checkpoint(
        folder / "checkpoint",
        build_iris(CONFIG, seed=1),
        bank,
        RunState(1, 1.0, 0, settings={"split": "paper"}),
        plans={"tiny": tiny_store.plan},
        specs={"tiny": tiny_store.manifest.spec.model_dump(mode="json")},
    )
    yield folder


@pytest.fixture
def loaded(run: Path) -> LoadedModel:
    return load_model(run)


def test_a_vector_gives_each_level_the_same_weight() -> None:
    levels = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[100.0]])]
    np.testing.assert_allclose(vector_of(levels), [0.6, 0, 0, 0.8, 1.0], atol=1e-6)
    assert np.isfinite(vector_of([torch.zeros(2, 2)])).all()


def test_rows_of_the_bank_and_of_single_references(loaded: LoadedModel, tiny_store: Store) -> None:
    made = compute_embeddings(loaded, {"tiny": tiny_store}, cases=2, progress=False)
    bank = [row for row in made.rows if not row.case]
    assert [row.class_name for row in bank] == ["left", "core"], "'right' was never met"
    np.testing.assert_array_equal(
        made.vectors[0], vector_of([t[0, 0] for t in loaded.bank.get(["tiny/left"])])
    )
    drawn = list(dict.fromkeys(row.case for row in made.rows if row.case))
    assert drawn == draw_cases(loaded, tiny_store, 2, 0, []) and len(drawn) == 2
    task = one_shot(loaded.model, stored_reference(tiny_store, drawn[0]), tiny_store.plan, model_hash="")
    of_first = [(i, row) for i, row in enumerate(made.rows) if row.case == drawn[0]]
    assert [row.class_name for _, row in of_first] == list(task.class_names)
    for place, (index, row) in enumerate(of_first):
        assert row.trained and row.dataset == "tiny" and row.title == "Five generated scans"
        np.testing.assert_array_equal(
            made.vectors[index], vector_of([level[0, place] for level in task.tokens])
        )
    assert made.model_hash == loaded.model_hash
    assert made.layout == ((4, 10), (4, 8)), (
        "levels 4 and 3 of CONFIG, three context tokens and the foreground's"
    )


def test_foreground_and_context_tokens_apart() -> None:
    # Two levels: 2 tokens of 2 channels, 3 tokens of 1 channel.
    made = Embeddings((), np.array([[3, 4, 5, 12, 2, 3, 4]], np.float32), {}, (), ((2, 2), (3, 1)))
    np.testing.assert_allclose(made.tokens(foreground=True), [[0.6, 0.8, 1.0]], atol=1e-6)
    np.testing.assert_allclose(made.tokens(foreground=False), [[5 / 13, 12 / 13, 0.6, 0.8]], atol=1e-6)


def test_only_cases_of_training_are_drawn_one_a_subject_first(loaded: LoadedModel, tiny_store: Store) -> None:
    train = tiny_store.manifest.splits["paper"]["train"]
    everything = draw_cases(loaded, tiny_store, 99, 0, [])
    assert sorted(everything) == sorted(train)
    subjects = [tiny_store.entry(case).subject for case in everything]
    different = len(set(subjects))
    assert len(set(subjects[:different])) == different
    notes: list[str] = []
    other = tiny_store.plan.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)})
    loaded.plans["tiny"] = other
    assert draw_cases(loaded, tiny_store, 2, 0, notes) == []
    assert notes == ["tiny: its store was planned otherwise than when the model was trained."]
    del loaded.plans["tiny"]
    assert len(draw_cases(loaded, tiny_store, 99, 0, notes)) == len(tiny_store.manifest.cases), (
        "not trained on"
    )


def test_a_round_trip_and_damage(loaded: LoadedModel, tiny_store: Store, tmp_path: Path) -> None:
    made = compute_embeddings(loaded, {"tiny": tiny_store}, cases=1, progress=False)
    path = tmp_path / FILE
    write_embeddings(path, made)
    found = read_embeddings(path)
    assert found.rows == made.rows and found.key == made.key and found.notes == made.notes
    assert found.layout == made.layout
    np.testing.assert_array_equal(found.vectors, made.vectors)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EvaluationError, match="is no file of embeddings .*iris_embeddings --overwrite"):
        read_embeddings(path)


def test_another_schema_is_refused(
    loaded: LoadedModel, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compute_embeddings(loaded, {"tiny": tiny_store}, cases=1, progress=False)
    with monkeypatch.context() as later:
        later.setattr(embeddings, "SCHEMA_VERSION", 2)
        write_embeddings(tmp_path / FILE, made)
    with pytest.raises(EvaluationError, match="has schema version 2, this version reads 1"):
        read_embeddings(tmp_path / FILE)


def test_they_are_kept_until_something_changes(
    run: Path, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = tmp_path / "preprocessed"
    shutil.copytree(tiny_store.folder, stores / "tiny")
    calls: list[int] = []
    real = embeddings.compute_embeddings

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embeddings, "compute_embeddings", counted)
    made = run_embeddings(run, stores, cases=1, progress=False)
    again = run_embeddings(run, stores, cases=1, progress=False)
    assert len(calls) == 1 and again.rows == made.rows
    run_embeddings(run, stores, cases=2, progress=False)
    assert len(calls) == 2, "more cases are other embeddings"
    run_embeddings(run, stores, cases=2, overwrite=True, progress=False)
    assert len(calls) == 3

    (stores / "broken").mkdir()
    (stores / "broken" / "manifest.json").write_text('{"schema_version": 0}')
    noted = run_embeddings(run, stores, cases=2, overwrite=True, progress=False)
    assert len(noted.notes) == 1 and "manifest.json has schema version 0" in noted.notes[0]
    assert str(tmp_path) not in noted.notes[0], "no folder of this machine goes onto a page"

    shutil.rmtree(run / "checkpoint")
    assert run_embeddings(run, stores, cases=2, progress=False).rows == noted.rows, "kept without the model"
    (run / FILE).unlink()
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        run_embeddings(run, stores, progress=False)
