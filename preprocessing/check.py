"""Check: reads every raw file of a dataset, changes nothing, and says what it found.

One verdict a case (ok, repaired, refused, and why), then remarks that concern the dataset as a whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from preprocessing.adapters import find_cases
from preprocessing.errors import IrisError, SpecError
from preprocessing.findings import lost_spacings
from preprocessing.fingerprint import (
    VERDICTS,
    CaseVerdict,
    Fingerprint,
    Verdict,
    fingerprint_dataset,
    verdict_text,
)
from preprocessing.leaks import (
    KnownCase,
    declared_overlaps,
    images_of_two_datasets,
    people_in_two_parts,
    same_images,
)
from preprocessing.spec import DatasetSpec
from preprocessing.splits import make_splits

LOST_SPACING = (
    "the spacing is exactly 1 x 1 x 1 mm, unlike most cases here: "
    "compare with the source, the header may have lost it"
)


class CheckedCase(BaseModel):
    """One case; `shape` (z,y,x) and `orientation` as stored in the file are missing where it is refused.

    content: hash of the image's voxels; part: of the split 'paper'.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    subject: str
    verdict: Verdict
    why: str
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = ""
    content: str = ""
    part: str = ""
    voxels: dict[str, int] = {}


class CheckReport(BaseModel):
    """All cases of a dataset, sorted by id, the number of each verdict, remarks on the whole, and notes.

    A remark wants looking at; a note only says how the files were understood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    raw: str
    counts: dict[str, int]
    remarks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    cases: tuple[CheckedCase, ...]

    @property
    def usable(self) -> bool:
        return self.counts["refused"] == 0

    def text(self) -> str:
        """For a reader: counts, every case about which there is something to say, remarks, notes."""
        verdicts = [CaseVerdict(self.dataset, case.id, case.verdict, case.why) for case in self.cases]
        remarks = [f"  remark: {remark}" for remark in self.remarks]
        return "\n".join([verdict_text(verdicts), *remarks, *(f"  note: {note}" for note in self.notes)])


class CheckSummary(BaseModel):
    """What iris_check writes as JSON. remarks: what concerns several datasets; errors: datasets that have no cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 2
    datasets: tuple[CheckReport, ...]
    remarks: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.errors and all(report.usable for report in self.datasets)


@dataclass(frozen=True)
class Checked:
    """A report and what the datasets beside it are compared with: its cases, and the overlaps it declares."""

    report: CheckReport
    known: tuple[KnownCase, ...]
    overlaps: tuple[str, ...] = ()


def check_dataset(
    raw: Path, spec: DatasetSpec, *, workers: int | None = None, progress: bool = True
) -> Checked:
    """Read all of `raw` (the dataset's own folder).

    RawDataError or SpecError only where no case can be listed.
    """
    fingerprint = fingerprint_dataset(raw, spec, None, workers=workers, progress=progress)
    parts, remarks = _parts(spec, fingerprint)
    known = tuple(
        KnownCase(spec.name, case.id, spec.people, case.subject, case.content, parts[case.id])
        for case in fingerprint.accepted
    )
    remarks = [*_remarks(spec, fingerprint), *remarks, *same_images(known), *_other_labels(raw, spec)]
    lost = _lost(fingerprint, spec)
    counts = Counter(case.verdict for case in fingerprint.cases)
    report = CheckReport(
        dataset=spec.name,
        raw=str(raw),
        counts={word: counts[word] for word in VERDICTS},
        remarks=tuple(remarks),
        notes=tuple(_notes(spec, fingerprint)),
        cases=tuple(
            CheckedCase(
                id=case.id,
                subject=case.subject,
                verdict=case.verdict,
                why="; ".join(text for text in (case.why, LOST_SPACING if case.id in lost else "") if text),
                shape=case.shape if case.accepted else None,
                spacing_mm=case.spacing_mm if case.accepted else None,
                orientation=case.orientation,
                content=case.content,
                part=parts[case.id].get("paper", ""),
                voxels={name: found.voxels for name, found in case.classes.items()},
            )
            for case in fingerprint.cases
        ),
    )
    return Checked(report, known, spec.overlaps)


def summarise(checked: Sequence[Checked], errors: Sequence[str] = ()) -> CheckSummary:
    """The reports of datasets that are used together, and what only shows when they are compared."""
    known = [case for each in checked for case in each.known]
    return CheckSummary(
        datasets=tuple(each.report for each in checked),
        remarks=(
            *images_of_two_datasets(known),
            *people_in_two_parts(known),
            *declared_overlaps({each.report.dataset: each.overlaps for each in checked}),
        ),
        errors=tuple(errors),
    )


def dataset_folder(raw_root: Path, spec: DatasetSpec) -> Path:
    """RAW may be the folder of all raw datasets or that of the dataset itself."""
    folder = spec.raw_folder(raw_root)
    if folder.is_dir():
        return folder
    try:
        return raw_root if find_cases(raw_root, spec) else folder
    except IrisError:
        return folder


def _lost(fingerprint: Fingerprint, spec: DatasetSpec) -> set[str]:
    """Ids of the cases whose header may have lost its spacing, where no quirk says so already."""
    if spec.quirks.doubtful_spacing_mm == (1.0, 1.0, 1.0):
        return set()
    return set(lost_spacings({case.id: case.spacing_mm for case in fingerprint.accepted}))


def _parts(spec: DatasetSpec, fingerprint: Fingerprint) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Case id -> split -> part, and what is wrong with the split's lists."""
    parts: dict[str, dict[str, str]] = {case.id: {} for case in fingerprint.cases}
    try:
        splits = make_splits(
            spec,
            {case.id: case.subject for case in fingerprint.cases},
            [case.id for case in fingerprint.accepted],
        )
    except SpecError as error:
        return parts, [str(error)]
    for name, split in splits.items():
        for part, ids in split.items():
            for case_id in ids:
                parts[case_id][name] = part
    return parts, []


def _remarks(spec: DatasetSpec, fingerprint: Fingerprint) -> list[str]:
    remarks = []
    found = len(fingerprint.cases)
    if spec.expected_cases is not None and found != spec.expected_cases:
        remarks.append(f"{found} cases were found, the specification expects {spec.expected_cases}.")
    seen = {name for case in fingerprint.accepted for name in case.classes}
    never = [name for name in spec.classes if name not in seen]
    if never:
        remarks.append(f"No usable case holds {', '.join(never)}.")
    listed = {*(spec.split.test_subjects or ()), *(spec.split.validation_subjects or ())}
    strangers = sorted(listed - {case.subject for case in fingerprint.cases})
    if strangers:
        some = ", ".join(strangers[:5]) + f" and {len(strangers) - 5} more" * (len(strangers) > 5)
        remarks.append(f"The split lists subjects that are not there: {some}.")
    if spec.modality == "CT":
        remarks += _without_air(fingerprint)
    return remarks


def _without_air(fingerprint: Fingerprint) -> list[str]:
    """Scanners store HU with 1024 or 1000 added; even inside the body fat is below 0 HU."""
    high = [case.id for case in fingerprint.accepted if case.intensity["minimum"] >= 0]
    if not high:
        return []
    some = ", ".join(high[:5]) + f" and {len(high) - 5} more" * (len(high) > 5)
    return [
        f"{len(high)} of {len(fingerprint.accepted)} CT scans have no value below 0 HU ({some}): were 1024 or 1000 "
        "added? Correct intensity_offset in the specification (iris_add writes one) or export the scans again."
    ]


def _notes(spec: DatasetSpec, fingerprint: Fingerprint) -> list[str]:
    """How the files were understood: axes, who is one person, what an absent class means."""
    notes = []
    axes = Counter(case.orientation for case in fingerprint.accepted)
    if set(axes) - {"RAS"}:
        told = ", ".join(f"{code} in {count}" for code, count in sorted(axes.items()))
        notes.append(f"The files' first, second and third axis run to {told} cases; all are turned to RAS.")
    people = len({case.subject for case in fingerprint.cases})
    if people < len(fingerprint.cases):
        notes.append(
            f"{len(fingerprint.cases)} cases (frames, studies, sequences) of {people} subjects: split by subject."
        )
    if spec.partly_labelled:
        notes.append(
            "A class without a voxel in a case is unknown there and not background (partly_labelled)."
        )
    return [*notes, *spec.guesses]


def _other_labels(raw: Path, spec: DatasetSpec) -> list[str]:
    """A dataset.json beside the scans is not needed, but where it disagrees somebody is wrong."""
    try:
        labels = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["labels"]
        # nnU-Net writes name -> value, the Decathlon value -> name.
        values = {int(value) if str(value).isdecimal() else int(key) for key, value in labels.items()} - {0}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    if values == set(spec.classes.values()):
        return []
    ours = sorted(spec.classes.values())
    return [f"dataset.json has the label values {sorted(values)}, the specification {ours}."]
