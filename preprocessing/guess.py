"""What a folder of scans does not say, guessed from names and grey values; every guess comes with its reason.

Guesses are shown to the user before they are written down. Grey values are the file's own.

>>> guess_subject_pattern(["p1_frame01", "p1_frame12", "p2_frame01"])[1]
'2 subjects in 3 cases, by what stands before the visit'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preprocessing.findings import side_pairs
from preprocessing.spec import Modality
from preprocessing.volume import Volume

MODALITY_WORDS: dict[str, Modality] = {
    **dict.fromkeys(("ct", "ctres", "cbct", "computed", "hu"), "CT"),
    **dict.fromkeys(
        ("mr", "mri", "t1", "t1w", "t2", "t2w", "flair", "dwi", "adc", "lge", "cine", "bssfp"), "MR"
    ),
    **dict.fromkeys(("pet", "suv", "pt", "fdg"), "PET"),
}
AIR_HU = -200.0  # air in or around a patient is near -1000 HU; MR and PET know no such values
STORED_AIR = 1024.0  # what scanners add to HU so that nothing is negative
SUV = (1.5, 60.0)  # between these lies the 99.5th percentile of uptake values
VISIT = (
    r"(?:frame|time|timepoint|tp|visit|ses|session|scan|series|phase|run|day|week|month|baseline|followup|pre|post|"
    r"bl|fu|ed|es|t|v)[_-]?[0-9]*"
)


@dataclass(frozen=True)
class GreyValues:
    """Of one scan: minimum, median, 99.5th percentile, maximum, and whether all are whole numbers."""

    low: float
    middle: float
    high: float
    top: float
    whole: bool

    @classmethod
    def of(cls, image: Volume) -> GreyValues:
        """Not finite values are left out; they are the check's to find."""
        values = image.array[np.isfinite(image.array)]
        if not values.size:
            return cls(0.0, 0.0, 0.0, 0.0, True)
        middle, high = (float(value) for value in np.percentile(values, (50, 99.5)))
        whole = bool((values == np.rint(values)).all())
        return cls(float(values.min()), middle, high, float(values.max()), whole)


def guess_modality(scans: Sequence[GreyValues], told: str, names: Iterable[str]) -> tuple[Modality, str]:
    """The modality and why: what dataset.json tells, then air in HU, then names, then the grey values' kind."""
    lows, tops = sorted(scan.low for scan in scans), sorted(scan.top for scan in scans)
    low, top = lows[len(lows) // 2], tops[len(tops) // 2]
    if (said := _said(told)) is not None:
        return said, f"'{told}' in dataset.json"
    if low < AIR_HU:
        return "CT", f"grey values go down to {low:g}, as air does in HU"
    for name in names:
        said = _said(name)
        if said == "CT" and not guess_offset(scans):
            return (
                "CT",
                f"'{name}' says so, but grey values from {low:g} to {top:g} are no HU: look at them first",
            )
        if said is not None:
            return said, f"'{name}' says so"
    uptake = [
        scan.low >= 0 and not scan.whole and scan.middle < SUV[0] < scan.high < SUV[1] for scan in scans
    ]
    if sum(uptake) * 2 > len(uptake):
        return "PET", "no value is negative and most are fractions below 1.5, as uptake values (SUV) are"
    return "MR", f"grey values from {low:g} to {top:g} are neither HU nor uptake values"


def _said(text: str) -> Modality | None:
    """The one modality whose words are in a text."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    said = {MODALITY_WORDS[word] for word in words if word in MODALITY_WORDS}
    return said.pop() if len(said) == 1 else None


def guess_offset(scans: Sequence[GreyValues]) -> float:
    """What brings CT to HU: -1024 where no scan has a negative value but all reach far above, else 0."""
    raised = all(scan.low >= 0 and scan.top > STORED_AIR for scan in scans)
    return -STORED_AIR if raised else 0.0


def guess_subject_pattern(ids: Sequence[str]) -> tuple[str | None, str]:
    """A regular expression for the person in a case's name where people have several cases, and why."""
    visits = rf"^(?P<subject>.*?[A-Za-z0-9])(?:[_-](?i:{VISIT}))?$"
    numbers = r"^(?P<subject>.*[0-9].*?)[_-][0-9]+$"
    for pattern, told in ((visits, "visit"), (numbers, "last number")):
        matches = [re.fullmatch(pattern, name) for name in ids]
        people = {match["subject"] for match in matches if match is not None}
        if all(matches) and 1 < len(people) < len(ids):
            return pattern, f"{len(people)} subjects in {len(ids)} cases, by what stands before the {told}"
    return None, "each case is one subject"


def guess_sides(classes: Iterable[str]) -> dict[Literal["left", "right"], tuple[str, ...]]:
    """`left` and `right` classes that are named as pairs."""
    names = list(classes)
    left = [name for name in names if re.search(r"(?<![a-z])left(?![a-z])", name.lower())]
    right = [name for name in names if re.search(r"(?<![a-z])right(?![a-z])", name.lower())]
    pairs = [
        pair for one in left for other in right for pair in side_pairs({"left": (one,), "right": (other,)})
    ]
    named = [(one, other) for one, other in pairs if _without_side(one) == _without_side(other)]
    if not named:
        return {}
    return {"left": tuple(one for one, _ in named), "right": tuple(other for _, other in named)}


def guess_name(folder: Path) -> str:
    """The folder's name as the name of a dataset."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", folder.name.lower()).strip("_-")
    return plain or "my_dataset"


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json of a folder, of nnU-Net's or the Decathlon's form; empty where there is none to read."""
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def modality_text(dataset_json: dict[str, Any]) -> str:
    """What dataset.json says of the first channel; '' where it says nothing."""
    channels = dataset_json.get("modality") or dataset_json.get("channel_names") or ""
    first = next(iter(channels.values()), "") if isinstance(channels, dict) else channels
    return first if isinstance(first, str) else ""


def _without_side(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(?<![a-z])(left|right)(?![a-z])", "", name.lower()))
