"""Scans with truth and prediction for a viewer in the browser: which cases there are, and each as NIfTI bytes.

The viewer itself, NiiVue, comes from the installed package `ipyniivue`, whose wheel ships it as one script; it is
neither part of this project nor loaded from a network. Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pandas as pd

from iris_pipeline.evaluation.evaluate import (
    dataset_spec,
    image_files,
    read_origin,
    truth_cases,
    with_values,
)
from iris_pipeline.measures.rows import Origin
from iris_pipeline.pages.overlays import choose_centre, grey_window
from iris_pipeline.scans.inputs import find_inputs
from iris_pipeline.tables.result_tables import EVALUATION, read_rows
from preprocessing.adapters import find_cases
from preprocessing.case import on_grid_of_image
from preprocessing.errors import BrowserError, EvaluationError, SpecError
from preprocessing.orientation import Reorientation
from preprocessing.runtime.paths import Root
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.mending import by_segment_names
from preprocessing.sources.source import FileSource, Source
from preprocessing.volume import Volume, case_id_of

Layer = Literal["image", "truth", "prediction"]
LAYERS: tuple[Layer, ...] = ("image", "truth", "prediction")
PACKAGE = "ipyniivue"
INSTALL = "install it with pip install 'iris-pipeline[view]'"


@dataclass(frozen=True)
class ViewedCase:
    """One case. dice: class -> Dice where it was evaluated; mean: over those classes, None without any."""

    id: str
    image: Source
    prediction: Source
    truth: Source | None = None
    dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        return sum(self.dice.values()) / len(self.dice) if self.dice else None


@dataclass(frozen=True)
class Gallery:
    """The cases of one folder, worst first. classes: name -> value, 1..K, in the label maps that are shown.

    truth_classes, prediction_classes: name -> value in the files. notes: what was left out.
    """

    title: str
    modality: str
    intensity_offset: float
    classes: Mapping[str, int]
    truth_classes: Mapping[str, int]
    prediction_classes: Mapping[str, int]
    cases: tuple[ViewedCase, ...]
    notes: tuple[str, ...] = ()


def find_predictions(name: str, root: Root, dataset: str | None, strategy: str | None) -> Path:
    """The folder that is meant: itself, or <run>/predictions/<dataset>/<strategy> of a run's name or folder.

    EvaluationError if there is none, or if several fit.
    """
    for run in (root.results / name, Path(name).expanduser()):
        if (run / "predictions").is_dir():
            break
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise EvaluationError(
                f"What is viewed is a run under {root.results}, or a folder of predictions; '{name}' is neither."
            )
        return folder
    found = sorted(p for p in run.glob(f"predictions/{dataset or '*'}/{strategy or '*'}") if p.is_dir())
    if len(found) != 1:
        there = ", ".join(
            f"-d {p.parent.name} --strategy {p.name}" for p in sorted(run.glob("predictions/*/*"))
        )
        raise EvaluationError(
            f"One folder of predictions is viewed at a time, and {len(found)} fit: choose one of {there or 'none'}."
        )
    return found[0]


def make_gallery(
    predictions: Path,
    root: Root,
    *,
    images: Path | None = None,
    truth: Path | None = None,
    dataset: str | None = None,
    cases: Sequence[str] | None = None,
) -> Gallery:
    """The cases of a folder of predictions with their scans and, where there is one, their truth.

    images: a folder of the scans; truth: of label maps; by default the raw files of `dataset`, or of the one that
    the predictions name. cases: only these. Raises EvaluationError if no prediction has its scan.
    """
    origin = read_origin(predictions)
    name = dataset or origin.dataset
    spec = None
    if name:
        try:
            spec = dataset_spec(name, root.preprocessed)
        except SpecError:
            if images is None:
                raise
    raw = find_cases(spec.raw_folder(root.raw), spec) if spec and spec.raw_folder(root.raw).is_dir() else []
    scans = {case.id: case.image for case in raw}
    if images is not None:
        scans = {case.id: case.image for case in find_inputs(images)[0] if case.image is not None}
    truths = {case.id: case.labels for case in raw if case.labels is not None}
    if truth is not None:
        truths = {case.id: case.labels for case in truth_cases(truth)}
    found = {case_id_of(path, scans): path for path in image_files(predictions)}
    named = read_class_names(predictions) or (dict(spec.classes) if spec else None)
    if named is None:
        raise EvaluationError(
            f"The predictions in {predictions} need their class names: put a classes.json beside them, as in "
            '{"liver": 1}.'
        )
    _check_cases(cases, found)
    scores = _scores(predictions, origin, name)
    shown = [
        ViewedCase(id, scans[id], FileSource(path), truths.get(id), scores.get(id, {}))
        for id, path in sorted(found.items())
        if id in scans and (cases is None or id in cases)
    ]
    if not shown:
        raise EvaluationError(
            f"A viewer needs the scans of the predictions in {predictions}, and none was found: name their folder "
            "with -i, or the raw datasets' with --raw."
        )
    of_truth = (read_class_names(truth) or read_class_names(truth.parent)) if truth is not None else None
    lacking = sorted(set(found) - set(scans))
    return Gallery(
        title=" ".join(part for part in (origin.run, name, origin.strategy) if part),
        modality=spec.modality if spec else "MR",
        intensity_offset=spec.intensity_offset if spec else 0.0,
        classes={label: number for number, label in enumerate(named, 1)},
        truth_classes=of_truth or (spec.classes if spec else named),
        prediction_classes=named,
        cases=tuple(sorted(shown, key=_worst_first)),
        notes=(f"No scan was found for {', '.join(lacking)}.",) if lacking else (),
    )


def layer_bytes(gallery: Gallery, number: int, layer: Layer) -> bytes:
    """One layer of case `number` as an uncompressed NIfTI file.

    The image keeps its values (CT in HU) with the window to begin with as cal_min and cal_max; label maps have the
    gallery's values. EvaluationError where the case has no truth.
    """
    case = gallery.cases[number]
    if layer == "image":
        volume = case.image.read_image()
        grey = np.nan_to_num(volume.array) + np.float32(gallery.intensity_offset)
        return _nifti(Volume(grey, volume.affine), grey_window(grey, gallery.modality))
    shown, classes = case.prediction, gallery.prediction_classes
    if layer == "truth":
        if case.truth is None:
            raise EvaluationError(f"Case '{case.id}' has no truth: name its folder with -g.")
        shown, classes = case.truth, gallery.truth_classes
    labels = _labels(case, shown, classes)
    array = with_values(labels.array, classes, gallery.classes)
    return _nifti(Volume(array, labels.affine), (0.0, float(max(gallery.classes.values()))))


def _labels(case: ViewedCase, shown: Source, classes: Mapping[str, int]) -> Volume:
    """A label map of the case; one that covers a part of the scan only is laid on its grid."""
    labels = by_segment_names(shown, classes).read_labels()
    return on_grid_of_image(case.image.read_image(), labels) if labels.partial else labels


def case_centre(gallery: Gallery, number: int) -> list[float]:
    """Where to look first: the objects' centre as shares (x,y,z) of the volume's edges in RAS+."""
    case = gallery.cases[number]
    classes = gallery.truth_classes if case.truth else gallery.prediction_classes
    labels = _labels(case, case.truth or case.prediction, classes)
    shown = with_values(labels.array, classes, gallery.classes)
    if not shown.any() and case.truth:
        labels = _labels(case, case.prediction, gallery.prediction_classes)
        shown = with_values(labels.array, gallery.prediction_classes, gallery.classes)
    upright = Reorientation.to_ras(labels.affine).apply(shown)
    centre = choose_centre(upright, gallery.classes)
    z, y, x = ((index + 0.5) / edge for index, edge in zip(centre, upright.shape, strict=True))
    return [round(share, 5) for share in (x, y, z)]


def gallery_content(gallery: Gallery) -> dict[str, Any]:
    """What the page is told: names and scores, no path."""
    return {
        "title": gallery.title,
        "modality": gallery.modality,
        "classes": list(gallery.classes),
        "notes": list(gallery.notes),
        "cases": [
            {
                "id": case.id,
                "mean": None if case.mean is None else round(case.mean, 3),
                "dice": {name: round(value, 3) for name, value in case.dice.items()},
                "truth": case.truth is not None,
            }
            for case in gallery.cases
        ],
    }


def viewer_script() -> Path:
    """NiiVue's script inside the installed package; BrowserError, one sentence, where it is not there."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        script = Path(folder) / "static" / "widget.js"
        if script.is_file():
            return script
    raise BrowserError(
        f"The viewer comes from the package {PACKAGE}, which is not installed here: {INSTALL}."
    )


def viewer_licence() -> str:
    """The licence that has to go along with a copy of the script."""
    files = importlib.metadata.files(PACKAGE) or []
    return "\n".join(file.read_text() for file in files if "licen" in file.name.lower())


def _nifti(volume: Volume, window: tuple[float, float]) -> bytes:
    array = volume.array
    if array.dtype != np.uint8:
        whole = np.rint(array)
        fits = np.abs(array).max(initial=0) < 2**15 and np.array_equal(whole, array)
        array = whole.astype(np.int16) if fits else array.astype(np.float32)
    image = nib.Nifti1Image(array.transpose(2, 1, 0), volume.affine)
    image.header["cal_min"], image.header["cal_max"] = window
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return content


def _check_cases(cases: Sequence[str] | None, found: Mapping[str, Path]) -> None:
    absent = sorted(set(cases or ()) - set(found))
    if absent:
        raise EvaluationError(f"There is no prediction of {', '.join(absent)}: check --cases.")


def _scores(predictions: Path, origin: Origin, dataset: str) -> dict[str, dict[str, float]]:
    """case -> class -> Dice of the evaluation that belongs to the folder; {} where there is none."""
    paths = [predictions / "evaluation.csv"]
    if origin.run:
        folder = predictions.resolve().parents[2] / EVALUATION
        paths.insert(0, folder / f"{dataset}__{origin.strategy}.csv")
    path = next((path for path in paths if path.is_file()), None)
    rows: pd.DataFrame = read_rows(path).dropna(subset=["dice"]) if path else pd.DataFrame()
    scores: dict[str, dict[str, float]] = {}
    for row in rows.to_dict("records"):
        scores.setdefault(str(row["case"]), {})[str(row["class"])] = float(row["dice"])
    return scores


def _worst_first(case: ViewedCase) -> tuple[bool, float, str]:
    return case.mean is None, case.mean or 0.0, case.id
