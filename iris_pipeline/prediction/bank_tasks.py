"""The task of a dataset from a model's memory bank, with what the cases that trained it tell beside the tokens.

An exported checkpoint tells it itself; for a run's own checkpoint the dataset's store is asked, where it is at hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from iris_pipeline.checkpoints.checkpoint import KnownSurroundings, LoadedModel
from iris_pipeline.confidence.judging import train_ids
from iris_pipeline.inference.strategies import bank, surrounded
from iris_pipeline.scans.references import stored_reference
from iris_pipeline.search.second_look import compared, deviation, surroundings_of
from iris_pipeline.tasks.pieces import largest_share
from iris_pipeline.tasks.task import Surroundings, TaskEmbedding
from preprocessing.runtime.progress import Bar
from preprocessing.store import Store

UNITLESS = "MR"
"""the modality whose grey values are matched: those of CT and PET mean something by themselves, and a tumour that is
made brighter makes the network surer of it, rightly or not (LOG.md)"""
MOST_CASES = 24
"""whose surroundings are measured"""
USUAL_SHARE = 80
"""per cent of the cases that trained are as far off as is usual, or less: a mean and a spread each"""


def bank_task(loaded: LoadedModel, dataset: str, store: Store | None, looks: int = 2) -> TaskEmbedding:
    """The bank's task; what the checkpoint does not tell the store says. looks: as `Showing.looks`.

    TaskError as `bank`.
    """
    task = bank(loaded, dataset)
    if store is not None and dataset not in (loaded.state.pieces or {}):
        found = stored_pieces(loaded, store)
        task = replace(task, largest_pieces=tuple(found.get(name, 0.0) for name in task.class_names))
    if looks == 1:
        return replace(task, surroundings=(), usual=(0.0, 0.0))
    if store is not None and dataset not in (loaded.state.surroundings or {}):
        return surrounded(task, stored_surroundings(loaded, store))
    return task


def stored_pieces(loaded: LoadedModel, store: Store) -> dict[str, float]:
    """Class -> its `TaskEmbedding.largest_pieces` over the cases that trained the model; not of classes none shows."""
    least: dict[str, float] = {}
    for case_id in train_ids(loaded, store):
        for name, found in store.entry(case_id).classes.items():
            if found.voxels:
                share = largest_share(store.labels(case_id, found.bbox), store.manifest.classes[name])
                least[name] = min(least.get(name, 1.0), share)
    return least


def stored_surroundings(loaded: LoadedModel, store: Store) -> KnownSurroundings | None:
    """What scans have round the classes of a dataset, over up to `MOST_CASES` of the cases that trained the model; None
    where grey values are not to be matched.

    Classes: means over the cases that show them. Usual: how far off those means the cases themselves are, of mean and
    spread each what `USUAL_SHARE` per cent of them stay below.
    """
    if store.plan.modality != UNITLESS:
        return None
    ids, names = train_ids(loaded, store), list(store.manifest.classes)
    chosen = [ids[round(i)] for i in np.linspace(0, len(ids) - 1, min(MOST_CASES, len(ids)))]
    bar = Bar(chosen, desc=f"Surroundings in {store.manifest.dataset}", leave=False)
    measured = [surroundings_of(stored_reference(store, case_id), names) for case_id in bar]
    known: dict[str, Surroundings] = {}
    for row, name in enumerate(names):
        shown = [each[row] for each in measured if each[row][1] > 0]
        if shown:
            mean, spread = np.mean(shown, axis=0).tolist()
            known[name] = mean, spread
    means = [known.get(name, (0.0, 0.0)) for name in names]
    off = [deviation(*both) for each in measured if (both := compared(means, each)) is not None]
    if not off:
        return None
    mean, spread = np.percentile(off, USUAL_SHARE, axis=0).tolist()
    return KnownSurroundings(known, (mean, spread))
