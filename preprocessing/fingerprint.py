"""Fingerprint: what the raw cases of a dataset are, measured once; nothing is changed.

Shapes, spacings and extents are (z,y,x) after reorientation to RAS+; spacing and extent in mm, volumes in ml.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import ndimage

from preprocessing.adapters import Case, find_cases
from preprocessing.case import check_same_grid, on_grid_of_image
from preprocessing.choose import choose_specs
from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.findings import check_field, check_grey_values, check_sides, image_hash, no_place, skew
from preprocessing.geometry import label_counts, voxel_ml
from preprocessing.grid_types import Triple
from preprocessing.normalise import spread_about
from preprocessing.orientation import Reorientation
from preprocessing.runtime.files import (
    UNUSABLE,
    append_log,
    file_digest,
    load_json,
    refusal,
    save_json,
    text_digest,
)
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.options import add_store_options, ending
from preprocessing.runtime.parallel import parallel_map
from preprocessing.runtime.paths import Root
from preprocessing.sources.source import Source
from preprocessing.spec import DatasetSpec
from preprocessing.volume import Volume, orientation_conflict

Verdict = Literal["ok", "repaired", "refused"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FILE = "fingerprint.json"
PARTIAL = "fingerprint.partial.jsonl"
LOG = "preprocess.log"
WAIT = "wait until it has ended, then run this command again"
PERCENTILES = (0.5, 2.0, 50.0, 98.0, 99.5)


class ClassPrint(BaseModel):
    """One class in one case. `extent_mm`: edge lengths of its bounding box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    ml: float
    extent_mm: Triple


class CasePrint(BaseModel):
    """One case. Where it is refused only `id`, `subject`, `verdict`, `why` and `digest` say something.

    digest: of the files' bytes; content: of the voxels, the same for a copy in another format or orientation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    subject: str
    verdict: Verdict
    why: str = ""
    digest: str
    content: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: Triple = (0.0, 0.0, 0.0)
    orientation: str = ""
    intensity: dict[str, float] = {}
    classes: dict[str, ClassPrint] = {}

    @property
    def accepted(self) -> bool:
        return self.verdict != "refused"


class Fingerprint(BaseModel):
    """All cases of a dataset, sorted by id.

    `spec_digest` covers what the measuring used of the specification.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 2
    dataset: str
    spec_digest: str
    cases: tuple[CasePrint, ...]

    @property
    def accepted(self) -> list[CasePrint]:
        return [case for case in self.cases if case.accepted]


@dataclass(frozen=True)
class CaseVerdict:
    """What became of one case: usable as it is (ok), after a repair, or refused; `why` in one sentence."""

    dataset: str
    case: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class _Job:
    case: Case
    spec: DatasetSpec
    known: CasePrint | None


def fingerprint_dataset(
    raw: Path,
    spec: DatasetSpec,
    folder: Path | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Fingerprint:
    """Measure every case under `raw` (the dataset's own folder) over several processes.

    With `folder` (preprocessed/<dataset>) the result is written to fingerprint.json there; usable cases whose
    files are unchanged since the last, maybe broken, run are not measured again. Without it nothing is written.
    A case that cannot be used is a verdict, not an error; RawDataError or SpecError only where no case can be
    listed.
    """
    cases = find_cases(raw, spec)
    spec_digest = _spec_digest(spec)
    known = _known_cases(folder, spec_digest) if folder else {}
    jobs = [_Job(case, spec, known.get(case.id)) for case in cases]
    results: dict[str, CasePrint] = {}
    remember = _partial_writer(folder, spec_digest) if folder else None
    for result in parallel_map(_measure, jobs, workers, f"{spec.name}: reading", progress):
        results[result.id] = result
        if remember:
            remember(result)
    fingerprint = Fingerprint(
        dataset=spec.name, spec_digest=spec_digest, cases=tuple(results[case.id] for case in cases)
    )
    if folder:
        save_json(folder / FILE, fingerprint)
        (folder / PARTIAL).unlink(missing_ok=True)
        for case in fingerprint.cases:
            if case.verdict != "ok":
                append_log(folder / LOG, f"{case.id}: {case.verdict}: {case.why}")
    return fingerprint


def verdicts_of(fingerprint: Fingerprint) -> list[CaseVerdict]:
    """One verdict a case, in the order of the ids."""
    return [CaseVerdict(fingerprint.dataset, case.id, case.verdict, case.why) for case in fingerprint.cases]


def verdict_text(verdicts: Sequence[CaseVerdict]) -> str:
    """One line a dataset with the counts, then one for each case about which there is something to say."""
    lines = []
    for dataset in dict.fromkeys(verdict.dataset for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.dataset == dataset]
        counts = [f"{sum(verdict.verdict == word for verdict in mine)} {word}" for word in VERDICTS]
        lines.append(f"{dataset}: {', '.join(counts)}")
        lines += [f"  {each.case}: {each.verdict}: {each.why}" for each in mine if each.why]
    return "\n".join(lines)


def load_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint of preprocessed/<dataset>. RawDataError where there is none of this schema version."""
    return load_json(
        folder / FILE, Fingerprint, RawDataError, f"run iris_plan_and_preprocess -d {folder.name} --overwrite"
    )


def measure_case(
    case: Case, spec: DatasetSpec, known: CasePrint | None = None, reference: bool = False
) -> CasePrint:
    """Read one case and say what it is; what keeps it from being read becomes the verdict 'refused' with a sentence.

    `known`, what an earlier run found, is handed back where it could be used and the files still have the same bytes.
    reference: the case is given to show a task; sentences then speak of its classes.json, since there is no
    specification to correct.
    """
    digest = ""
    try:
        digest = case_digest(case)
        # What was refused is tried again: the reason may have been the machine's (memory, permissions).
        if known is not None and known.accepted and (known.digest, known.subject) == (digest, case.subject):
            return known
        return _measure_readable(case, spec, digest, reference)
    except UNUSABLE as error:
        why = refusal(error, f"Case {case.id}")
        return CasePrint(id=case.id, subject=case.subject, verdict="refused", why=why, digest=digest)


def case_digest(case: Case, files: str | None = None) -> str:
    """Of the bytes of all files of a case, and of how they become voxels; a missing label counts as empty.

    files: the digest of the bytes alone, by whom has it already: nothing is then read.
    """
    digest = files or file_digest([*case.image.contents, *(case.labels.contents if case.labels else [None])])
    recipe = "|".join(source.recipe for source in (case.image, case.labels) if source and source.recipe)
    return text_digest(f"{digest} {recipe}") if recipe else digest


def _measure(job: _Job) -> CasePrint:
    return measure_case(job.case, job.spec, job.known)


def _measure_readable(case: Case, spec: DatasetSpec, digest: str, reference: bool) -> CasePrint:
    if case.labels is None:
        raise RawDataError(
            f"Case {case.id} has an image ({case.image.name}) but no label file: add one or remove it."
        )
    image = case.image.read_image()
    labels = on_grid_of_image(image, case.labels.read_labels())
    mended = (*image.repairs, *labels.repairs)
    conflicts = map(orientation_conflict, case.image.files[:1])
    found = (*conflicts, skew(image.affine), check_same_grid(image, labels))
    repairs = [text for text in dict.fromkeys((*mended, *found)) if text]
    check_field(image.shape, image.spacing_mm, str(case.image))
    check_grey_values(image.array, str(case.image))
    check_label_values(labels.array, case.labels, spec, reference)
    check_sides(Volume(labels.array, image.affine), spec.classes, spec.sides, str(case.labels))
    orientation = "".join(nib.aff2axcodes(image.affine))
    reorientation = Reorientation.to_ras(image.affine)
    array, label_map = reorientation.apply(image.array), reorientation.apply(labels.array)
    spacing = _ras_spacing(reorientation.apply_affine(image.affine, image.array.shape))
    classes = _measure_classes(label_map, spacing, voxel_ml(image.affine), spec)
    check_volumes(classes, case.id, spec)
    whose = "references" if reference else "specification"
    remarks = [no_place(image.header), None if classes else f"no class of the {whose} has a voxel"]
    told = (*repairs, *image.doubts, *labels.doubts, *remarks)
    notes = [text for text in dict.fromkeys(told) if text]
    return CasePrint(
        id=case.id,
        subject=case.subject,
        verdict="repaired" if repairs else "ok",
        why="; ".join(notes),
        digest=digest,
        content=image_hash(image),
        shape=array.shape,
        spacing_mm=spacing,
        orientation=orientation,
        intensity=_measure_intensity(array, spec.intensity_offset),
        classes=classes,
    )


def check_label_values(
    labels: np.ndarray, source: Source, spec: DatasetSpec, reference: bool = False
) -> None:
    """LabelValueError where a label map holds a value that is neither 0 nor a class; reference: as `measure_case`."""
    unknown = sorted({int(value) for value in np.unique(labels)} - {0, *spec.classes.values()})
    if unknown:
        allowed = ", ".join(f"{value} ({name})" for name, value in spec.classes.items())
        whose, remedy = f"dataset {spec.name} allows", "correct the label map or the specification"
        if reference:
            whose = "the classes of the references are"
            remedy = "correct the label file or name its values (1 to 255) in their classes.json"
            if not source.files:  # arrays
                remedy = "correct the labels or name their values (1 to 255) in `classes`"
        raise LabelValueError(
            f"{source} holds unknown label values ({', '.join(map(str, unknown))}): {whose} 0 (background), {allowed}; "
            f"{remedy}."
        )


def check_volumes(classes: Mapping[str, ClassPrint], case_id: str, spec: DatasetSpec) -> None:
    """LabelValueError where a class has a volume that its organ cannot have (quirks.volume_ml)."""
    for name, (least, most) in spec.quirks.volume_ml.items():
        if name in classes and not least <= classes[name].ml <= most:
            raise LabelValueError(
                f"'{name}' of dataset {spec.name} has {least:g} to {most:g} ml, but {classes[name].ml:g} ml in case "
                f"{case_id}: its label values mean something else than the specification says: correct one of the two."
            )


def _ras_spacing(affine: np.ndarray) -> Triple:
    x, y, z = (round(float(length), 6) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def _measure_intensity(array: np.ndarray, offset: float) -> dict[str, float]:
    values = np.percentile(array, PERCENTILES)
    measured = {
        f"p{percentile:g}": float(value) for percentile, value in zip(PERCENTILES, values, strict=True)
    }
    mean = float(array.mean(dtype=float))
    measured |= {"minimum": float(array.min()), "maximum": float(array.max()), "mean": mean}
    shifted = {name: round(value + offset, 4) for name, value in measured.items()}
    return shifted | {"sd": round(spread_about(array, mean), 4)}


def _measure_classes(
    labels: np.ndarray, spacing: Triple, ml: float, spec: DatasetSpec
) -> dict[str, ClassPrint]:
    """Classes with at least one voxel. ml: of a voxel."""
    highest = max(spec.classes.values())
    counts = label_counts(labels)
    boxes = ndimage.find_objects(labels.astype(np.uint8, copy=False), max_label=highest)
    measured = {}
    for name, value in spec.classes.items():
        box = boxes[value - 1]
        if box is None:
            continue
        extent = [round((part.stop - part.start) * edge, 3) for part, edge in zip(box, spacing, strict=True)]
        measured[name] = ClassPrint(
            voxels=int(counts[value]),
            ml=round(float(counts[value] * ml), 4),
            extent_mm=(extent[0], extent[1], extent[2]),
        )
    return measured


def _spec_digest(spec: DatasetSpec) -> str:
    sides = sorted((side, tuple(names)) for side, names in spec.sides.items())
    bounds = sorted(spec.quirks.volume_ml.items())
    return text_digest(f"{sorted(spec.classes.items())} {spec.intensity_offset} {sides} {bounds}")


def _known_cases(folder: Path, spec_digest: str) -> dict[str, CasePrint]:
    """Cases of the last fingerprint and of one that was broken off, if measured by the same rules."""
    known: dict[str, CasePrint] = {}
    try:
        finished = load_fingerprint(folder)
        if finished.spec_digest == spec_digest:
            known.update({case.id: case for case in finished.cases})
    except RawDataError:
        pass
    partial = folder / PARTIAL
    # The last line may have been cut by the end of the process, inside a letter of several bytes too.
    lines = partial.read_text(encoding="utf-8", errors="replace").splitlines() if partial.is_file() else []
    if not lines or lines[0] != spec_digest:
        partial.unlink(missing_ok=True)
        return known
    for line in lines[1:]:
        try:
            case = CasePrint.model_validate_json(line)
        except ValidationError:
            continue
        known[case.id] = case
    return known


def _partial_writer(folder: Path, spec_digest: str) -> Callable[[CasePrint], None]:
    partial = folder / PARTIAL
    folder.mkdir(parents=True, exist_ok=True)
    if not partial.is_file():
        partial.write_text(spec_digest + "\n", encoding="utf-8")

    def remember(case: CasePrint) -> None:
        with partial.open("a", encoding="utf-8") as stream:
            stream.write("\n" * (not _ends_with_newline(partial)) + case.model_dump_json() + "\n")

    return remember


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the raw cases of datasets; status 1 where a case was refused."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.fingerprint", description=main.__doc__)
    add_store_options(parser)
    arguments = parser.parse_args(argv)
    return ending(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    verdicts: list[CaseVerdict] = []
    for spec in choose_specs(arguments.datasets, root.raw):
        folder = root.preprocessed / spec.name
        raw = spec.raw_folder(root.raw)
        with only_run_in(folder, WAIT):
            fingerprint = fingerprint_dataset(
                raw, spec, folder, workers=arguments.workers, progress=not arguments.quiet
            )
        verdicts += verdicts_of(fingerprint)
    print(verdict_text(verdicts))
    return int(any(verdict.verdict == "refused" for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
