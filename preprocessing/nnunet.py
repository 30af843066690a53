"""nnU-Net's (and the Decathlon's) own raw folder read as it is: dataset.json and splits_final.json say nearly all.

The folder stays where it is: <raw>/Dataset004_Hippocampus/ with imagesTr/, labelsTr/ and dataset.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from preprocessing.adapters.msd import msd_case_ids
from preprocessing.errors import SpecError
from preprocessing.findings import side_pairs
from preprocessing.guess import MODALITY_WORDS, guess_sides, guess_subject_pattern
from preprocessing.spec import FOLDS, Modality

DESCRIPTION = "dataset.json"
SPLITS = "splits_final.json"
RECORD = "iris_export.json"  # in folders that iris_export_nnunet made: what from


def nnunet_folder(raw_root: Path, name: str) -> Path | None:
    """The folder under raw/ of that name, or of that name in lower case, that has a dataset.json."""
    folders = [raw_root / name]
    if raw_root.is_dir():
        folders += sorted(path for path in raw_root.iterdir() if dataset_name(path) == name)
    return next((folder for folder in folders if (folder / DESCRIPTION).is_file()), None)


def dataset_name(folder: Path) -> str:
    """The name of a dataset after its folder.

    >>> dataset_name(Path("nnUNet_raw/Dataset004_Hippocampus"))
    'dataset004_hippocampus'
    """
    return re.sub(r"[^a-z0-9_-]+", "_", folder.name.lower()).strip("_-")


def stored_name(text: str) -> str:
    """A dataset's name as its store has it, also where the folder that it was read from is given; for argparse.

    >>> stored_name("Dataset004_Hippocampus"), stored_name("liver"), stored_name("My.yaml")
    ('dataset004_hippocampus', 'liver', 'My.yaml')
    """
    is_path = "/" in text or text.endswith((".yaml", ".yml"))
    return text if is_path or text == text.lower() else dataset_name(Path(text))


def nnunet_content(folder: Path) -> dict[str, Any]:
    """What the YAML file of this folder would hold; `guesses` says what the folder itself does not.

    Of several channels the first is read. Who is one person is guessed from the cases' names. With splits_final.json
    (in the folder, or where nnU-Net keeps it) its folds are those of the splits, see `_split`. SpecError where
    dataset.json cannot be followed: regions, an ignore label, two classes of one value.
    """
    described = _read(folder / DESCRIPTION)
    if not isinstance(described, dict):
        raise SpecError(f"{folder / DESCRIPTION} must hold keys and values: correct it.")
    named = described.get("channel_names") or described.get("modality") or {}
    channels = _in_order(named) if isinstance(named, dict) else [str(named)]
    chosen = {"channel": 0} if len(channels) > 1 else {}
    modality, told = _modality(channels)
    classes = _classes(described.get("labels"), folder)
    sides = guess_sides(classes)
    ids = msd_case_ids(folder, chosen.get("channel"))
    pattern, people = guess_subject_pattern(ids)
    split, followed = _split(folder, ids, pattern)
    pairs = [f"{left} / {right}" for left, right in side_pairs(sides)]
    count = described.get("numTraining")
    return {
        "name": dataset_name(folder),
        "title": str(described.get("name") or folder.name),
        "modality": modality,
        "role": "upstream",
        "layout": "msd",
        "files": {"top": [folder.name]} | chosen,
        "source": str(described.get("reference") or "given"),
        "licence": str(described.get("licence") or described.get("license") or "not told by dataset.json"),
        "remarks": f"Read from {DESCRIPTION}"
        + (f" and {SPLITS}" if split else "")
        + " of nnU-Net's raw folder.",
        "guesses": [
            *told,
            f"Guessed from the names: {people}. A specification may say otherwise (subject_pattern; iris_add "
            "writes one).",
            *([f"Guessed from the names: left and right are {', '.join(pairs)}."] if pairs else []),
            *followed,
        ],
        "classes": classes,
        "sides": sides,
        "subject_pattern": pattern,
        "split": split,
    } | ({"expected_cases": count} if isinstance(count, int) and count > 0 else {})


def _classes(labels: Any, folder: Path) -> dict[str, int]:
    """{"background": 0, "liver": 1} or {"0": "background", "1": "liver"} -> {"liver": 1}."""
    where = folder / DESCRIPTION
    if not isinstance(labels, dict) or not labels:
        raise SpecError(f'{where} should name the classes under "labels", as {{"liver": 1}}: add them.')
    classes: dict[str, int] = {}
    for key, value in labels.items():
        name, number = (value, key) if isinstance(value, str) and str(key).isdecimal() else (key, value)
        if isinstance(number, list):
            raise SpecError(
                f"'{name}' in {where} is a region of several values, but a voxel has one class here: write a "
                "specification that names the values themselves."
            )
        if str(name) == "ignore":
            raise SpecError(
                f"{where} has an ignore label, but every voxel is a class or background here: leave such cases out "
                "and write a specification."
            )
        if not str(number).isdecimal():
            raise SpecError(
                f"'{name}' in {where} has the value {number!r}, which is no whole number: correct it."
            )
        if int(number):
            classes[str(name)] = int(number)
    return classes


def _in_order(channels: dict[str, Any]) -> list[str]:
    """{"1": "T2", "0": "T1"} -> ["T1", "T2"]"""
    return [str(channels[number]) for number in sorted(channels, key=lambda each: (len(each), each))]


def _modality(channels: Sequence[str]) -> tuple[Modality, list[str]]:
    """Of the first channel, and what is to be said. nnU-Net knows "CT"; the others are called what people like."""
    name = channels[0] if channels else ""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = {MODALITY_WORDS[word] for word in words if word in MODALITY_WORDS}
    modality: Modality = "CT" if "CT" in found else "PET" if "PET" in found else "MR"
    calls = f"{DESCRIPTION} calls the channel '{name}'" if name else f"{DESCRIPTION} names no channel"
    told = [f"The modality is {modality}{'' if found else ', as a guess'}: {calls}."]
    if len(channels) > 1:
        told.append(f"Of the channels {', '.join(channels)} the first is read and no other.")
    return modality, told


def _split(folder: Path, ids: Sequence[str], pattern: str | None) -> tuple[dict[str, Any], list[str]]:
    """The key `split` after splits_final.json, and what is to be said of it; two times nothing without the file.

    Fold 0 is the split "paper". The splits "0" to "4" are the folds 0 to 4, beginning again where there are fewer (of
    our own export the folds 1 to 5, as it wrote them). Who is in no fold is tested. Folds that part the scans of one
    person are not followed.
    """
    beside = folder.parent.parent / "nnUNet_preprocessed" / folder.name / SPLITS
    path = next((each for each in (folder / SPLITS, beside) if each.is_file()), None)
    if path is None:
        return {}, []
    folds = _folds(path)
    exported = (folder / RECORD).is_file() and len(folds) == FOLDS + 1
    numbers = [number + 1 if exported else number % len(folds) for number in range(FOLDS)]
    alone = set(ids) - {case for fold in folds for part in fold for case in part}
    # Who trains in a fold does not validate there, as the few references of an export do.
    parts = {number: folds[number][1] - folds[number][0] for number in {0, *numbers}}
    for place, part in [("in no fold", alone), *((f"to validate fold {n}", parts[n]) for n in parts)]:
        torn = _torn(part, ids, pattern)
        if torn:
            return {}, [
                f"{SPLITS} is not followed and the splits are drawn by subject: of {torn[0]}, who seems to be one "
                f"person, some scans are {place}, and {torn[1]} is not."
            ]
    unused = len(folds) - len(parts)
    told = (
        f"The split paper is fold 0 of {SPLITS}, the splits 0 to 4 are its folds {', '.join(map(str, numbers))}"
        + (f" (more are there and not used: {unused})" if unused else "")
        + (f"; cases in no fold, which are the test part: {len(alone)}." if alone else "; nobody is tested.")
    )
    return {
        "validation_subjects": _people(parts[0], pattern),
        "test_subjects": _people(alone, pattern),
        "folds": [_people(parts[number], pattern) for number in numbers],
        "loose_folds": True,
    }, [told]


def _folds(path: Path) -> list[tuple[set[str], set[str]]]:
    """The train and the validation part of each fold."""
    try:
        folds = [(set(map(str, fold["train"])), set(map(str, fold["val"]))) for fold in _read(path)]
    except (TypeError, KeyError):
        folds = []
    if not folds:
        raise SpecError(f"{path} should hold folds with the lists train and val: remove it or make it anew.")
    return folds


def _torn(part: Collection[str], ids: Sequence[str], pattern: str | None) -> tuple[str, str] | None:
    """A person with some scans in `part` and others not, and one of these; None where there is none."""
    people = set(_people(part, pattern))
    others = [case for case in ids if case not in part]
    return next(((_person(case, pattern), case) for case in others if _person(case, pattern) in people), None)


def _people(cases: Collection[str], pattern: str | None) -> list[str]:
    return sorted({_person(case, pattern) for case in cases})


def _person(case: str, pattern: str | None) -> str:
    found = re.search(pattern, case) if pattern else None
    return found["subject"] if found else case


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read ({error}): correct it.") from None
