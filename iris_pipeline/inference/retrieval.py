"""Retrieval: a task made for one query, from the references of a pool that are most like it (Sec. 3.4).

Image level: the reference whose whole image is nearest. Object level: the query is segmented roughly with a start
task, that rough mask is encoded as if it were a reference's, and per class the references with the nearest tokens
make the task. Arrays are [D,H,W] = (z,y,x), prepared as the pool's references were; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.pool import Embedded, image_vector, unit_vector
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, ensemble, one_shot, plan_like
from iris_pipeline.model import TaskTokens
from iris_pipeline.tasks.task import TaskEmbedding, added_parts, all_wide, least_pieces
from preprocessing.errors import ReferenceCaseError, TaskError


@dataclass(frozen=True)
class RetrievalSettings:
    """top: how many references a class is taken from. temperature: of the softmax over their cosines, which are
    the weights. rough_overlap: of the windows of the rough segmentation, whose seams do no harm.
    """

    top: int = 2
    temperature: float = 0.05
    rough_overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.top < 1 or not self.temperature > 0:
            raise TaskError(
                "Retrieval takes 1 reference or more at a temperature above 0; got "
                f"{self.top} and {self.temperature}."
            )


@dataclass(frozen=True)
class Choice:
    """One reference that a class was taken from; weight: its share of the class's tokens."""

    id: str
    cosine: float
    weight: float


def image_retrieval(
    loaded: LoadedModel, pool: Sequence[Embedded], query: np.ndarray, options: InferenceOptions
) -> TaskEmbedding:
    """The task of the reference whose image vector is nearest to the query's, by cosine.

    query: float32 [D,H,W]. Classes that the nearest reference lacks come from the next nearest that shows them.
    """
    footing = _first(pool).task
    vector = image_vector(loaded, query, footing.patch_size, options)
    nearest = sorted(pool, key=lambda reference: -_cosine(reference.image_vector, vector))
    chosen: dict[str, Embedded] = {}
    for reference in nearest:
        for name in reference.task.class_names:
            chosen.setdefault(name, reference)
    task = ensemble([reference.task.select([name]) for name, reference in chosen.items()])
    return _of_pool(task, pool, len({reference.id for reference in chosen.values()}), "image-retrieval")


def object_retrieval(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    query: np.ndarray,
    start: TaskEmbedding,
    options: InferenceOptions,
    settings: RetrievalSettings | None = None,
) -> tuple[TaskEmbedding, dict[str, list[Choice]]]:
    """Per class of `start`, the mean over the references nearest to what the query itself seems to hold.

    query: float32 [D,H,W] on the start task's grid. start: makes the rough segmentation, e.g. the memory bank or
    the pool's ensemble. A class that the rough mask lacks, or no reference shows, keeps the start's tokens. Also
    returned: per retrieved class, the chosen references.
    """
    settings = settings or RetrievalSettings()
    _first(pool)
    rough = label_volume(loaded.model, query, start, replace(options, overlap=settings.rough_overlap))
    try:
        seen = one_shot(
            loaded.model,
            PreparedReference("query", query, rough, start.classes),
            plan_like(start),
            model_hash=loaded.model_hash,
            options=options,
        )
    except ReferenceCaseError:  # the rough mask is empty: there is no object to retrieve by
        return _of_pool(start, pool, start.references, "object-retrieval"), {}
    return retrieve_classes(pool, seen, start, settings)


def retrieve_classes(
    pool: Sequence[Embedded], seen: TaskEmbedding, start: TaskEmbedding, settings: RetrievalSettings
) -> tuple[TaskEmbedding, dict[str, list[Choice]]]:
    """The last step of object-level retrieval: `seen` holds the query's own tokens of the classes it shows."""
    choices: dict[str, list[Choice]] = {}
    weights: dict[str, dict[str, float]] = {}
    for name in start.class_names:
        showing = [reference for reference in pool if name in reference.task.class_names]
        if name not in seen.class_names or not showing:
            continue
        own = class_vector(seen, name)
        cosines = {r.id: _cosine(class_vector(r.task, name), own) for r in showing}
        best = sorted(showing, key=lambda r: (-cosines[r.id], r.id))[: settings.top]
        shares = torch.softmax(
            torch.tensor([cosines[r.id] for r in best], dtype=torch.float32) / settings.temperature, dim=0
        )
        choices[name] = [
            Choice(r.id, cosines[r.id], float(share)) for r, share in zip(best, shares, strict=True)
        ]
        weights[name] = {choice.id: choice.weight for choice in choices[name]}
    tasks = {reference.id: reference.task for reference in pool}
    wide = all_wide([start, *tasks.values()])
    taken = {
        name: [
            (tasks[one], tasks[one].class_names.index(name), share) for one, share in weights[name].items()
        ]
        if name in weights
        else [(start, row, 1.0)]
        for row, name in enumerate(start.class_names)
    }
    added = added_parts(taken) | {"head": None}  # it was fitted for other tokens
    task = replace(
        start,
        tokens=_weighted(start, tasks, weights, lambda each: each.tokens),
        wide_tokens=_weighted(start, tasks, weights, lambda each: each.wide_tokens) if wide else (),
        **added,
    )
    used = {choice.id for chosen in choices.values() for choice in chosen}
    return _of_pool(task, pool, len(used) or start.references, "object-retrieval"), choices


def _weighted(
    start: TaskEmbedding,
    tasks: Mapping[str, TaskEmbedding],
    weights: Mapping[str, Mapping[str, float]],
    view: Callable[[TaskEmbedding], TaskTokens],
) -> TaskTokens:
    """The start's tokens, each level [1,K,m+1,C_l], with the weighted mean of references for retrieved classes."""
    levels = []
    for level, begin in enumerate(view(start)):
        rows = []
        for k, name in enumerate(start.class_names):
            parts = [
                view(tasks[key])[level][0, tasks[key].class_names.index(name)] * weight
                for key, weight in weights.get(name, {}).items()
            ]
            rows.append(torch.stack(parts).sum(0) if parts else begin[0, k])
        levels.append(torch.stack(rows)[None])
    return tuple(levels)


def class_vector(task: TaskEmbedding, name: str) -> Tensor:
    """A class's tokens of all levels as one vector of unit length, every level of equal weight."""
    row = task.class_names.index(name)
    return unit_vector([level[0, row] for level in task.tokens])


def _of_pool(task: TaskEmbedding, pool: Sequence[Embedded], references: int, made_by: str) -> TaskEmbedding:
    """The whole pool took part in the choice, so none of it may be the query: all hashes are kept."""
    hashes = tuple(dict.fromkeys(h for reference in pool for h in reference.task.reference_hashes))
    shown = [name for name in task.class_names if any(name in r.task.class_names for r in pool)]
    least = dict(zip(shown, least_pieces([r.task for r in pool], shown), strict=True))
    return replace(
        task,
        references=references,
        class_references=(),
        largest_pieces=tuple(least.get(name, 0.0) for name in task.class_names),
        reference_hashes=hashes,
        made_by=made_by,
    )


def _cosine(first: Tensor | None, second: Tensor) -> float:
    if first is None:
        raise TaskError(
            "Image-level retrieval compares whole images, and the pool was embedded without them: embed it "
            "again with_image."
        )
    return float(first @ second)


def _first(pool: Sequence[Embedded]) -> Embedded:
    if not pool:
        raise ReferenceCaseError("Retrieval needs at least one reference to choose from; got none.")
    return pool[0]
