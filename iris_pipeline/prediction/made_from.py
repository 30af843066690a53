"""What the results of a folder were made from, in OUT/predict.json: one folder holds results of one making.

Model, settings and what the task came from are its identity: results of another are refused, or make way. By which
precisions they were made is noted beside it, and no part of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.confidence.calibration import TABLE
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.scans.inbox import RECORD
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.outputs import ENDING, remove_result
from iris_pipeline.scans.volumes import TABLE as VOLUMES
from preprocessing.errors import PredictionError
from preprocessing.runtime.files import write_json
from preprocessing.runtime.lock import only_run_in

_ASKED = ("model", "overlap", "weighting", "skip", "all_pieces", "one_pass")
_LATER = ("stored", "encoding", "search_rules")
"""what records of before do not say, and is then not compared"""
REFERENCE_FILES = "reference_files"
"""noted beside the identity: the content of the references that made the one task, which tells sooner than the task"""
ALONE = "wait until it has ended, or give another -o"


def asked_of(loaded: LoadedModel, options: InferenceOptions) -> dict[str, Any]:
    """What results depend on beside their task; the keys are among `_ASKED`."""
    return {
        "model": loaded.model_hash,
        "overlap": options.overlap,
        "weighting": options.weighting,
        **({} if options.skip == "never" else {"skip": options.skip}),
        **({"all_pieces": True} if options.all_pieces else {}),
        **({"one_pass": True} if options.one_pass else {}),
    }


def own_folder(out: Path, inputs: Sequence[InputCase]) -> Path:
    """OUT, resolved; PredictionError if it is the folder of an input."""
    out = out.resolve()
    if any(
        out in ((real := Path(os.path.realpath(path))), real.parent)  # of a link that leads to itself, too
        for case in inputs
        for path in (case.image.files if case.image else ())
    ):
        raise PredictionError(f"Results need a folder of their own; {out} holds the input: give another -o.")
    return out


def check_out(
    loaded: LoadedModel,
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """PredictionError, as `predict_cases` would raise it, where results in OUT cannot be those of a task that is yet to
    be made: before minutes are spent on making it. LockError where OUT cannot be written, or is another run's.

    facts: what is known of the identity beside model and options, None for what is not known yet; `REFERENCE_FILES` is
    compared with what is noted. Of the classes some may be lacking in the end, as references may lack some.
    """
    out = own_folder(out, inputs)
    with only_run_in(out, ALONE):
        record, former = _record(out), _made_from(out)
        asked = json.loads(json.dumps(asked_of(loaded, options)))
        differs = {key: (former or {})[key] for key in _ASKED if key in (former or {})} != asked
        if facts is not None and former is not None:
            differs |= bool(former.keys() - asked.keys() - facts.keys())
            said = {REFERENCE_FILES: record.get(REFERENCE_FILES)} | former
            differs |= any(_contradicts(key, said.get(key), value) for key, value in facts.items())
        if differs:
            _check_way(out, former, inputs, overwrite)


def _contradicts(key: str, former: Any, now: Any) -> bool:
    """Whether a fact of a record cannot be what is known now; of another type it is another version's, and tells
    nothing.
    """
    now = json.loads(json.dumps(now))
    if now is None or type(former) is not type(now):
        return False
    return bool(former.items() - now.items()) if key == "classes" else bool(former != now)


def makes_way(
    out: Path,
    identity: Mapping[str, Any],
    inputs: Sequence[InputCase],
    overwrite: bool,
    formerly: Mapping[str, Any] | None = None,
) -> bool:
    """Whether there are results that were made otherwise, which `clear_way` is to take away; PredictionError where they
    cannot go. formerly: facts of the identity as records of before said them.
    """
    if not _results(out):
        return False
    former = _made_from(out)
    if former is not None and _is_same(former, identity, formerly or {}):
        return False
    _check_way(out, former, inputs, overwrite)
    return True


def clear_way(out: Path, inputs: Sequence[InputCase]) -> None:
    """Take the results of the inputs away.

    All of them before the first is made anew: else, after an interruption, the rest would pass for results of this
    call.
    """
    for table in (TABLE, VOLUMES):  # before the masks that they speak of
        (out / table).unlink(missing_ok=True)
    for case in inputs:
        remove_result(out, case.id)


def _check_way(
    out: Path, former: Mapping[str, Any] | None, inputs: Sequence[InputCase], overwrite: bool
) -> None:
    """PredictionError where results that were made otherwise cannot make way."""
    results = _results(out)
    if not results:
        return
    made = (
        f"were made otherwise (see {RECORD} there)"
        if former is not None
        else f"have no {RECORD} that says how"
    )
    if not overwrite:
        raise PredictionError(
            f"One folder holds results of one model, task and setting; those in {out} {made}: give another -o, or "
            "--overwrite."
        )
    others = [name for name in results if name not in {case.id for case in inputs}]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise PredictionError(
            f"--overwrite replaces results of the scans that are given, and those of others in {out} ({shown}) {made}: "
            "give another -o, or take them away."
        )


def _results(out: Path) -> list[str]:
    """The names of the cases that have a mask."""
    return sorted(path.name.removesuffix(ENDING) for path in out.glob(f"[!.]*{ENDING}"))


def write_record(out: Path, identity: Mapping[str, Any], remarks: Mapping[str, Any]) -> None:
    """What the results are made from, and, of those that are there, by which precisions they were."""
    there = any(out.glob(f"[!.]*{ENDING}"))
    record = {
        "schema_version": 1,
        "made_from": dict(identity),
        "precisions": _precisions(out) if there else [],
    }
    write_json(out / RECORD, record | dict(remarks))


def note_precision(out: Path, options: InferenceOptions) -> None:
    """A result is about to be made by the precision of these options.

    A record and no part of the identity: `--precision auto` may choose otherwise tomorrow, and a nightly job must not
    stop at that; masks differ by less than by anything else that is asked of them.
    """
    known, own = _precisions(out), "bf16" if options.autocast else "fp32"
    if own not in known:
        write_json(out / RECORD, _record(out) | {"precisions": sorted([*known, own])})


def _is_same(former: Mapping[str, Any], identity: Mapping[str, Any], formerly: Mapping[str, Any]) -> bool:
    """Whether a record says what is asked for now, as far as the version that wrote it could."""
    asked = json.loads(json.dumps(identity))
    before = {key: value for key, value in asked.items() if key in former or key not in _LATER}
    return dict(former) in (asked, before | json.loads(json.dumps(formerly)))


def _record(out: Path) -> dict[str, Any]:
    """predict.json; nothing where it is not there or something else."""
    try:
        said = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _made_from(out: Path) -> dict[str, Any] | None:
    """What the results in a folder were made from; None where nothing says it."""
    said = _record(out).get("made_from")
    return said if isinstance(said, dict) else None


def _precisions(out: Path) -> list[str]:
    """By which precisions the results in a folder were made, as far as it is known."""
    said = _record(out).get("precisions")
    return sorted({str(name) for name in said}) if isinstance(said, list) else []
