"""The stage runner: fingerprint, plan, unified store. Parallel over cases, resumable, one verdict a case.

A store is finished when its manifest exists; that file is written last. A run that was killed goes on where it
stopped and ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.adapters import Case, find_cases
from preprocessing.case import preprocess_case
from preprocessing.errors import IrisError, PlanError, RawDataError, SpecError
from preprocessing.files import append_log, save_json
from preprocessing.fingerprint import LOG, CasePrint, Fingerprint, Verdict, fingerprint_dataset
from preprocessing.parallel import default_workers, parallel_map
from preprocessing.plan import FILE as PLAN_FILE
from preprocessing.plan import Plan, Policy, Shape, load_plan, make_plan
from preprocessing.spec import DatasetSpec, list_specs, load_spec, unknown_name
from preprocessing.splits import make_splits
from preprocessing.store import (
    CASES,
    MANIFEST,
    CaseEntry,
    CaseRecord,
    Manifest,
    describe_labels,
    valid_record,
    write_case,
)
from preprocessing.volume import read_labels, read_volume


GROUPS = ("all", "upstream", "held-out", "phantom")


@dataclass(frozen=True)
class CaseVerdict:
    """What became of one case: stored as it is (ok), stored after a repair, or refused with the reason."""

    dataset: str
    case: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class _Job:
    case: Case
    found: CasePrint
    spec: DatasetSpec
    plan: Plan
    folder: Path


def choose_specs(names: Sequence[str], raw_root: Path) -> list[DatasetSpec]:
    """The specifications behind `-d`: names, paths of YAML files, or `all`, `upstream`, `held-out`, `phantom`.

    The four words stand for every dataset of that role with a folder under `raw_root`. SpecError for an unknown name
    (with the nearest known one) or for a word that no dataset there fits.
    """
    chosen: dict[str, DatasetSpec] = {}
    for name in names:
        if name in GROUPS:
            specs = [load_spec(known) for known in list_specs() if (raw_root / known).is_dir()]
            specs = [spec for spec in specs if name in ("all", spec.role)]
            if not specs:
                raise SpecError(
                    f"'{name}' fits no dataset under {raw_root}: known are {', '.join(list_specs())}."
                )
        elif name.endswith((".yaml", ".yml")) or name in list_specs():
            specs = [load_spec(name)]
        else:
            raise SpecError(unknown_name(name, list_specs()))
        chosen |= {spec.name: spec for spec in specs}
    return list(chosen.values())


def plan_and_preprocess(
    raw_root: Path,
    preprocessed_root: Path,
    names: Sequence[str],
    *,
    policy: Policy = "paper",
    crop: Shape = (64, 64, 64),
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> list[CaseVerdict]:
    """All stages for the datasets that `names` choose (see `choose_specs`); returns one verdict a case.

    A refused case stops nothing; neither does a dataset that cannot be done at all while others can: the first such
    error is raised at the end. PlanError where a store of another plan is there and `overwrite` is not set.
    """
    verdicts: list[CaseVerdict] = []
    failures: list[IrisError] = []
    for spec in choose_specs(names, raw_root):
        folder = preprocessed_root / spec.name
        try:
            fingerprint = fingerprint_dataset(
                raw_root / spec.name, spec, folder, workers=workers, progress=progress
            )
            plan = settle_plan(folder, make_plan(fingerprint, spec, policy, crop), overwrite)
            verdicts += fill_store(
                raw_root / spec.name, folder, spec, fingerprint, plan, workers=workers, progress=progress
            )
        except (PlanError, RawDataError, SpecError) as error:
            append_log(folder / LOG, f"failed: {error}")
            failures.append(error)
    if failures:
        first, others = failures[0], len(failures) - 1
        more = (
            f" ({others} more dataset{'s' * (others > 1)} failed: see {preprocessed_root}/*/{LOG}.)"
            if others
            else ""
        )
        raise type(first)(f"{first}{more}")
    return verdicts


def settle_plan(folder: Path, plan: Plan, overwrite: bool = False) -> Plan:
    """Write plan.json, or keep the one there if it gives the same arrays; PlanError if it gives others."""
    path = folder / PLAN_FILE
    if path.is_file() and not overwrite:
        old = load_plan(folder)
        if old.digest != plan.digest:
            raise PlanError(
                f"{path} is of another plan ({_in_short(old)}) than the one asked for ({_in_short(plan)}): give the same "
                "options, another --root, or --overwrite to make the store anew."
            )
    if overwrite:
        (folder / MANIFEST).unlink(missing_ok=True)
    save_json(path, plan)
    append_log(folder / LOG, "plan: " + " ".join(plan.reasons))
    return plan


def fill_store(
    raw: Path,
    folder: Path,
    spec: DatasetSpec,
    fingerprint: Fingerprint,
    plan: Plan,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[CaseVerdict]:
    """Write what is missing of preprocessed/<dataset>, then the manifest. Whole case files of the same plan are kept."""
    cases = {case.id: case for case in find_cases(raw, spec)}
    entries: dict[str, CaseEntry] = {}
    refused = {found.id: found.why for found in fingerprint.cases if not found.accepted}
    jobs = []
    for found in fingerprint.accepted:
        record = valid_record(folder, found.id, plan, found.digest)
        if record is not None:
            entries[found.id] = record.entry
        else:
            jobs.append(_Job(cases[found.id], found, spec, plan, folder))
    if jobs:
        (folder / MANIFEST).unlink(missing_ok=True)
        append_log(
            folder / LOG,
            f"{len(entries)} of {len(fingerprint.accepted)} usable cases are there, {len(jobs)} to do",
        )
    for job_id, result in parallel_map(
        _store_case, jobs, workers or default_workers(), f"{spec.name}: storing", progress
    ):
        if isinstance(result, str):
            refused[job_id] = result
            append_log(folder / LOG, f"{job_id}: refused: {result}")
        else:
            entries[job_id] = result.entry
    _remove_strangers(folder, set(entries))
    manifest = Manifest(
        dataset=spec.name,
        title=spec.title,
        modality=spec.modality,
        role=spec.role,
        classes=spec.classes,
        plan=plan,
        spec=spec,
        cases=tuple(entries[case_id] for case_id in sorted(entries)),
        refused=dict(sorted(refused.items())),
        splits=make_splits(spec, {found.id: found.subject for found in fingerprint.cases}, entries.keys()),
    )
    save_json(folder / MANIFEST, manifest)
    append_log(folder / LOG, f"finished: {len(entries)} cases stored, {len(refused)} refused")
    return [
        CaseVerdict(spec.name, found.id, "refused", refused[found.id])
        if found.id in refused
        else CaseVerdict(spec.name, found.id, found.verdict, found.why)
        for found in fingerprint.cases
    ]


def _store_case(job: _Job) -> tuple[str, CaseRecord | str]:
    """Runs in a worker: (case id, what was written or the sentence that refuses the case)."""
    case, plan = job.case, job.plan
    try:
        if case.labels is None:
            raise RawDataError(f"Case {case.id} has no label file any more: run again.")
        prepared = preprocess_case(
            read_volume(case.image),
            plan.spacing_mm,
            plan.normalisation,
            labels=read_labels(case.labels),
            intensity_offset=plan.intensity_offset,
        )
    except IrisError as error:
        return case.id, str(error)
    if prepared.labels is None:
        raise RuntimeError("preprocess_case gave no labels although it got some")
    depth, height, width = prepared.image.shape
    entry = CaseEntry(
        id=case.id,
        subject=case.subject,
        shape=(depth, height, width),
        spacing_mm=prepared.spacing_mm,
        native_shape=job.found.shape,
        classes=describe_labels(prepared.labels, prepared.spacing_mm, job.spec.classes),
        verdict=job.found.verdict,
        why=job.found.why,
    )
    return case.id, write_case(job.folder, entry, prepared.image, prepared.labels, plan, job.found.digest)


def _remove_strangers(folder: Path, known: set[str]) -> None:
    """Left-overs of killed writers and of cases that are gone: a store holds only what its manifest lists."""
    if not (folder / CASES).is_dir():
        return
    wanted = {f"{case_id}{ending}" for case_id in known for ending in (".b2nd", ".seg.b2nd", ".json")}
    for path in (folder / CASES).iterdir():
        if path.name not in wanted:
            path.unlink()


def _in_short(plan: Plan) -> str:
    edges = " x ".join(f"{edge:g}" for edge in plan.spacing_mm)
    return f"policy {plan.policy}, {edges} mm, patch {' x '.join(map(str, plan.patch_size))}"


if __name__ == "__main__":
    from preprocessing.stages import run_stage

    raise SystemExit(run_stage())
