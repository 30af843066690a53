"""Pairs of images and masks in a folder of somebody's own, as patterns for the layout `files`.

No name is known beforehand. Each path is generalised in every way that a person would name cases (the file's name
with or without a word before or behind it, a folder for each case, a mask file for each class), and the two
patterns that pair most cases win. Words such as "seg" or "images" only say which of both is the label.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.adding.generalise import Key, PathPattern, path_patterns, without_ending
from preprocessing.adding.name_words import (
    CLASS,
    FIELD,
    IMAGE_WORDS,
    LABEL_WORDS,
    RATERS,
    VERSIONS,
    fixed_words,
    may_be_class,
    words,
)
from preprocessing.errors import RawDataError
from preprocessing.patterns import exactness
from preprocessing.sources.scan_paths import scan_paths

FEW_CASES = 0.2  # a class has a mask file in this share of the cases at least
ENOUGH_PATHS = 4000  # patterns that hold for so many files hold for the rest
SCANS_OF_A_SUBJECT = 5  # a folder with more scans than this on average is no person's


@dataclass(frozen=True)
class Found:
    """Patterns (one for each file ending) and what they pair. `classes`: names of mask files, if of one class each.

    cases, images_alone, labels_alone: numbers of pairs, and of files that have no other half, of a sample where
    there are very many files; others: patterns of other images that pair up with the same masks; rivals: of other
    masks of the same images. parts: what {part} stands for; ids_restart: cases of several parts have one name.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    cases: int
    images_alone: int = 0
    labels_alone: int = 0
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    ids_restart: bool = False


@dataclass(frozen=True)
class _Pair:
    image: PathPattern
    label: PathPattern
    shared: frozenset[Key]
    classes: tuple[str, ...]
    strays: int = 0

    @property
    def parts(self) -> set[str]:
        return {value for key in self.shared for name, value in key if name == "part"}

    @property
    def mask_files(self) -> int:
        return sum(len(self.masks(key)) for key in self.shared)

    def masks(self, key: Key) -> dict[str, str]:
        found = self.label.files[key]
        return {name: path for name, path in found.items() if not self.classes or name in self.classes}

    def alone(self) -> tuple[int, int]:
        masks = {path for found in self.label.files.values() for path in found.values()}
        pictures = {path for found in self.image.files.values() for path in found.values()}
        rest, labels = (
            [
                key
                for key in files
                if key not in self.shared and dict(key).get("part", "") in (self.parts or {""})
            ]
            for files in (self.image.files, self.label.files)
        )
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
            -self.alone()[0] - self.strays,
            -text.count("*") - 2 * text.count("{part}") - 3 * _unlikely_subjects(self.shared),
            -len(FIELD.findall(text)),
            -len(fixed_words(self.label.text) & VERSIONS),
            -named,
            -len(text),
        )


def discover_pairs(folder: Path, paths: list[str] | None = None) -> Found:
    """The patterns that pair most images with their masks. RawDataError where nothing pairs up.

    paths: what `scan_paths` finds there, where it is known.
    """
    paths = scan_paths(folder) if paths is None else paths
    if not paths:
        raise RawDataError(
            f"{folder} holds no scan: give a folder of NIfTI, mha, mhd or nrrd files, or of folders of DICOM series."
        )
    sample = _sample(paths)
    images, labels, unknown = _by_role(sample)
    image_patterns = path_patterns(images or unknown, sample, with_classes=False)
    label_patterns = path_patterns(labels or unknown or images, sample, with_classes=True)
    sides = (set(images or unknown), set(labels or unknown)) if images or labels else (set[str](), set[str]())
    pairs = [
        replace(pair, strays=_strays(pair, *sides))
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
        rivals=_other_masks(best, pairs),
        parts=tuple(sorted(best.parts)),
        ids_restart=len({frozenset(each for each in key if each[0] != "part") for key in best.shared})
        < len(best.shared),
    )


def _sample(paths: list[str]) -> list[str]:
    """All files of some cases where there are too many: the files of a case share their longest number."""
    if len(paths) <= ENOUGH_PATHS:
        return paths
    groups: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[max(re.findall(r"[0-9]+", path), key=len, default="")].append(path)
    kept: list[str] = []
    numbers, step = sorted(groups), -(-len(paths) // ENOUGH_PATHS)
    for number in (each for start in range(step) for each in numbers[start::step]):  # from all parts of a set
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
        role = labels if told & (LABEL_WORDS | RATERS) else images if told & set(IMAGE_WORDS) else unknown
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
        pair = _Pair(image, label, frozenset(shared), ())
        return None if _mixed_up(pair) else pair
    counts = Counter(
        name for key in shared for name, path in label.files[key].items() if path != image.files[key][""]
    )
    fewest = max(min(2, len(shared)), FEW_CASES * len(shared))
    beside = any(image.files[key][""] in label.reach for key in shared)
    often = sorted(name for name, count in counts.items() if count >= fewest)
    classes = [name for name in often if may_be_class(name, label.text, beside)]
    shared = {key for key in shared if set(classes) & set(label.files[key])}
    pair = _Pair(image, label, frozenset(shared), tuple(classes))
    # With one file a case the text names something else, such as the hospital.
    return pair if pair.mask_files > len(shared) and not _mixed_up(pair) else None


def _mixed_up(pair: _Pair) -> bool:
    """Whether the layout's search would take masks for images, or the reverse.

    Of two patterns that fit one file the more exact has it, of equals the image's.
    """
    if exactness(pair.image.text) >= exactness(pair.label.text):
        return any(path in pair.image.reach for key in pair.shared for path in pair.masks(key).values())
    return not pair.classes and any(pair.image.files[key][""] in pair.label.reach for key in pair.shared)


def _strays(pair: _Pair, images: set[str], labels: set[str]) -> int:
    """The number of files of the other role that a pattern fits although they are none of its own."""
    return len(pair.image.reach & labels - pair.label.reach) + (
        0 if pair.classes else len(pair.label.reach & images)
    )


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


def _other_masks(best: _Pair, pairs: Iterable[_Pair]) -> tuple[str, ...]:
    """Patterns of masks of the same images, in half of the cases at least, that have no file in common."""
    told = {path for key in best.shared for path in best.masks(key).values()}
    rivals = [pair for pair in pairs if pair.image is best.image and 2 * len(pair.shared) >= len(best.shared)]
    others = []
    for pair in sorted(rivals, key=_Pair.score, reverse=True):
        theirs = {path for key in pair.shared for path in pair.masks(key).values()}
        if not theirs & told:
            others.append(_with_endings(pair.label)[0])
            told |= theirs
    return tuple(sorted(others))


def _with_endings(pattern: PathPattern) -> tuple[str, ...]:
    if pattern.text.endswith("/"):
        return (pattern.text.rstrip("/"),)
    return tuple(pattern.text + ending for ending in sorted(pattern.endings))
