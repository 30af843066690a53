"""Names of the values in label maps, as the files beside them tell: ours, nnU-Net's or the Decathlon's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.errors import RawDataError


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


def _class_values(entries: Mapping[str, Any]) -> dict[str, int]:
    """{"liver": 1} or {"1": "liver"} -> {"liver": 1}; the background is left out."""
    pairs = [(value, int(key)) if isinstance(value, str) else (key, value) for key, value in entries.items()]
    if any(not isinstance(value, int) for _, value in pairs):
        raise ValueError("regions and other non-integers are no class values")
    return {name: value for name, value in pairs if value != 0}
