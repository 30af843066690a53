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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import numpy as np

from iris_pipeline.bank_tasks import bank_task
from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.native import FULL
from iris_pipeline.pool import EmbeddingCache
from iris_pipeline.pose import SEARCH
from iris_pipeline.predict import modality_warning
from iris_pipeline.query_tasks import ONE_TASK, PER_QUERY, TaskForQuery, encode_files, file_tasks
from iris_pipeline.references import ReferenceFiles
from iris_pipeline.retrieval import RetrievalSettings
from iris_pipeline.scan import Wanted, segment_scan, unite
from iris_pipeline.shipped import load_model
from iris_pipeline.showing import Showing
from iris_pipeline.sliding_window import InferenceOptions
from iris_pipeline.task import TaskEmbedding, merge
from iris_pipeline.task_file import load_task, save_task
from iris_pipeline.tuning import TuningSettings
from preprocessing.adapters import Case
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError
from preprocessing.findings import check_field, check_grey_values, one_slice
from preprocessing.source import Source
from preprocessing.spec import Modality
from preprocessing.store import Store
from preprocessing.volume import SINGULAR, Volume, as_image

__all__ = [
    "InferenceOptions",
    "LabelledScan",
    "RetrievalSettings",
    "Scan",
    "Segmentation",
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

Tasks = TaskEmbedding | TaskForQuery | Sequence[TaskEmbedding | TaskForQuery]
"""One task or several at once: of `encode`, `load_task` or `bank`, or what makes one, of `strategy_of`."""


@dataclass(frozen=True)
class Scan:
    """A 3D image [D,H,W] and where it lies: spacing_mm (z,y,x) of an array in RAS+, or affine, 4x4, which maps
    (x,y,z,1) to RAS+ mm as nibabel's does.
    """

    image: np.ndarray
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None

    @property
    def volume(self) -> Volume:
        """RawDataError if the array is not 3D or not of real numbers, or if not exactly one of spacing and affine is
        given, or one that places nothing.
        """
        return as_image(_volume(np.asarray(self.image), self.spacing_mm, self.affine))


@dataclass(frozen=True)
class LabelledScan:
    """A reference: image and whole-number labels [D,H,W] on one grid, see `Scan`. subject: whose scan it is, where
    several are of one person.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    subject: str = ""

    def sources(self, name: str) -> tuple[Source, Source]:
        """Image and labels as the rest of the pipeline reads them; RawDataError as in `Scan`."""
        image = _volume(np.asarray(self.image), self.spacing_mm, self.affine)
        labels = _volume(np.asarray(self.labels), self.spacing_mm, self.affine)
        return (
            _Array(f"the image of reference {name}", image),
            _Array(f"the label map of reference {name}", labels),
        )


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
    """Class -> array, made each time it is asked for."""

    names: tuple[str, ...]
    unpack: Callable[[str], np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return self.unpack(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class _Array(Source):
    """An array where others have a file."""

    said: str
    volume: Volume

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def name(self) -> str:
        return self.said

    def read(self) -> Volume:
        return self.volume

    def __str__(self) -> str:
        return self.said


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
    them as they are. tones:
    "auto" shows scans through a curve that makes bright what is as grey as the references' structures where the model
    reads these badly and that mends it (`toning.py`), "always" and "never".
    ReferenceCaseError names a reference that cannot be used, and why; PredictionError an unknown strategy, pose, scale,
    weight, number of looks or toning.
    """
    if strategy not in ONE_TASK:
        raise PredictionError(
            f"encode makes one task for all queries, by {', '.join(ONE_TASK)}; got {strategy!r}: ask strategy_of for "
            f"{' and '.join(PER_QUERY)}, which make one for each query, and bank for the memory of a model."
        )
    return encode_files(
        loaded,
        _files(references, classes),
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
    the references'. The rest as in `encode`.
    """
    return file_tasks(
        strategy,
        loaded,
        _files(references, classes),
        options or InferenceOptions(),
        seed=seed,
        modality=modality,
        start=start,
        cache=cache,
        showing=Showing.of(pose, scale, grey, looks, tones),
        retrieval=retrieval,
        tuning=tuning,
        progress=progress,
    )[0]


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
    if not isinstance(scan, Scan):
        raise RawDataError(
            f"A scan is an array and where it lies; got {type(scan).__name__} alone: wrap it, Scan(array, "
            "spacing_mm=(z, y, x)) or Scan(array, affine=affine)."
        )
    image = scan.volume
    check_grey_values(image.array, "The scan")
    check_field(image.shape, image.spacing_mm, "the scan")
    given = [tasks] if isinstance(tasks, TaskEmbedding) or callable(tasks) else list(tasks)
    united = unite([each if isinstance(each, TaskEmbedding) else each(image) for each in given])
    for warning in dict.fromkeys(modality_warning(each, image) for each in united):
        if warning:
            warnings.warn(f"The scan: {warning}", stacklevel=3)
    if flat := one_slice(image.shape):
        warnings.warn(f"The scan: {flat}: doubt the result.", stacklevel=3)
    found = segment_scan(loaded, united, image, options, wanted, progress)
    return Segmentation(
        found.labels,
        {name: value for each in united for name, value in each.classes.items()},
        _Unpacked(tuple(found.masks), lambda name: found.on_own_grid(name, found.masks[name]) > 0),
        _Unpacked(
            tuple(found.probabilities),
            lambda name: found.on_own_grid(name, found.probabilities[name]) / np.float32(FULL),
        ),
    )


def _files(references: Sequence[LabelledScan], classes: Mapping[str, int]) -> ReferenceFiles:
    """The references as cases, numbered from 1."""
    if not references:
        raise ReferenceCaseError("A task needs at least one labelled reference; got none.")
    if not classes:
        raise ReferenceCaseError('A task needs at least one class, as in {"liver": 1}; got none.')
    strange = [
        value for value in classes.values() if isinstance(value, bool) or not isinstance(value, Integral)
    ]
    if strange:
        raise ReferenceCaseError(
            f'`classes` gives each name a whole number, its value in the labels, as in {{"liver": 1}}; got '
            f"{dict(classes)}: {strange[0]!r} is none."
        )
    cases = []
    for number, scan in enumerate(references, 1):
        image, labels = scan.sources(str(number))
        # The modality is not known yet: `reference_spec` is told or guesses it.
        cases.append(Case(str(number), scan.subject or str(number), image, labels, "MR"))
    return ReferenceFiles(tuple(cases), {name: int(value) for name, value in classes.items()})


def _volume(
    array: np.ndarray, spacing_mm: tuple[float, float, float] | None, affine: np.ndarray | None
) -> Volume:
    if array.ndim != 3 or 0 in array.shape or (spacing_mm is None) == (affine is None):
        raise RawDataError(
            "A scan is an array [D,H,W] of voxels with either spacing_mm (z,y,x) or an affine; got shape "
            f"{list(array.shape)}, spacing {spacing_mm}, {'no' if affine is None else 'an'} affine."
        )
    if array.dtype.kind not in "biuf":
        raise RawDataError(
            f"A voxel holds one real number, but the array given holds {array.dtype}: give one channel, or the "
            "magnitude."
        )
    if spacing_mm is not None:
        edges = _numbers(spacing_mm)
        if edges.shape != (3,) or not (np.isfinite(edges) & (edges > 0)).all():
            raise RawDataError(f"spacing_mm is three lengths above 0 (z,y,x); got {spacing_mm!r}.")
        affine = np.diag([*edges[::-1], 1.0])
    affine = _numbers(affine)
    if affine.shape != (4, 4):
        raise RawDataError(f"An affine is 4 x 4, (x,y,z,1) to RAS+ mm; got shape {list(affine.shape)}.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SINGULAR:
        raise RawDataError(
            f"An affine gives each voxel a place of its own; got {affine[:3].tolist()}, which does not: correct it."
        )
    return Volume(array, affine)


def _numbers(given: object) -> np.ndarray:
    """As float64; an array of no numbers (shape [0]) where they are none, as texts are."""
    try:
        found = np.asarray(given)
        return found.astype(float) if found.dtype.kind in "iuf" else np.empty(0)
    except (TypeError, ValueError):  # rows of several lengths
        return np.empty(0)
