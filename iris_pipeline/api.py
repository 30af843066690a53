"""Iris on arrays, without files: labelled scans and a model in, masks out.

>>> loaded = load_model("results/my_run")                                      # doctest: +SKIP
>>> references = [LabelledScan(image, labels, spacing_mm=(3.0, 1.2, 1.2)), ...]  # doctest: +SKIP
>>> task = encode(loaded, references, {"liver": 1}, modality="MR")             # doctest: +SKIP
>>> mask = segment(loaded, task, Scan(query, spacing_mm=(2.5, 1.0, 1.0)))      # doctest: +SKIP

Arrays are [D,H,W] = (z,y,x), as are spacings; with an affine they may lie in any orientation, with a spacing they
are in RAS+ (indices grow toward Superior, Anterior, Right). `strategy_of` gives what makes a task for each query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iris_pipeline.checkpoint import LoadedModel, load_model
from iris_pipeline.pool import Embedded, EmbeddingCache
from iris_pipeline.predict import InferenceOptions, predict_case
from iris_pipeline.query_tasks import TaskForQuery, pooled_task, task_for_query
from iris_pipeline.references import (
    Draw,
    embed_draws,
    guess_modality,
    image_hash,
    made_up_spec,
    plan_references,
)
from iris_pipeline.retrieval import RetrievalSettings
from iris_pipeline.strategies import PreparedReference, plan_like
from iris_pipeline.task import TaskEmbedding, load_task, merge, save_task
from iris_pipeline.tuning import TuningSettings
from preprocessing.case import preprocess_case
from preprocessing.errors import RawDataError, ReferenceCaseError
from preprocessing.fingerprint import measure_volumes
from preprocessing.plan import Plan
from preprocessing.spec import Modality
from preprocessing.volume import Volume

__all__ = [
    "InferenceOptions",
    "LabelledScan",
    "RetrievalSettings",
    "Scan",
    "TuningSettings",
    "encode",
    "load_model",
    "load_task",
    "merge",
    "save_task",
    "segment",
    "strategy_of",
]


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
        """RawDataError if the array is not 3D, or if not exactly one of spacing and affine is given."""
        return _volume(np.asarray(self.image, dtype=np.float32), self.spacing_mm, self.affine)


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

    @property
    def volumes(self) -> tuple[Volume, Volume]:
        """Image and labels; RawDataError as in `Scan`."""
        return (
            _volume(np.asarray(self.image, dtype=np.float32), self.spacing_mm, self.affine),
            _volume(np.asarray(self.labels), self.spacing_mm, self.affine),
        )


def encode(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    *,
    strategy: str = "ensemble",
    modality: Modality | None = None,
    like: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    options: InferenceOptions | None = None,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskEmbedding:
    """References -> one task for all queries, by "one-shot" (the first of them), "ensemble" or "tuning".

    classes: name -> value in the labels. modality: "CT", "MR" or "PET"; None: CT if a value is below -200, else MR.
    like: a task whose grid is taken, so that the two can be merged. cache: keep it to embed each reference once
    over several calls. ReferenceCaseError, LabelValueError or GridMismatchError if a reference cannot be used.
    """
    options = options or InferenceOptions()
    references = references[:1] if strategy == "one-shot" else references
    plan = _plan(loaded, references, classes, modality, like)
    pool, prepared = _embed(loaded, references, classes, plan, cache, options, with_images=False)
    return pooled_task(
        strategy,
        loaded,
        pool,
        list(classes),
        options,
        prepare=prepared.__getitem__,
        tuning=tuning,
        progress=progress,
    )


def strategy_of(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    strategy: str,
    *,
    modality: Modality | None = None,
    start: TaskEmbedding | None = None,
    cache: EmbeddingCache | None = None,
    options: InferenceOptions | None = None,
    retrieval: RetrievalSettings | None = None,
    tuning: TuningSettings | None = None,
    progress: bool = False,
) -> TaskForQuery:
    """References -> what makes the task of each query, by any strategy; hand it to `segment` in a task's place.

    start: makes the rough segmentation of "object-retrieval" (default: the references' ensemble), and its grid is
    the references'. The rest as in `encode`.
    """
    options = options or InferenceOptions()
    references = references[:1] if strategy == "one-shot" else references
    plan = _plan(loaded, references, classes, modality, start)
    pool, prepared = _embed(loaded, references, classes, plan, cache, options, strategy == "image-retrieval")
    return task_for_query(
        strategy,
        loaded,
        pool,
        list(classes),
        options,
        prepare=prepared.__getitem__,
        start=start,
        retrieval=retrieval,
        tuning=tuning,
        progress=progress,
    )


def segment(
    loaded: LoadedModel,
    task: TaskEmbedding | TaskForQuery,
    scan: Scan,
    options: InferenceOptions | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Label map uint8 [D,H,W] on the scan's own grid, of the task's `class_values`; see `predict_case`.

    task: of `encode`, `load_task`, `strategies.bank`, or what `strategy_of` gave. ReferenceCaseError if the scan is
    one of the task's references.
    """
    image = scan.volume
    made = task if isinstance(task, TaskEmbedding) else task(image)
    return predict_case(loaded, made, image, options, progress)


def _plan(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    modality: Modality | None,
    like: TaskEmbedding | None,
) -> Plan:
    """The grid and intensities: those of `like`, else what the references call for."""
    if not references:
        raise ReferenceCaseError("A task needs at least one labelled reference; got none.")
    spec = made_up_spec(classes, modality or "MR")
    prints = tuple(
        measure_volumes(*scan.volumes, spec, f"Reference {i + 1}", f"The label map of reference {i + 1}")
        for i, scan in enumerate(references)
    )
    if like is not None:
        return plan_like(like)
    if modality is None:
        spec = spec.model_copy(update={"modality": guess_modality(prints)})
    return plan_references(loaded, spec, prints)


def _embed(
    loaded: LoadedModel,
    references: Sequence[LabelledScan],
    classes: Mapping[str, int],
    plan: Plan,
    cache: EmbeddingCache | None,
    options: InferenceOptions,
    with_images: bool,
) -> tuple[list[Embedded], dict[str, PreparedReference]]:
    prepared = {str(i + 1): _prepare(scan, str(i + 1), classes, plan) for i, scan in enumerate(references)}
    pool = embed_draws(
        loaded,
        [Draw(name, tuple(classes)) for name in prepared],
        prepared.__getitem__,
        plan,
        cache=cache,
        with_images=with_images,
        device=options.device,
        autocast=options.autocast,
    )
    return pool, prepared


def _prepare(scan: LabelledScan, name: str, classes: Mapping[str, int], plan: Plan) -> PreparedReference:
    image, labels = scan.volumes
    case = preprocess_case(image, plan.spacing_mm, plan.normalisation, labels, plan.intensity_offset)
    assert case.labels is not None
    return PreparedReference(name, case.image, case.labels, classes, scan.subject or name, image_hash(image))


def _volume(
    array: np.ndarray, spacing_mm: tuple[float, float, float] | None, affine: np.ndarray | None
) -> Volume:
    if array.ndim != 3 or (spacing_mm is None) == (affine is None):
        raise RawDataError(
            "A scan is an array [D,H,W] with either spacing_mm (z,y,x) or an affine; got shape "
            f"{list(array.shape)}, spacing {spacing_mm}, {'no' if affine is None else 'an'} affine."
        )
    if spacing_mm is not None:
        affine = np.diag([*spacing_mm[::-1], 1.0])
    assert affine is not None
    return Volume(array, np.asarray(affine, dtype=float))
