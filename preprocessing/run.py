"""The stage runner: fingerprint, plan, unified store. Parallel over cases, resumable, one verdict a case.

A store is finished when its manifest exists; that file is written last. A run that was killed goes on where
it stopped and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.adapters import Case, find_cases
from preprocessing.case import preprocess_case
from preprocessing.choose import choose_specs
from preprocessing.errors import IrisError, LockError, PlanError, RawDataError, SpecError
from preprocessing.fingerprint import (
    LOG,
    WAIT,
    CasePrint,
    CaseVerdict,
    Fingerprint,
    fingerprint_dataset,
    verdict_text,
    verdicts_of,
)
from preprocessing.geometry import voxel_ml
from preprocessing.grid_types import Shape
from preprocessing.plan import MANIFEST, Plan, Policy, make_plan, settle_plan
from preprocessing.runtime.files import UNUSABLE, append_log, refusal, save_json, sweep
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.options import add_plan_options, add_store_options, ending
from preprocessing.runtime.parallel import parallel_map
from preprocessing.runtime.paths import Root
from preprocessing.spec import DatasetSpec
from preprocessing.splits import make_splits
from preprocessing.store import (
    CASES,
    CaseEntry,
    CaseRecord,
    Manifest,
    Store,
    describe_labels,
    digest_of_source,
    image_path,
    labels_path,
    record_path,
    valid_record,
    write_case,
)


@dataclass(frozen=True)
class _Job:
    case: Case
    found: CasePrint
    spec: DatasetSpec
    plan: Plan
    folder: Path


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
    report: Callable[[list[CaseVerdict]], None] | None = None,
) -> list[CaseVerdict]:
    """All stages for the datasets that `names` choose (see `choose_specs`); returns one verdict a case.

    A refused case stops nothing, and neither does an unknown name or a dataset that cannot be done (one whose
    files the system refuses among them: RawDataError): the others are finished first, then the error is
    raised (all sentences, where there are several). PlanError where a store of another plan is there and
    `overwrite` is not set, LockError where another run works on a dataset. `report` gets the verdicts of each
    dataset as it ends.
    """
    verdicts: list[CaseVerdict] = []
    specs, unknown = known_specs(names, raw_root)
    failures: list[IrisError] = [*unknown]
    for spec in specs:
        raw, folder = spec.raw_folder(raw_root), preprocessed_root / spec.name
        mine: list[CaseVerdict] = []
        try:
            with only_run_in(folder, WAIT):
                fingerprint = fingerprint_dataset(raw, spec, folder, workers=workers, progress=progress)
                mine = verdicts_of(fingerprint)
                plan = settle_plan(folder, make_plan(fingerprint, spec, policy, crop), overwrite)
                mine = fill_store(raw, folder, spec, fingerprint, plan, workers=workers, progress=progress)
        except LockError as error:  # the log there is the other run's
            failures.append(error)
        except BrokenPipeError:  # nobody reads what we say any more: this ends the command, not one dataset
            raise
        except (PlanError, RawDataError, SpecError, OSError) as error:
            told = refusal(error, f"Dataset {spec.name}")
            failures.append(RawDataError(told) if isinstance(error, OSError) else error)
            with suppress(OSError):  # it may be this folder that cannot be written
                if folder.is_dir():
                    append_log(folder / LOG, f"failed: {told}")
        verdicts += mine
        if report and mine:
            report(mine)
    if failures:
        raise type(failures[0])("\n".join(str(failure) for failure in failures))
    return verdicts


def known_specs(names: Sequence[str], raw_root: Path) -> tuple[list[DatasetSpec], list[SpecError]]:
    """The specifications of the known names, each once, and what is to be said about the others."""
    chosen: dict[str, DatasetSpec] = {}
    failures: list[SpecError] = []
    for name in names:
        try:
            chosen |= {spec.name: spec for spec in choose_specs([name], raw_root, failures)}
        except SpecError as error:
            failures.append(error)
    return list(chosen.values()), failures


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
    """Write what is missing of preprocessed/<dataset>, then the manifest; whole files of this plan stay."""
    cases = {case.id: case for case in find_cases(raw, spec)}
    entries: dict[str, CaseEntry] = {}
    refused = {found.id: found.why for found in fingerprint.cases if not found.accepted}
    jobs = []
    for found in fingerprint.accepted:
        record = valid_record(folder, found.id, plan, digest_of_source(found, spec))
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
    for job_id, result in parallel_map(_store_case, jobs, workers, f"{spec.name}: storing", progress):
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
        replace(each, verdict="refused", why=refused[each.case]) if each.case in refused else each
        for each in verdicts_of(fingerprint)
    ]


def _store_case(job: _Job) -> tuple[str, CaseRecord | str]:
    """Runs in a worker: (case id, what was written or the sentence that refuses the case)."""
    case, plan = job.case, job.plan
    try:
        if case.labels is None:
            raise RawDataError(f"Case {case.id} has no label file any more: run again.")
        prepared = preprocess_case(
            case.image.read_image(),
            plan.spacing_mm,
            plan.normalisation,
            labels=case.labels.read_labels(),
            intensity_offset=plan.intensity_offset,
        )
    except UNUSABLE as error:
        return case.id, refusal(error, f"Case {case.id}")
    if prepared.labels is None:
        raise RuntimeError("preprocess_case gave no labels although it got some")
    depth, height, width = prepared.image.shape
    z, y, x = prepared.spacing_mm
    spacing_mm = (round(z, 6), round(y, 6), round(x, 6))  # headers hold float32
    entry = CaseEntry(
        id=case.id,
        subject=case.subject,
        shape=(depth, height, width),
        spacing_mm=spacing_mm,
        native_shape=job.found.shape,
        classes=describe_labels(prepared.labels, voxel_ml(prepared.affine), job.spec.classes),
        verdict=job.found.verdict,
        why=job.found.why,
    )
    return case.id, write_case(
        job.folder, entry, prepared.image, prepared.labels, plan, digest_of_source(job.found, job.spec)
    )


def made_of(store: Store, case: Case, digest: str) -> bool:
    """Whether a stored case was made of the raw files of `case` as they are now; digest: `case_digest`.

    True where the store's record of the case does not tell.
    """
    entry = store.entry(case.id)
    found = CasePrint(id=case.id, subject=entry.subject, verdict=entry.verdict, why=entry.why, digest=digest)
    known = store.source_digest(case.id)
    return not known or known == digest_of_source(found, store.manifest.spec)


def _remove_strangers(folder: Path, known: set[str]) -> None:
    """Left-overs of killed writers and of cases that are gone: a store holds only what its manifest lists."""
    sweep(folder)
    if not (folder / CASES).is_dir():
        return
    paths = (image_path, labels_path, record_path)
    wanted = {path_of(folder, case_id).name for case_id in known for path_of in paths}
    for path in (folder / CASES).iterdir():
        if path.name not in wanted and not path.is_dir():  # a folder is not ours (@eaDir of a network disk)
            path.unlink()


def run_stages(arguments: argparse.Namespace) -> int:
    """The stages behind parsed options (options.py): prints verdicts; 0 where every case could be used."""
    root = Root.resolve(arguments.root, arguments.raw)
    verdicts = plan_and_preprocess(
        root.raw,
        root.preprocessed,
        arguments.datasets,
        policy=arguments.policy,
        crop=tuple(arguments.crop),
        workers=arguments.workers,
        progress=not arguments.quiet,
        overwrite=arguments.overwrite,
        report=lambda mine: print(verdict_text(mine), flush=True),
    )
    print(f"The stores and their logs are in {root.preprocessed}.")
    return int(any(verdict.verdict == "refused" for verdict in verdicts))


def main(argv: Sequence[str] | None = None) -> int:
    """Fingerprint, plan and unified store of datasets: what is missing; status 1 where a case was refused."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.run", description=main.__doc__)
    add_store_options(parser)
    add_plan_options(parser)
    arguments = parser.parse_args(argv)
    return ending(lambda: run_stages(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
