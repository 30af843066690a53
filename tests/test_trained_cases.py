"""Which cases a model has learnt from: what is kept of it, and that results are not made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stub_model import GreyModel, loaded_with

from iris_pipeline.checkpoints.checkpoint import RunState, load_model
from iris_pipeline.checkpoints.not_trained import cases_of_model
from iris_pipeline.checkpoints.trained_cases import TrainedCases, TrainedPart, cases_of_stores, join_cases
from iris_pipeline.prediction.predict_split import split_cases
from iris_pipeline.training.train import train
from iris_pipeline.training.train_settings import TrainSettings
from preprocessing.errors import StoreError
from preprocessing.store import Store

CPU = torch.device("cpu")
NONE = {"size": "tiny", "iterations": 0, "validation_episodes": 1, "precision": "fp32"}


def learnt(store: Store, trained: TrainedCases | None, split: str = "paper", **changes: Any) -> Any:
    """A model of this record whose own run trained the store by `split`."""
    state = RunState(1, 1.0, 0, {"split": split}, trained=trained)
    return loaded_with(GreyModel(), plans={"tiny": store.plan}, state=state, **changes)


def part(split: str, people: str = "tiny", **cases: str) -> tuple[TrainedPart, ...]:
    return (TrainedPart(split, cases, people),)


def with_splits(store: Store, **splits: dict[str, list[str]]) -> Store:
    """As if the splits had been drawn anew."""
    return Store(store.folder, store.manifest.model_copy(update={"splits": store.manifest.splits | splits}))


def with_spec(store: Store, **changes: Any) -> Store:
    spec = store.manifest.spec.model_copy(update=changes)
    return Store(store.folder, store.manifest.model_copy(update={"spec": spec}))


def test_cases_that_trained_then_are_refused_whatever_the_split_says_now(tiny_store: Store) -> None:
    then = part("paper", s1_a="s1", s3_a="s3")  # s3_a is the test part of now
    loaded = learnt(tiny_store, {"tiny": then})
    with pytest.raises(
        StoreError,
        match=r"it was trained on split 'paper', with 1 of the 1 cases asked for, or their people, among them: use a "
        "model trained without them",
    ):
        split_cases(loaded, tiny_store, "paper", "test")
    assert split_cases(learnt(tiny_store, {"tiny": part("paper", s1_a="s1")}), tiny_store, "paper", "test")


def test_another_scan_of_somebody_who_trained_is_refused(tiny_store: Store) -> None:
    loaded = learnt(tiny_store, {"tiny": part("paper", s3_b="s3", s4_a="s4")})
    with pytest.raises(StoreError, match="with 1 of the 1 cases asked for, or their people, among them"):
        split_cases(loaded, tiny_store, "paper", "test")
    nobody = learnt(
        tiny_store, {"tiny": part("paper", s3_b="")}
    )  # a case without a subject is not one's namesake
    assert split_cases(nobody, tiny_store, "paper", "test") == ["s3_a"]


def test_the_split_to_choose_is_named_only_where_it_is_honest(tiny_store: Store) -> None:
    record = cases_of_stores({"tiny": tiny_store}, "1")
    with pytest.raises(StoreError, match=r"trained on split '1', with 1 of the 1 .*: choose split '1'\."):
        split_cases(learnt(tiny_store, record, "1"), tiny_store, "paper", "validation")
    redrawn = with_splits(tiny_store, **{"1": {"train": ["s2_a"], "validation": ["s4_a"], "test": ["s3_a"]}})
    with pytest.raises(StoreError, match=r"trained on split '1', .*: use a model trained without them\."):
        split_cases(learnt(tiny_store, record, "1"), redrawn, "paper", "validation")


def test_a_dataset_of_the_run_that_was_started_from_is_not_new(tiny_store: Store) -> None:
    loaded = learnt(tiny_store, {"tiny": part("paper"), "first": part("all", people="first", s3_a="s3")})
    loaded.plans = {"other": tiny_store.plan}
    manifest = tiny_store.manifest.model_copy(update={"dataset": "first"})
    with pytest.raises(
        StoreError,
        match="the run that it started from was trained on split 'all', with 1 of the 1",
    ):
        split_cases(loaded, Store(tiny_store.folder, manifest), "paper", "test")
    shown_elsewhere = with_spec(tiny_store, overlaps=("first",))
    with pytest.raises(StoreError, match="those of tiny are also in first, on which it was"):
        split_cases(loaded, shown_elsewhere, "paper", "test")


def test_people_who_trained_in_another_dataset_of_theirs_are_refused(tiny_store: Store) -> None:
    loaded = learnt(tiny_store, {"tiny_ct": part("paper", people="group", k3="s3")})
    with pytest.raises(StoreError, match="was trained on split 'paper' of tiny_ct, with 1 of the 1"):
        split_cases(loaded, with_spec(tiny_store, subject_group="group"), "paper", "test")
    assert split_cases(loaded, tiny_store, "paper", "test") == ["s3_a"], "the same id, and somebody else"


def test_a_checkpoint_that_does_not_tell_is_asked_by_the_split_of_now(tiny_store: Store) -> None:
    old = learnt(tiny_store, None, "all")
    assert cases_of_model(old) == {"tiny": (TrainedPart("all"),)}
    with pytest.raises(StoreError, match="it was trained on split 'all', with 1 of the 1"):
        split_cases(old, tiny_store, "paper", "test")
    heir = learnt(tiny_store, join_cases({"tiny": part("paper", s4_a="s4")}, cases_of_model(old)))
    with pytest.raises(StoreError, match="the run that it started from was trained on split 'all'"):
        split_cases(heir, tiny_store, "paper", "test")
    untold = loaded_with(GreyModel(), plans={"tiny": tiny_store.plan}, state=RunState(1, 1.0, 0))
    assert cases_of_model(untold) == {"tiny": ()}
    assert split_cases(untold, tiny_store, "paper", "test") == ["s3_a"]


def test_records_are_joined_without_repeats() -> None:
    one, two = part("paper", a="s"), part("0", b="t")
    assert join_cases({"x": one}, {"x": one + two, "y": two}) == {"x": one + two, "y": two}


def test_a_run_records_its_cases_and_those_of_the_run_it_started_from(
    tiny_store: Store, tmp_path: Path
) -> None:
    everybody = {each.id: each.subject for each in tiny_store.manifest.cases}
    of_all = TrainedPart("all", everybody, "tiny")
    of_paper = TrainedPart("paper", {"s2_a": "s2", "s2_b": "s2", "s4_a": "s4"}, "tiny")
    all_settings = TrainSettings(split="all", **NONE)
    more = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"dataset": "more"}))
    stores = {"tiny": tiny_store, "more": more}
    train(all_settings, stores, tmp_path / "a", device=CPU, show_progress=False)
    assert load_model(tmp_path / "a").state.trained == {"tiny": (of_all,), "more": (of_all,)}
    settings, only = TrainSettings(**NONE), {"tiny": tiny_store}
    train(settings, only, tmp_path / "b", device=CPU, start_from=tmp_path / "a", show_progress=False)
    heir = load_model(tmp_path / "b")
    assert heir.state.trained == {"tiny": (of_paper, of_all), "more": (of_all,)}
    log = (tmp_path / "b" / "train.log").read_text(encoding="utf-8")
    assert "Starts from the weights of a, which have learnt from tiny, more." in log
    for store in (tiny_store, more):
        with pytest.raises(StoreError, match="the run that it started from was trained on split 'all'"):
            split_cases(heir, store, "paper", "test")
    # Resumed after the split was drawn anew: those of then and those of now have trained.
    redrawn = with_splits(tiny_store, paper={"train": ["s1_a", "s4_a"], "validation": [], "test": ["s3_a"]})
    train(settings, {"tiny": redrawn}, tmp_path / "b", device=CPU, resume=True, show_progress=False)
    now = TrainedPart("paper", {"s1_a": "s1", "s4_a": "s4"}, "tiny")
    assert load_model(tmp_path / "b").state.trained == {"tiny": (now, of_paper, of_all), "more": (of_all,)}


def test_an_older_run_that_goes_on_keeps_what_is_known_of_it(tiny_store: Store, tmp_path: Path) -> None:
    def forget(run: str) -> None:
        path = tmp_path / run / "checkpoint" / "state.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in ("trained", "wide_datasets"):
            del content["state"][name]
        path.write_text(json.dumps(content), encoding="utf-8")

    stores = {"tiny": tiny_store}
    for run in ("first", "old"):
        split = "all" if run == "first" else "paper"
        train(TrainSettings(split=split, **NONE), stores, tmp_path / run, device=CPU, show_progress=False)
        forget(run)
    train(
        TrainSettings(**NONE),
        stores,
        tmp_path / "old",
        device=CPU,
        resume=True,
        start_from=tmp_path / "first",
        show_progress=False,
    )
    known = load_model(tmp_path / "old").state.trained
    assert known is not None
    assert [(each.split, each.cases is None) for each in known["tiny"]] == [
        ("paper", False),
        ("paper", True),
        ("all", True),
    ]
