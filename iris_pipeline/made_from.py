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

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.confidence import TABLE
from iris_pipeline.inbox import RECORD
from iris_pipeline.inputs import InputCase
from iris_pipeline.outputs import ENDING, remove_result
from iris_pipeline.sliding_window import InferenceOptions
from iris_pipeline.volumes import TABLE as VOLUMES
from preprocessing.errors import PredictionError
from preprocessing.files import write_json

_ASKED = ("model", "overlap", "weighting", "skip", "all_pieces", "one_pass")
_LATER = ("stored", "encoding", "search_rules")
"""what records of before do not say, and is then not compared"""


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
) -> None:
    """PredictionError, as `predict_cases` would raise it, where results in OUT cannot be those of a task that is yet to
    be made: before minutes are spent on making it. Its classes are not known yet: references may lack some.
    """
    out = own_folder(out, inputs)
    asked = json.loads(json.dumps(asked_of(loaded, options)))
    former = _made_from(out) or {}
    if not overwrite and {key: former[key] for key in _ASKED if key in former} != asked:
        make_way(out, asked, inputs, overwrite)


def make_way(
    out: Path,
    identity: Mapping[str, Any],
    inputs: Sequence[InputCase],
    overwrite: bool,
    formerly: Mapping[str, Any] | None = None,
) -> None:
    """Refuse results that were made otherwise, or, with `overwrite`, take those of the inputs away.

    All of them before the first is made anew: else, after an interruption, the rest would pass for results of
    this call. formerly: facts of the identity as records of before said them.
    """
    results = sorted(path.name.removesuffix(ENDING) for path in out.glob(f"[!.]*{ENDING}"))
    if not results:
        return
    former = _made_from(out)
    if former is not None and _is_same(former, identity, formerly or {}):
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
    for table in (TABLE, VOLUMES):  # before the masks that they speak of
        (out / table).unlink(missing_ok=True)
    for case in inputs:
        remove_result(out, case.id)


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
