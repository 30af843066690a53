"""Confidence calibrated on a run's validation cases: each segmented, its signs gathered, its true Dice measured.

The rows are kept in the run's folder, one file a case and strategy, so that an interrupted calibration goes on where
it stopped. Each tells by digests what it was made from, and is made anew where that has changed: the scan and label of
the case, and the training cases that references are drawn from. Validation cases only: neither training nor test cases
have a say.

Of datasets it was trained on a model makes few bad masks, and so few tell nothing of how a bad one looks. So each case
is also shown in poses and at scales that the model was not trained on, where it fails as it does on what is new, and is
helped by its references' grey values as it is there.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.confidence.calibration import REVIEW_BELOW, Calibration, fit
from iris_pipeline.confidence.disagreement import gather_signs
from iris_pipeline.confidence.judging import Witnesses, stored_volumes, stored_witnesses
from iris_pipeline.evaluation.evaluate import compare
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.bank_tasks import bank_task
from iris_pipeline.prediction.predict_split import (
    Experiment,
    TaskOf,
    split_cases,
    stored_tasks,
    tasks_shown_otherwise,
)
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.scan import Wanted, segment_scan
from iris_pipeline.search.pose import POSES
from iris_pipeline.search.showing import SEARCHED, Showing
from preprocessing.adapters import Case
from preprocessing.errors import IrisError, PredictionError, RawDataError
from preprocessing.fingerprint import case_digest
from preprocessing.orientation import UPRIGHT
from preprocessing.runtime.files import text_digest, write_json
from preprocessing.runtime.progress import Bar
from preprocessing.store import Store
from preprocessing.volume import Volume

ROWS = "calibration"  # folder of the rows inside a run's folder
SCHEMA_VERSION = 1
CHANGED = "Rows made anew, as a scan or a label behind them has changed since"
UNTOLD = "Rows of a former version, which tell nothing of their files, taken as they are (--overwrite: anew)"
UNFAMILIAR = 3  # showings of each case, besides the one that the model was trained on
UNFAMILIAR_SCALES = (0.65, 0.8, 1.25, 1.6)  # times the planned spacing


@dataclass(frozen=True)
class CalibrationData:
    """A dataset of the run: its store and its raw cases by id."""

    store: Store
    raw: dict[str, Case]


@dataclass(frozen=True)
class _Job:
    """made_from: what the row depends on -> its digest now, "" where that cannot be told."""

    data: CalibrationData
    case: str
    experiment: Experiment
    made_from: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the row's file."""
        strategy = f"{self.experiment.strategy}_k{self.experiment.count}_draw{self.experiment.seed}"
        showing = self.experiment.showing
        if self.experiment.strategy == "bank":
            strategy += f"_looks_{showing.looks}"
        elif not self.familiar:
            strategy += f"_{showing.pose}_{showing.scale}_grey_{showing.grey}_looks_{showing.looks}"
        return f"{self.data.store.manifest.dataset}__{strategy}__{self.case}.json"

    @property
    def familiar(self) -> bool:
        """Whether the scan is shown as in training."""
        return self.experiment.showing == SEARCHED


def unfamiliar_showings(dataset: str, count: int) -> list[Showing]:
    """Ways to show a dataset's scans that no model is trained on: a scale, and from the second on a pose as well."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((zlib.crc32(dataset.encode()), number))
        scale = float(rng.choice(UNFAMILIAR_SCALES))
        pose = str(rng.choice([axes for axes in POSES if axes != UPRIGHT])) if number else UPRIGHT
        found.append(Showing(pose, scale))
    return found


def calibrate(
    loaded: LoadedModel,
    folder: Path,
    datasets: Sequence[CalibrationData],
    experiments: Sequence[Experiment],
    *,
    most_cases: int = 6,
    unfamiliar: int = UNFAMILIAR,
    options: InferenceOptions | None = None,
    review_below: float = REVIEW_BELOW,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[Calibration, list[str]]:
    """Fit the run's calibration; returned with a sentence for each case that could not be used, and on rows that were
    there. overwrite: those are made anew.

    folder: the run's. The validation part of the split that the model was trained on is used, at most `most_cases`
    cases a dataset, as in training and in `unfamiliar` other ways (but from the bank, which knows no other). The
    agreement that is told is of scans shown as in training. PredictionError where too few masks are left, see
    `confidence.fit`.
    """
    options = options or InferenceOptions()
    split = str(loaded.state.settings.get("split", "paper"))
    jobs: list[_Job] = []
    notes: list[str] = []
    volumes: dict[str, dict[str, float]] = {}
    for data in datasets:
        manifest = data.store.manifest
        parts = manifest.splits.get(split, {})
        if not parts.get("validation"):
            notes.append(f"{manifest.dataset}: split '{split}' has no validation case.")
            continue
        wanted = split_cases(loaded, data.store, split, "validation")[:most_cases]
        volumes[manifest.dataset] = stored_volumes(data.store, parts["train"])
        shown = [
            replace(experiment, showing=showing)
            for experiment in experiments
            if experiment.strategy != "bank"
            for showing in unfamiliar_showings(manifest.dataset, unfamiliar)
        ]
        usual = [replace(experiment, showing=SEARCHED) for experiment in experiments]
        jobs += _jobs(data, wanted, parts["train"], usual, shown)
    rows = folder / ROWS / loaded.model_hash
    masks, told = _measured(loaded, jobs, rows, split, volumes, options, overwrite, progress)
    calibration = fit(
        [mask.signs for mask in masks],
        [mask.dice for mask in masks],
        [mask.case for mask in masks],
        subjects=[mask.subject for mask in masks],
        counted=[mask.familiar for mask in masks],
        model_hash=loaded.model_hash,
        made_from={
            "datasets": ", ".join(volumes),
            "split": f"{split}/validation",
            "experiments": ", ".join(f"{e.strategy} k={e.count} draw={e.seed}" for e in experiments),
            "unfamiliar showings": str(unfamiliar),
        },
        volumes_ml=volumes,
        review_below=review_below,
    )
    return calibration, [*notes, *told]


@dataclass(frozen=True)
class _Mask:
    """One class of one case, with the person shown. familiar: the scan is shown as in training."""

    signs: Mapping[str, float]
    dice: float
    case: str
    subject: str
    familiar: bool


def _measured(
    loaded: LoadedModel,
    jobs: Sequence[_Job],
    rows_folder: Path,
    split: str,
    volumes_ml: Mapping[str, dict[str, float]],
    options: InferenceOptions,
    overwrite: bool,
    progress: bool,
) -> tuple[list[_Mask], list[str]]:
    """The masks of which signs and true Dice are known, from rows that are there or are made now, and sentences on
    both kinds. volumes_ml: by dataset.
    """
    sources: dict[tuple[str, Experiment], tuple[TaskOf, Witnesses]] = {}
    masks: list[_Mask] = []
    failed: list[str] = []
    kept = Counter[str]()
    for job in (bar := Bar(jobs, desc="Calibrating", unit="case", disable=not progress, dynamic_ncols=True)):
        bar.set_postfix_str(job.case)
        dataset = job.data.store.manifest.dataset
        try:
            row, why = (None, "") if overwrite else _known_row(rows_folder / job.name, job.made_from)
            if row is None:
                key = (dataset, job.experiment)
                if key not in sources:
                    sources[key] = _sources(loaded, job, split, options)
                row = _row(loaded, job, *sources[key], volumes_ml[dataset], options)
                content = {"schema_version": SCHEMA_VERSION, "classes": row, "made_from": job.made_from}
                write_json(rows_folder / job.name, content)
        except IrisError as error:
            failed.append(f"{dataset} {job.case} ({job.experiment.strategy}): {error}")
            continue
        kept[why] += 1
        # Equal ids in two datasets are one person or, now and then, two that are left out together.
        person = job.data.store.entry(job.case).subject
        masks += [
            _Mask(values["signs"], values["dice"], f"{dataset} {job.case}", person, job.familiar)
            for values in row.values()
            # An empty mask is judged without numbers (0); where the truth does not tell, nothing can be learnt.
            if values["signs"] and values["dice"] is not None
        ]
    return masks, [*failed, *(f"{why}: {count}." for why, count in kept.items() if why)]


def _jobs(
    data: CalibrationData,
    wanted: Sequence[str],
    train: Sequence[str],
    usual: Sequence[Experiment],
    shown: Sequence[Experiment],
) -> list[_Job]:
    """One for each case and experiment. References of `usual` come from the store, those of `shown` from raw files."""
    ids = [*wanted, *(train if shown else [])]
    bar = Bar(ids, desc=f"Comparing files of {data.store.manifest.dataset}", leave=False)
    digests = {case_id: _digest(data, case_id) for case_id in bar}
    stored = [f"{case_id} {data.store.source_digest(case_id)}" for case_id in train]
    raw = [f"{case_id} {digests[case_id]}" for case_id in train if digests.get(case_id)]
    of_usual = text_digest(" ".join(stored))
    of_shown = text_digest(" ".join([*stored, *raw])) if raw else ""
    return [
        _Job(data, case, experiment, {"case": digests[case], "references": references})
        for experiments, references in ((usual, of_usual), (shown, of_shown))
        for experiment in experiments
        for case in wanted
    ]


def _digest(data: CalibrationData, case: str) -> str:
    """Of a case's scan and label; "" where they are not at hand."""
    try:
        return case_digest(data.raw[case]) if case in data.raw else ""
    except OSError:
        return ""


def _sources(
    loaded: LoadedModel, job: _Job, split: str, options: InferenceOptions
) -> tuple[TaskOf, Witnesses]:
    """What gives each case its task and its witnesses."""
    store, experiment = job.data.store, job.experiment
    train = store.manifest.splits[split]["train"]
    raw = job.data.raw
    witnesses = stored_witnesses(loaded, store, train, options, experiment.count, experiment.seed, raw)
    if experiment.strategy == "bank":
        task = bank_task(loaded, store.manifest.dataset, store)
        return (lambda _case, _image: task), witnesses
    if job.familiar:
        return stored_tasks(loaded, store, train, experiment, options), witnesses
    at_hand = [case_id for case_id in train if case_id in raw]
    return tasks_shown_otherwise(loaded, store, raw, at_hand, experiment, options), witnesses


def _row(
    loaded: LoadedModel,
    job: _Job,
    task_of: TaskOf,
    witnesses: Witnesses,
    volumes_ml: dict[str, float],
    options: InferenceOptions,
) -> dict[str, Any]:
    """class -> its signs and its true Dice (None: not to be told)."""
    store = job.data.store
    raw = job.data.raw.get(job.case)
    if raw is None or raw.labels is None:
        raise RawDataError(
            f"The true Dice of case '{job.case}' needs its raw files, and they are not there: put them back, or name "
            "the folder of the raw datasets with --raw."
        )
    image, truth = raw.image.read_image(), raw.labels.read_labels()
    case = InputCase(job.case, raw.image, store.entry(job.case).subject)
    task = task_of(case, image)
    result = segment_scan(loaded, [task], image, options, Wanted(certainty=True))
    signs = gather_signs(
        loaded, [task], image, result, options, lambda each: witnesses(case, each), volumes_ml
    )
    found = Volume(result.labels, image.affine, image.header)
    overlaps = compare(found, truth, task.classes, store.manifest.classes)
    row = {}
    for name, values in signs.items():
        untold = store.manifest.spec.partly_labelled and overlaps[name].truth == 0
        dice = overlaps[name].dice
        row[name] = {"signs": values, "dice": None if untold or math.isnan(dice) else dice}
    return row


def _known_row(path: Path, made_from: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """A row that was made before, None where there is none or it is not of these digests, and what to say of that.

    What cannot be compared is taken as it is: a row of a former version, and one whose raw files are not at hand.
    PredictionError if it is damaged.
    """
    if not path.is_file():
        return None, ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] == SCHEMA_VERSION:
            if "made_from" not in content:
                return dict(content["classes"]), UNTOLD
            then = dict(content["made_from"])
            changed = any(then[what] != now for what, now in made_from.items() if now and then[what])
            return (None, CHANGED) if changed else (dict(content["classes"]), "")
    except (ValueError, KeyError, TypeError):
        pass
    raise PredictionError(f"{path} is no row of a calibration that this version reads: take it away.")
