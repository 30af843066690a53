"""Names of the values in label maps, as the files beside them tell: ours, nnU-Net's or the Decathlon's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocessing.errors import LabelValueError, RawDataError, ReferenceCaseError
from preprocessing.source import Source


def read_class_names(folder: Path) -> dict[str, int] | None:
    """Class name -> value from classes.json or dataset.json in a folder; None without either.

    RawDataError if the file cannot be understood.
    """
    for name in ("classes.json", "dataset.json"):
        if (folder / name).is_file():
            return read_values(folder / name)
    return None


def read_values(path: Path) -> dict[str, int]:
    """Class name -> value from one JSON file; names may stand under "labels", as in a dataset.json.

    RawDataError if the file cannot be understood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        nested = isinstance(content, dict) and isinstance(content.get("labels"), dict)
        classes = _class_values(content["labels"] if nested else content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        classes = {}
    values = list(classes.values())
    if not classes or len(set(values)) != len(values) or not all(1 <= v <= 255 for v in values):
        raise RawDataError(
            f'{path} should name the classes as {{"liver": 1}} (dataset.json: under "labels"), each with '
            "a value of its own in 1..255; correct it or take it away."
        )
    return classes


def name_values(labels: Sequence[Source]) -> dict[str, int]:
    """label_<value> for each value in any of the label files of references; one that cannot be used is left out.

    RawDataError, or LabelValueError for values outside 0..255, where none can be used; ReferenceCaseError where all
    are empty. Whoever uses the references says which were left out.
    """
    values: set[int] = set()
    problems: list[RawDataError] = []
    for source in tqdm(labels, desc="Reading label values", leave=False, disable=len(labels) < 2):
        try:
            found = {int(v) for v in np.unique(source.read_labels().array)}
        except RawDataError as error:
            problems.append(error)
            continue
        wrong = sorted(v for v in found if not 0 <= v <= 255)
        if wrong:
            sentence = (
                f"Label values of references are 0 (background) to 255; {source} holds {wrong[:5]}: "
                "renumber its classes."
            )
            problems.append(LabelValueError(sentence))
            continue
        values |= found
    if problems and not values - {0}:
        raise problems[0]
    if not values - {0}:
        raise ReferenceCaseError(
            "A reference must show at least one class; all the given label files are empty."
        )
    return {f"label_{value}": value for value in sorted(values - {0})}


def _class_values(entries: Mapping[str, Any]) -> dict[str, int]:
    """{"liver": 1} or {"1": "liver"} -> {"liver": 1}; the background is left out."""
    pairs = [(value, int(key)) if isinstance(value, str) else (key, value) for key, value in entries.items()]
    if any(not isinstance(value, int) for _, value in pairs):
        raise ValueError("regions and other non-integers are no class values")
    return {name: value for name, value in pairs if value != 0}
