"""Whole scans of any size and grid -> label maps on their own grid, case by case, in one process.

Arrays are [D,H,W] = (z,y,x), as are spacings and patch sizes. A case that cannot be segmented is reported and
the next one is taken; what is finished stays.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from iris_pipeline.checkpoint import LoadedModel, write_json
from iris_pipeline.inputs import InputCase
from iris_pipeline.references import CT_MINIMUM_HU
from iris_pipeline.sliding_window import Weighting, check_options, segment_volume
from iris_pipeline.task import TaskEmbedding
from preprocessing.case import preprocess_case
from preprocessing.errors import IrisError, PredictionError, RawDataError, ReferenceCaseError
from preprocessing.files import append_log
from preprocessing.findings import image_hash
from preprocessing.volume import Volume, write_volume

LOG = "predict.log"
CLASSES = "classes.json"
RECORD = "predict.json"


@dataclass(frozen=True)
class InferenceOptions:
    """How volumes go through the network; see `segment_volume`. autocast: bfloat16; False is float32."""

    overlap: float = 0.5
    weighting: Weighting = "gaussian"
    batch_size: int = 1
    device: str = "cpu"
    autocast: bool = False

    def __post_init__(self) -> None:
        check_options(self.overlap, self.weighting, self.batch_size)


@dataclass(frozen=True)
class Verdict:
    """What became of one case; `why` is one sentence, "" where nothing is to be said."""

    id: str
    status: Literal["done", "skipped", "refused"]
    why: str = ""
    seconds: float = 0.0


def predict_case(
    loaded: LoadedModel,
    task: TaskEmbedding,
    image: Volume,
    options: InferenceOptions | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Label map, uint8 [D,H,W] on the image's own grid: `task.class_values`, 0 where no class is above 0.5.

    Where several classes are, the most probable wins. TaskError if the task is of another model,
    ReferenceCaseError if the image is one of the task's own references.
    """
    options = options or InferenceOptions()
    task.check_model(loaded.model_hash)
    if task.reference_hashes and image_hash(image) in task.reference_hashes:
        raise ReferenceCaseError(
            "A reference is never its own query; this scan is one of the references of the task: take it "
            "out of the input, or out of the references."
        )
    prepared = preprocess_case(
        image, task.spacing_mm, task.normalisation, intensity_offset=task.intensity_offset
    )
    probabilities = segment_volume(
        loaded.model,
        prepared.image,
        task,
        overlap=options.overlap,
        weighting=options.weighting,
        batch_size=options.batch_size,
        device=options.device,
        autocast=options.autocast,
        progress=progress,
    )
    return prepared.trace.undo_argmax(zip(task.class_values, probabilities, strict=True), threshold=0.5)


def modality_warning(task: TaskEmbedding, image: Volume) -> str:
    """A sentence where the grey values do not look like the task's modality; "" where they may."""
    minimum = float(image.array.min()) + task.intensity_offset
    if task.modality != "CT" and minimum < CT_MINIMUM_HU:
        return (
            f"the task is of {task.modality}, but values down to {minimum:g} look like CT: doubt the result."
        )
    if task.modality == "CT" and minimum >= CT_MINIMUM_HU:
        return f"the task is of CT, but no value is below {CT_MINIMUM_HU:g} HU: is this a CT?"
    return ""


def predict_folder(
    loaded: LoadedModel,
    task: TaskEmbedding,
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions | None = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Verdict]:
    """Segment every input with one task, see `predict_cases`. TaskError if the task is another model's."""
    task.check_model(loaded.model_hash)
    return predict_cases(
        loaded,
        lambda _: task,
        inputs,
        out,
        options or InferenceOptions(),
        classes=task.classes,
        made_from={"task": digest(task)},
        remarks={"task": describe(task)},
        overwrite=overwrite,
        progress=progress,
    )


def predict_cases(
    loaded: LoadedModel,
    task_of: Callable[[InputCase], TaskEmbedding],
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions,
    *,
    classes: Mapping[str, int],
    made_from: Mapping[str, Any],
    remarks: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Verdict]:
    """Segment every input with the task that `task_of` gives it: one verdict a case.

    Writes OUT/<id>.nii.gz, OUT/classes.json (name -> value), OUT/predict.json (what the results were made
    from) and OUT/predict.log. Existing results are skipped unless `overwrite`; PredictionError if they were
    made from something else than model, options and `made_from` of this call, or if OUT is the folder of an
    input.
    """
    if not inputs:
        raise PredictionError("There is no case to segment; give at least one.")
    out = out.resolve()
    if any(
        out in (path.resolve(), path.resolve().parent)
        for case in inputs
        for path in (case.image.files if case.image else ())
    ):
        raise PredictionError(f"Results need a folder of their own; {out} holds the input: give another -o.")
    identity = {
        "model": loaded.model_hash,
        "overlap": options.overlap,
        "weighting": options.weighting,
        "classes": dict(classes),
        **made_from,
    }
    _check_former_results(out, identity, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CLASSES, dict(classes))
    write_json(out / RECORD, {"schema_version": 1, "made_from": identity, **(remarks or {})})
    verdicts = []
    for case in (
        bar := tqdm(inputs, desc="Segmenting", unit="case", disable=not progress, dynamic_ncols=True)
    ):
        bar.set_postfix_str(case.id)
        verdict = _predict_one(loaded, task_of, case, out, options, overwrite, progress)
        verdicts.append(verdict)
        line = f"{case.id}: {verdict.status}" + (f": {verdict.why}" if verdict.why else "")
        append_log(out / LOG, f"{line} ({verdict.seconds:.1f} s)" if verdict.status == "done" else line)
        if verdict.why and progress:
            tqdm.write(line)
    return verdicts


def _check_former_results(out: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    if overwrite or not (out / RECORD).is_file() or not any(out.glob("*.nii.gz")):
        return
    try:
        former = json.loads((out / RECORD).read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        former = None
    if former != json.loads(json.dumps(identity)):
        raise PredictionError(
            f"One folder holds results of one model, task and setting; those in {out} were made otherwise "
            f"(see {RECORD} there): give another -o, or --overwrite."
        )


def _predict_one(
    loaded: LoadedModel,
    task_of: Callable[[InputCase], TaskEmbedding],
    case: InputCase,
    out: Path,
    options: InferenceOptions,
    overwrite: bool,
    progress: bool,
) -> Verdict:
    """Read, segment, write; whatever goes wrong is this case's verdict and nobody else's."""
    path = out / f"{case.id}.nii.gz"
    if path.exists() and not overwrite:
        return Verdict(case.id, "skipped", "the result exists; --overwrite makes it anew.")
    started = time.perf_counter()
    try:
        if case.image is None:
            raise RawDataError(f"The raw file of case '{case.id}' is not there.")
        image = case.image.read_image()
        task = task_of(case)
        warning = modality_warning(task, image)
        labels = predict_case(loaded, task, image, options, progress)
        write_volume(path, Volume(labels, image.affine, image.header))
    except IrisError as error:
        return Verdict(case.id, "refused", str(error))
    except Exception as error:  # a defect or a lack of memory: the other cases are not to suffer for it
        append_log(out / LOG, f"{case.id}: {traceback.format_exc()}")
        return Verdict(case.id, "refused", f"{type(error).__name__}: {error} (where, says {LOG})")
    return Verdict(case.id, "done", warning, time.perf_counter() - started)


def raise_for_refused(verdicts: Sequence[Verdict]) -> None:
    """PredictionError naming the refused cases, if any, and the reason where it is one case."""
    refused = [v for v in verdicts if v.status == "refused"]
    if len(refused) == 1:
        raise PredictionError(f"Case '{refused[0].id}' could not be segmented: {refused[0].why}")
    if refused:
        names = ", ".join(v.id for v in refused[:5]) + (", ..." if len(refused) > 5 else "")
        raise PredictionError(
            f"{len(refused)} of {len(verdicts)} cases could not be segmented ({names}): {LOG} beside the results "
            "says why."
        )


def describe(task: TaskEmbedding) -> dict[str, Any]:
    """A task without its tokens, fit for JSON."""
    values = {f.name: getattr(task, f.name) for f in fields(task) if f.name != "tokens"}
    return values | {"normalisation": task.normalisation.model_dump(mode="json")}


def digest(task: TaskEmbedding) -> str:
    """16 hex digits over names, tokens, grid and intensities of a task."""
    text = f"{task.classes} {task.spacing_mm} {task.patch_size} {task.normalisation} {task.intensity_offset}"
    summed = hashlib.sha256(text.encode())
    for level in task.tokens:
        summed.update(level.float().cpu().contiguous().numpy().tobytes())
    return summed.hexdigest()[:16]
