"""The reference advisor: each reference is segmented from the others, to say which help, which hurt, how many do.

Arrays are [D,H,W] = (z,y,x), prepared at one grid; Dice is taken there. Every reference is encoded once; an
ensemble is a mean of tokens and costs nothing, so the time goes into segmenting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.pool import Embedded
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import Prepare, PreparedReference, ensemble
from iris_pipeline.prediction.predict import digest
from iris_pipeline.prediction.rivals import MARGIN, found_dice
from preprocessing.errors import ReferenceCaseError
from preprocessing.runtime.files import write_json
from preprocessing.runtime.progress import Bar

SCHEMA_VERSION = 2
"""2: crumbs are left out as in prediction"""
Pair = tuple[str, tuple[str, ...]]
"""A query and the references it is segmented from."""
EVERY_SIZE = 8  # other references: with more only some sizes of ensembles are tried
SOME_SIZES = (2, 3, 5, 8, 12, 20, 32, 50)
HELPS, HURTS, UNTOLD = "helps", "hurts", "no difference to be told"
OUTLIER = 0.2  # Dice below the median case at which a reference is called unlike the others


@dataclass(frozen=True)
class Trial:
    """One class of one reference, segmented from the ensemble of some others."""

    query: str
    references: tuple[str, ...]
    class_name: str
    dice: float


@dataclass(frozen=True)
class ReferenceNote:
    """What a reference does for one class that it shows; NaN where no trial tells.

    alone: mean Dice over the others when it is their only reference. gain: how much the ensemble of all others
    loses, on average over the queries, when this one is taken out (negative: it hurts). found: Dice with which
    all the others find the class in it. queries: how many tell a gain; agreeing: how many of them one of its sign.
    """

    id: str
    class_name: str
    alone: float
    gain: float
    found: float
    queries: int = 0
    agreeing: int = 0

    @property
    def verdict(self) -> str:
        """HELPS or HURTS where the gain passes the margin and most queries, two or more, agree in its sign; else
        UNTOLD, and "" where no query tells.
        """
        if not self.queries:
            return ""
        agreed = self.agreeing >= 2 and 2 * self.agreeing > self.queries
        if not agreed or abs(self.gain) < MARGIN:
            return UNTOLD
        return HELPS if self.gain > 0 else HURTS


@dataclass(frozen=True)
class SizeNote:
    """Mean, lowest and highest query's Dice of one class with ensembles of `size` references."""

    size: int
    class_name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Advice:
    """All that the trials say, and the same in words."""

    references: tuple[ReferenceNote, ...]
    sizes: tuple[SizeNote, ...]
    lines: tuple[str, ...]


def plan_trials(subjects: Mapping[str, str], draws: int = 3, seed: int = 0) -> list[Pair]:
    """Pairs (query, references): all singles, all others together, all others but one, and `draws` of sizes between,
    drawn by `seed`: of every size, and with more than EVERY_SIZE others of those in SOME_SIZES. subjects: id -> person
    (`pool.people_of`); a query's references are of other people.

    ReferenceCaseError if there are fewer than two people.
    """
    if len(set(subjects.values())) < 2:
        raise ReferenceCaseError(
            "Advice compares references of different people, and needs two or more; got "
            f"{len(subjects)} of {len(set(subjects.values()))}: give more references."
        )
    rng = np.random.default_rng(seed)
    planned: list[Pair] = []
    for query in subjects:
        others = [each for each in subjects if subjects[each] != subjects[query]]
        ends = (1, len(others) - 1, len(others))
        for size in range(1, len(others) + 1):
            if len(others) > EVERY_SIZE and size not in (*ends, *SOME_SIZES):
                continue
            everything = size in ends or comb(len(others), size) <= draws
            chosen = combinations(others, size) if everything else _subsets(others, size, draws, rng)
            planned += [(query, references) for references in chosen]
    return planned


def _subsets(others: Sequence[str], size: int, draws: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """`draws` different subsets in the order of `others`; without a list of all, of which 30 have a billion."""
    found: set[tuple[int, ...]] = set()
    while len(found) < draws:
        found.add(tuple(sorted(int(i) for i in rng.choice(len(others), size, replace=False))))
    return [tuple(others[i] for i in chosen) for chosen in sorted(found)]


def run_trials(
    loaded: LoadedModel,
    pool: Sequence[Embedded],
    prepare: Prepare,
    planned: Sequence[Pair],
    options: InferenceOptions,
    *,
    memory: Path | None = None,
    progress: bool = True,
) -> list[Trial]:
    """Segment as planned and compare with the query's own labels; one trial for each class both sides show, and its
    references are those that show it: sets that differ in others are the same trial of it.

    prepare: reads a reference by id; each is read once, when it is the query. memory: a JSON file of what is
    done, from which a call of the same model, references and overlap goes on.
    """
    tasks = {reference.id: reference.task for reference in pool}
    made_from = {
        "model": loaded.model_hash,
        "overlap": options.overlap,
        "references": {name: digest(task) for name, task in tasks.items()},
    }
    done = _remembered(memory, made_from)
    held: PreparedReference | None = None
    for query, references in Bar(planned, desc="Trying references", unit="trial", disable=not progress):
        if (query, references) in done:
            continue
        if held is None or held.id != query:
            held = prepare(query)
        task = ensemble([tasks[name] for name in references])
        done[query, references] = found_dice(loaded, held, tasks[query].class_names, task, options)
        if memory is not None:
            _remember(memory, made_from, done)
    trials: dict[tuple[str, tuple[str, ...], str], Trial] = {}
    for query, references in planned:
        for name, dice in done[query, references].items():
            telling = tuple(each for each in references if name in tasks[each].class_names)
            trials.setdefault((query, telling, name), Trial(query, telling, name, dice))
    return list(trials.values())


def _remembered(memory: Path | None, made_from: Mapping[str, Any]) -> dict[Pair, dict[str, float]]:
    """The trials of a former call, if it was one of the same model, references and settings."""
    try:
        content = json.loads(memory.read_text(encoding="utf-8")) if memory is not None else {}
    except (OSError, ValueError):
        return {}
    if content.get("schema_version") != SCHEMA_VERSION or content.get("made_from") != made_from:
        return {}
    return {(query, tuple(references)): scores for query, references, scores in content["trials"]}


def _remember(memory: Path, made_from: Mapping[str, Any], done: Mapping[Pair, dict[str, float]]) -> None:
    trials = [[query, list(references), scores] for (query, references), scores in done.items()]
    write_json(memory, {"schema_version": SCHEMA_VERSION, "made_from": made_from, "trials": trials})


def advise(trials: Sequence[Trial], ids: Sequence[str], classes: Sequence[str]) -> Advice:
    """Notes on every reference and every size, class by class, and the advice in plain words.

    A reference that is in no trial of a class, as one that does not show it, has no note on it.
    """
    shown = {(trial.class_name, each) for trial in trials for each in (trial.query, *trial.references)}
    references = tuple(
        _reference_note(trials, name, each) for name in classes for each in ids if (name, each) in shown
    )
    sizes = tuple(note for name in classes for note in _size_notes(trials, name))
    lines = [
        line
        for name in classes
        for line in _class_lines(
            name,
            [note for note in references if note.class_name == name],
            [note for note in sizes if note.class_name == name],
        )
    ]
    return Advice(references, sizes, tuple(lines))


def _reference_note(trials: Sequence[Trial], class_name: str, reference: str) -> ReferenceNote:
    mine = [trial for trial in trials if trial.class_name == class_name]
    alone = [trial.dice for trial in mine if trial.references == (reference,)]
    by_set = {(trial.query, frozenset(trial.references)): trial.dice for trial in mine}
    gains = []
    for query, everyone in _all_others(mine).items():
        rest = everyone - {reference}
        if reference in everyone and (query, rest) in by_set:
            gains.append(by_set[query, everyone] - by_set[query, rest])
    everyone = _all_others(mine).get(reference, frozenset())
    found = by_set.get((reference, everyone), float("nan"))
    gains, gain = [each for each in gains if not np.isnan(each)], _mean(gains)
    agreeing = sum(each * gain > 0 for each in gains)
    return ReferenceNote(reference, class_name, _mean(alone), gain, found, len(gains), agreeing)


def _all_others(trials: Iterable[Trial]) -> dict[str, frozenset[str]]:
    """For each query the largest set of references that was tried on it."""
    largest: dict[str, frozenset[str]] = {}
    for trial in trials:
        if len(trial.references) > len(largest.get(trial.query, ())):
            largest[trial.query] = frozenset(trial.references)
    return largest


def _size_notes(trials: Sequence[Trial], class_name: str) -> list[SizeNote]:
    """Sizes that every query has trials of: else a curve would compare different queries."""
    mine = [trial for trial in trials if trial.class_name == class_name]
    queries = sorted({trial.query for trial in mine})
    notes = []
    for size in sorted({len(trial.references) for trial in mine}):
        means = [
            _mean([t.dice for t in mine if t.query == query and len(t.references) == size])
            for query in queries
        ]
        if not np.isnan(means).any():
            notes.append(SizeNote(size, class_name, fmean(means), min(means), max(means)))
    return notes


def _class_lines(class_name: str, notes: Sequence[ReferenceNote], sizes: Sequence[SizeNote]) -> list[str]:
    """The advice on one class, the most useful first."""
    if not sizes:
        return [f"{class_name}: no two references show it, so nothing can be said; add one that does."]
    lines = [f"{class_name}: {_enough(sizes)}"]
    gains = sorted((note for note in notes if note.verdict), key=lambda note: note.gain)
    helping = [note for note in gains if note.verdict == HELPS]
    if helping:
        best = helping[-1]
        lines.append(
            f"{class_name}: {best.id} helps most; without it the others lose {best.gain:.2f} Dice "
            f"({_agreement(best)})."
        )
    for note in gains:
        if note.verdict == HURTS:
            lines.append(
                f"{class_name}: {note.id} hurts; without it the others gain {-note.gain:.2f} Dice "
                f"({_agreement(note)}): look at its mask, or leave it out."
            )
    if gains and all(note.verdict == UNTOLD for note in gains):
        lines.append(f"{class_name}: between having and lacking a single reference there is {UNTOLD}.")
    found = [note.found for note in notes if not np.isnan(note.found)]
    for note in notes:
        if found and note.found < median(found) - OUTLIER:
            lines.append(
                f"{class_name}: {note.id} is unlike the others, who find it there with Dice {note.found:.2f} only "
                f"({median(found):.2f} in the median case): check its mask, or add references like it."
            )
    return lines


def _agreement(note: ReferenceNote) -> str:
    return f"{note.agreeing} of {note.queries} queries agree"


def _enough(sizes: Sequence[SizeNote]) -> str:
    best = max(note.mean for note in sizes)
    enough = next(note for note in sizes if note.mean >= best - MARGIN)
    last = sizes[-1]
    if len(sizes) == 1:
        return f"one reference reaches Dice {last.mean:.2f}; with a third one, more could be said."
    if enough.size == last.size:
        return (
            f"more references still help: Dice {sizes[0].mean:.2f} with {sizes[0].size}, {last.mean:.2f} with "
            f"{last.size}; further ones may too."
        )
    noun = "reference is" if enough.size == 1 else "references are"
    return f"{enough.size} {noun} enough: Dice {enough.mean:.2f}, and {last.mean:.2f} with {last.size}."


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return fmean(known) if known else float("nan")
