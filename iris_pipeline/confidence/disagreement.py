"""Signs of how good a mask is, without its truth: the scan is segmented again in other ways, and the answers compared.

Arrays are [D,H,W] = (z,y,x). Compared is on the task's grid and only round what was found, from windows that do not
overlap: once with windows that lie elsewhere, once for each of up to three references, and once with the scan and its
own mask as the reference. Mirrored scans are not used: the networks tell left from right and were never shown a
mirrored body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.retrieval import class_vector
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, one_shot, plan_like
from iris_pipeline.measures.metrics import label_overlaps
from iris_pipeline.scans.scan import ScanResult
from iris_pipeline.search.grey_weights import weighed_like
from iris_pipeline.search.second_look import AS_IT_IS
from iris_pipeline.tasks.task import TaskEmbedding, same_footing
from preprocessing.errors import ReferenceCaseError, TaskError
from preprocessing.geometry import bounding_box, label_counts, voxel_ml
from preprocessing.grid_types import Region
from preprocessing.volume import Volume

MOST_REFERENCES = 3
MARGIN = 4  # a window's edge by this is looked at on each side of what was found
WitnessesOfTask = Callable[[TaskEmbedding], Sequence[TaskEmbedding]]


def gather_signs(
    loaded: LoadedModel,
    tasks: Sequence[TaskEmbedding],
    image: Volume,
    result: ScanResult,
    options: InferenceOptions,
    witnesses: WitnessesOfTask = lambda _: (),
    volumes_ml: Mapping[str, float] | None = None,
) -> dict[str, dict[str, float]]:
    """class -> sign -> value (see `confidence.SIGNS`) for the result of `segment_scan` with these tasks.

    result: made with its certainty. witnesses: a task -> tasks of single references on its grid and intensities, of
    which up to three are used. volumes_ml: what the references' volumes are. Signs that cannot be told, and those
    of an empty mask, are left out.
    """
    classes = {name: value for task in tasks for name, value in task.classes.items()}
    counts = label_counts(result.labels)
    found_ml = {name: float(counts[value]) * voxel_ml(image.affine) for name, value in classes.items()}
    noted = [result.certainty, _volume_ratios(found_ml, volumes_ml or {})]
    signs: dict[str, dict[str, float]] = {name: {} for name in classes}
    for sign, values in zip(("certainty", "volume"), noted, strict=True):
        _note(signs, sign, values)
    for task in tasks:
        for sign, values in _compared(loaded, task, image, result, options, witnesses).items():
            _note(signs, sign, values)
    return {name: values if found_ml[name] else {} for name, values in signs.items()}


def _compared(
    loaded: LoadedModel,
    task: TaskEmbedding,
    image: Volume,
    result: ScanResult,
    options: InferenceOptions,
    witnesses: WitnessesOfTask,
) -> dict[str, dict[str, float]]:
    """sign -> class -> value of what further passes tell; nothing where the task found nothing."""
    prepared = task.prepare(image, Volume(result.labels, image.affine))
    assert prepared.labels is not None
    found = bounding_box(np.isin(prepared.labels, task.class_values))
    if found is None:
        return {}
    box = _grown(found, prepared.image.shape, task.patch_size)
    matching = result.matchings.get(task.class_names[0], AS_IT_IS)  # of all of its classes
    scan, mask = matching(prepared.image[box]), prepared.labels[box]
    # Round what was found already: no look at the whole is needed.
    rough = replace(options, overlap=0.0, one_pass=True)
    moved = label_volume(loaded.model, scan, task, replace(rough, moved=True))
    signs = {"windows": _dice(mask, moved, task.classes)}
    answers = []
    for witness in witnesses(task)[:MOST_REFERENCES]:
        shown = _as(witness, task)
        if shown is not None:
            answers.append((shown.classes, label_volume(loaded.model, scan, shown, rough)))
    pairs = [
        _dice(labels, others, {name: value for name, value in known.items() if name in theirs})
        for (known, labels), (theirs, others) in combinations(answers, 2)
    ]
    signs["references"] = _mean(pairs)
    reference = PreparedReference("query", scan, mask, task.classes)
    try:
        own = one_shot(
            loaded.model,
            reference,
            plan_like(task),
            model_hash=task.model_hash,
            options=options,
        )
    except ReferenceCaseError:  # too small to leave a voxel on the task's grid
        return signs
    own = weighed_like(own, reference, task)
    signs["likeness"] = {
        name: float(class_vector(own, name) @ class_vector(task, name)) for name in own.class_names
    }
    signs["cycle"] = _dice(mask, label_volume(loaded.model, scan, own, rough), own.classes)
    return signs


def _as(witness: TaskEmbedding, task: TaskEmbedding) -> TaskEmbedding | None:
    """A witness with the task's classes and values; None where it shows none. TaskError if its grid is another."""
    if not same_footing(witness, task):
        raise TaskError(
            "Witnesses of a task share its model, spacing, patch size and intensities; these differ: encode them "
            "like the task."
        )
    shown = [name for name in task.class_names if name in witness.class_names]
    if not shown:
        return None
    return replace(witness.select(shown), class_values=tuple(task.classes[name] for name in shown))


def _grown(found: Region, shape: Sequence[int], window: Sequence[int]) -> Region:
    """The box with a margin, at least as large as a window where the volume is."""
    grown = []
    for part, n, edge in zip(found, shape, window, strict=True):
        low, high = part.start - edge // MARGIN, part.stop + edge // MARGIN
        lacking = max(0, edge - (high - low))
        low, high = low - lacking // 2, high + lacking - lacking // 2
        low, high = (0, high - low) if low < 0 else (low, high)
        low, high = (max(0, low - high + n), n) if high > n else (low, high)
        grown.append(slice(low, high))
    return grown[0], grown[1], grown[2]


def _volume_ratios(found_ml: Mapping[str, float], expected_ml: Mapping[str, float]) -> dict[str, float]:
    """The smaller of mask's and references' volume by the larger."""
    known = {name: (volume, expected_ml[name]) for name, volume in found_ml.items() if expected_ml.get(name)}
    return {name: min(pair) / max(pair) for name, pair in known.items()}


def _note(signs: dict[str, dict[str, float]], sign: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isnan(value):
            signs[name][sign] = value


def _dice(first: np.ndarray, second: np.ndarray, classes: Mapping[str, int]) -> dict[str, float]:
    return {name: overlap.dice for name, overlap in label_overlaps(first, second, classes).items()}


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per class over what is known of it."""
    names = dict.fromkeys(name for each in found for name in each)
    known = {
        name: [each[name] for each in found if not math.isnan(each.get(name, math.nan))] for name in names
    }
    return {name: float(np.mean(values)) for name, values in known.items() if values}
