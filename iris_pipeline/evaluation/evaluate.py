"""A folder of predicted label maps against the truth: one row a case and class, one sentence a bad case.

Arrays are [D,H,W] = (z,y,x); prediction and truth are compared voxel by voxel on the truth's own grid, never
resampled. A case that cannot be scored keeps its rows, without a Dice and without predicted voxels, so that
no table can lose it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from iris_pipeline.measures.class_scores import MeasureOptions, class_measures
from iris_pipeline.measures.metrics import Overlap, label_overlaps
from iris_pipeline.measures.rows import BASELINE_RUN, BASELINE_STRATEGY, Origin, Row
from iris_pipeline.scans.inbox import RECORD
from preprocessing.case import check_same_grid, on_grid_of_image, whole_where_partial
from preprocessing.errors import EvaluationError, GridMismatchError, IrisError, LabelValueError
from preprocessing.geometry import label_counts
from preprocessing.plan import MANIFEST
from preprocessing.runtime.parallel import parallel_map
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.mending import by_segment_names
from preprocessing.sources.source import FileSource, Source, one_source
from preprocessing.spec import DEFAULT_TOLERANCE_MM, DatasetSpec, list_specs, load_spec
from preprocessing.store import Store
from preprocessing.volume import Volume, case_id_of, is_image_path, stem_of

METHOD_STRATEGY = "other-tool"
METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
RESERVED_RUNS = (BASELINE_RUN, "paper", "tables", "efficiency")
"""Names that tables use for rows of another kind, and folders under results/ that are no run's."""


@dataclass(frozen=True)
class TruthCase:
    """One label map that a prediction is compared with."""

    id: str
    labels: Source
    subject: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All rows of one folder.

    failures: case -> why it has no score, one sentence each; notes: what else to know.
    baseline: what a mask that calls every voxel foreground scores for the same cases, computed from the
    truth.
    """

    rows: tuple[Row, ...]
    baseline: tuple[Row, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    truth: TruthCase
    prediction: Source | None
    origin: Origin
    truth_classes: Mapping[str, int]
    classes: Mapping[str, int]
    partly_labelled: bool
    options: MeasureOptions


@dataclass(frozen=True)
class _Scored:
    job: _Job
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    voxels: int | None = None
    failure: str = ""


def evaluate_folder(
    predictions: Path,
    truths: Sequence[TruthCase],
    origin: Origin,
    *,
    classes: Mapping[str, int] | None = None,
    truth_classes: Mapping[str, int] | None = None,
    partly_labelled: bool = False,
    measures: MeasureOptions | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Evaluation:
    """Score <case>.nii.gz (or another image file) in `predictions` for each of `truths`; nothing is written.

    classes: name -> value in the predictions, by default from classes.json beside them; truth_classes: the
    same for the truth, by default equal; measures: tolerances and lesion classes. Classes are matched by
    name, and those that both have are scored. A
    missing prediction, two of one case, another grid or a value without a name fails that case only. Raises
    EvaluationError if there is no folder, no truth or no class in common.
    """
    if not predictions.is_dir():
        raise EvaluationError(f"Predictions are a folder of label maps, and {predictions} is none: check -p.")
    classes = classes or read_class_names(predictions)
    if classes is None:
        raise EvaluationError(
            f"The predictions in {predictions} need their class names: put a classes.json beside them, "
            'as in {"liver": 1}.'
        )
    truth_classes = truth_classes or classes
    common = [name for name in truth_classes if name in classes]
    if not truths or not common:
        lacking = (
            "no truth to compare with"
            if not truths
            else f"no class in common ({_both(classes, truth_classes)})"
        )
        raise EvaluationError(
            f"There is {lacking} for the predictions in {predictions}: check -g, -d and classes.json."
        )
    ids = {truth.id for truth in truths}
    found = _by_case(predictions, lambda path: case_id_of(path, ids))
    options = measures or MeasureOptions()
    jobs = [
        _Job(truth, found.get(truth.id), origin, truth_classes, classes, partly_labelled, options)
        for truth in truths
    ]
    label = f"{origin.dataset} {origin.strategy}".strip() or "evaluate"
    scored = sorted(
        parallel_map(_score, jobs, workers, label, progress), key=lambda result: result.job.truth.id
    )
    return Evaluation(
        rows=tuple(row for result in scored for row in _rows(result, common)),
        baseline=tuple(row for result in scored for row in _baseline_rows(result, common)),
        failures={result.job.truth.id: result.failure for result in scored if result.failure},
        notes=_notes(found.keys() - ids, classes, truth_classes),
    )


def compare(
    prediction: Volume,
    truth: Volume,
    classes: Mapping[str, int],
    truth_classes: Mapping[str, int] | None = None,
) -> dict[str, Overlap]:
    """The overlap of every class of `truth_classes` that `classes` has, too. Label maps [D,H,W] on one grid.

    Raises as `on_truth`.
    """
    truth_classes = truth_classes or classes
    truth = whole_where_partial(truth, prediction)
    predicted = on_truth(prediction, truth, classes, truth_classes)
    return label_overlaps(predicted, truth.array, _common(truth_classes, classes))


def on_truth(
    prediction: Volume, truth: Volume, classes: Mapping[str, int], truth_classes: Mapping[str, int]
) -> np.ndarray:
    """The prediction's labels, uint8 [D,H,W], under the values that the truth has for the same names.

    Its axes may lie in another order or direction than the truth's, as other tools write them; the voxels have to be
    the same.

    Raises GridMismatchError if the grids differ by more than half a voxel anywhere, LabelValueError if a map
    holds a value that its classes do not name.
    """
    try:
        found = on_grid_of_image(truth, prediction)
        check_same_grid(truth, found)
    except GridMismatchError:
        raise GridMismatchError(
            "Prediction and truth must lie on one grid; they are "
            f"{_grid(prediction)} and {_grid(truth)}: predict from the image that belongs to this truth."
        ) from None
    _check_values(found.array, classes, "prediction")
    _check_values(truth.array, truth_classes, "truth")
    return with_values(found.array, classes, truth_classes)


def with_values(labels: np.ndarray, classes: Mapping[str, int], wanted: Mapping[str, int]) -> np.ndarray:
    """uint8 labels with the values that `wanted` gives to the same names; other classes become background."""
    table = np.zeros(256, np.uint8)
    for name, value in classes.items():
        table[value] = wanted.get(name, 0)
    return table[labels.astype(np.uint8)]


def everything_foreground(truth_voxels: int, voxels: int) -> float:
    """Dice of the mask that holds all `voxels` of a volume: what any result has to leave far behind."""
    return Overlap(truth_voxels, voxels, truth_voxels).dice if truth_voxels else 0.0


def dataset_spec(name: str, preprocessed: Path) -> DatasetSpec:
    """The specification a store was made with, else the package's of that name; SpecError without both."""
    folder = preprocessed / name
    return Store.open(folder).manifest.spec if (folder / MANIFEST).is_file() else load_spec(name)


def measure_options(spec: DatasetSpec | None) -> MeasureOptions:
    """How a dataset is measured: as its specification says, the defaults without one.

    A store keeps the specification it was made with. Where that one says nothing of measures, the package's of the
    same name and classes is asked, so that a tolerance of today is used without making the store anew.
    """
    if spec is None:
        return MeasureOptions()
    silent = spec.tolerance_mm == DEFAULT_TOLERANCE_MM and not spec.lesions
    if silent and spec.name in list_specs() and load_spec(spec.name).classes == spec.classes:
        spec = load_spec(spec.name)
    return MeasureOptions.of(spec)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted; hidden ones are left out."""
    return [path for path in sorted(folder.iterdir()) if path.name[0] != "." and is_image_path(path)]


def truth_cases(folder: Path) -> list[TruthCase]:
    """The label files of a folder, or of labelsTr/ inside it; a case with two cannot be read."""
    if not folder.is_dir():
        raise EvaluationError(f"The truth is a folder of label maps, and {folder} is none: check -g.")
    inner = folder / "labelsTr"
    found = _by_case(inner if inner.is_dir() else folder, stem_of)
    return [TruthCase(name, source) for name, source in found.items()]


def read_origin(predictions: Path) -> Origin:
    """What predict.json and the place <run>/predictions/<dataset>/<strategy> say about a folder."""
    made_from: Mapping[str, object] = {}
    if (predictions / RECORD).is_file():
        try:
            made_from = json.loads((predictions / RECORD).read_text(encoding="utf-8"))["made_from"]
        except (ValueError, KeyError, TypeError):
            made_from = {}
    parts = predictions.resolve().parts
    in_run = len(parts) >= 4 and parts[-3] == "predictions"
    run, dataset, strategy = (
        (parts[-4], parts[-2], parts[-1]) if in_run else ("", "", predictions.resolve().name)
    )
    split = f"{made_from['split']}/{made_from.get('part', 'test')}" if "split" in made_from else ""
    references = made_from.get("references")
    count = references if isinstance(references, int) and references > 0 else None
    seed = made_from.get("draw", made_from.get("seed"))
    return Origin(
        run=run,
        dataset=str(made_from.get("dataset") or dataset),
        split=split,
        strategy=strategy if in_run else str(made_from.get("strategy") or strategy),
        references=count,
        draw=seed if count is not None and isinstance(seed, int) else None,
        base=str(made_from.get("strategy") or ""),
    )


def method_origin(
    method: str,
    dataset: str,
    split: str | None,
    part: str,
    *,
    strategy: str | None = None,
    references: int | None = None,
    draw: int | None = None,
) -> Origin:
    """The origin of another tool's rows: on the test part of the paper's split unless told otherwise.

    strategy: how the tool came to its masks, by default "other-tool"; references and draw: how many labelled cases it
    was shown and, where they were drawn as for ours, by which seed ("trained_k3_draw0"). EvaluationError for a name
    that is no folder's, without a dataset, or for a draw of nobody knows how many.
    """
    for option, name in (("--method", method), ("--strategy", strategy or METHOD_STRATEGY)):
        if not METHOD_NAME.fullmatch(name) or name in RESERVED_RUNS:
            raise EvaluationError(
                f"{option} becomes the name of a folder or file under results/: letters, digits, '.', '_', '+' and "
                f"'-', not {', '.join(RESERVED_RUNS)}; got '{name}'."
            )
    if not dataset:
        raise EvaluationError("--method needs to know whose scans these are: give the dataset with -d.")
    base = strategy or METHOD_STRATEGY
    if references is None and draw is not None:
        raise EvaluationError("--draw says by which seed references were drawn: add --references, how many.")
    name = base + (f"_k{references}" if references is not None else "")
    name += f"_draw{draw}" if draw is not None else ""
    return Origin(method, dataset, f"{split or 'paper'}/{part}", name, references, draw, base)


def _by_case(folder: Path, id_of: Callable[[Path], str]) -> dict[str, Source]:
    """Case id -> its label map in a folder; of one with two files nobody knows which is meant, so reading it fails."""
    found: dict[str, list[FileSource]] = {}
    for path in image_files(folder):
        found.setdefault(id_of(path), []).append(FileSource(path))
    return {name: one_source(name, sources) for name, sources in found.items()}


def _score(job: _Job) -> _Scored:
    """Never raises: whatever is wrong with one case is a sentence about that case."""
    truth_volume: Volume | None = None
    overlaps: Mapping[str, Overlap] = {}
    measures: Mapping[str, Mapping[str, float]] = {}
    failure = ""
    try:
        truth_volume = by_segment_names(job.truth.labels, job.truth_classes).read_labels()
        if job.prediction is None:
            failure = "There is no prediction for this case: predict it, or name the others with --cases."
        else:
            common = _common(job.truth_classes, job.classes)
            found = by_segment_names(job.prediction, job.classes).read_labels()
            truth_volume = whole_where_partial(truth_volume, found)
            predicted = on_truth(found, truth_volume, job.classes, job.truth_classes)
            overlaps = label_overlaps(predicted, truth_volume.array, common)
            measures = class_measures(predicted, truth_volume, overlaps, common, job.options)
    except IrisError as error:
        failure = str(error)
    if truth_volume is None:
        return _Scored(job, failure=failure)
    if not overlaps:
        # The truth's values may be any here, so nothing may be as large as they are.
        truth = truth_volume.array
        overlaps = {n: Overlap(int(np.count_nonzero(truth == v)), 0, 0) for n, v in job.truth_classes.items()}
    voxels = None if truth_volume.partial else truth_volume.array.size  # how large the scan is nobody told
    return _Scored(job, overlaps, measures, voxels, failure)


def _rows(result: _Scored, names: Sequence[str]) -> list[Row]:
    job, rows = result.job, []
    for name in names:
        overlap = result.overlaps.get(name)
        score, measures = float("nan"), {}
        if overlap is not None and not result.failure and not _unknown(job, overlap):
            score, measures = overlap.dice, dict(result.measures[name])
        truth = None if overlap is None else overlap.truth
        predicted = None if overlap is None or result.failure else overlap.predicted
        rows.append(Row(job.origin, job.truth.id, job.truth.subject, name, score, truth, predicted, measures))
    return rows


def _baseline_rows(result: _Scored, names: Sequence[str]) -> list[Row]:
    job, rows = result.job, []
    origin = Origin(BASELINE_RUN, job.origin.dataset, job.origin.split, BASELINE_STRATEGY)
    for name in names:
        overlap = result.overlaps.get(name)
        if overlap is None or result.voxels is None:
            continue
        unknown = _unknown(job, overlap)
        score = float("nan") if unknown else everything_foreground(overlap.truth, result.voxels)
        rows.append(Row(origin, job.truth.id, job.truth.subject, name, score, overlap.truth, result.voxels))
    return rows


def _unknown(job: _Job, overlap: Overlap) -> bool:
    """Where not every organ was contoured, a class without a voxel may still be in the body."""
    return job.partly_labelled and overlap.truth == 0


def _check_values(labels: np.ndarray, classes: Mapping[str, int], whose: str) -> None:
    there = np.flatnonzero(label_counts(labels)) if labels.dtype == np.uint8 else np.unique(labels)
    unknown = sorted(set(there.tolist()) - {0, *classes.values()})
    if unknown:
        named = ", ".join(f"{value} {name}" for name, value in classes.items())
        shown = ", ".join(map(str, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        raise LabelValueError(
            f"The {whose} holds the value {shown}, but its classes are {named}: name "
            "every value in its classes.json or give -d NAME."
        )


def _grid(volume: Volume) -> str:
    shape = " x ".join(map(str, volume.shape))
    spacing = " x ".join(f"{edge:.3g}" for edge in volume.spacing_mm)
    corner = ", ".join(f"{value:.1f}" for value in volume.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm from ({corner})"


def _common(truth_classes: Mapping[str, int], classes: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in truth_classes.items() if name in classes}


def _both(classes: Mapping[str, int], truth_classes: Mapping[str, int]) -> str:
    return f"predicted: {', '.join(classes)}; truth: {', '.join(truth_classes)}"


def _notes(
    without_truth: set[str], classes: Mapping[str, int], truth_classes: Mapping[str, int]
) -> tuple[str, ...]:
    notes = []
    if without_truth:
        shown = ", ".join(sorted(without_truth)[:5]) + (" ..." if len(without_truth) > 5 else "")
        notes.append(f"Predictions without a truth here are not scored ({len(without_truth)}): {shown}.")
    for name in (name for name in truth_classes if name not in classes):
        notes.append(f"Class '{name}' of the truth is not among the predicted classes and is not scored.")
    for name in (name for name in classes if name not in truth_classes):
        notes.append(f"Predicted class '{name}' is not among the truth's classes and is not scored.")
    return tuple(notes)
