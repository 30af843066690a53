"""A dataset's validation or test split, segmented from its raw files: what result tables are made of.

References come from the train part; a held-out dataset has none, so there each query's references are its
dataset's other subjects. Equal references are encoded once: k references and m queries cost k + m.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.checkpoints.not_trained import check_not_trained
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.retrieval import RetrievalSettings
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, PreparedReference
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.prediction.bank_tasks import bank_task
from iris_pipeline.prediction.predict import Judge, Verdict, predict_cases
from iris_pipeline.prediction.query_tasks import BEST, DESCENDING, STRATEGIES, TaskForQuery, task_for_query
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.outputs import Outputs
from iris_pipeline.scans.references import (
    Draw,
    candidates_of,
    draw_references,
    embed_draws,
    measure_references,
    plan_references,
    prepare_reference,
    stored_reference,
)
from iris_pipeline.search.pose import turned_plan
from iris_pipeline.search.showing import AS_PLANNED, SEARCHED, Showing, as_shown, settle_showing
from iris_pipeline.tasks.grey import weights_of
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.adapters import Case
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError, StoreError, TaskError
from preprocessing.plan import Plan
from preprocessing.runtime.files import text_digest, write_json
from preprocessing.store import Store
from preprocessing.volume import Volume

DEFAULT_REFERENCES = 5
REFERENCES = "references.json"
TaskOf = Callable[[InputCase, Volume], TaskEmbedding]
Note = Callable[[str, Sequence[Draw], TaskEmbedding], None]
"""Is told of each query the references that were drawn for it and its task."""


@dataclass(frozen=True)
class Experiment:
    """A strategy, how many references it gets and by which draw, and its settings."""

    strategy: str = "one-shot"
    references: int = DEFAULT_REFERENCES
    seed: int = 0
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    showing: Showing = SEARCHED
    """of a held-out dataset's references (`showing.py`); those of one that was trained on are as they were then, and of
    the bank it says how often a scan is looked at"""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise PredictionError(
                f"The strategy must be one of {', '.join(STRATEGIES)}; got {self.strategy!r}."
            )

    @property
    def count(self) -> int:
        """References a query gets."""
        return {"bank": 0, "one-shot": 1}.get(self.strategy, self.references)

    def describe(self) -> dict[str, Any]:
        """For predict.json: what a result depends on."""
        said: dict[str, Any] = {"strategy": self.strategy, "references": self.count, "seed": self.seed}
        said |= {"pose": self.showing.pose, "scale": self.showing.scale}
        if self.strategy == "object-retrieval":
            said["settings"] = asdict(self.retrieval)
        if self.strategy == BEST:
            said["settings"] = asdict(self.tuning)
        if self.strategy in DESCENDING:
            settings = replace(self.tuning, refine=self.strategy == "refining")
            said["settings"] = asdict(replace(settings, steps=settings.most_steps))
        return said


def predict_split(
    loaded: LoadedModel,
    store: Store,
    cases: Sequence[Case],
    experiment: Experiment | None = None,
    *,
    split: str = "paper",
    part: str = "test",
    out: Path,
    options: InferenceOptions | None = None,
    outputs: Outputs | None = None,
    judge: Judge | None = None,
    cache: EmbeddingCache | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Verdict]:
    """Segment the RAW image files of one part of a store's split, so that results lie on the raw grids.

    cases: the dataset's raw cases (`find_cases`). The bank needs no reference, one-shot draws one, every other
    strategy as many as the experiment says, by its seed; never one of the query's subject. For a held-out
    dataset the plan, too, is made from the drawn references alone. OUT/references.json says which references each
    query had, and in which pose and at which spacing it was shown. cache: keeps embedded references over several
    calls. A query without reference or raw file is a verdict. StoreError if there is no such split, if the store's
    plan is not the model's, or if the model was trained on cases that are to be segmented.
    """
    options, experiment = options or InferenceOptions(), experiment or Experiment()
    wanted, looks = split_cases(loaded, store, split, part), dict[str, int]()
    raw, ids = {case.id: case for case in cases}, reference_ids(store, split)
    if experiment.strategy == "bank":
        task = bank_task(loaded, store.manifest.dataset, store, experiment.showing.looks)
        task_of: TaskOf = lambda _case, _image: task  # noqa: E731
        looks = {"looks": 2} if task.surroundings else {}
    else:
        note = note_references(out)
        if store.manifest.role == "held-out":
            task_of = held_out_tasks(loaded, store, raw, ids, experiment, options, note, cache)
        else:
            task_of = stored_tasks(loaded, store, ids, experiment, options, note=note, cache=cache)
    return predict_cases(
        loaded,
        task_of,
        [InputCase(i, raw[i].image if i in raw else None, store.entry(i).subject) for i in wanted],
        out,
        options,
        classes=store.manifest.classes,
        made_from={"dataset": store.manifest.dataset, "split": split, "part": part}
        | _own_plan(loaded, store)
        | (experiment.showing.describe() if store.manifest.role == "held-out" else {})
        | looks
        | experiment.describe()
        | ({} if experiment.strategy == "bank" else {"stored": stored_digest(store, ids)}),
        outputs=outputs,
        judge=judge,
        overwrite=overwrite,
        progress=progress,
    )


def _own_plan(loaded: LoadedModel, store: Store) -> dict[str, str]:
    """The plan that results depend on, where it is neither the model's own nor made from the drawn references."""
    if store.manifest.role == "held-out" or store.manifest.dataset in loaded.plans:
        return {}
    return {"plan": store.plan.digest}


def stored_digest(store: Store, ids: Iterable[str]) -> str:
    """What the cases that references are drawn from are, as stored: scans, labels, people, and the plan.

    References of a held-out dataset are read from raw files and planned alone: of them as the store met them.
    """
    plan = "" if store.manifest.role == "held-out" else store.plan.digest
    return text_digest(f"{plan} {[(case_id, store.source_digest(case_id)) for case_id in ids]}")


def reference_ids(store: Store, split: str) -> list[str]:
    """Who may be a reference of a split's queries: its train part; of a held-out dataset everybody, as those who are
    not scored (see `splits.make_splits`) may still show the task.
    """
    if store.manifest.role == "held-out":
        return [entry.id for entry in store.manifest.cases]
    return store.manifest.splits[split]["train"]


def note_references(out: Path) -> Note:
    """Keeps OUT/references.json: query -> its references, each with its classes, and how its task was made."""

    def note(case_id: str, draws: Sequence[Draw], task: TaskEmbedding) -> None:
        path = out / REFERENCES
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        shown = {draw.id: list(draw.classes) for draw in draws}
        said: dict[str, Any] = {
            "references": shown,
            "made_by": task.made_by,
            "pose": task.pose.axes,
            "spacing_mm": task.spacing_mm,
        }
        if task.normalisation.tones is not None:
            said["tones"] = task.normalisation.tones.told
        if weights := weights_of(task.grey, task.class_names):
            said["grey_weights"] = dict(weights)
        write_json(path, known | {case_id: said})

    return note


def split_cases(loaded: LoadedModel, store: Store, split: str, part: str) -> list[str]:
    """The ids of one part of a split; StoreError where results from them would not be honest ones."""
    manifest = store.manifest
    if split not in manifest.splits or part not in ("validation", "test"):
        raise StoreError(
            f"Dataset {manifest.dataset} has the splits {', '.join(manifest.splits)}, whose validation or "
            f"test part is segmented; got split {split!r}, part {part!r}: choose one of them."
        )
    wanted = manifest.splits[split][part]
    if not wanted:
        raise StoreError(
            f"Split '{split}' of dataset {manifest.dataset} has no {part} case; choose another one."
        )
    check_plan(loaded, store)
    check_not_trained(loaded, store, split, part)
    return wanted


def most_references(store: Store, split: str) -> int:
    """How many references every query can have: train cases, or of a held-out dataset all others'."""
    if store.manifest.role != "held-out":
        return len(store.manifest.splits[split]["train"])
    subjects = Counter(entry.subject for entry in store.manifest.cases)
    return len(store.manifest.cases) - max(subjects.values())


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
    experiment: Experiment,
    options: InferenceOptions,
    raw: Mapping[str, Case] | None = None,
    note: Note | None = None,
    cache: EmbeddingCache | None = None,
) -> TaskOf:
    """Tasks from the store's cases `ids`, at the store's plan. raw: for content hashes that the store does not tell.

    Object-level retrieval starts from the memory bank where it holds the dataset.
    """
    try:
        start = bank_task(loaded, store.manifest.dataset, None, looks=1)
    except TaskError:
        start = None

    def prepare(name: str) -> PreparedReference:
        return stored_reference(store, name, raw[name].image if raw and name in raw else None)

    return _drawn_tasks(
        loaded, store, ids, experiment, options, lambda _: store.plan, lambda _: prepare, start, note, cache
    )


def tasks_shown_otherwise(
    loaded: LoadedModel,
    store: Store,
    raw: Mapping[str, Case],
    ids: Iterable[str],
    experiment: Experiment,
    options: InferenceOptions,
) -> TaskOf:
    """As `stored_tasks`, but shown as the experiment says, its pose and scale said: from the raw files `ids`. What the
    model was trained on looks new to it then: masks fail, and what is done about it is done, as they are there.
    """
    z, y, x = (float(experiment.showing.scale) * edge for edge in store.plan.spacing_mm)
    plan = turned_plan(store.plan.model_copy(update={"spacing_mm": (z, y, x)}), experiment.showing.pose)
    return _drawn_tasks(
        loaded,
        store,
        ids,
        experiment,
        options,
        lambda _: plan,
        lambda _: lambda name: prepare_reference(raw[name], plan, store.manifest.classes),
        None,
        None,
        None,
        experiment.showing,
    )


def held_out_tasks(
    loaded: LoadedModel,
    store: Store,
    raw: Mapping[str, Case],
    ids: Iterable[str],
    experiment: Experiment,
    options: InferenceOptions,
    note: Note | None = None,
    cache: EmbeddingCache | None = None,
) -> TaskOf:
    """Tasks from raw cases of a held-out dataset: the plan is made from the drawn references alone."""
    spec = store.manifest.spec
    cache = cache if cache is not None else EmbeddingCache()

    def prepare_at(plan: Plan) -> Prepare:
        return lambda name: prepare_reference(raw[name], plan, store.manifest.classes)

    def plan_of(draws: Sequence[Draw]) -> Plan:
        missing = [draw.id for draw in draws if draw.id not in raw]
        if missing:
            raise RawDataError(
                f"The raw files of the references {', '.join(missing)} are needed, and they are not there: put them "
                "back."
            )
        prints = measure_references([raw[draw.id] for draw in draws], spec)
        names = [draw.id for draw in draws]
        affine = raw[names[0]].image.read_image().affine
        return settle_showing(
            loaded,
            lambda scale: plan_references(loaded, spec, prints, scale),
            experiment.showing,
            names,
            prepare_at,
            affine,
            options,
            cache=cache,
            progress=True,
        )

    showing = experiment.showing
    return _drawn_tasks(
        loaded, store, ids, experiment, options, plan_of, prepare_at, None, note, cache, showing
    )


def _drawn_tasks(
    loaded: LoadedModel,
    store: Store,
    ids: Iterable[str],
    experiment: Experiment,
    options: InferenceOptions,
    plan_of: Callable[[Sequence[Draw]], Plan],
    prepare_at: Callable[[Plan], Prepare],
    start: TaskEmbedding | None,
    note: Note | None,
    cache: EmbeddingCache | None,
    showing: Showing = AS_PLANNED,
) -> TaskOf:
    """For each query, references of other subjects; queries with the same references share what is made of them."""
    candidates = candidates_of(store, ids)
    subjects = {each.id: each.subject for each in candidates}
    classes = list(store.manifest.classes)
    cache = cache if cache is not None else EmbeddingCache()
    made: dict[tuple[Draw, ...], TaskForQuery] = {}

    def make(draws: Sequence[Draw]) -> TaskForQuery:
        plan = plan_of(draws)
        prepare = prepare_at(plan)
        pool = embed_draws(
            loaded,
            draws,
            prepare,
            plan,
            cache=cache,
            with_images=experiment.strategy == "image-retrieval",
            options=options,
        )
        pool = as_shown(loaded, pool, prepare, showing, options, cache=cache, progress=True)
        return task_for_query(
            experiment.strategy,
            loaded,
            pool,
            classes,
            options,
            prepare=prepare,
            start=start,
            retrieval=experiment.retrieval,
            tuning=experiment.tuning,
            progress=True,
        )

    def task_of(case: InputCase, image: Volume) -> TaskEmbedding:
        draws = tuple(
            draw_references(
                candidates, classes, experiment.count, experiment.seed, not_subjects=[case.subject]
            )
        )
        if any(draw.id == case.id or (case.subject and subjects[draw.id] == case.subject) for draw in draws):
            raise ReferenceCaseError(
                f"A reference is never its own query; '{case.id}' was drawn for itself: this is a defect, please "
                "report it."
            )
        if draws not in made:
            made[draws] = make(draws)
        task = made[draws](image)
        if note is not None:
            note(case.id, draws, task)
        return task

    return task_of
