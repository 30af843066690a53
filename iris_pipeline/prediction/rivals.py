"""Which strategy for these references: each reference is left out in turn and segmented by what the others become.

Arrays are [D,H,W] = (z,y,x), prepared at one grid; Dice is taken there. What wins on the references is used for the
queries, of which nothing is seen. The paper leaves the choice to the reader: this one is ours (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.pool import Embedded, people_of
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, PreparedReference
from iris_pipeline.measures.metrics import label_overlaps
from iris_pipeline.scans.references import Candidate
from iris_pipeline.search.second_look import look_twice
from iris_pipeline.tasks.pieces import keep_largest
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.errors import PredictionError
from preprocessing.runtime.progress import Bar

RIVALS = ("ensemble", "tuning", "refining")
"""The cheapest first: of strategies that are equally good the first is taken."""
MARGIN = 0.01  # Dice: what is nearer than this is called equal
MOST_LEFT_OUT = 5  # people, drawn by seed where there are more: each costs a tuning and a refining


@dataclass(frozen=True)
class Attempt:
    """A left-out reference, segmented by a strategy from the others: the Dice of each class that both sides show."""

    strategy: str
    query: str
    dice: Mapping[str, float]


def compare_strategies(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    make: Callable[[str, Sequence[Embedded]], TaskEmbedding],
    options: InferenceOptions,
    *,
    prepare: Prepare,
    strategies: Sequence[str] = RIVALS,
    seed: int = 0,
    progress: bool = False,
) -> list[Attempt]:
    """Every strategy on every left-out reference, one scan a person and MOST_LEFT_OUT people at most.

    make: a strategy and some of the pool -> their task; prepare: reads a reference by id. The references of a task are
    of other people than the one it is tried on; the same scan under two names is one person's. In which order the
    references come makes no difference to who is left out. PredictionError if no two people share a class.
    """
    people = people_of(pool)
    pool = sorted(pool, key=lambda each: each.id)
    left_out = _left_out(pool, people, seed)
    if not left_out:
        raise _too_few(list(people.values()))
    attempts = []
    with Bar(
        total=len(left_out) * len(strategies), desc="Comparing strategies", unit="trial", disable=not progress
    ) as bar:
        for query in left_out:
            others = [each for each in pool if people[each.id] != people[query]]
            held = prepare(query)
            known = next(each.task.class_names for each in pool if each.id == query)
            for strategy in strategies:
                dice = found_dice(loaded, held, known, make(strategy, others), options)
                attempts.append(Attempt(strategy, query, dice))
                bar.update()
    return attempts


def check_rivals(drawn: Sequence[Candidate]) -> None:
    """The PredictionError of `compare_strategies`, of references that are not encoded yet: that takes minutes."""
    if not any(
        one.subject != other.subject and one.classes & other.classes for one in drawn for other in drawn
    ):
        raise _too_few([each.subject for each in drawn])


def _too_few(people: Sequence[str]) -> PredictionError:
    """people: who is shown by each reference."""
    return PredictionError(
        "Strategies are compared on references of two or more people who share a class, each segmented from the "
        f"others; got {len(people)} of {len(set(people))}: give more references, or name a strategy."
    )


def _left_out(pool: Sequence[Embedded], people: Mapping[str, str], seed: int) -> list[str]:
    """One reference of each person who shares a class with another: of MOST_LEFT_OUT people, drawn by seed."""
    first: dict[str, str] = {}
    for each in pool:
        others = {
            name for other in pool if people[other.id] != people[each.id] for name in other.task.class_names
        }
        if others & set(each.task.class_names):
            first.setdefault(people[each.id], each.id)
    order = np.random.default_rng(seed).permutation(len(first))
    return [sorted(first.values())[int(i)] for i in order[:MOST_LEFT_OUT]]


def found_dice(
    loaded: LoadedModel,
    reference: PreparedReference,
    known: Sequence[str],
    task: TaskEmbedding,
    options: InferenceOptions,
) -> dict[str, float]:
    """Dice of each class of `known`, those the reference shows, that the task has too: of the mask that prediction
    would make. Nothing is run without such a class.
    """
    shown = {name: reference.classes[name] for name in task.class_names if name in known}
    if not shown:
        return {}
    match = look_twice(loaded.model, reference.image, task, options)
    found = label_volume(loaded.model, match(reference.image), task, options)
    if not options.all_pieces:  # as prediction does
        keep_largest(found, task.one_piece().values())
    return {name: overlap.dice for name, overlap in label_overlaps(found, reference.labels, shown).items()}


def class_dice(attempts: Sequence[Attempt]) -> dict[str, dict[str, float]]:
    """Strategy -> class -> mean over the left-out references; classes without a Dice are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for attempt in attempts:
        mine = found.setdefault(attempt.strategy, {})
        for name, dice in attempt.dice.items():
            if not np.isnan(dice):
                mine.setdefault(name, []).append(dice)
    return {strategy: {name: fmean(each) for name, each in mine.items()} for strategy, mine in found.items()}


def mean_dice(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Strategy -> mean over classes of each class's mean over left-out references; NaN where none has a Dice."""
    return {
        strategy: fmean(classes.values()) if classes else float("nan")
        for strategy, classes in class_dice(attempts).items()
    }


def best_strategy(attempts: Sequence[Attempt]) -> str:
    """The first, which is the cheapest, of those whose mean Dice is within MARGIN of the highest."""
    means = mean_dice(attempts)
    highest = max((mean for mean in means.values() if not np.isnan(mean)), default=float("nan"))
    return next((name for name, mean in means.items() if mean >= highest - MARGIN), next(iter(means)))


def comparison_text(attempts: Sequence[Attempt]) -> str:
    """One sentence: what each strategy reached, and which is the best."""
    means = mean_dice(attempts)
    queries = len({attempt.query for attempt in attempts if attempt.dice})
    each = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return (
        f"Mean Dice on {queries} references, each segmented from the others: {each}. Best, or as good and cheaper: "
        f"{best_strategy(attempts)}."
    )
