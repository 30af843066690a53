"""What a memory bank's task knows beside its tokens: told by the checkpoint, or found in the store's training cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_model import GreyModel, loaded_with

import iris_pipeline.prediction.bank_tasks as bank_tasks
from iris_pipeline.api import bank
from iris_pipeline.checkpoints.checkpoint import (
    KnownSurroundings,
    RunState,
    export_checkpoint,
    load_model,
    save_checkpoint,
)
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.cli.export import export_model_main
from iris_pipeline.model import build_iris
from iris_pipeline.prediction.bank_tasks import bank_task, stored_surroundings
from iris_pipeline.prediction.predict import digest
from iris_pipeline.scans.references import stored_reference
from iris_pipeline.search.second_look import surroundings_of
from iris_pipeline.tasks.pieces import largest_share
from preprocessing.store import Store

TOLD = KnownSurroundings({"left": (0.5, 1.5)}, (0.25, 0.125))


def loaded_on(store: Store, **told: Any) -> Any:
    """A model whose bank holds the store's classes."""
    memory = MemoryBank(0.9)
    for name in store.manifest.classes:
        memory.update(f"tiny/{name}", (torch.zeros(1, 1),))
    return loaded_with(
        GreyModel(),
        bank=memory,
        plans={"tiny": store.plan},
        specs={"tiny": store.manifest.spec.model_dump(mode="json")},
        state=RunState(1, 1.0, 0, {"split": "paper"}, **told),
    )


def measured(store: Store) -> np.ndarray:
    """Mean and spread round each class of each training case [N,K,2]; NaN where it does not show the class."""
    train, names = store.manifest.splits["paper"]["train"], list(store.manifest.classes)
    around = np.array([surroundings_of(stored_reference(store, each), names) for each in train])
    around[around[..., 1] == 0] = np.nan
    return around


def test_which_classes_are_one_piece_says_the_store_unless_the_checkpoint_tells(tiny_store: Store) -> None:
    loaded, train = loaded_on(tiny_store), tiny_store.manifest.splits["paper"]["train"]
    by_store = bank_task(loaded, "tiny", tiny_store)
    expected = {
        name: min(largest_share(tiny_store.labels(i), value) for i in train if value in tiny_store.labels(i))
        for name, value in tiny_store.manifest.classes.items()
    }
    assert dict(zip(by_store.class_names, by_store.largest_pieces, strict=True)) == pytest.approx(expected)
    assert set(bank_task(loaded, "tiny", None).largest_pieces) == {0.0}, "not known"
    telling = loaded_on(tiny_store, pieces={"tiny": dict.fromkeys(expected, 0.75)})
    for store in (tiny_store, None):
        assert set(bank_task(telling, "tiny", store).largest_pieces) == {0.75}


def test_surroundings_are_means_over_the_training_cases_and_four_fifths_of_them_are_usual(
    tiny_store: Store,
) -> None:
    around = measured(tiny_store)
    assert np.isnan(around).any() and len(around) > 2, "a case lacks a class"
    means = np.nanmean(around, axis=0)
    found = stored_surroundings(loaded_on(tiny_store), tiny_store)
    assert found is not None
    names = list(tiny_store.manifest.classes)
    np.testing.assert_allclose([found.classes[name] for name in names], means)
    own = np.nanmean(around, axis=1)  # over the classes that a case shows, and the known ones of the same
    known = np.nanmean(np.where(np.isnan(around), np.nan, means), axis=1)
    shifts, ratios = np.abs(own - known)[:, 0], np.abs(np.log(own / known))[:, 1]
    assert found.usual == pytest.approx((np.percentile(shifts, 80), np.percentile(ratios, 80)))
    task = bank_task(loaded_on(tiny_store), "tiny", tiny_store)
    assert task.surroundings == tuple(found.classes[name] for name in task.class_names)
    assert task.usual == found.usual
    by_api = bank(loaded_on(tiny_store), "tiny", store=tiny_store.folder)
    assert digest(by_api) == digest(task)
    assert bank(loaded_on(tiny_store), "tiny", store=tiny_store.folder, looks=1).surroundings == ()
    once = bank_task(loaded_on(tiny_store), "tiny", tiny_store, looks=1)
    assert (once.surroundings, once.usual) == ((), (0.0, 0.0))
    assert bank_task(loaded_on(tiny_store), "tiny", None).surroundings == ()


def test_of_many_training_cases_a_few_from_all_over_the_list_are_measured(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_tasks, "MOST_CASES", 2)
    around = measured(tiny_store)[[0, -1]]
    found = stored_surroundings(loaded_on(tiny_store), tiny_store)
    assert found is not None and len(tiny_store.manifest.splits["paper"]["train"]) > 2
    np.testing.assert_allclose(list(found.classes.values()), np.nanmean(around, axis=0))


def test_grey_values_that_have_a_unit_are_not_matched(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_suv = tiny_store.plan.model_copy(update={"modality": "PET"})
    monkeypatch.setattr(Store, "plan", property(lambda _: in_suv))
    assert stored_surroundings(loaded_on(tiny_store), tiny_store) is None
    assert bank_task(loaded_on(tiny_store), "tiny", tiny_store).surroundings == ()


def test_what_the_checkpoint_tells_of_surroundings_stands(tiny_store: Store) -> None:
    telling = loaded_on(tiny_store, surroundings={"tiny": TOLD})
    for store in (tiny_store, None):
        task = bank_task(telling, "tiny", store)
        row = task.class_names.index("left")
        assert task.surroundings[row] == (0.5, 1.5) and task.usual == (0.25, 0.125)
        others = [each for k, each in enumerate(task.surroundings) if k != row]
        assert set(others) == {(0.0, 0.0)}, "of these it knows nothing"


def test_an_exported_model_tells_it(tiny_store: Store, tmp_path: Path) -> None:
    stub = loaded_on(tiny_store)
    run = tmp_path / "results" / "run" / "checkpoint"
    save_checkpoint(run, build_iris("tiny"), stub.bank, stub.state, plans=stub.plans, specs=stub.specs)
    (tmp_path / "preprocessed").mkdir()
    (tmp_path / "preprocessed" / "tiny").symlink_to(tiny_store.folder)
    assert export_model_main(["run", "-o", str(tmp_path / "out"), "--root", str(tmp_path)]) == 0
    told = load_model(tmp_path / "out").state.surroundings
    assert told == {"tiny": stored_surroundings(stub, tiny_store)}
    export_checkpoint(
        load_model(tmp_path / "out"), tmp_path / "again", surroundings={"tiny": TOLD, "other": TOLD}
    )
    kept = load_model(tmp_path / "again").state.surroundings
    assert kept == {**told, "other": TOLD}, "what it tells itself stays"
    export_checkpoint(load_model(run), tmp_path / "untold")
    assert load_model(tmp_path / "untold").state.surroundings is None
    assert replace(load_model(tmp_path / "out").state, surroundings=None, pieces=None) == stub.state
