"""What became of the raw scans of a dataset, as its store tells: one verdict a case, the plan and its reasons.

Shapes and spacings are (z,y,x) after reorientation to RAS+; spacings in mm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.provenance import without_machine
from preprocessing.errors import StoreError
from preprocessing.fingerprint import FILE, Fingerprint, Verdict
from preprocessing.runtime.files import load_json
from preprocessing.store import Manifest, Store

WORDS: tuple[Verdict, ...] = ("ok", "repaired", "refused")


@dataclass(frozen=True)
class Intake:
    """One dataset's intake. counts: cases of each verdict. said: (case, verdict, why) where there is something to say.

    grids: shapes and spacings found, smallest to largest. parts: cases of each part of the split "paper".
    reasons: the plan's, one sentence each.
    """

    dataset: str
    title: str
    modality: str
    role: str
    counts: dict[Verdict, int]
    said: tuple[tuple[str, Verdict, str], ...]
    grids: str
    parts: str
    reasons: tuple[str, ...]


def intake_of(folder: Path) -> Intake:
    """The intake of the store in `folder`; StoreError where there is none.

    Spacings come from the fingerprint; without one that this version reads, the grids are shapes alone.
    """
    store = Store.open(folder)
    manifest = store.manifest
    try:
        found = load_json(folder / FILE, Fingerprint, StoreError, "")
    except StoreError:
        found = None
    verdicts: dict[str, tuple[Verdict, str]] = {}
    if found is not None:
        verdicts = {case.id: (case.verdict, case.why) for case in found.cases}
    # What was refused later, while it was prepared, only the manifest knows.
    verdicts |= {case.id: (case.verdict, case.why) for case in manifest.cases}
    verdicts |= {case: ("refused", why) for case, why in manifest.refused.items()}
    counts = Counter(verdict for verdict, _ in verdicts.values())
    split = manifest.splits.get("paper")
    return Intake(
        dataset=manifest.dataset,
        title=manifest.title,
        modality=manifest.modality,
        role=manifest.role,
        counts={word: counts[word] for word in WORDS},
        said=tuple(
            (case, verdict, without_machine(why)) for case, (verdict, why) in sorted(verdicts.items()) if why
        ),
        grids=_grids(manifest, found),
        parts=", ".join(f"{name} {len(ids)}" for name, ids in split.items()) if split else "",
        reasons=manifest.plan.reasons,
    )


def _grids(manifest: Manifest, found: Fingerprint | None) -> str:
    if found is None or not found.accepted:
        shapes = [case.native_shape for case in manifest.cases]
        return f"{_range(shapes, 'd')} voxels in the files" if shapes else ""
    shape = _range([case.shape for case in found.accepted], "d")
    spacing = _range([case.spacing_mm for case in found.accepted], ".3g")
    return f"{shape} voxels of {spacing} mm"


def _range(triples: Iterable[tuple[float, ...]], form: str) -> str:
    """Per axis the smallest and the largest value: "10 to 12 x 256 x 216"."""
    axes = [
        sorted({format(value, form): value for value in axis}.items(), key=lambda p: p[1])
        for axis in zip(*triples, strict=True)
    ]
    return " x ".join(axis[0][0] if len(axis) == 1 else f"{axis[0][0]} to {axis[-1][0]}" for axis in axes)
