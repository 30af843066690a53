"""One path generalised in every way that a person would name cases: patterns, and the files that fit each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from preprocessing.name_words import CLASS, LABEL_WORDS, PARTS_OF_A_SET, words
from preprocessing.patterns import as_regex
from preprocessing.volume import ITK, NIFTI

ENDINGS = NIFTI + ITK
MOST = 80  # patterns of a role that are compared; all good ones fit nearly all files

Key = frozenset[tuple[str, str]]
Variant = tuple[str, dict[str, str]]  # a pattern's text and the values of its fields


@dataclass
class PathPattern:
    """files: case -> class ('' for one file with all) -> path. endings: of all files that fit."""

    text: str
    files: dict[Key, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    endings: set[str] = field(default_factory=set)
    ambiguous: bool = False

    @property
    def size(self) -> int:
        return sum(len(found) for found in self.files.values())

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return as_regex(self.text)

    def fits(self, path: str) -> bool:
        """Whether the layout's search would find this path by the pattern, whatever it was generalised from."""
        stem = without_ending(path)
        return path[len(stem) :] in self.endings and self._expression.fullmatch(stem) is not None

    def add(self, values: dict[str, str], path: str) -> None:
        named = values.get("class", "")
        key = frozenset((name, value) for name, value in values.items() if name != "class")
        stem = without_ending(path)
        known = self.files[key].setdefault(named, path)
        # A copy of other format is told when it is read; here the first stands for both.
        self.ambiguous |= without_ending(known) != stem
        self.endings.add(path[len(stem) :])


def without_ending(path: str) -> str:
    ending = next((each for each in ENDINGS if path.lower().endswith(each)), "")
    return path[: len(path) - len(ending)]


def path_patterns(paths: Iterable[str], with_classes: bool) -> list[PathPattern]:
    """All generalisations, those that fit most files first."""
    patterns: dict[str, PathPattern] = {}
    for path in paths:
        for text, values in _variants(without_ending(path), with_classes):
            patterns.setdefault(text, PathPattern(text)).add(values, path)
    sound = [pattern for pattern in patterns.values() if not pattern.ambiguous]
    return sorted(sound, key=lambda pattern: (-pattern.size, len(pattern.text)))[:MOST]


def _variants(path: str, with_classes: bool) -> Iterator[Variant]:
    """Patterns that fit one path (without its ending), each with the values of its fields."""
    tail = "/" if path.endswith("/") else ""
    *folders, stem = path.rstrip("/").split("/")
    for text, values in _inside(folders, stem):
        yield text + tail, values
    if not with_classes or tail:
        return
    for text, values in _inside(folders, "{class}"):
        if text.endswith("/{class}"):
            yield text, values | {"class": stem}
    for stem_text, values in _class_stems(stem):
        yield "/".join([*folders, stem_text]), values
        for index, folder in enumerate(folders):
            if values["case"] == folder:
                yield "/".join([*folders[:index], "{case}", *folders[index + 1 :], stem_text]), values
    for index, folder in enumerate(folders):
        rest = [*folders[:index], CLASS, *folders[index + 1 :]]
        for stem_text, case in _stems(stem):
            yield "/".join([*rest, stem_text]), {"case": case, "class": folder}


def _inside(folders: list[str], stem: str) -> Iterator[Variant]:
    """The case in the file's name, in a folder's, or in both."""
    stems = [] if stem == CLASS else list(_stems(stem))
    for text, case in stems:
        yield "/".join([*folders, text]), {"case": case}
    for index, folder in enumerate(folders):
        before, behind = folders[:index], folders[index + 1 :]
        for text, case in stems:
            yield "/".join([*before, "*", *behind, text]), {"case": case}
            if not words(folder) & PARTS_OF_A_SET:
                yield "/".join([*before, "{subject}", *behind, text]), {"subject": folder, "case": case}
        rest = [_replaced(part, folder, "{case}") for part in [*behind, stem]]
        yield "/".join([*before, "{case}", *rest]), {"case": folder}
        for other in range(index + 1, len(folders)):
            names = {"subject": folder, "visit": folders[other]}
            parts = [*before, "{subject}", *folders[index + 1 : other], "{visit}", *folders[other + 1 :]]
            named = _replaced(_replaced(stem, folder, "{subject}"), folders[other], "{visit}")
            yield "/".join([*parts, named]), names


def _replaced(text: str, name: str, by: str) -> str:
    """`name` inside a text only where it stands as a word: patient 1 is not in T1."""
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", by, text)


def _stems(stem: str) -> Iterator[tuple[str, str]]:
    """A file's name as pattern and case: whole, and without up to three words behind or two before it."""
    yield "{case}", stem
    tokens = re.split(r"([_\-. ]+)", stem)
    for count in range(1, min(4, (len(tokens) + 1) // 2)):
        end = len(tokens) - 2 * count
        suffix = "".join(tokens[end:])
        if re.search("[A-Za-z]", suffix) or suffix == "_0000":
            yield "{case}" + suffix, "".join(tokens[:end])
        start = "".join(tokens[: 2 * count])
        if count < 3 and re.search("[A-Za-z]", start):
            yield start + "{case}", "".join(tokens[2 * count :])
    number = re.fullmatch(r"([A-Za-z]+)([0-9].*)", stem)
    if number:
        yield number[1] + "{case}", number[2]


def _class_stems(stem: str) -> Iterator[Variant]:
    """'p1_left_lung_mask' -> {case}_{class}_mask and the like: the class of up to three words, behind or before."""
    tokens = re.split(r"([_\-. ]+)", stem)
    last = "".join(tokens[-2:]) if len(tokens) > 4 and tokens[-1].lower() in LABEL_WORDS else ""
    inner = tokens[:-2] if last else tokens
    for count in range(1, min(4, (len(inner) + 1) // 2)):
        end = len(inner) - 2 * count
        name, joint, case = "".join(inner[end + 1 :]), inner[end], inner[:end]
        if len(case) > 2 and case[-1].lower() in LABEL_WORDS:
            joint, case = "".join([*case[-2:], joint]), case[:-2]
        yield f"{{case}}{joint}{CLASS}{last}", {"case": "".join(case), "class": name}
        first, rest = "".join(inner[: 2 * count - 1]), inner[2 * count :]
        yield f"{CLASS}{inner[2 * count - 1]}{{case}}{last}", {"class": first, "case": "".join(rest)}
