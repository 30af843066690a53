"""A folder of somebody's own scans becomes a dataset: its specification, guessed, shown and written.

Nothing in the folder is changed or moved; the specification beside the raw datasets says where it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preprocessing.adding.name_words import says_mask
from preprocessing.adding.survey import Survey, plain_files
from preprocessing.choose import refuse_taken_name
from preprocessing.errors import SpecError
from preprocessing.guess import (
    guess_modality,
    guess_name,
    guess_offset,
    guess_sides,
    guess_subject_pattern,
    modality_text,
)
from preprocessing.patterns import PLACEHOLDER
from preprocessing.runtime.files import write_text
from preprocessing.spec import DatasetSpec, Modality, Role, parse_spec

HEADING = "# Written by iris_add; every key is described in dataset_specs/README.md.\n"


@dataclass(frozen=True)
class Wishes:
    """What the user said; None is guessed. An empty subject_pattern: each case is one subject."""

    name: str | None = None
    modality: Modality | None = None
    classes: Mapping[str, int] | None = None
    subject_pattern: str | None = None
    role: Role = "upstream"


@dataclass(frozen=True)
class Proposal:
    """A specification, the YAML text it was read from, and why its keys are as they are."""

    spec: DatasetSpec
    text: str
    reasons: Mapping[str, str]


def propose(survey: Survey, wishes: Wishes, raw_root: Path) -> Proposal:
    """The specification for a surveyed folder. SpecError where a wish is not valid."""
    reasons: dict[str, str] = {}
    name = wishes.name or guess_name(survey.folder)
    reasons["name"] = "as asked" if wishes.name else "the folder's name"
    modality, reasons["modality"] = wishes.modality, "as asked"
    if modality is None:
        names = [*_fixed_texts(survey.files["image"][0]), survey.folder.absolute().name]
        modality, reasons["modality"] = guess_modality(survey.scans, modality_text(dict(survey.told)), names)
    classes, reasons["classes"] = (wishes.classes, "as asked") if wishes.classes else _guess_classes(survey)
    offset = guess_offset(survey.scans) if modality == "CT" else 0.0
    if offset:
        reasons["intensity_offset"] = (
            "no grey value is negative: HU seem to be stored with 1024 added; correct it if it was 1000"
        )
    pattern, reasons["subjects"] = _subjects(survey, wishes)
    sides = guess_sides(classes)
    content: dict[str, Any] = {
        "name": name,
        "title": str(survey.told.get("name") or survey.folder.absolute().name),
        "modality": modality,
        "role": wishes.role,
        "source": str(survey.told.get("reference") or "a folder of our own"),
        "licence": str(survey.told.get("licence") or survey.told.get("license") or "not stated"),
        "raw": None
        if (raw_root / name).absolute() == survey.folder.absolute()
        else str(survey.folder.absolute()),
        "layout": "files",
        "files": plain_files(survey.files),
        "classes": dict(classes),
        "sides": {side: list(names) for side, names in sides.items()} or None,
        "subject_pattern": pattern,
        "intensity_offset": offset or None,
        "partly_labelled": survey.some_masks_missing or None,
    }
    if survey.some_masks_missing:
        reasons["partly_labelled"] = "some cases lack the mask file of a class, which is then unknown there"
    kept = {key: value for key, value in content.items() if value is not None}
    text = HEADING + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)
    return Proposal(parse_spec(text, f"The specification of {name}"), text, reasons)


def write_spec(proposal: Proposal, folder: Path, raw_root: Path, overwrite: bool = False) -> Path:
    """Write <raw_root>/<name>.yaml. SpecError where the name is taken or the file would lie among the scans."""
    name = proposal.spec.name
    path, beside = raw_root / f"{name}.yaml", raw_root / name
    if raw_root.absolute().is_relative_to(folder.absolute()):
        raise SpecError(
            f"Nothing is written into the folder of the scans, and {raw_root} lies in {folder}: give another --root."
        )
    refuse_taken_name(name)
    if beside.is_dir() and proposal.spec.raw is not None:
        raise SpecError(f"{beside} holds other scans of that name already: give another --name.")
    if path.exists() and not overwrite:
        raise SpecError(f"{path} exists already: give another --name, or --overwrite to replace it.")
    write_text(path, proposal.text)
    return path


def _guess_classes(survey: Survey) -> tuple[dict[str, int], str]:
    if survey.masks:
        return {name: value for value, name in enumerate(survey.masks, 1)}, "the names of the mask files"
    unnamed = {f"label_{value}": value for value in survey.values if value not in survey.names.values()}
    if survey.names:
        told = "as the JSON file beside the scans names them"
        return {**survey.names, **unnamed}, told + (", and values it does not name" if unnamed else "")
    words = [word for word in _fixed_texts(survey.files["labels"][0])[-1:] if not says_mask(word)]
    if len(survey.values) == 1 and words:
        return {words[0]: survey.values[0]}, "the name of the mask files"
    return unnamed, "the values in the label maps; no file names them"


def _fixed_texts(pattern: str) -> list[str]:
    """The words of a pattern's last part that are no field, without those that only say "mask"."""
    last = re.sub(r"\.[A-Za-z0-9.]+$", "", pattern.rstrip("/").split("/")[-1])
    texts = re.findall(r"[A-Za-z0-9]+(?:[_ ][A-Za-z0-9]+)*", PLACEHOLDER.sub(" - ", last))
    return [
        kept
        for text in texts
        if (kept := "_".join(word for word in re.split("[_ ]", text) if not says_mask(word)))
    ]


def _subjects(survey: Survey, wishes: Wishes) -> tuple[str | None, str]:
    if "subject" in survey.files:
        return None, f"{len(set(survey.subjects))} subjects in {len(survey.ids)} cases, a folder for each"
    if wishes.subject_pattern is not None:
        return wishes.subject_pattern or None, "as asked"
    return guess_subject_pattern(survey.ids)
