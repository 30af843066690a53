"""Every strategy by its name: from embedded references to the task of a query.

one-shot, ensemble and tuning make one task for all queries, image-retrieval and object-retrieval one for each.
Arrays are [D,H,W] = (z,y,x); a query is a Volume on any grid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.pool import Embedded, EmbeddingCache
from iris_pipeline.inference.retrieval import RetrievalSettings, image_retrieval, object_retrieval
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, ensemble, taken_from
from iris_pipeline.inference.tuning import TuningSettings, tune
from iris_pipeline.prediction.rivals import (
    Attempt,
    best_strategy,
    check_rivals,
    compare_strategies,
    comparison_text,
)
from iris_pipeline.scans.references import Candidate, ReferenceFiles, embed_files
from iris_pipeline.scans.scan import refuse_own_reference
from iris_pipeline.search.showing import SEARCHED, Showing
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.errors import PredictionError
from preprocessing.runtime.progress import say
from preprocessing.spec import Modality
from preprocessing.volume import Volume

BEST = "best"
"""ensemble, tuning or refining: the one that does best on references that are left out in turn (`rivals.py`)"""
DESCENDING = ("tuning", "refining")
"""go downhill on their references' loss (`tuning.py`)"""
ONE_TASK = ("one-shot", "ensemble", *DESCENDING, BEST)
PER_QUERY = ("image-retrieval", "object-retrieval")
REFERENCE_STRATEGIES = ("one-shot", "ensemble", "image-retrieval", "object-retrieval", *DESCENDING, BEST)
TUNABLE = (*DESCENDING, BEST)
"""take `TuningSettings`"""
STRATEGIES = (*REFERENCE_STRATEGIES, "bank")
TaskForQuery = Callable[[Volume], TaskEmbedding]
CheckDrawn = Callable[[Sequence[Candidate]], None]
"""Is shown the drawn references and may raise, before anything is searched for or encoded."""


# What turns a query into its task is data alone, so that a process can hand it to another.


@dataclass(frozen=True, eq=False)
class OneTask:
    """The same task for every query."""

    task: TaskEmbedding

    def __call__(self, image: Volume) -> TaskEmbedding:
        return self.task


@dataclass(frozen=True, eq=False)
class ImageRetrieval:
    """See `retrieval.image_retrieval`. mean: the pool's ensemble, whose grid and classes the task has."""

    loaded: LoadedModel
    pool: tuple[Embedded, ...]
    mean: TaskEmbedding
    options: InferenceOptions

    def __call__(self, image: Volume) -> TaskEmbedding:
        """ReferenceCaseError if the query is one of the pool."""
        refuse_own_reference([reference.task for reference in self.pool], image)
        query = self.mean.prepare(image).image
        return image_retrieval(self.loaded, self.pool, query, self.options).select(self.mean.class_names)


@dataclass(frozen=True, eq=False)
class ObjectRetrieval:
    """See `retrieval.object_retrieval`. start: makes the rough segmentation."""

    loaded: LoadedModel
    pool: tuple[Embedded, ...]
    start: TaskEmbedding
    options: InferenceOptions
    settings: RetrievalSettings | None

    def __call__(self, image: Volume) -> TaskEmbedding:
        """ReferenceCaseError if the query is one of the pool."""
        refuse_own_reference([reference.task for reference in self.pool], image)
        query = self.start.prepare(image).image
        return object_retrieval(self.loaded, self.pool, query, self.start, self.options, self.settings)[0]


def pooled_task(
    strategy: str,
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    classes: Sequence[str],
    options: InferenceOptions,
    *,
    prepare: Prepare,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """The one task that a pool makes for all queries. prepare: reads a reference once more, by id, for tuning.

    classes: the order of the task's classes. The task of "best" says in `made_by` which strategy that was.
    PredictionError for a strategy that is none of ONE_TASK, or for "best" with references of one person.
    """
    if strategy not in ONE_TASK:
        raise PredictionError(
            f"One task for all queries is made by {', '.join(ONE_TASK)}; got {strategy!r}: retrieval makes one "
            "for each query, use it in iris_predict."
        )
    if strategy == BEST:
        attempts = try_strategies(
            loaded, pool, classes, options, prepare=prepare, tuning=tuning, progress=progress
        )
        strategy = best_strategy(attempts)
        if progress:
            say(comparison_text(attempts), sys.stderr)
    if strategy in DESCENDING:
        tuning = replace(tuning or TuningSettings(), refine=strategy == "refining")
        shown = [taken_from(prepare(reference.id), reference.task) for reference in pool]
        task = tune(loaded, shown, [reference.task for reference in pool], options, tuning, progress)
    else:
        task = replace(ensemble([reference.task for reference in pool]), made_by=strategy)
    return task.select([name for name in classes if name in task.class_names])


def try_strategies(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    classes: Sequence[str],
    options: InferenceOptions,
    *,
    prepare: Prepare,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> list[Attempt]:
    """What "best" chooses by: ensemble, tuning and refining on references left out in turn (`rivals.py`).

    The arguments are those of `pooled_task`; `tuning`'s seed draws who is left out where there are many people.
    """

    def make(strategy: str, some: Sequence[Embedded]) -> TaskEmbedding:
        return pooled_task(
            strategy, loaded, some, classes, options, prepare=prepare, tuning=tuning, progress=progress
        )

    seed = (tuning or TuningSettings()).seed
    return compare_strategies(loaded, pool, make, options, prepare=prepare, seed=seed, progress=progress)


def task_for_query(
    strategy: str,
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    classes: Sequence[str],
    options: InferenceOptions,
    *,
    prepare: Prepare,
    start: TaskEmbedding | None = None,
    retrieval: RetrievalSettings | None = None,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskForQuery:
    """What turns a query into its task. pool: embedded by `pool.embed`, with image vectors for image-retrieval.

    start: the rough segmentation of object-retrieval (default: the pool's ensemble; classes that `start` lacks
    come from there too). The rest as in `pooled_task`. The result can be pickled, as the model can. PredictionError for
    a strategy that takes no references.
    """
    if strategy not in REFERENCE_STRATEGIES:
        raise PredictionError(
            f"The strategy must be one of {', '.join(REFERENCE_STRATEGIES)} where references are given; got "
            f"{strategy!r}."
        )
    one = strategy if strategy in ONE_TASK else "ensemble"
    mean = pooled_task(one, loaded, pool, classes, options, prepare=prepare, tuning=tuning, progress=progress)
    if strategy == "image-retrieval":
        return ImageRetrieval(loaded, tuple(pool), mean, options)
    if strategy == "object-retrieval":
        begin = mean if start is None else fill(start, mean)
        return ObjectRetrieval(loaded, tuple(pool), begin, options, retrieval)
    return OneTask(mean)


def file_tasks(
    strategy: str,
    loaded: LoadedModel,
    files: ReferenceFiles,
    options: InferenceOptions,
    *,
    count: int | None = None,
    seed: int = 0,
    modality: Modality | None = None,
    start: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    showing: Showing = SEARCHED,
    retrieval: RetrievalSettings | None = None,
    tuning: TuningSettings | None = None,
    check: CheckDrawn | None = None,
    progress: bool = False,
) -> tuple[TaskForQuery, list[Embedded]]:
    """References on disk -> what turns a query into its task, and the embedded references.

    "one-shot" takes one of several, `count` that many, drawn by `seed`; see `references.embed_files`. start: of
    object-retrieval (default: the references' ensemble); the references are brought to its grid. check: see
    `CheckDrawn`.
    """
    embedded = embed_files(
        loaded,
        files,
        options,
        count=1 if strategy == "one-shot" else count,
        seed=seed,
        modality=modality,
        like=start,
        cache=cache,
        with_images=strategy == "image-retrieval",
        showing=showing,
        check=_checks_of(strategy, check),
        progress=progress,
    )
    task_of = task_for_query(
        strategy,
        loaded,
        embedded.pool,
        list(files.classes),
        options,
        prepare=embedded.prepare,
        start=start,
        retrieval=retrieval,
        tuning=tuning,
        progress=progress,
    )
    return task_of, embedded.pool


def encode_files(
    loaded: LoadedModel,
    files: ReferenceFiles,
    options: InferenceOptions | None = None,
    *,
    strategy: str | None = None,
    count: int | None = None,
    seed: int = 0,
    modality: Modality | None = None,
    like: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    showing: Showing = SEARCHED,
    tuning: TuningSettings | None = None,
    check: CheckDrawn | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """References on disk -> one task. strategy None: see `default_strategy`. like, showing: see `embed_files`; check:
    `CheckDrawn`.
    """
    options = options or InferenceOptions()
    strategy = strategy or default_strategy(files, count)
    embedded = embed_files(
        loaded,
        files,
        options,
        count=1 if strategy == "one-shot" else count,
        seed=seed,
        modality=modality,
        like=like,
        cache=cache,
        showing=showing,
        check=_checks_of(strategy, check),
        progress=progress,
    )
    return pooled_task(
        strategy,
        loaded,
        embedded.pool,
        list(files.classes),
        options,
        prepare=embedded.prepare,
        tuning=tuning,
        progress=progress,
    )


def _checks_of(strategy: str, check: CheckDrawn | None) -> CheckDrawn:
    """What the strategy itself asks of the drawn references, and what the caller does."""

    def both(drawn: Sequence[Candidate]) -> None:
        if strategy == BEST:
            check_rivals(drawn)
        if check is not None:
            check(drawn)

    return both


def default_strategy(files: ReferenceFiles, count: int | None = None) -> str:
    """ "one-shot" for one reference, "ensemble" for several."""
    return "one-shot" if len(files.cases) == 1 or count == 1 else "ensemble"


def fill(start: TaskEmbedding, other: TaskEmbedding) -> TaskEmbedding:
    """`start` with the classes of `other` that it lacks, in the order of `other`; its own further ones are left out.

    TaskError if the two do not share model, grid and intensities.
    """
    own = [name for name in other.class_names if name in start.class_names]
    lacking = [name for name in other.class_names if name not in start.class_names]
    parts = ([start.select(own)] if own else []) + ([other.select(lacking)] if lacking else [])
    return ensemble(parts).select(other.class_names)
