"""One path generalised in every way that a person would name cases: patterns, and the files that fit each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from preprocessing.adding.name_words import CLASS, FIELD, LABEL_WORDS, part_of
from preprocessing.patterns import as_regex
from preprocessing.volume import ITK, NIFTI

ENDINGS = NIFTI + ITK
MOST = 80  # patterns of a role that are compared; all good ones fit nearly all files

Key = frozenset[tuple[str, str]]
Variant = tuple[str, dict[str, str]]  # a pattern's text and the values of its fields


@dataclass
class PathPattern:
    """files: case -> class ('' for one file with all) -> path. endings: of all files that fit.

    reach: all files, of whatever role, that the layout's search would find by it.
    """

    text: str
    files: dict[Key, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    endings: set[str] = field(default_factory=set)
    ambiguous: bool = False
    reach: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return sum(len(found) for found in self.files.values())

    def look(self, stems: Mapping[str, str]) -> None:
        """Fill `reach`. stems: path -> the path without its ending."""
        expression = as_regex(self.text)
        self.reach = frozenset(
            path
            for path, stem in stems.items()
            if path[len(stem) :] in self.endings and expression.fullmatch(stem)
        )

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


def path_patterns(paths: Collection[str], everything: Iterable[str], with_classes: bool) -> list[PathPattern]:
    """All generalisations of the paths of a role, those that fit most files first. everything: of all roles."""
    patterns: dict[str, PathPattern] = {}
    divided = _divided(paths)
    for path in paths:
        for text, values in _variants(without_ending(path), with_classes, divided):
            patterns.setdefault(text, PathPattern(text)).add(values, path)
    sound = [pattern for pattern in patterns.values() if not pattern.ambiguous]
    most = sorted(sound, key=lambda pattern: (-pattern.size, len(pattern.text)))[:MOST]
    stems = {path: without_ending(path) for path in everything}
    for pattern in most:
        pattern.look(stems)
    return most


def _divided(paths: Iterable[str]) -> set[str]:
    """The names of folders, as patterns with {part}, of which there are several parts."""
    parts: dict[str, set[str]] = defaultdict(set)
    for folder in {folder for path in paths for folder in path.rstrip("/").split("/")[:-1]}:
        if (told := part_of(folder)) is not None:
            parts[told[0]].add(told[1])
    return {pattern for pattern, values in parts.items() if len(values) > 1}


def _variants(path: str, with_classes: bool, divided: set[str]) -> Iterator[Variant]:
    """Patterns that fit one path (without its ending), each with the values of its fields."""
    tail = "/" if path.endswith("/") else ""
    *folders, stem = path.rstrip("/").split("/")
    for places, part in _parted(folders, divided):
        for text, values in _inside(places, stem):
            yield text + tail, values | part
        if with_classes and not tail:
            for text, values in _with_class(places, stem):
                yield text, values | part


def _parted(folders: list[str], divided: set[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The folders as they are, and with one that names a part of the set, as "train" and "imagesTr" do, generalised."""
    yield folders, {}
    told = [part_of(folder) for folder in folders]
    for index, part in enumerate(told):
        if part is not None and part[0] in divided:
            yield [*folders[:index], part[0], *folders[index + 1 :]], {"part": part[1]}


def _with_class(folders: list[str], stem: str) -> Iterator[Variant]:
    """The class in the file's name, or in a folder's."""
    for text, values in _inside(folders, "{class}"):
        if text.endswith("/{class}"):
            yield text, values | {"class": stem}
    for stem_text, values in _class_stems(stem):
        yield "/".join([*folders, stem_text]), values
        for index, folder in enumerate(folders):
            if values["case"] == folder:
                yield "/".join([*folders[:index], "{case}", *folders[index + 1 :], stem_text]), values
    for index, folder in enumerate(folders):
        if FIELD.search(folder):
            continue
        rest = [*folders[:index], CLASS, *folders[index + 1 :]]
        for stem_text, case in _stems(stem):
            yield "/".join([*rest, stem_text]), {"case": case, "class": folder}


def _inside(folders: list[str], stem: str) -> Iterator[Variant]:
    """The case in the file's name, in a folder's, or in both."""
    stems = [] if stem == CLASS else list(_stems(stem))
    for text, case in stems:
        yield "/".join([*folders, text]), {"case": case}
    for index, folder in enumerate(folders):
        if FIELD.search(folder):
            continue
        before, behind = folders[:index], folders[index + 1 :]
        for text, case in stems:
            yield "/".join([*before, "*", *behind, text]), {"case": case}
            if part_of(folder) is None:
                yield "/".join([*before, "{subject}", *behind, text]), {"subject": folder, "case": case}
        rest = [_replaced(part, folder, "{case}") for part in [*behind, stem]]
        yield "/".join([*before, "{case}", *rest]), {"case": folder}
        for other in range(index + 1, len(folders)) if part_of(folder) is None else ():
            if FIELD.search(folders[other]):
                continue
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
