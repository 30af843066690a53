"""Whole scans of any size and grid -> label maps on their own grid, case by case, in one process.

Arrays are [D,H,W] = (z,y,x), as are spacings and patch sizes. A case that cannot be segmented is reported and
the next one is taken; what is finished stays.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.confidence.calibration import Judgement
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.made_from import (
    ALONE,
    asked_of,
    clear_way,
    makes_way,
    note_precision,
    own_folder,
    write_record,
)
from iris_pipeline.prediction.mask_tables import MaskTables
from iris_pipeline.scans.case_report import LOG, begin_report, write_report
from iris_pipeline.scans.former_masks import DAMAGED, FormerMask, former_mask, left_behind
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.kept_scans import KeptScans
from iris_pipeline.scans.outputs import Outputs, is_complete, remove_result, sweep_results, write_result
from iris_pipeline.scans.references import CT_MINIMUM_HU
from iris_pipeline.scans.scan import ScanResult, refuse_own_reference, segment_scan, unite
from iris_pipeline.tasks.grey import weights_of
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.errors import IrisError, LockError, PredictionError, RawDataError
from preprocessing.findings import check_field, check_grey_values, no_place, one_slice
from preprocessing.runtime.files import UNUSABLE, append_log, refusal, write_json
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.progress import Bar, say
from preprocessing.volume import Volume


class Judge(Protocol):
    """Tells how good each mask of a scan is likely to be; `again`: former judgements, by the numbers of now."""

    def __call__(
        self, case: InputCase, image: Volume, tasks: Sequence[TaskEmbedding], result: ScanResult
    ) -> list[Judgement]: ...

    def again(self, former: Sequence[Judgement]) -> list[Judgement]: ...


TasksOf = Callable[[InputCase, Volume], TaskEmbedding | Sequence[TaskEmbedding]]

CLASSES = "classes.json"
NOTHING = "nothing was found: the mask is empty for all classes."


@dataclass(frozen=True)
class Verdict:
    """What became of one case; `why` is one sentence, "" where nothing is to be said."""

    id: str
    status: Literal["done", "skipped", "refused"]
    why: str = ""
    seconds: float = 0.0


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
    task: TaskEmbedding | Sequence[TaskEmbedding],
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions | None = None,
    *,
    remarks: Mapping[str, Any] | None = None,
    outputs: Outputs | None = None,
    judge: Judge | None = None,
    overwrite: bool = False,
    begun: Callable[[], None] | None = None,
    progress: bool = True,
    left_out: Sequence[str] | None = None,
) -> list[Verdict]:
    """Segment every input with one task, or with several at once; see `predict_cases` and `scan.unite`.

    TaskError if a task is another model's, or if the tasks do not go together.
    """
    tasks = unite([task] if isinstance(task, TaskEmbedding) else task)
    for each in tasks:
        each.check_model(loaded.model_hash)
    digests = [digest(each) for each in tasks]
    described = [describe(each) for each in tasks]
    return predict_cases(
        loaded,
        lambda _case, _image: tasks,
        inputs,
        out,
        options or InferenceOptions(),
        classes={name: value for each in tasks for name, value in each.classes.items()},
        made_from={"task": digests[0] if len(tasks) == 1 else digests},
        remarks={"task": described[0] if len(tasks) == 1 else described, **(remarks or {})},
        outputs=outputs,
        judge=judge,
        overwrite=overwrite,
        begun=begun,
        progress=progress,
        left_out=left_out,
    )


def predict_cases(
    loaded: LoadedModel,
    task_of: TasksOf,
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions,
    *,
    classes: Mapping[str, int],
    made_from: Mapping[str, Any],
    formerly: Mapping[str, Any] | None = None,
    remarks: Mapping[str, Any] | None = None,
    outputs: Outputs | None = None,
    judge: Judge | None = None,
    overwrite: bool = False,
    begun: Callable[[], None] | None = None,
    progress: bool = True,
    left_out: Sequence[str] | None = None,
) -> list[Verdict]:
    """Segment every input with the task(s) that `task_of` gives the case and its image: one verdict a case.

    Writes OUT/<id>.nii.gz, what `outputs` asks for beside it, OUT/classes.json (name -> value), OUT/predict.json
    (what the results were made from, by which precisions), OUT/scans.json (of which scans) and OUT/predict.log; with
    `judge`, which tells how good each mask is, OUT/confidence.csv too, in which those of results that are there are
    judged again by their signs, as the judge's numbers and threshold may be others now. OUT/volumes.csv has the mL of
    each class of each case. Both tables lose the lines of masks that are not there. Existing whole results of the same
    scans are skipped unless `overwrite`, and left, but refused, where the scan cannot be told; PredictionError if they
    were made from something else than model, options and `made_from` of this call (with `overwrite`: if they are of
    other cases than the inputs, or no input can be segmented now), or if OUT is the folder of an input. LockError while
    another run writes there, or once OUT was moved away or removed. formerly: what records of before say for
    parts of `made_from`. begun: is called once OUT is this call's, before results make way and before the first case.
    left_out: notes on inputs that make no case; with them, none or more, OUT/report.csv says what became of each case
    in this call.
    """
    if not inputs:
        raise PredictionError("There is no case to segment; give at least one.")
    out = own_folder(out, inputs)
    identity = asked_of(loaded, options) | {"classes": dict(classes)} | dict(made_from)
    with only_run_in(out, ALONE) as check_place:
        others_go = makes_way(out, identity, inputs, overwrite, formerly)
        if others_go:
            _check_start(inputs, task_of)
        out.mkdir(parents=True, exist_ok=True)
        sweep_results(out)
        if begun is not None:
            begun()
        if others_go:
            clear_way(out, inputs)
        if left_out is not None:
            begin_report(out)
        tables = MaskTables(out, classes, judges=judge is not None)
        write_json(out / CLASSES, dict(classes))
        write_record(out, identity, remarks or {})
        if judge is not None and tables.judged:
            tables.judgements.write(judge.again(tables.judged))
        run = _Run(
            loaded=loaded,
            task_of=task_of,
            out=out,
            options=options,
            outputs=outputs or Outputs(),
            judge=judge,
            overwrite=overwrite,
            progress=progress,
            scans=KeptScans(out),
            tables=tables,
            check_place=check_place,
            names=frozenset(case.id for case in inputs),
        )
        verdicts: list[Verdict] = []
        try:
            verdicts.extend(_predict_all(run, inputs))
        finally:  # of an interrupted run, too
            if left_out is not None:
                told = [(v.id, v.status, v.why, v.seconds) for v in verdicts]
                write_report(out, told, [case.id for case in inputs], left_out)
        return verdicts


def _check_start(inputs: Sequence[InputCase], task_of: TasksOf) -> None:
    """PredictionError where no input can be read and given its task: former results would be lost for nothing."""
    whys = []
    for case in inputs:
        try:
            image = _image_of(case)
            check_grey_values(image.array, str(case.image))
            refuse_own_reference(_tasks_of(task_of, case, image), image)
            return
        except LockError:
            raise
        except UNUSABLE as error:
            whys.append(f"'{case.id}': {refusal(error, f'Case {case.id}')}")
    raise PredictionError(
        "--overwrite replaces results that were made otherwise, but no scan that is given can be segmented, so they "
        f"stay: {'; '.join(whys[:3])}"
    )


def _image_of(case: InputCase) -> Volume:
    if case.image is None:
        raise RawDataError(f"The raw file of case '{case.id}' is not there: put it back.")
    return case.image.read_image()


def _tasks_of(task_of: TasksOf, case: InputCase, image: Volume) -> tuple[TaskEmbedding, ...]:
    given = task_of(case, image)
    return (given,) if isinstance(given, TaskEmbedding) else tuple(given)


@dataclass(frozen=True)
class _Run:
    """What the cases of one call share. names: of all inputs. check_place: LockError once `out` is another folder;
    whatever is written then would make it anew, or spoil another run's.
    """

    loaded: LoadedModel
    task_of: TasksOf
    out: Path
    options: InferenceOptions
    outputs: Outputs
    judge: Judge | None
    overwrite: bool
    progress: bool
    scans: KeptScans
    tables: MaskTables
    check_place: Callable[[], None]
    names: frozenset[str]

    def is_there(self, case: InputCase) -> bool:
        """Whether all that is asked for of a case is there."""
        whole = is_complete(self.out, case.id, self.outputs)
        return whole and (self.judge is None or self.tables.judgements.has(case.id))

    def left(self, case: InputCase, former: FormerMask) -> list[str]:
        """What is said of other masks of the same scan."""
        if former.scan is None:
            return []
        return left_behind(self.out, case.id, former.scan, self.scans, self.names)

    def log(self, text: str) -> None:
        """Where the log cannot be written the cases go on: what they come to is told in other places, too."""
        with suppress(OSError):
            append_log(self.out / LOG, text)


def _predict_all(run: _Run, inputs: Sequence[InputCase]) -> Iterator[Verdict]:
    """One after the other, with a bar, and a line each in the log."""
    bar = Bar(inputs, desc="Segmenting", unit="case", disable=not run.progress, dynamic_ncols=True)
    for case in bar:
        bar.set_postfix_str(case.id)
        verdict = _predict_one(run, case)
        line = f"{case.id}: {verdict.status}" + (f": {verdict.why}" if verdict.why else "")
        run.check_place()
        run.log(f"{line} ({verdict.seconds:.1f} s)" if verdict.status == "done" else line)
        if verdict.why and run.progress:
            say(line)
        yield verdict


def _predict_one(run: _Run, case: InputCase) -> Verdict:
    """Read, segment, judge, write; whatever goes wrong is this case's verdict and nobody else's, but for OUT itself."""
    started, former = time.perf_counter(), FormerMask()
    try:
        former = former_mask(run.out, case, run.scans)
        run.check_place()
        if former.scan is not None and former.counts and not run.overwrite and run.is_there(case):
            if run.tables.measured(case.id):
                run.scans.keep(case.id, former.scan)
                return Verdict(case.id, "skipped", " ".join([former.skipped, *run.left(case, former)]))
            former = replace(former, fault=DAMAGED)
        warnings = _make(run, case, former)
    except LockError:
        raise
    except IrisError as error:
        return Verdict(case.id, "refused", f"{error}{former.left(run.out, case.id)}")
    except OSError as error:  # a full disk, a name that is too long: no defect of ours
        run.check_place()
        return Verdict(
            case.id, "refused", f"{refusal(error, f'Case {case.id}')}{former.left(run.out, case.id)}"
        )
    except Exception as error:  # a defect or a lack of memory: the other cases are not to suffer for it
        run.check_place()
        run.log(f"{case.id}: {traceback.format_exc()}")
        why = f"{type(error).__name__}: {error} (where, says {LOG})"
        left = former.left(run.out, case.id)
        return Verdict(case.id, "refused", f"{why}.{left}" if left else why)
    told = [*former.replaced, *run.left(case, former), *warnings]
    return Verdict(case.id, "done", " ".join(told), time.perf_counter() - started)


def _make(run: _Run, case: InputCase, former: FormerMask) -> list[str]:
    """The result of one case, written; warnings."""
    image = _image_of(case)
    if former.scan is None:
        raise RawDataError(
            f"A scan is all of its files, and not every file of {case.image} can be read: mend their permissions, or "
            "take away what is no part of it."
        )
    check_grey_values(image.array, str(case.image))
    check_field(image.array.shape, image.spacing_mm, str(case.image))  # a header in metres finds nothing
    if former.foreign:  # whatever becomes of this one, the mask is not of it; half a scan is no scan yet
        run.check_place()
        run.tables.forget(case.id)
        remove_result(run.out, case.id)
    tasks = _tasks_of(run.task_of, case, image)
    warnings = dict.fromkeys(modality_warning(task, image) for task in tasks)
    if lost := no_place(image.header):
        warnings[f"{lost}: look whether left and right are right."] = None
    if flat := one_slice(image.shape):
        warnings[f"{flat}: doubt the result."] = None
    outputs = run.outputs if run.overwrite else run.outputs.with_those_there(run.out, case.id)
    wanted = outputs.wanted(certainty=run.judge is not None)
    result = segment_scan(run.loaded, tasks, image, run.options, wanted, run.progress)
    if not result.labels.any():
        warnings[NOTHING] = None
    judgements = run.judge(case, image, tasks, result) if run.judge is not None else None
    run.check_place()
    note_precision(run.out, run.options)
    # made anew only for what is asked for beside it, the mask is as good as was said of it
    of_former = run.judge is not None or run.overwrite or bool(former.fault)
    scan = former.scan

    def away() -> None:
        run.tables.forget(case.id, judged=of_former)
        remove_result(run.out, case.id)
        run.scans.keep(case.id, scan)  # before the mask: however this ends, none is without its scan

    write_result(run.out, case.id, result, image, run.check_place, away)
    run.tables.keep(case.id, Volume(result.labels, image.affine), judgements)
    return [warning for warning in warnings if warning]


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


_TENSORS = ("tokens", "wide_tokens", "head", "grey")


def describe(task: TaskEmbedding) -> dict[str, Any]:
    """A task without its tokens, fit for JSON."""
    values = {f.name: getattr(task, f.name) for f in fields(task) if f.name not in _TENSORS}
    return values | {
        "refined": task.head is not None,
        "grey_weights": dict(weights_of(task.grey, task.class_names)),
        "normalisation": task.normalisation.model_dump(mode="json", exclude={"tones": {"values"}}),
        "tuned": [record.model_dump(mode="json") for record in task.tuned],
        "pose": asdict(task.pose),
    }


def digest(task: TaskEmbedding) -> str:
    """16 hex digits over names, tokens, head, grey evidence, surroundings, grid, pose and intensities, and over which
    classes are one piece.
    """
    text = f"{task.classes} {task.spacing_mm} {task.patch_size} {task.normalisation} {task.intensity_offset}"
    text += f" {list(task.one_piece())} {task.pose}" + (
        f" {task.surroundings} {task.usual}" if task.surroundings else ""
    )
    summed = hashlib.sha256(text.encode())
    added = [tensor for part in (task.head, task.grey) if part is not None for tensor in part.parts]
    for level in (*task.tokens, *task.wide_tokens, *added):
        summed.update(level.float().cpu().contiguous().numpy().tobytes())
    return summed.hexdigest()[:16]
