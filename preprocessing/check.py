"""Check: reads every raw file of a dataset, changes nothing, and says what it found.

One verdict a case (ok, repaired, refused, and why), then remarks that concern the dataset as a whole.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from preprocessing.adapters import Case, find_cases
from preprocessing.files import file_digest
from preprocessing.fingerprint import CaseVerdict, Fingerprint, Verdict, fingerprint_dataset, verdict_text
from preprocessing.spec import DatasetSpec

WORDS: tuple[Verdict, ...] = ("ok", "repaired", "refused")


class CheckedCase(BaseModel):
    """One case; `shape` (z,y,x) and `orientation` as stored in the file are missing where it is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    subject: str
    verdict: Verdict
    why: str
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = ""
    voxels: dict[str, int] = {}


class CheckReport(BaseModel):
    """All cases of a dataset, sorted by id, the number of each verdict, and remarks on the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    dataset: str
    raw: str
    counts: dict[str, int]
    remarks: tuple[str, ...]
    cases: tuple[CheckedCase, ...]

    @property
    def usable(self) -> bool:
        return self.counts["refused"] == 0

    def text(self) -> str:
        """For a reader: counts, every case about which there is something to say, remarks."""
        verdicts = [CaseVerdict(self.dataset, case.id, case.verdict, case.why) for case in self.cases]
        return "\n".join([verdict_text(verdicts), *(f"  remark: {remark}" for remark in self.remarks)])


def check_dataset(
    raw: Path, spec: DatasetSpec, *, workers: int | None = None, progress: bool = True
) -> CheckReport:
    """Read all of `raw` (the dataset's own folder).

    RawDataError or SpecError only where no case can be listed.
    """
    fingerprint = fingerprint_dataset(raw, spec, None, workers=workers, progress=progress)
    counts = Counter(case.verdict for case in fingerprint.cases)
    return CheckReport(
        dataset=spec.name,
        raw=str(raw),
        counts={word: counts[word] for word in WORDS},
        remarks=tuple(_remarks(raw, spec, fingerprint)),
        cases=tuple(
            CheckedCase(
                id=case.id,
                subject=case.subject,
                verdict=case.verdict,
                why=case.why,
                shape=case.shape if case.accepted else None,
                spacing_mm=case.spacing_mm if case.accepted else None,
                orientation=case.orientation,
                voxels={name: found.voxels for name, found in case.classes.items()},
            )
            for case in fingerprint.cases
        ),
    )


def dataset_folder(raw_root: Path, name: str) -> Path:
    """RAW may be the folder of all raw datasets or that of the dataset itself."""
    return raw_root / name if (raw_root / name).is_dir() or not _is_dataset(raw_root) else raw_root


def _is_dataset(folder: Path) -> bool:
    return (folder / "imagesTr").is_dir()


def _remarks(raw: Path, spec: DatasetSpec, fingerprint: Fingerprint) -> list[str]:
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
        remarks.append(f"The split lists subjects that are not there: {', '.join(strangers)}.")
    return remarks + _same_images(find_cases(raw, spec)) + _other_labels(raw, spec)


def _same_images(cases: list[Case]) -> list[str]:
    """One scan under two subjects would be on both sides of a split."""
    by_size: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        if case.image.files and all(path.is_file() for path in case.image.files):
            by_size[sum(path.stat().st_size for path in case.image.files)].append(case)
    by_bytes: dict[str, list[Case]] = defaultdict(list)
    for same_size in by_size.values():
        for case in same_size if len(same_size) > 1 else ():
            by_bytes[file_digest(case.image.files) + case.image.recipe].append(case)
    return [
        f"The cases {', '.join(case.id for case in same)} are one image under several subjects: keep one."
        for same in by_bytes.values()
        if len({case.subject for case in same}) > 1
    ]


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
