"""Arrays where others have files: scans and references as a caller of `api.py` gives them, checked before all else.

Arrays are [D,H,W] = (z,y,x), as are spacings; affines map (x,y,z,1) to RAS+ mm, as nibabel's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from iris_pipeline.checkpoints.checkpoint import LoadedModel, usable_device
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.query_tasks import TaskForQuery
from iris_pipeline.scans.references import ReferenceFiles
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.adapters import Case
from preprocessing.errors import ModelError, PredictionError, RawDataError, ReferenceCaseError, TaskError
from preprocessing.sources.source import Source
from preprocessing.volume import SINGULAR, Volume, as_image

Tasks = TaskEmbedding | TaskForQuery | Sequence[TaskEmbedding | TaskForQuery]
"""One task or several at once: of `encode`, `load_task` or `bank`, or what makes one, of `strategy_of`."""
LAST_ROW = (0.0, 0.0, 0.0, 1.0)
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Scan:
    """A 3D image [D,H,W] and where it lies: spacing_mm (z,y,x) of an array in RAS+, or affine, 4x4, which maps
    (x,y,z,1) to RAS+ mm as nibabel's does. A nibabel image is Scan(file.get_fdata().T, affine=file.affine). A
    SimpleITK image is its array and its geometry, with the signs of x and y changed:

        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        affine[:2] *= -1
        scan = Scan(sitk.GetArrayFromImage(image), affine=affine)
    """

    image: np.ndarray
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None

    @property
    def volume(self) -> Volume:
        """RawDataError if the array is not 3D or not of real numbers, or if not exactly one of spacing and affine is
        given, or one that places nothing.
        """
        return as_image(_volume(self.image, self.spacing_mm, self.affine))


@dataclass(frozen=True, eq=False)
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
        image = _volume(self.image, self.spacing_mm, self.affine)
        labels = _volume(self.labels, self.spacing_mm, self.affine)
        return (
            _Array(f"the image of reference {name}", image),
            _Array(f"the label map of reference {name}", labels),
        )


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


def reference_files(references: Sequence[LabelledScan], classes: Mapping[str, int]) -> ReferenceFiles:
    """The references as cases, numbered from 1. ReferenceCaseError for what are no references or no classes."""
    if isinstance(references, LabelledScan):
        raise ReferenceCaseError("References are a list of LabelledScan; got one alone: give [reference].")
    given = list(references)
    if not given:
        raise ReferenceCaseError("A task needs at least one labelled reference; got none.")
    _check_classes(classes)
    cases = []
    for number, scan in enumerate(given, 1):
        if not isinstance(scan, LabelledScan):
            raise ReferenceCaseError(
                f"A reference is LabelledScan(image, labels, ...); reference {number} is {_said(scan)}: wrap its image "
                "and its labels."
            )
        if not isinstance(scan.subject, str):
            raise ReferenceCaseError(
                f"`subject` is a text that tells whose scan it is; of reference {number} it is {scan.subject!r}: give "
                f'"{scan.subject}".'
            )
        image, labels = scan.sources(str(number))
        # The modality is not known yet: `reference_spec` is told or guesses it.
        cases.append(Case(str(number), scan.subject or str(number), image, labels, "MR"))
    return ReferenceFiles(tuple(cases), {name: int(value) for name, value in classes.items()})


def _check_classes(classes: Mapping[str, int]) -> None:
    if not isinstance(classes, Mapping) or any(not isinstance(name, str) for name in classes):
        raise ReferenceCaseError(
            f'`classes` gives each name, a text, its value in the labels, as in {{"liver": 1}}; got {classes!r}.'
        )
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


def scan_volume(scan: Scan) -> Volume:
    """RawDataError for what is no scan, as an array alone is none; as `Scan.volume`."""
    if not isinstance(scan, Scan):
        raise RawDataError(
            f"A scan is an array and where it lies; got {type(scan).__name__} alone: wrap it, Scan(array, "
            "spacing_mm=(z, y, x)) or Scan(array, affine=affine)."
        )
    return scan.volume


def tasks_of(tasks: Tasks, image: Volume) -> list[TaskEmbedding]:
    """The tasks with which an image is segmented; TaskError for what is none."""
    alone = isinstance(tasks, TaskEmbedding | str | PathLike) or callable(tasks) or tasks is None
    found = []
    for each in [tasks] if alone else list(tasks):  # type: ignore[arg-type]
        task = each(image) if callable(each) else each
        if not isinstance(task, TaskEmbedding):
            remedy = f"load_task({str(task)!r})" if isinstance(task, str | PathLike) else "make one"
            raise TaskError(
                f"A task is what encode, load_task, bank or merge gives, or a strategy_of; got {_said(task)}: {remedy}."
            )
        found.append(task)
    return found


def settle_options(loaded: LoadedModel, options: InferenceOptions | None) -> InferenceOptions:
    """The options, by default on the device that the model lies on. ModelError where the model lies on another one, or
    for what is no model; PredictionError for what are no options.
    """
    if not hasattr(loaded, "model_hash"):
        remedy = f"load_model({str(loaded)!r})" if isinstance(loaded, str | PathLike) else "load_model()"
        raise ModelError(f"A model is what load_model gives; got {_said(loaded)}: give {remedy}.")
    check_kind("options", options, InferenceOptions)
    there = next((parameter.device for parameter in loaded.model.parameters()), torch.device("cpu"))
    if options is None:
        return InferenceOptions(device=str(there))
    wanted = usable_device(options.device)
    if wanted.type != there.type or wanted.index not in (None, there.index):
        raise ModelError(
            f"Model and options name one device; the model lies on {there}, the options say {wanted}: give "
            f'InferenceOptions(device="{there}"), or load_model(..., device="{wanted}").'
        )
    return options


def check_kind(name: str, given: object, kind: type) -> None:
    """PredictionError where an argument is neither None nor of its kind."""
    if given is not None and not isinstance(given, kind):
        raise PredictionError(f"`{name}` is {kind.__name__} or None; got {_said(given)}: make it one.")


def check_seed(seed: int) -> None:
    """PredictionError unless it is a whole number, 0 or more."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise PredictionError(f"`seed` is a whole number, 0 or more; got {seed!r}.")


def _volume(
    given: object, spacing_mm: tuple[float, float, float] | None, affine: np.ndarray | None
) -> Volume:
    array = _voxels(given)
    if array.ndim != 3 or 0 in array.shape or (spacing_mm is None) == (affine is None):
        raise RawDataError(
            "A scan is an array [D,H,W] of voxels with either spacing_mm (z,y,x) or an affine; got shape "
            f"{list(array.shape)}, spacing {spacing_mm}, {'no' if affine is None else 'an'} affine"
            f"{_REMEDIES.get(array.ndim, '')}."
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
    if np.abs(affine[3] - LAST_ROW).max() > ROUNDING:
        raise RawDataError(
            f"The last row of an affine is 0, 0, 0, 1 and its last column the place of the first voxel; got "
            f"{affine.tolist()}: transpose it if that is its last column."
        )
    return Volume(array, affine)


_REMEDIES = {2: ": of a single slice give array[None]", 4: ": give one channel, as array[0]"}


def _voxels(given: object) -> np.ndarray:
    """As numpy has them, of a tensor too. RawDataError for a file's name and for other libraries' images, which numpy
    would take for an array of another shape, or voxel by voxel.
    """
    if isinstance(given, torch.Tensor):
        held = given.detach().cpu()
        return (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    if isinstance(given, str | PathLike):
        raise RawDataError(
            f"A scan is an array [D,H,W] of voxels; got the path {str(given)!r}: `volume = read_volume(path)` of "
            "preprocessing.volume reads it, give volume.array and affine=volume.affine."
        )
    if hasattr(given, "GetDirection"):
        raise RawDataError(
            "A scan is an array [D,H,W] of voxels; got a SimpleITK image: give sitk.GetArrayFromImage(image) and its "
            "affine, of which the first two rows change their sign for RAS+ (README)."
        )
    if hasattr(given, "get_fdata"):
        raise RawDataError(
            "A scan is an array [D,H,W] of voxels; got an image of nibabel's: give image.get_fdata().T and "
            "affine=image.affine."
        )
    return np.asarray(given)


def _numbers(given: object) -> np.ndarray:
    """As float64; an array of no numbers (shape [0]) where they are none, as texts are."""
    try:
        found = np.asarray(given)
        return found.astype(float) if found.dtype.kind in "iuf" else np.empty(0)
    except (TypeError, ValueError, RuntimeError):  # rows of several lengths, tensors elsewhere
        return np.empty(0)


def _said(given: object) -> str:
    """Short enough for a sentence."""
    return repr(str(given)) if isinstance(given, str | PathLike) else f"of type {type(given).__name__}"
