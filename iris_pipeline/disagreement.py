"""Signs of how good a mask is, without its truth: the scan is segmented again in other ways, and the answers compared.

Arrays are [D,H,W] = (z,y,x). The further passes use windows that do not overlap, an eighth of the usual ones: two
with windows that lie elsewhere, one for each of up to three references, and one with the scan and its own mask as the
reference. Mirrored scans are not used: the networks tell left from right and were never shown a mirrored body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.metrics import label_overlaps
from iris_pipeline.retrieval import class_vector
from iris_pipeline.scan import ScanResult, segment_scan
from iris_pipeline.sliding_window import InferenceOptions, Placement
from iris_pipeline.strategies import PreparedReference, one_shot, plan_like
from iris_pipeline.task import TaskEmbedding
from preprocessing.case import preprocess_case
from preprocessing.errors import ReferenceCaseError
from preprocessing.volume import Volume

MOST_REFERENCES = 3
PLACEMENTS: tuple[Placement, ...] = ("low", "high")


def gather_signs(
    loaded: LoadedModel,
    tasks: Sequence[TaskEmbedding],
    image: Volume,
    result: ScanResult,
    options: InferenceOptions,
    members: Sequence[TaskEmbedding] = (),
    volumes_ml: Mapping[str, float] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """class -> sign -> value (see `confidence.SIGNS`) for the result of `segment_scan` with these tasks.

    result: made with its certainty. members: tasks of single references, of which up to three are used. volumes_ml:
    what the references' volumes are. Signs that cannot be told, and those of an empty mask, are left out.
    """
    classes = {name: value for task in tasks for name, value in task.classes.items()}
    rough = replace(options, overlap=0.0)
    signs: dict[str, dict[str, float]] = {name: {} for name in classes}

    def note(sign: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isnan(value):
                signs[name][sign] = value

    moved = [
        segment_scan(loaded, tasks, image, replace(rough, placement=placement), progress=progress).labels
        for placement in PLACEMENTS
    ]
    note("windows", _mean([_dice(result.labels, labels, classes) for labels in moved]))
    note("certainty", result.certainty)
    note("references", _between_references(loaded, members, image, rough, classes, progress))
    own, likeness = _own_task(loaded, tasks, image, result.labels, options)
    note("likeness", likeness)
    if own:
        again = segment_scan(loaded, own, image, rough, progress=progress).labels
        shown = {name: classes[name] for task in own for name in task.class_names}
        note("cycle", _dice(result.labels, again, shown))
    note("volume", _volume_ratios(result.labels, image, classes, volumes_ml or {}))
    empty = set(classes) - set(_present(result.labels, classes))
    return {name: {} if name in empty else values for name, values in signs.items()}


def _between_references(
    loaded: LoadedModel,
    members: Sequence[TaskEmbedding],
    image: Volume,
    options: InferenceOptions,
    classes: Mapping[str, int],
    progress: bool,
) -> dict[str, float]:
    """Mean Dice over the pairs of references that show a class."""
    found = []
    for member in members[:MOST_REFERENCES]:
        known = [name for name in member.class_names if name in classes]
        if known:
            task = replace(member.select(known), class_values=tuple(classes[name] for name in known))
            labels = segment_scan(loaded, [task], image, options, progress=progress).labels
            found.append((set(known), labels))
    pairs = []
    for (first, labels), (second, others) in combinations(found, 2):
        both = {name: value for name, value in classes.items() if name in first & second}
        pairs.append(_dice(labels, others, both))
    return _mean(pairs)


def _own_task(
    loaded: LoadedModel,
    tasks: Sequence[TaskEmbedding],
    image: Volume,
    labels: np.ndarray,
    options: InferenceOptions,
) -> tuple[list[TaskEmbedding], dict[str, float]]:
    """What the scan shows with its own mask as the reference, and how like it is to the tasks, class by class."""
    own, likeness = [], {}
    for task in tasks:
        prepared = preprocess_case(
            image, task.spacing_mm, task.normalisation, Volume(labels, image.affine), task.intensity_offset
        )
        assert prepared.labels is not None
        reference = PreparedReference("query", prepared.image, prepared.labels, task.classes)
        try:
            shown = one_shot(
                loaded.model,
                reference,
                plan_like(task),
                model_hash=task.model_hash,
                device=options.device,
                autocast=options.autocast,
            )
        except ReferenceCaseError:  # none of its classes was found
            continue
        own.append(shown)
        for name in shown.class_names:
            likeness[name] = float(class_vector(shown, name) @ class_vector(task, name))
    return own, likeness


def _volume_ratios(
    labels: np.ndarray, image: Volume, classes: Mapping[str, int], expected_ml: Mapping[str, float]
) -> dict[str, float]:
    """The smaller of mask's and references' volume by the larger."""
    counts = np.bincount(labels.ravel(), minlength=256)
    voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    ratios = {}
    for name, value in classes.items():
        found, expected = counts[value] * voxel_ml, expected_ml.get(name, 0.0)
        if expected > 0:
            ratios[name] = min(found, expected) / max(found, expected)
    return ratios


def _present(labels: np.ndarray, classes: Mapping[str, int]) -> list[str]:
    counts = np.bincount(labels.ravel(), minlength=256)
    return [name for name, value in classes.items() if counts[value]]


def _dice(first: np.ndarray, second: np.ndarray, classes: Mapping[str, int]) -> dict[str, float]:
    return {name: overlap.dice for name, overlap in label_overlaps(first, second, classes).items()}


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per class over what is known of it."""
    names = dict.fromkeys(name for each in found for name in each)
    known = {
        name: [each[name] for each in found if not math.isnan(each.get(name, math.nan))] for name in names
    }
    return {name: float(np.mean(values)) for name, values in known.items() if values}
