"""Iris on arrays, without files: labelled scans and a model in, masks out.

>>> loaded = load_model("results/my_run")  # or load_model("iris_small_6")      # doctest: +SKIP
>>> references = [LabelledScan(image, labels, spacing_mm=(3.0, 1.2, 1.2)), ...]  # doctest: +SKIP
>>> task = encode(loaded, references, {"liver": 1}, modality="MR")             # doctest: +SKIP
>>> mask = segment(loaded, task, Scan(query, spacing_mm=(2.5, 1.0, 1.0)))      # doctest: +SKIP

Arrays are [D,H,W] = (z,y,x), as are spacings; with an affine they may lie in any orientation, with a spacing they
are in RAS+ (indices grow toward Superior, Anterior, Right). Of a nibabel image it is its array transposed,
`.T`, with its affine. `strategy_of` gives what makes a task for each query, `bank` the task of a dataset that the model
was trained on; `segment_all` gives each class's mask and probabilities too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.checkpoints.shipped import load_model
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.retrieval import RetrievalSettings
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.prediction.arrays import (
    LabelledScan,
    Scan,
    Tasks,
    check_kind,
    check_seed,
    reference_files,
    scan_volume,
    settle_options,
    tasks_of,
)
from iris_pipeline.prediction.bank_tasks import bank_task
from iris_pipeline.prediction.predict import modality_warning
from iris_pipeline.prediction.query_tasks import ONE_TASK, PER_QUERY, TaskForQuery, encode_files, file_tasks
from iris_pipeline.scans.native import FULL, PackedVolume
from iris_pipeline.scans.scan import Wanted, segment_scan, unite
from iris_pipeline.search.pose import SEARCH
from iris_pipeline.search.showing import Showing
from iris_pipeline.tasks.task import TaskEmbedding, merge
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.errors import PredictionError
from preprocessing.findings import check_field, check_grey_values, one_slice
from preprocessing.orientation import Reorientation
from preprocessing.spec import Modality
from preprocessing.store import Store

__all__ = [
    "EmbeddingCache",
    "InferenceOptions",
    "LabelledScan",
    "LoadedModel",
    "RetrievalSettings",
    "Scan",
    "Segmentation",
    "TaskEmbedding",
    "TuningSettings",
    "bank",
    "encode",
    "load_model",
    "load_task",
    "merge",
    "save_task",
    "segment",
    "segment_all",
    "strategy_of",
]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `segment_all` found, all arrays [D,H,W] on the scan's own grid.

    labels: uint8, the values of `classes`, 0 where no class is above 0.5. masks: by class, bool, true where it is
    above 0.5; unlike in the label map they may overlap. probabilities: by class, float32 in steps of 1/255. Both are
    kept packed, and unpacked class by class as they are asked for: thirty classes never stand in memory at once.
    """

    labels: np.ndarray
    classes: dict[str, int]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Unpacked(Mapping[str, np.ndarray]):
    """Class -> mask or probabilities on the scan's own grid, made each time they are asked for. Data alone, so that
    a process can hand it to another.
    """

    packed: Mapping[str, PackedVolume]
    turns: Mapping[str, Reorientation]
    as_mask: bool

    def __getitem__(self, name: str) -> np.ndarray:
        held = self.turns[name].undo(self.packed[name].unpack())
        return held > 0 if self.as_mask else held / np.float32(FULL)

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)


def encode(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    *,
    strategy: str = "ensemble",
    seed: int = 0,
    modality: Modality | None = None,
    like: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    options: InferenceOptions | None = None,
    pose: str = SEARCH,
    scale: float | str = SEARCH,
    grey: float | str = SEARCH,
    looks: int = 2,
    tones: str = SEARCH,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """References -> one task for all queries, by "one-shot" (one drawn by `seed`), "ensemble", "tuning", "refining"
    or "best", which tries the last three on references left out in turn and takes the winner.

    classes: name -> value in the labels. modality: "CT", "MR" or "PET"; None: CT if a value is below -200, else MR.
    like: a task whose grid is taken, so that the two can be merged. cache: keep it to embed each reference once
    over several calls. pose, scale: "auto" searches for the pose and the multiple of the planned spacing at which the
    model reads the references best (`showing.py`), one to several minutes on a CPU, twice that where other tones are
    tried; "upright" takes them in RAS+, "LSA" and the like in that one, 1 at the planned spacing. grey: how much the
    references' grey values count beside the network (`grey_weights.py`), "auto" as the references tell, 0 not at all.
    looks: 2 to match scans' grey values to the references' where the model is surer then (`second_look.py`), 1 to take
    them as they are. tones: "auto" shows scans through a curve that makes bright what is as grey as the references'
    structures where the model reads these badly and that mends it (`toning.py`), which is looked at while pose or scale
    are searched for, and not where both are given; "always" and "never".
    options: by default on the device that the model lies on. A UserWarning names classes that no reference shows: the
    task is without them. ReferenceCaseError names a reference that cannot be used, and why; PredictionError an unknown
    strategy, pose, scale, weight, number of looks or toning; ModelError options for another device than the model's.
    """
    if strategy not in ONE_TASK:
        raise PredictionError(
            f"encode makes one task for all queries, by {', '.join(ONE_TASK)}; got {strategy!r}: ask strategy_of for "
            f"{' and '.join(PER_QUERY)}, which make one for each query, and bank for the memory of a model."
        )
    options = _check(loaded, options, seed, tuning, cache)
    check_kind("like", like, TaskEmbedding)
    task = encode_files(
        loaded,
        reference_files(references, classes),
        options,
        strategy=strategy,
        seed=seed,
        modality=modality,
        like=like,
        cache=cache,
        showing=Showing.of(pose, scale, grey, looks, tones),
        tuning=tuning,
        progress=progress,
    )
    _warn_absent(classes, task.class_names)
    return task


def strategy_of(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    strategy: str,
    *,
    seed: int = 0,
    modality: Modality | None = None,
    start: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    options: InferenceOptions | None = None,
    pose: str = SEARCH,
    scale: float | str = SEARCH,
    grey: float | str = SEARCH,
    looks: int = 2,
    tones: str = SEARCH,
    retrieval: RetrievalSettings | None = None,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskForQuery:
    """References -> what makes the task of each query, by any strategy; hand it to `segment` in a task's place.

    start: makes the rough segmentation of "object-retrieval" (default: the references' ensemble), and its grid is
    the references'. The rest as in `encode`. The result can be sent to another process; of retrieval, with the model.
    """
    options = _check(loaded, options, seed, tuning, cache)
    check_kind("start", start, TaskEmbedding)
    check_kind("retrieval", retrieval, RetrievalSettings)
    task_of, pool = file_tasks(
        strategy,
        loaded,
        reference_files(references, classes),
        options,
        seed=seed,
        modality=modality,
        start=start,
        cache=cache,
        showing=Showing.of(pose, scale, grey, looks, tones),
        retrieval=retrieval,
        tuning=tuning,
        progress=progress,
    )
    _warn_absent(classes, (name for each in pool for name in each.task.class_names))
    return task_of


def bank(
    loaded: LoadedModel, dataset: str, *, store: Path | str | None = None, looks: int = 2
) -> TaskEmbedding:
    """The task of a dataset that the model was trained on, from its memory: no reference is needed.

    store: the folder of the dataset's store (preprocessed/NAME), which tells what an exported model tells itself and a
    run's own checkpoint does not: which classes are one piece, and what scans have round them. looks: as in `encode`,
    here only at scans that are unlike most that trained it. TaskError if the model has no memory of the dataset,
    StoreError for a folder that is no store, PredictionError for another number of looks.
    """
    stored = None if store is None else Store.open(Path(store))
    return bank_task(loaded, dataset, stored, Showing.of(SEARCH, SEARCH, looks=looks).looks)


def segment(
    loaded: LoadedModel,
    task: Tasks,
    scan: Scan,
    options: InferenceOptions | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Label map uint8 [D,H,W] on the scan's own grid: the label map of `segment_all`, its errors and its warning."""
    return _segment(loaded, task, scan, options, Wanted(), progress).labels


def segment_all(
    loaded: LoadedModel,
    tasks: Tasks,
    scan: Scan,
    options: InferenceOptions | None = None,
    *,
    masks: bool = False,
    probabilities: bool = False,
    progress: bool = False,
) -> Segmentation:
    """The label map of one task or of several at once, with masks and probabilities of each class where asked for.

    Classes have the tasks' own values where these differ, else 1, 2, 3, ... in their order (`scan.unite`); a voxel
    takes the most probable class of all. RawDataError for a scan that cannot be used (also values that are not finite
    or all one, a field of view that no body has), ReferenceCaseError if it is one of the tasks' references, TaskError
    for tasks that are of another model or do not go together, or if there is none. A UserWarning where the scan's grey
    values do not look like a task's modality, or where it is a single slice.
    """
    return _segment(loaded, tasks, scan, options, Wanted(masks, probabilities), progress)


def _segment(
    loaded: LoadedModel,
    tasks: Tasks,
    scan: Scan,
    options: InferenceOptions | None,
    wanted: Wanted,
    progress: bool,
) -> Segmentation:
    options = settle_options(loaded, options)
    image = scan_volume(scan)
    check_grey_values(image.array, "The scan")
    check_field(image.shape, image.spacing_mm, "the scan")
    united = unite(tasks_of(tasks, image))
    for warning in dict.fromkeys(modality_warning(each, image) for each in united):
        if warning:
            warnings.warn(f"The scan: {warning}", stacklevel=3)
    if flat := one_slice(image.shape):
        warnings.warn(f"The scan: {flat}: doubt the result.", stacklevel=3)
    found = segment_scan(loaded, united, image, options, wanted, progress)
    return Segmentation(
        found.labels,
        {name: value for each in united for name, value in each.classes.items()},
        _Unpacked(found.masks, found.turns, as_mask=True),
        _Unpacked(found.probabilities, found.turns, as_mask=False),
    )


def _check(
    loaded: LoadedModel,
    options: InferenceOptions | None,
    seed: int,
    tuning: TuningSettings | None,
    cache: EmbeddingCache | None,
) -> InferenceOptions:
    """What `encode` and `strategy_of` are given alike; the options, on the model's device by default."""
    check_seed(seed)
    check_kind("tuning", tuning, TuningSettings)
    check_kind("cache", cache, EmbeddingCache)
    return settle_options(loaded, options)


def _warn_absent(classes: Mapping[str, int], shown: Iterable[str]) -> None:
    """A class that no reference shows is not looked for, and nobody would know why it is never found."""
    known = set(shown)
    if absent := [name for name in classes if name not in known]:
        warnings.warn(f"No reference shows {', '.join(absent)}; the task is without.", stacklevel=3)
