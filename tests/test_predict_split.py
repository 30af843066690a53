"""A split segmented from its raw files: on the raw grids, from references of other subjects, honestly."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans import load
from stub_model import GreyModel, loaded_with

from iris_pipeline.checkpoints.checkpoint import RunState
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.inference.retrieval import RetrievalSettings
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.prediction import query_tasks
from iris_pipeline.prediction.predict_split import (
    Experiment,
    held_out_tasks,
    predict_split,
    split_cases,
    stored_tasks,
)
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import measure_references, plan_references
from iris_pipeline.search.showing import AS_PLANNED
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError, StoreError, TaskError
from preprocessing.findings import image_hash
from preprocessing.sources.source import FileSource
from preprocessing.store import Store
from preprocessing.volume import Volume

OPTIONS = InferenceOptions(batch_size=4)
UPRIGHT_ONE = Experiment(showing=AS_PLANNED)  # the grey model reads every pose alike


@pytest.fixture
def cases(tiny_raw: Any) -> list[Case]:
    return find_cases(tiny_raw.dataset, tiny_raw.spec)


@pytest.fixture
def held_out(tiny_store: Store) -> Store:
    """The same store as if its dataset were held out."""
    everything = sorted(entry.id for entry in tiny_store.manifest.cases)
    splits = {"paper": {"train": [], "validation": [], "test": everything}}
    spec = tiny_store.manifest.spec.model_copy(update={"role": "held-out"})
    return Store(
        tiny_store.folder,
        tiny_store.manifest.model_copy(update={"role": "held-out", "splits": splits, "spec": spec}),
    )


def loaded_on(store: Store, split: str = "paper", **changes: Any) -> Any:
    """A grey model "trained" on the store."""
    return loaded_with(
        GreyModel(width=0.45),
        plans={"tiny": store.plan},
        specs={"tiny": store.manifest.spec.model_dump(mode="json")},
        state=RunState(1, 1.0, 0, {"split": split}),
        **changes,
    )


def new(case_id: str, subject: str = "") -> tuple[InputCase, Volume]:
    """A query whose image does not matter."""
    return InputCase(case_id, None, subject), Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def check_results(out: Path, raw: Path, ids: list[str], floor: float = 0.8) -> None:
    """On the raw grid, in the raw label values, where the organs are.

    Clipped at the 98th percentile, `core` is about as grey as `left`: the two are looked at together.
    """
    for case_id in ids:
        found, affine = load(out / f"{case_id}.nii.gz")
        truth, raw_affine = load(raw / "labelsTr" / f"{case_id}.nii.gz")
        assert found.dtype == np.uint8 and found.shape == truth.shape
        assert np.allclose(affine, raw_affine, atol=1e-5)
        for values in ((1, 5), (2,)):
            assert dice(np.isin(found, values), np.isin(truth, values)) > floor, (case_id, values)


def test_one_shot_from_the_train_part(
    tiny_store: Store, cases: list[Case], tiny_raw: Any, tmp_path: Path
) -> None:
    loaded = loaded_on(tiny_store)
    parts = tiny_store.manifest.splits["paper"]
    verdicts = predict_split(loaded, tiny_store, cases, out=tmp_path / "out", options=OPTIONS, progress=False)
    assert [(v.id, v.status) for v in verdicts] == [(i, "done") for i in parts["test"]]
    check_results(tmp_path / "out", tiny_raw.dataset, parts["test"])
    assert json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8")) == {
        "left": 1,
        "right": 2,
        "core": 5,
    }
    made_from = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))["made_from"]
    wanted = {
        "dataset": "tiny",
        "split": "paper",
        "part": "test",
        "strategy": "one-shot",
        "references": 1,
        "seed": 0,
    }
    assert wanted.items() <= made_from.items()
    assert "grey" not in made_from, "of references as they are in the store grey values do not count"
    assert made_from["model"] == loaded.model_hash and made_from["weighting"] == "gaussian"
    references = json.loads((tmp_path / "out" / "references.json").read_text(encoding="utf-8"))
    assert sorted(references) == parts["test"]
    assert not any("grey_weights" in given for given in references.values())
    used = [given["references"] for given in references.values()]
    assert all(set(each) <= set(parts["train"]) and each for each in used)
    # the reference's masks that the model saw are those of one train case
    seen = loaded.model.masks[0][0].sum((1, 2, 3)).tolist()
    train = [[int((tiny_store.labels(i) == v).sum()) for v in (1, 2, 5)] for i in parts["train"]]
    assert len(loaded.model.masks) == 1 and seen in train


def test_the_ensemble_averages_train_cases(tiny_store: Store, tmp_path: Path) -> None:
    loaded = loaded_on(tiny_store)
    train = tiny_store.manifest.splits["paper"]["train"]
    task = stored_tasks(loaded, tiny_store, train, Experiment("ensemble", len(train)), OPTIONS)(*new("new"))
    assert task.references == len(train) and task.made_by == "ensemble"
    expected = []
    for value in task.class_values:
        means = [tiny_store.image(i)[tiny_store.labels(i) == value] for i in train]
        expected.append(np.mean([m.mean() for m in means if m.size]))
    assert task.tokens[0].flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_equal_references_are_encoded_once(tiny_store: Store) -> None:
    loaded = loaded_on(tiny_store)
    train = tiny_store.manifest.splits["paper"]["train"]
    task_of = stored_tasks(loaded, tiny_store, train, Experiment(), OPTIONS)
    first = task_of(*new("x"))
    assert task_of(*new("y")) is first
    assert len(loaded.model.masks) == 1


def test_the_memory_bank_needs_no_reference(
    tiny_store: Store, cases: list[Case], tiny_raw: Any, tmp_path: Path
) -> None:
    memory = MemoryBank(0.9)
    train = tiny_store.manifest.splits["paper"]["train"]
    for name, value in tiny_store.manifest.classes.items():
        values = [tiny_store.image(i)[tiny_store.labels(i) == value] for i in train]
        memory.update(f"tiny/{name}", (torch.tensor([[float(np.concatenate(values).mean())]]),))
    loaded = loaded_on(tiny_store, bank=memory)
    verdicts = predict_split(
        loaded, tiny_store, cases, Experiment("bank"), out=tmp_path / "out", options=OPTIONS, progress=False
    )
    assert {v.status for v in verdicts} == {"done"} and not loaded.model.masks
    check_results(tmp_path / "out", tiny_raw.dataset, [v.id for v in verdicts])
    said = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))
    assert said["made_from"]["looks"] == 2
    with pytest.raises(TaskError, match="none of the classes of 'tiny'"):
        predict_split(
            loaded_on(tiny_store), tiny_store, cases, Experiment("bank"), out=tmp_path / "b", progress=False
        )


def test_a_held_out_dataset_lends_other_subjects(
    held_out: Store, cases: list[Case], tiny_raw: Any, tmp_path: Path
) -> None:
    loaded = loaded_with(
        GreyModel(width=0.8), plans={"other": held_out.plan.model_copy(update={"dataset": "other"})}
    )
    verdicts = predict_split(
        loaded, held_out, cases, UPRIGHT_ONE, out=tmp_path / "out", options=OPTIONS, progress=False
    )
    assert [(v.id, v.status) for v in verdicts] == [(case.id, "done") for case in cases]
    check_results(tmp_path / "out", tiny_raw.dataset, [v.id for v in verdicts], floor=0.7)
    references = json.loads((tmp_path / "out" / "references.json").read_text(encoding="utf-8"))
    assert sorted(references) == [case.id for case in cases]
    for query, given in references.items():
        assert given["references"] and not any(name.startswith(query[:2]) for name in given["references"])
        assert given["pose"] == "SAR" and "grey_weights" not in given
    read = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))
    assert read["made_from"]["grey"] == 0.0


def test_held_out_references_lend_their_grey_values(
    held_out: Store, cases: list[Case], tmp_path: Path
) -> None:
    loaded = loaded_with(GreyModel(width=0.8), plans={"o": held_out.plan})
    weighed = Experiment("ensemble", 2, showing=replace(AS_PLANNED, grey=2.0))
    out = tmp_path / "out"
    verdicts = predict_split(loaded, held_out, cases, weighed, out=out, options=OPTIONS, progress=False)
    assert {verdict.status for verdict in verdicts} == {"done"}
    made_from = json.loads((out / "predict.json").read_text(encoding="utf-8"))["made_from"]
    assert made_from["grey"] == 2.0
    for given in json.loads((out / "references.json").read_text(encoding="utf-8")).values():
        assert given["grey_weights"] == pytest.approx({"left": 2.0, "right": 2.0, "core": 2.0})
    other = replace(weighed, showing=replace(AS_PLANNED, grey=1.0))
    with pytest.raises(PredictionError, match=r"those in .*out were made otherwise"):
        predict_split(loaded, held_out, cases, other, out=out, options=OPTIONS, progress=False)


@pytest.mark.parametrize("fixture", ["tiny_store", "held_out"])
def test_the_experiments_settings_reach_tuner_and_retrieval(
    fixture: str, request: Any, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, given = request.getfixturevalue(fixture), []

    def tuned(
        _loaded: Any, _references: Any, tasks: Any, _options: Any, settings: Any, _progress: Any
    ) -> Any:
        given.append(settings)
        return ensemble(tasks)

    def retrieved(_loaded: Any, _pool: Any, _query: Any, start: Any, _options: Any, settings: Any) -> Any:
        given.append(settings)
        return start, {}

    monkeypatch.setattr(query_tasks, "tune", tuned)
    monkeypatch.setattr(query_tasks, "object_retrieval", retrieved)
    tuning, retrieval = TuningSettings(steps=3, learning_rate=0.07, seed=5), RetrievalSettings(top=7)
    for strategy, expected in {
        "tuning": tuning,
        "refining": replace(tuning, refine=True),
        "object-retrieval": retrieval,
    }.items():
        experiment = Experiment(strategy, 2, retrieval=retrieval, tuning=tuning, showing=AS_PLANNED)
        out = tmp_path / strategy
        verdicts = predict_split(
            loaded_on(store)
            if fixture == "tiny_store"
            else loaded_with(GreyModel(), plans={"o": store.plan}),
            store,
            cases,
            experiment,
            out=out,
            options=OPTIONS,
            progress=False,
        )
        assert {verdict.status for verdict in verdicts} == {"done"}
        assert given and all(settings == expected for settings in given), strategy
        made_from = json.loads((out / "predict.json").read_text(encoding="utf-8"))["made_from"]
        assert made_from["settings"].items() >= asdict(expected).items(), "what was used is what is written"
        given.clear()


def test_held_out_references_are_of_another_subject_and_alone_make_the_plan(
    held_out: Store, cases: list[Case]
) -> None:
    known = held_out.plan.model_copy(update={"policy": "fit", "patch_size": (16, 16, 16)})
    loaded = loaded_with(GreyModel(), plans={"other": known})
    spec, spacings = held_out.manifest.spec, set()
    raw = {case.id: case for case in cases}
    hashes = {image_hash(case.image.read_image()): case.id for case in cases}
    for seed in range(6):
        task_of = held_out_tasks(loaded, held_out, raw, sorted(raw), replace(UPRIGHT_ONE, seed=seed), OPTIONS)
        for query, subject in (("s1_a", "s1"), ("s2_a", "s2"), ("s2_b", "s2"), ("s3_a", "s3")):
            task = task_of(*new(query, subject))
            reference = hashes[task.reference_hashes[0]]
            assert not reference.startswith(subject)
            # core is missing in s4_a: never first, since fuller ones are there
            assert reference != "s4_a"
            assert task.classes == {"left": 1, "right": 2, "core": 5}
            alone = plan_references(loaded, spec, measure_references([raw[reference]], spec))
            assert task.spacing_mm == alone.spacing_mm
            spacings.add(task.spacing_mm)
    assert len(spacings) > 1, "a plan of all cases would be one and the same"
    # one reference serves all but its own subject, a second one that subject
    task_of = held_out_tasks(loaded, held_out, raw, sorted(raw), UPRIGHT_ONE, OPTIONS)
    assert len({id(task_of(*new(case.id, case.subject))) for case in cases}) == 2
    # a query that has no subject of its own is still not its own reference
    with pytest.raises(ReferenceCaseError, match="never its own query; 's1_a' was drawn for itself"):
        for seed in range(20):
            held_out_tasks(loaded, held_out, raw, sorted(raw), replace(UPRIGHT_ONE, seed=seed), OPTIONS)(
                *new("s1_a")
            )
    with pytest.raises(
        RawDataError, match=r"raw files of the references s[23]_. are needed, and they are not there"
    ):
        held_out_tasks(loaded, held_out, {}, ["s2_a", "s3_a"], UPRIGHT_ONE, OPTIONS)(*new("s1_a", "s1"))


def test_cases_that_were_trained_on_are_not_segmented_for_a_table(tiny_store: Store) -> None:
    validation = tiny_store.manifest.splits["paper"]["validation"]
    fold = next(n for n in "01234" if set(validation) & set(tiny_store.manifest.splits[n]["train"]))
    with pytest.raises(StoreError, match=f"it was trained on split '{fold}', with .* choose split '{fold}'"):
        split_cases(loaded_on(tiny_store, split=fold), tiny_store, "paper", "validation")
    with pytest.raises(StoreError, match="it was trained on split 'all'"):
        split_cases(loaded_on(tiny_store, split="all"), tiny_store, "paper", "test")
    assert split_cases(loaded_on(tiny_store, split=fold), tiny_store, "paper", "test")


def test_people_of_a_dataset_that_was_trained_on_are_not_segmented_for_a_table(held_out: Store) -> None:
    spec = held_out.manifest.spec.model_copy(update={"overlaps": ("other",)})
    store = Store(held_out.folder, held_out.manifest.model_copy(update={"spec": spec}))
    loaded = loaded_with(
        GreyModel(width=0.8), plans={"other": store.plan.model_copy(update={"dataset": "other"})}
    )
    with pytest.raises(
        StoreError, match="those of tiny are also in other, on which it was: use a model trained"
    ):
        split_cases(loaded, store, "paper", "test")
    assert split_cases(loaded, held_out, "paper", "test")
    loaded.specs = {"other": {"overlaps": ["tiny"]}}  # the other one names it
    with pytest.raises(StoreError, match="those of tiny are also in other"):
        split_cases(loaded, held_out, "paper", "test")


def test_splits_and_plans_that_do_not_fit(tiny_store: Store, cases: list[Case], tmp_path: Path) -> None:
    loaded = loaded_on(tiny_store)
    with pytest.raises(
        StoreError, match=r"has the splits paper, 0, 1, 2, 3, 4, all, .* got split 'mine', part 'test'"
    ):
        predict_split(loaded, tiny_store, cases, split="mine", out=tmp_path)
    with pytest.raises(StoreError, match="got split 'paper', part 'train'"):
        predict_split(loaded, tiny_store, cases, part="train", out=tmp_path)
    with pytest.raises(StoreError, match="Split 'all' of dataset tiny has no test case"):
        predict_split(loaded, tiny_store, cases, split="all", out=tmp_path)
    with pytest.raises(PredictionError, match="must be one of one-shot, ensemble, .*, bank; got 'luck'"):
        Experiment("luck")
    other = {"tiny": tiny_store.plan.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)})}
    loaded.plans = other
    with pytest.raises(StoreError, match="tiny was planned otherwise when the model was trained"):
        predict_split(loaded, tiny_store, cases, out=tmp_path)


def test_another_plan_of_a_dataset_that_the_model_does_not_know_is_another_result(
    tiny_store: Store, cases: list[Case], tmp_path: Path
) -> None:
    loaded = loaded_with(GreyModel(width=0.45), state=RunState(1, 1.0, 0, {"split": "paper"}))
    one_shot = Experiment("one-shot", 1)
    predict_split(loaded, tiny_store, cases, one_shot, out=tmp_path / "out", progress=False)
    made_from = json.loads((tmp_path / "out" / "predict.json").read_text(encoding="utf-8"))["made_from"]
    assert made_from["plan"] == tiny_store.plan.digest
    coarser = tiny_store.plan.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)})
    other = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"plan": coarser}))
    with pytest.raises(PredictionError, match="those in .*out were made otherwise"):
        predict_split(loaded, other, cases, one_shot, out=tmp_path / "out", progress=False)


def test_a_case_without_its_raw_file_is_a_verdict(
    tiny_store: Store, cases: list[Case], tmp_path: Path
) -> None:
    test = tiny_store.manifest.splits["paper"]["test"]
    gone = [case for case in cases if case.id not in test]
    verdicts = predict_split(loaded_on(tiny_store), tiny_store, gone, out=tmp_path / "out", progress=False)
    assert [v.why for v in verdicts] == [
        f"The raw file of case '{i}' is not there: put it back." for i in test
    ]
    nowhere = FileSource(tmp_path / "nowhere.nii.gz")
    moved = [replace(case, image=nowhere) if case.id in test else case for case in cases]
    verdicts = predict_split(loaded_on(tiny_store), tiny_store, moved, out=tmp_path / "out", progress=False)
    assert all(v.status == "refused" and "nowhere.nii.gz does not exist" in v.why for v in verdicts)
