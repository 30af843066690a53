"""Names of the values in label maps, as the files beside them tell: ours, nnU-Net's or the Decathlon's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.errors import LabelValueError, RawDataError, ReferenceCaseError
from preprocessing.formats.slicer import is_segmentation, same_name
from preprocessing.runtime.progress import Bar
from preprocessing.sources.source import Source


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


def classes_of(labels: Sequence[Source]) -> dict[str, int]:
    """Class name -> value for the label files of references, where no other file explains them.

    Segmentations of 3D Slicer's name their segments: all names that have a voxel, numbered. Other files name nothing:
    label_<value>, as `name_values`, whose errors are raised too. Where both kinds are there the values count, if they
    mean the same in all files that name them; ReferenceCaseError if not.
    """
    if not any(is_segmentation(path) for source in labels for path in source.files):
        return name_values(labels)
    named: list[_Segments] = []
    nameless: list[Source] = []
    for source in Bar(labels, desc="Reading segments", leave=False, disable=len(labels) < 2):
        try:
            volume = source.read()
        except RawDataError:
            continue  # whoever uses the references says so
        there = set(np.unique(volume.array).tolist()) - {0}
        if there and volume.segments is not None and volume.segments.names:
            pairs = tuple(pair for pair in volume.segments.names if pair[1] in there)
            named.append(_Segments(source.name, pairs, volume.segments.by_order))
        elif there:
            nameless.append(source)
    if not named:
        return name_values(labels)
    if nameless:
        _check_values_agree(named, nameless[0].name)
        return name_values(labels)
    names: dict[str, str] = {}
    for name in (name for each in named for name, _ in each.pairs):
        names.setdefault(same_name(name), name)
    return {name: number for number, name in enumerate(names.values(), 1)}


def name_values(labels: Sequence[Source]) -> dict[str, int]:
    """label_<value> for each value in any of the label files of references; one that cannot be used is left out.

    RawDataError, or LabelValueError for values outside 0..255, where none can be used; ReferenceCaseError where all
    are empty. Whoever uses the references says which were left out.
    """
    values: set[int] = set()
    problems: list[RawDataError] = []
    for source in Bar(labels, desc="Reading label values", leave=False, disable=len(labels) < 2):
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
            "A reference must show at least one class, but all the given label files are empty: give others."
        )
    return {f"label_{value}": value for value in sorted(values - {0})}


@dataclass(frozen=True)
class _Segments:
    """The (name, value) of the segments of one file that have a voxel."""

    file: str
    pairs: tuple[tuple[str, int], ...]
    by_order: bool


def _check_values_agree(named: Sequence[_Segments], nameless: str) -> None:
    """ReferenceCaseError where nobody can tell what the values of a file without names mean."""
    why = next((f"segments of {each.file} share values" for each in named if each.by_order), "")
    of_name: dict[str, tuple[int, str]] = {}
    of_value: dict[int, tuple[str, str]] = {}
    for file, name, value in ((each.file, *pair) for each in named for pair in each.pairs):
        known_value, where = of_name.setdefault(same_name(name), (value, file))
        if known_value != value:
            why = why or f"'{name}' is {known_value} in {where} and {value} in {file}"
        known_name, where = of_value.setdefault(value, (name, file))
        if same_name(known_name) != same_name(name):
            why = why or f"{value} is '{known_name}' in {where} and '{name}' in {file}"
    if why:
        raise ReferenceCaseError(
            f"Label files with names of segments and without ({nameless}) go together where values mean the same in "
            f"all of them, but {why}: name the values of the others in a classes.json beside the folders."
        )


def _class_values(entries: Mapping[str, Any]) -> dict[str, int]:
    """{"liver": 1} or {"1": "liver"} -> {"liver": 1}; the background is left out."""
    pairs = [(value, int(key)) if isinstance(value, str) else (key, value) for key, value in entries.items()]
    if any(not isinstance(value, int) for _, value in pairs):
        raise ValueError("regions and other non-integers are no class values")
    return {name: value for name, value in pairs if value != 0}
