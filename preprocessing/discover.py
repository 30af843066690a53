"""Pairs of images and masks in a folder of somebody's own, as patterns for the layout `files`.

No name is known beforehand. Each path is generalised in every way that a person would name cases (the file's name
with or without a word before or behind it, a folder for each case, a mask file for each class), and the two
patterns that pair most cases win. Words such as "seg" or "images" only say which of both is the label.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import RawDataError
from preprocessing.generalise import Key, PathPattern, path_patterns, without_ending
from preprocessing.name_words import CLASS, FIELD, IMAGE_WORDS, LABEL_WORDS, fixed_words, may_be_class, words
from preprocessing.scan_paths import scan_paths

FEW_CASES = 0.2  # a class has a mask file in this share of the cases at least
ENOUGH_PATHS = 4000  # patterns that hold for so many files hold for the rest
SCANS_OF_A_SUBJECT = 5  # a folder with more scans than this on average is no person's


@dataclass(frozen=True)
class Found:
    """Patterns (one for each file ending) and what they pair. `classes`: names of mask files, if of one class each.

    cases, images_alone, labels_alone: numbers of pairs, and of files that have no other half, of a sample where
    there are very many files; others: patterns of other images that pair up with the same masks.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    cases: int
    images_alone: int = 0
    labels_alone: int = 0
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    image: PathPattern
    label: PathPattern
    shared: frozenset[Key]
    classes: tuple[str, ...]

    @property
    def mask_files(self) -> int:
        return sum(len(self._masks(key)) for key in self.shared)

    def _masks(self, key: Key) -> dict[str, str]:
        found = self.label.files[key]
        return {name: path for name, path in found.items() if not self.classes or name in self.classes}

    def alone(self) -> tuple[int, int]:
        masks = {path for found in self.label.files.values() for path in found.values()}
        pictures = {path for found in self.image.files.values() for path in found.values()}
        rest = [key for key in self.image.files if key not in self.shared]
        labels = [key for key in self.label.files if key not in self.shared]
        return (
            sum(self.image.files[key][""] not in masks for key in rest),
            0 if self.classes else sum(self.label.files[key][""] not in pictures for key in labels),
        )

    def score(self) -> tuple[float, ...]:
        """Compared from the left: more cases, more masks, nothing left over, then the plainer pattern."""
        told = fixed_words(self.image.text)
        named = min((IMAGE_WORDS.index(word) for word in told if word in IMAGE_WORDS), default=99)
        text = self.image.text + self.label.text
        return (
            len(self.shared),
            self.mask_files,
            -self.alone()[0],
            -text.count("*") - 3 * _unlikely_subjects(self.shared),
            -len(FIELD.findall(text)),
            -named,
            -len(text),
        )


def discover_pairs(folder: Path) -> Found:
    """The patterns that pair most images with their masks. RawDataError where nothing pairs up."""
    paths = scan_paths(folder)
    if not paths:
        raise RawDataError(
            f"{folder} holds no scan: give a folder of NIfTI, mha, mhd or nrrd files, or of folders of DICOM series."
        )
    images, labels, unknown = _by_role(_sample(paths))
    image_patterns = path_patterns(images or unknown, with_classes=False)
    label_patterns = path_patterns(labels or unknown or images, with_classes=True)
    pairs = [
        pair
        for image in image_patterns
        for label in label_patterns
        if (pair := _pair(image, label)) is not None
    ]
    if not pairs:
        raise RawDataError(
            f"No image of {folder} pairs up with a mask by its name (there are {', '.join(paths[:3])}): say how "
            "with --images and --labels, such as --images 'scans/{case}' --labels 'masks/{case}_seg'."
        )
    most = max(len(pair.shared) for pair in pairs)
    best = max((pair for pair in pairs if len(pair.shared) == most), key=_Pair.score)
    alone = best.alone()
    return Found(
        images=_with_endings(best.image),
        labels=_with_endings(best.label),
        cases=len(best.shared),
        images_alone=alone[0],
        labels_alone=alone[1],
        classes=best.classes,
        others=_other_images(best, pairs),
    )


def _sample(paths: list[str]) -> list[str]:
    """All files of some cases where there are too many: the files of a case share their longest number."""
    if len(paths) <= ENOUGH_PATHS:
        return paths
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[max(re.findall(r"[0-9]+", path), key=len, default="")].append(path)
    kept: list[str] = []
    for number in sorted(groups):
        if kept and len(kept) + len(groups[number]) > ENOUGH_PATHS:
            break
        kept += groups[number]
    return sorted(kept)


def _by_role(paths: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Images, labels, and those whose names do not tell. A folder that holds everything tells nothing."""
    shared = set.intersection(*({*path.rstrip("/").split("/")[:-1]} for path in paths))
    images: list[str] = []
    labels: list[str] = []
    unknown: list[str] = []
    for path in paths:
        told = {
            word for part in without_ending(path).split("/") if part not in shared for word in words(part)
        }
        role = labels if told & LABEL_WORDS else images if told & set(IMAGE_WORDS) else unknown
        role.append(path)
    return images, labels, unknown


def _pair(image: PathPattern, label: PathPattern) -> _Pair | None:
    shared = {
        key
        for key in image.files.keys() & label.files.keys()
        if set(image.files[key].values()) != set(label.files[key].values())
    }
    if not shared:
        return None
    if CLASS not in label.text:
        return _Pair(image, label, frozenset(shared), ())
    counts = Counter(
        name for key in shared for name, path in label.files[key].items() if path != image.files[key][""]
    )
    fewest = max(min(2, len(shared)), FEW_CASES * len(shared))
    beside = any(label.fits(image.files[key][""]) for key in shared)
    often = sorted(name for name, count in counts.items() if count >= fewest)
    classes = [name for name in often if may_be_class(name, label.text, beside)]
    shared = {key for key in shared if set(classes) & set(label.files[key])}
    pair = _Pair(image, label, frozenset(shared), tuple(classes))
    # With one file a case the text names something else, such as the hospital.
    return pair if pair.mask_files > len(shared) else None


def _unlikely_subjects(cases: Iterable[Key]) -> bool:
    """Whether {subject} stands for folders that each hold the scans of many people."""
    subjects = Counter(value for key in cases for name, value in key if name == "subject")
    return bool(subjects) and sum(subjects.values()) > SCANS_OF_A_SUBJECT * len(subjects)


def _other_images(best: _Pair, pairs: Iterable[_Pair]) -> tuple[str, ...]:
    used = {best.image.files[key][""] for key in best.shared}
    rivals = [pair for pair in pairs if pair.label is best.label and len(pair.shared) == len(best.shared)]
    others: dict[frozenset[str], str] = {}
    for pair in sorted(rivals, key=_Pair.score, reverse=True):
        theirs = frozenset(pair.image.files[key][""] for key in pair.shared)
        if not theirs & used:
            others.setdefault(theirs, _with_endings(pair.image)[0])
    return tuple(sorted(others.values()))


def _with_endings(pattern: PathPattern) -> tuple[str, ...]:
    if pattern.text.endswith("/"):
        return (pattern.text.rstrip("/"),)
    return tuple(pattern.text + ending for ending in sorted(pattern.endings))
