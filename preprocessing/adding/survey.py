"""What a folder of somebody's own scans holds, read once: its pairs, their label values and some grey values.

Nothing in the folder is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preprocessing.adapters import Case, find_cases
from preprocessing.adapters.files import one_role_each
from preprocessing.adding.discover import discover_pairs
from preprocessing.adding.name_words import CLASS, may_be_class
from preprocessing.errors import IrisError, RawDataError, SpecError
from preprocessing.guess import GreyValues, read_dataset_json
from preprocessing.patterns import PLACEHOLDER, find, placeholders
from preprocessing.runtime.parallel import parallel_map
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.scan_paths import scan_paths
from preprocessing.spec import DatasetSpec, parse_spec

SCANS_READ = 8  # for the guess of the modality
MOST_VALUES = 64  # a label map with more values than this is an image


@dataclass(frozen=True)
class Survey:
    """What was read of a folder, once.

    files: the key of the specification; ids, subjects: of the pairs; values: of all label maps. names: class ->
    value, by dataset.json or classes.json; masks: names of mask files; remarks: for the user.
    """

    folder: Path
    files: Mapping[str, Any]
    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    values: tuple[int, ...]
    names: Mapping[str, int]
    masks: tuple[str, ...]
    some_masks_missing: bool
    scans: tuple[GreyValues, ...]
    told: Mapping[str, Any]
    remarks: tuple[str, ...]


def survey_folder(
    folder: Path,
    images: str | None = None,
    labels: str | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Survey:
    """Find the pairs (by the two patterns, where given) and read all label maps and some of the scans.

    RawDataError where nothing pairs up or can be read; SpecError for patterns that do not go together.
    """
    if not folder.is_dir():
        raise RawDataError(f"{folder} is no folder: give the one that holds the scans and their masks.")
    if (images is None) != (labels is None):
        raise SpecError("--images and --labels are two patterns that go together: give both or none.")
    remarks: list[str] = []
    paths = scan_paths(folder)
    if images is None or labels is None:
        files, masks = _discovered(folder, paths, remarks)
    else:
        files = _files((images,), (labels,))
        masks = tuple(sorted(_named_masks(folder, files)))
        _tell_left_over(folder, paths, _matches(folder, files, masks), remarks)
    if CLASS in files["labels"][0] and not masks:
        raise RawDataError(
            f"No file of {folder} fits {files['labels'][0]} with a name for {CLASS}: correct the pattern."
        )
    cases = find_cases(folder, _provisional(files, masks))
    pairs = [case for case in cases if case.labels is not None and case.image.files]
    if not pairs:
        raise RawDataError(
            f"No image {' or '.join(files['image'])} of {folder} has a mask {' or '.join(files['labels'])}: say with "
            "--images and --labels where they are, two patterns in which {case} stands for the case's name."
        )
    alone = [case.id for case in cases if case not in pairs]
    if alone:
        remarks.append(
            f"{len(alone)} of {len(cases)} cases lack the image or the mask and will be refused: "
            f"{', '.join(alone[:5])}{' ...' * (len(alone) > 5)}."
        )
    mask_files = [len(case.labels.files) for case in pairs if case.labels is not None and case.labels.files]
    return Survey(
        folder=folder,
        files=files,
        ids=tuple(case.id for case in pairs),
        subjects=tuple(case.subject for case in pairs),
        values=() if masks else _label_values(pairs, workers, progress, remarks),
        names={} if masks else _told_names(folder, remarks),
        masks=masks,
        some_masks_missing=bool(masks) and min(mask_files, default=0) < len(masks),
        scans=_some_scans(pairs, workers, progress),
        told=read_dataset_json(folder),
        remarks=tuple(remarks),
    )


def _discovered(folder: Path, paths: list[str], remarks: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The key `files` and the names of masks as they are found, with remarks on all that was not taken."""
    found = discover_pairs(folder, paths)
    files = _files(found.images, found.labels, found.parts, found.ids_restart)
    named, beside = _named_masks(folder, files, found.classes), _images_fit_labels(folder, files)
    pattern = files["labels"][0]
    masks = tuple(sorted(name for name in named if may_be_class(name, pattern, beside)))
    left_out = sorted(named - set(masks))
    if left_out:
        remarks.append(
            f"Also named as {pattern} says, but left out, since such names mean images, all masks in one, or who drew "
            f"them: {', '.join(left_out)}. Where they are classes, too, give both patterns with --images and --labels."
        )
    taken = _matches(folder, files, masks)
    others = [each for each in found.others if not taken & _paths(folder, (each,), files)]
    if others:
        remarks.append(
            f"Other images pair up with the same masks ({', '.join(others)}): one of them is chosen with "
            "--images and --labels."
        )
    if found.rivals:
        remarks.append(
            f"Other masks pair up with the same images ({', '.join(found.rivals)}), drawn by somebody else or of other "
            f"structures: {' or '.join(files['labels'])} was taken, one is chosen with --images and --labels."
        )
    if found.parts:
        remarks.append(
            f"The folder is divided into parts ({', '.join(found.parts)}), which are one dataset here: who trains and "
            "who tests is drawn anew, by subject, unless the specification lists it."
        )
    told = (
        taken | _matches(folder, files, (*masks, *left_out)) | _paths(folder, (*others, *found.rivals), files)
    )
    _tell_left_over(folder, paths, told, remarks)
    return files, masks


def _files(
    images: tuple[str, ...],
    labels: tuple[str, ...],
    parts: tuple[str, ...] = (),
    ids_restart: bool = True,
) -> dict[str, Any]:
    """The key `files`: the patterns and, where the case's name has several parts, how they are joined.

    parts: of the set, what {part} may stand for; it is in the case's name only where ids restart in each.
    """
    named = [name for name in dict.fromkeys(PLACEHOLDER.findall(images[0])) if name != "class"]
    if parts and not ids_restart:
        named.remove("part")
    files: dict[str, Any] = {"image": images, "labels": labels}
    if named != ["case"]:
        files["case"] = "_".join(f"{{{name}}}" for name in named)
    if "subject" in named and len(named) > 1:
        files["subject"] = "{subject}"
    return files | ({"where": {"part": "|".join(map(re.escape, parts))}} if parts else {})


def _named_masks(folder: Path, files: Mapping[str, Any], classes: tuple[str, ...] = ()) -> set[str]:
    """What {class} stands for in the paths that fit `labels` and are no image.

    classes: those that were found often, where the patterns are guesses. Rare ones count as well where {class} is a
    whole name, so that it is not in doubt where a class begins.
    """
    pattern, where = files["labels"][0], dict(files.get("where", {}))
    if CLASS not in pattern:
        return set()
    if classes and not any(placeholders(part) == {"class"} for part in pattern.split("/")):
        where["class"] = "|".join(map(re.escape, classes))
    images, labels = list(find(folder, files["image"], where)), list(find(folder, files["labels"], where))
    return {match.names["class"] for match in one_role_each(images, labels)[1]}


def _images_fit_labels(folder: Path, files: Mapping[str, Any]) -> bool:
    """Whether images lie among the masks and are named alike."""
    return bool(_paths(folder, files["image"], files) & _paths(folder, files["labels"], files))


def _matches(folder: Path, files: Mapping[str, Any], masks: tuple[str, ...]) -> set[Path]:
    """All paths that fit one of the two patterns."""
    of_class = {"class": "|".join(map(re.escape, masks))} if masks else {}
    return _paths(folder, files["image"], files) | _paths(folder, files["labels"], files, of_class)


def _paths(
    folder: Path, patterns: Sequence[str], files: Mapping[str, Any], more: Mapping[str, str] | None = None
) -> set[Path]:
    where = {**files.get("where", {}), **(more or {})}
    return {match.path for match in find(folder, patterns, where)}


def _tell_left_over(folder: Path, paths: list[str], told: set[Path], remarks: list[str]) -> None:
    """A remark on scans that no pattern fits, so that no part of a folder is lost without a word."""
    left = [path for path in paths if folder / path not in told]
    if left:
        remarks.append(
            f"{len(left)} of {len(paths)} scans and masks fit neither pattern and are left out: "
            f"{', '.join(left[:3])}{' ...' * (len(left) > 3)}."
        )


def _provisional(files: Mapping[str, Any], masks: tuple[str, ...]) -> DatasetSpec:
    """Enough of a specification to list the cases. SpecError where the patterns do not go together."""
    content = {
        **{"name": "survey", "title": "", "source": "", "licence": "", "modality": "MR", "role": "held-out"},
        **{"layout": "files", "files": plain_files(files)},
        "classes": {name: value for value, name in enumerate(masks, 1)} or {"any": 1},
    }
    return parse_spec(yaml.safe_dump(content, allow_unicode=True), "The pair of patterns")


def plain_files(files: Mapping[str, Any]) -> dict[str, Any]:
    """As YAML has it: one pattern as a text, several as a list."""
    return {
        key: (value[0] if len(value) == 1 else list(value)) if isinstance(value, tuple) else value
        for key, value in files.items()
    }


def _told_names(folder: Path, remarks: list[str]) -> Mapping[str, int]:
    try:
        return read_class_names(folder) or {}
    except RawDataError as error:
        remarks.append(str(error))
        return {}


def _label_values(
    pairs: list[Case], workers: int | None, progress: bool, remarks: list[str]
) -> tuple[int, ...]:
    """All values of all label maps; those that cannot be read are left to the check."""
    values: set[int] = set()
    unread = 0
    for found in parallel_map(_values_of, pairs, workers, "Reading label values", progress):
        unread += found is None
        values |= found or set()
    if unread:
        remarks.append(f"{unread} label maps could not be read; the check says why.")
    if len(values) > MOST_VALUES:
        raise RawDataError(
            f"The files that were taken for masks, such as {pairs[0].labels}, hold {len(values)} different values, "
            "as images do: say which are the masks with --images and --labels."
        )
    if not values - {0}:
        raise RawDataError(
            f"Every label map that could be read is empty, from {pairs[0].labels} on: nothing can be learnt from them."
        )
    return tuple(sorted(values - {0}))


def _values_of(case: Case) -> set[int] | None:
    assert case.labels is not None
    try:
        return {int(value) for value in np.unique(case.labels.read_labels().array)}
    except IrisError:
        return None


def _some_scans(pairs: list[Case], workers: int | None, progress: bool) -> tuple[GreyValues, ...]:
    some = [pairs[int(index)] for index in np.linspace(0, len(pairs) - 1, min(SCANS_READ, len(pairs)))]
    read = [found for found in parallel_map(_scan_of, some, workers, "Reading scans", progress) if found]
    if not read:
        raise RawDataError(
            f"No scan can be read, for instance {some[0].image}: run iris_check for the reasons."
        )
    return tuple(read)


def _scan_of(case: Case) -> GreyValues | None:
    try:
        return GreyValues.of(case.image.read_image())
    except IrisError:
        return None
