"""nnU-Net's (and the Decathlon's) own raw folder read as it is: dataset.json and splits_final.json say all.

The folder stays where it is: <raw>/Dataset004_Hippocampus/ with imagesTr/, labelsTr/ and dataset.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from preprocessing.errors import SpecError

DESCRIPTION = "dataset.json"
SPLITS = "splits_final.json"
RECORD = "iris_export.json"  # in folders that iris_export_nnunet made: what from
FOLDS = 5


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


def nnunet_content(folder: Path) -> dict[str, Any]:
    """What the YAML file of this folder would hold.

    Of several channels the first is read. With splits_final.json (in the folder, or where nnU-Net keeps it) its
    five folds are those of the splits "0" to "4", and nobody is set aside for a test. SpecError where
    dataset.json cannot be followed: regions, an ignore label, two classes of one value.
    """
    described = _read(folder / DESCRIPTION)
    if not isinstance(described, dict):
        raise SpecError(f"{folder / DESCRIPTION} must hold keys and values: correct it.")
    channels = described.get("channel_names") or described.get("modality") or {}
    names = list(channels.values()) if isinstance(channels, dict) else []
    split = _split(folder)
    count = described.get("numTraining")
    return {
        "name": dataset_name(folder),
        "title": str(described.get("name") or folder.name),
        "modality": _modality(str(names[0]) if names else ""),
        "role": "upstream",
        "layout": "msd",
        "files": {"top": [folder.name]} | ({"channel": 0} if len(names) > 1 else {}),
        "source": str(described.get("reference") or "given"),
        "licence": str(described.get("licence") or described.get("license") or "not told by dataset.json"),
        "remarks": f"Read from {DESCRIPTION}"
        + (f" and {SPLITS}" if split else "")
        + " of nnU-Net's raw folder.",
        "classes": _classes(described.get("labels"), folder),
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


def _modality(channel: str) -> str:
    """nnU-Net treats "CT" in its own way and calls the rest what it likes."""
    words = set(re.findall(r"[a-z]+", channel.lower()))
    if "ct" in words:
        return "CT"
    return "PET" if words & {"pet", "pt", "suv"} else "MR"


def _split(folder: Path) -> dict[str, Any]:
    beside = folder.parent.parent / "nnUNet_preprocessed" / folder.name / SPLITS
    path = next((each for each in (folder / SPLITS, beside) if each.is_file()), None)
    if path is None:
        return {}
    folds = _read(path)
    try:
        lists = [sorted(str(case) for case in fold["val"]) for fold in folds]
    except (TypeError, KeyError):
        lists = []
    everybody = [case for fold in lists for case in fold]
    if len(lists) != FOLDS or len(everybody) != len(set(everybody)):
        raise SpecError(
            f"{path} should hold {FOLDS} folds with the lists train and val, each case in one val: remove it or "
            "make it anew."
        )
    return {"validation_subjects": [], "test_subjects": [], "folds": lists}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read ({error}): correct it.") from None
