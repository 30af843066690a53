"""How much the references' grey values count beside the network: found on the references, whose masks are known.

Arrays are [D,H,W] = (z,y,x), prepared at one grid; K classes. What evidence is says `grey.py`. Of each class several
weights are tried on crops of a reference, with the task and the evidence of the other people's, or, with one person
only, on augmented crops of its own reference. No query has a part in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.examples import Example, draw_example, encode_example
from iris_pipeline.inference.pool import Embedded, EmbeddingCache, content_key, people_of
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import (
    Prepare,
    PreparedReference,
    class_boxes,
    plan_like,
    plan_windows,
    taken_from,
    who_is_who,
)
from iris_pipeline.search.pose import SEARCH
from iris_pipeline.search.trial import teachers
from iris_pipeline.tasks.grey import BINS, LIMIT, RADIUS, GreyEvidence, bins_of, weigh, weights_of
from iris_pipeline.tasks.grey_ratios import log_ratio
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.tasks.voxel_head import cube_mean
from iris_pipeline.training.losses import class_losses
from preprocessing.geometry import CropPad
from preprocessing.runtime.progress import Bar, say


@dataclass(frozen=True)
class WeightSettings:
    """weights: those that are tried. judges: crops. references: how many take part. gain: the share of the loss without
    grey values by which a weight must be better; gain_alone: where a reference was judged by its own evidence, which
    flatters (LOG.md). least_gain: of the mean loss, as a loss of nearly nothing has shares of nearly nothing.
    """

    weights: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 3.0)
    judges: int = 8
    references: int = 3
    gain: float = 0.05
    gain_alone: float = 0.15
    least_gain: float = 0.01
    seed: int = 0


def grey_evidence(
    reference: PreparedReference, names: Sequence[str], patch: tuple[int, int, int]
) -> GreyEvidence:
    """What a reference shows of these of its classes, each of weight 1.

    Counted in the windows (`patch`, z,y,x) that the classes are encoded from: inside is the class, outside all else of
    the scan, be it another class or none. What would fill a window beyond the scan's border is nobody's grey value
    and counts nowhere. A class without a voxel says nothing (ratios of 0).
    """
    boxes = {name: box for name, box in class_boxes(reference).items() if name in names}
    inside, outside = ({name: np.zeros(BINS) for name in names} for _ in range(2))
    for window in plan_windows(boxes, reference.image.shape, patch) if boxes else ():
        within, _ = CropPad(reference.image.shape, window.start, patch).overlap()
        labels, image = reference.labels[within], reference.image[within].astype(np.float32)
        bins = bins_of(cube_mean(torch.from_numpy(image)[None, None], RADIUS)[0, 0])
        for name in window.classes:
            mask = labels == reference.classes[name]
            if mask.any():
                inside[name] += np.bincount(bins[mask], minlength=BINS)
                outside[name] += np.bincount(bins[~mask], minlength=BINS)
    ratios = [log_ratio(inside[name], outside[name]) for name in names]
    return GreyEvidence(
        torch.from_numpy(np.stack(ratios)).float(), torch.ones(len(names), dtype=torch.float32)
    )


def with_grey(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    prepare: Prepare,
    wanted: float | str = SEARCH,
    options: InferenceOptions | None = None,
    *,
    cache: EmbeddingCache | None = None,
    settings: WeightSettings | None = None,
    progress: bool = False,
) -> list[Embedded]:
    """The pool with grey evidence in its tasks, at the weight that is wanted or, of each class, at the best one found.

    prepare: reads a reference once more, by id, at the tasks' grid. wanted: "auto" or a weight, 0 for none. Tasks are
    as they were where no grey value counts.
    """
    if wanted == 0 or not pool:
        return list(pool)
    options, settings = options or InferenceOptions(), settings or WeightSettings()
    patch = pool[0].task.patch_size
    read: dict[str, PreparedReference] = {}
    if wanted == SEARCH:
        judged = _judged(pool, settings.references)
        read = {each.id: taken_from(prepare(each.id), each.task) for each in judged}
        shown = list(read.values())
        who = who_is_who(shown)
        content = [part for r in shown for part in (r.image, r.labels, sorted(r.classes.items()))]
        key = content_key(
            loaded.model_hash, options.autocast, plan_like(pool[0].task), settings, who, *content
        )
        cache = cache if cache is not None else EmbeddingCache()
        if key not in cache.grey_weights:
            tasks = [
                replace(each.task, grey=grey_evidence(r, each.task.class_names, patch))
                for each, r in zip(judged, shown, strict=True)
            ]
            cache.grey_weights[key] = find_weights(loaded, shown, tasks, options, settings, progress)
            if progress and any(cache.grey_weights[key].values()):
                told = ", ".join(f"{name} {weight:g}" for name, weight in cache.grey_weights[key].items())
                say(f"Grey values of the references count, by weight: {told}.", sys.stderr)
        weights = cache.grey_weights[key]
    else:
        weights = {name: float(wanted) for each in pool for name in each.task.class_names}
    if not any(weights.values()):
        return list(pool)
    return [
        replace(each, task=weighed(each.task, read.get(each.id) or prepare(each.id), weights))
        for each in pool
    ]


def weighed(task: TaskEmbedding, reference: PreparedReference, weights: Mapping[str, float]) -> TaskEmbedding:
    """The task of a reference with the evidence of its grey values; weights: by class, 0 where none is named."""
    evidence = grey_evidence(reference, task.class_names, task.patch_size)
    return replace(task, grey=evidence.weighed([weights.get(name, 0.0) for name in task.class_names]))


def weighed_like(task: TaskEmbedding, reference: PreparedReference, other: TaskEmbedding) -> TaskEmbedding:
    """The task of a reference with its grey values counting as much as those of the other task's references do."""
    weights = weights_of(other.grey, other.class_names)
    return weighed(task, reference, weights) if weights else task


def tasks_weighed_like(
    pool: Sequence[Embedded], prepare: Prepare, other: TaskEmbedding
) -> list[TaskEmbedding]:
    """`weighed_like` for the tasks of a pool; its references are read once more only where grey values count."""
    if not weights_of(other.grey, other.class_names):
        return [each.task for each in pool]
    return [weighed_like(each.task, prepare(each.id), other) for each in pool]


def find_weights(
    loaded: LoadedModel,
    references: Sequence[PreparedReference],
    tasks: Sequence[TaskEmbedding],
    options: InferenceOptions,
    settings: WeightSettings,
    progress: bool = False,
) -> dict[str, float]:
    """Class -> the weight of its grey values at which the references are segmented best; 0 unless one is far better.

    tasks: of each reference, with its evidence.
    """
    weighing = Weighing(settings)
    numbers = Bar(
        range(settings.judges), desc="Weighing grey values", unit="crop", leave=False, disable=not progress
    )
    for number in numbers:
        which = number % len(references)
        for task, alone in _lessons(tasks, references, which):
            example = draw_example(
                references[which],
                task.class_names,
                task.patch_size,
                np.random.default_rng((settings.seed, number)),
                augmented=alone,
                device=options.device,
            )
            weighing.add(losses_by_weight(loaded, task, example, options, settings.weights), alone)
    return weighing.best()


@dataclass(frozen=True)
class Weighing:
    """Losses that are gathered crop by crop, of each class at each of the weights of the settings."""

    settings: WeightSettings
    _sums: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    _crops: dict[str, int] = field(default_factory=dict, init=False)
    _gains: dict[str, float] = field(default_factory=dict, init=False)

    def add(self, losses: Mapping[str, np.ndarray], alone: bool) -> None:
        """losses: class -> its loss on one crop at each weight; alone: by the evidence of that very reference."""
        gain = self.settings.gain_alone if alone else self.settings.gain
        for name, found in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + found
            self._crops[name] = self._crops.get(name, 0) + 1
            self._gains[name] = max(self._gains.get(name, 0.0), gain)

    def best(self) -> dict[str, float]:
        """Class -> the weight at which its loss is least; 0, where it is among them, unless one is far better."""
        return {name: self.settings.weights[place] for name, place in self._places().items()}

    def loss(self) -> float:
        """The mean over the classes of their mean over crops, each at its best weight; NaN where nothing was added."""
        means = [self._sums[name][place] / self._crops[name] for name, place in self._places().items()]
        return float(np.mean(means)) if means else float("nan")

    def _places(self) -> dict[str, int]:
        return {name: self._place(name) for name in self._sums}

    def _place(self, name: str) -> int:
        found, weights = self._sums[name], self.settings.weights
        least = int(np.argmin(found))
        if 0.0 not in weights:
            return least
        none = weights.index(0.0)
        enough = max(self._gains[name] * found[none], self.settings.least_gain * self._crops[name])
        return least if found[none] - found[least] > enough else none


def _lessons(
    tasks: Sequence[TaskEmbedding], references: Sequence[PreparedReference], which: int
) -> list[tuple[TaskEmbedding, bool]]:
    """What a reference is segmented by, and whether that is its own task: the others' task and, of the classes that
    nobody else shows, its own.
    """
    task, alone = teachers(tasks, references, which)
    lacking = [name for name in tasks[which].class_names if name not in task.class_names]
    return [(task, alone), *([(tasks[which].select(lacking), True)] if lacking else [])]


def losses_by_weight(
    loaded: LoadedModel,
    task: TaskEmbedding,
    example: Example,
    options: InferenceOptions,
    weights: Sequence[float],
) -> dict[str, np.ndarray]:
    """Class -> its training loss on an example at each weight; the task has evidence."""
    assert task.grey is not None
    evidence, device = task.grey.to(options.device), torch.device(options.device)
    features = encode_example(loaded.model, example, options)
    with torch.inference_mode():
        with options.casting():
            tokens = tuple(level.to(device) for level in task.tokens)
            logits = loaded.model.segment_from_features(features, tokens)
        logits = logits.float().clamp(-LIMIT, LIMIT)  # at weight 0 too: clamping alone must not earn a weight
        ratios = evidence.of_image(example.image)
        found = []
        for weight in weights:
            column = torch.full((len(task.class_names),), weight, dtype=torch.float32, device=device)
            found.append(class_losses(weigh(logits, ratios, column), example.masks)[0])
    table = torch.stack(found, dim=1).double().cpu().numpy()
    valid = example.valid[0].bool().tolist()
    return {name: row for name, row, said in zip(task.class_names, table, valid, strict=True) if said}


def _judged(pool: Sequence[Embedded], count: int) -> list[Embedded]:
    """`count` of the pool, one a person before any second one, and more of them as long as they lack a class."""
    people = people_of(pool)
    firsts = {people[each.id]: each for each in reversed(pool)}
    # stable: in the pool's order otherwise
    order = sorted(pool, key=lambda each: each is not firsts[people[each.id]])
    chosen = order[:count]
    for each in order[count:]:
        if not {name for one in chosen for name in one.task.class_names} >= set(each.task.class_names):
            chosen.append(each)
    return chosen
