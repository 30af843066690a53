"""A dataset's validation or test split, segmented from its raw files: what result tables are made of.

References come from the train part; a held-out dataset has none, so there each query's references are its
dataset's other subjects. Equal references are encoded once: k references and m queries cost k + m.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from iris_pipeline.checkpoint import LoadedModel, write_json
from iris_pipeline.inputs import InputCase
from iris_pipeline.predict import InferenceOptions, Verdict, predict_cases
from iris_pipeline.references import (
    Candidate,
    Draw,
    draw_references,
    encode_draws,
    measure_references,
    plan_references,
    prepare_reference,
    stored_reference,
)
from iris_pipeline.strategies import PreparedReference, bank
from iris_pipeline.task import TaskEmbedding
from preprocessing.adapters import Case
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError, StoreError
from preprocessing.plan import Plan
from preprocessing.store import Store

STRATEGIES = ("one-shot", "ensemble", "bank")
DEFAULT_REFERENCES = 5
REFERENCES = "references.json"
TaskOf = Callable[[InputCase], TaskEmbedding]
Note = Callable[[str, Sequence[Draw]], None]
"""Is told the references of each query."""


def predict_split(
    loaded: LoadedModel,
    store: Store,
    cases: Sequence[Case],
    *,
    split: str = "paper",
    part: str = "test",
    strategy: str = "one-shot",
    references: int = DEFAULT_REFERENCES,
    seed: int = 0,
    out: Path,
    options: InferenceOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Verdict]:
    """Segment the RAW image files of one part of a store's split, so that results lie on the raw grids.

    cases: the dataset's raw cases (`find_cases`). strategy: "bank" needs no reference, "one-shot" draws one
    and "ensemble" `references` by `seed`. For a held-out dataset the plan, too, is made from the drawn
    references alone. OUT/references.json says which references each query had. A query without reference or
    raw file is a verdict. StoreError if there is no such split, if the store's plan is not the model's, or if
    the model was trained on cases that are to be segmented.
    """
    options = options or InferenceOptions()
    if strategy not in STRATEGIES:
        raise PredictionError(f"The strategy must be one of {', '.join(STRATEGIES)}; got {strategy!r}.")
    wanted = split_cases(loaded, store, split, part)
    raw = {case.id: case for case in cases}
    count = {"bank": 0, "one-shot": 1}.get(strategy, references)
    if strategy == "bank":
        task = bank(loaded, store.manifest.dataset)
        task_of: TaskOf = lambda _: task  # noqa: E731
    elif store.manifest.role == "held-out":
        # Who is not scored (see splits.make_splits) may still show the task.
        anybody = [entry.id for entry in store.manifest.cases]
        task_of = held_out_tasks(loaded, store, raw, anybody, count, seed, options, _notes(out))
    else:
        train = store.manifest.splits[split]["train"]
        task_of = stored_tasks(loaded, store, train, count, seed, options, note=_notes(out))
    return predict_cases(
        loaded,
        task_of,
        [InputCase(i, raw[i].image if i in raw else None, store.entry(i).subject) for i in wanted],
        out,
        options,
        classes=store.manifest.classes,
        made_from={
            "dataset": store.manifest.dataset,
            "split": split,
            "part": part,
            "strategy": strategy,
            "references": count,
            "seed": seed,
        },
        overwrite=overwrite,
        progress=progress,
    )


def _notes(out: Path) -> Note:
    """Keeps OUT/references.json: query -> {reference: its classes}."""

    def note(case_id: str, draws: Sequence[Draw]) -> None:
        path = out / REFERENCES
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_json(path, known | {case_id: {draw.id: list(draw.classes) for draw in draws}})

    return note


def split_cases(loaded: LoadedModel, store: Store, split: str, part: str) -> list[str]:
    """The ids of one part of a split; StoreError where results from them would not be honest ones."""
    manifest = store.manifest
    if split not in manifest.splits or part not in ("validation", "test"):
        raise StoreError(
            f"Dataset {manifest.dataset} has the splits {', '.join(manifest.splits)}, whose validation or "
            f"test part is segmented; got split {split!r}, part {part!r}."
        )
    wanted = manifest.splits[split][part]
    if not wanted:
        raise StoreError(
            f"Split '{split}' of dataset {manifest.dataset} has no {part} case; choose another one."
        )
    check_plan(loaded, store)
    known = sorted(set(manifest.spec.overlaps) & set(loaded.plans))
    if known:
        raise StoreError(
            f"Results come from people the model was not trained on; those of {manifest.dataset} are also in "
            f"{', '.join(known)}, on which it was: use a model trained without."
        )
    if manifest.dataset in loaded.plans:
        trained = str(loaded.state.settings.get("split", split))
        seen = sorted(set(wanted) & set(manifest.splits.get(trained, {}).get("train", [])))
        if seen:
            raise StoreError(
                f"Results come from cases the model was not trained on; it was trained on split '{trained}', "
                f"with {len(seen)} of the {len(wanted)} cases asked for among them: choose split '{trained}'."
            )
    return wanted


def check_plan(loaded: LoadedModel, store: Store) -> None:
    """StoreError if the model was trained on this dataset at another plan: its spacing would be a new one."""
    name = store.manifest.dataset
    if name in loaded.plans and loaded.plans[name].digest != store.plan.digest:
        raise StoreError(
            f"Model and store must share one plan; {name} was planned otherwise when the model was trained: "
            "run iris_plan_and_preprocess with the settings of then, or train again."
        )


def stored_tasks(
    loaded: LoadedModel,
    store: Store,
    ids: Iterable[str],
    count: int,
    seed: int,
    options: InferenceOptions,
    raw: Mapping[str, Case] | None = None,
    note: Note | None = None,
) -> TaskOf:
    """Tasks from the store's cases `ids`, at the store's plan. raw: for the references' content hashes."""

    def prepare(name: str) -> PreparedReference:
        return stored_reference(store, name, raw[name].image if raw and name in raw else None)

    def encode(draws: Sequence[Draw]) -> TaskEmbedding:
        return _encode(loaded, store, draws, prepare, store.plan, count, options)

    return _drawn_tasks(store, ids, count, seed, encode, note)


def held_out_tasks(
    loaded: LoadedModel,
    store: Store,
    raw: Mapping[str, Case],
    ids: Iterable[str],
    count: int,
    seed: int,
    options: InferenceOptions,
    note: Note | None = None,
) -> TaskOf:
    """Tasks from raw cases of a held-out dataset: the plan is made from the drawn references alone."""
    spec = store.manifest.spec

    def encode(draws: Sequence[Draw]) -> TaskEmbedding:
        missing = [draw.id for draw in draws if draw.id not in raw]
        if missing:
            raise RawDataError(
                f"The raw files of the references {', '.join(missing)} are needed and not there."
            )
        plan = plan_references(loaded, spec, measure_references([raw[draw.id] for draw in draws], spec))

        def prepare(name: str) -> PreparedReference:
            return prepare_reference(raw[name], plan, store.manifest.classes)

        return _encode(loaded, store, draws, prepare, plan, count, options)

    return _drawn_tasks(store, ids, count, seed, encode, note)


def _encode(
    loaded: LoadedModel,
    store: Store,
    draws: Sequence[Draw],
    prepare: Callable[[str], PreparedReference],
    plan: Plan,
    count: int,
    options: InferenceOptions,
) -> TaskEmbedding:
    return encode_draws(
        loaded,
        draws,
        prepare,
        plan,
        list(store.manifest.classes),
        strategy="one-shot" if count == 1 else "ensemble",
        device=options.device,
        autocast=options.autocast,
    )


def _drawn_tasks(
    store: Store,
    ids: Iterable[str],
    count: int,
    seed: int,
    encode: Callable[[Sequence[Draw]], TaskEmbedding],
    note: Note | None,
) -> TaskOf:
    """For each query, references of other subjects; queries with the same references share one task."""
    entries = [store.entry(case_id) for case_id in ids]
    candidates = [Candidate(e.id, e.subject, frozenset(e.classes)) for e in entries]
    encoded: dict[tuple[Draw, ...], TaskEmbedding] = {}

    def task_of(case: InputCase) -> TaskEmbedding:
        draws = tuple(
            draw_references(
                candidates, list(store.manifest.classes), count, seed, not_subjects=[case.subject]
            )
        )
        if any(draw.id == case.id for draw in draws):
            raise ReferenceCaseError(f"A reference is never its own query; '{case.id}' was drawn for itself.")
        if draws not in encoded:
            encoded[draws] = encode(draws)
        if note is not None:
            note(case.id, draws)
        return encoded[draws]

    return task_of
