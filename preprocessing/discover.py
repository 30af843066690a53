"""Pairs of images and masks in a folder of somebody's own, as patterns for the layout `files`.

No name is known beforehand. Each path is generalised in every way that a person would name cases (the file's name
with or without a word before or behind it, a folder for each case, a mask file for each class), and the two
patterns that pair most cases win. Words such as "seg" or "images" only say which of both is the label.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.errors import RawDataError
from preprocessing.scan_paths import scan_paths
from preprocessing.volume import ITK, NIFTI

_LABELS = (
    "seg segs segm segmentation segmentations mask masks msk label labels labelmap labelmaps labelstr labelsva lbl lab "
    "gt groundtruth truth annotation annotations annot roi rois contour contours manual structures"
)
# The earlier, the likelier it is the image that was meant where several pair up.
_IMAGES = (
    "image images img imgs imaging imagestr imagesva scan scans volume volumes vol ct mr mri pet suv 0000 dicom orig "
    "data raw t1 t1w t2 t2w t1c t1ce t1gd flair adc dwi lge cine cbct ctres phase"
)
_PARTS = "train training tr val valid validation va test testing ts batch fold part"
LABEL_WORDS, IMAGE_WORDS = frozenset(_LABELS.split()), tuple(_IMAGES.split())
PARTS_OF_A_SET = frozenset(_PARTS.split())
CLASS = "{class}"
ENDINGS = NIFTI + ITK
FIELD = re.compile(r"\{[a-z]+\}|\*")
MOST = 80  # patterns of a role that are compared; all good ones fit nearly all files
FEW_CASES = 0.2  # a class has a mask file in this share of the cases at least
ENOUGH_PATHS = 4000  # patterns that hold for so many files hold for the rest
SCANS_OF_A_SUBJECT = 5  # a folder with more scans than this on average is no person's

Key = frozenset[tuple[str, str]]
Variant = tuple[str, dict[str, str]]  # a pattern's text and the values of its fields


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


@dataclass
class _Pattern:
    """files: case -> class ('' for one file with all) -> path. endings: of all files that fit."""

    text: str
    files: dict[Key, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    endings: set[str] = field(default_factory=set)
    ambiguous: bool = False

    @property
    def size(self) -> int:
        return sum(len(found) for found in self.files.values())

    def add(self, values: dict[str, str], path: str) -> None:
        named = values.get("class", "")
        key = frozenset((name, value) for name, value in values.items() if name != "class")
        stem = _without_ending(path)
        known = self.files[key].setdefault(named, path)
        # A copy of other format is told when it is read; here the first stands for both.
        self.ambiguous |= _without_ending(known) != stem
        self.endings.add(path[len(stem) :])


@dataclass(frozen=True)
class _Pair:
    image: _Pattern
    label: _Pattern
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
        words = _words(FIELD.sub(" ", self.image.text))
        named = min((IMAGE_WORDS.index(word) for word in words if word in IMAGE_WORDS), default=99)
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
    image_patterns = _patterns(images or unknown, with_classes=False)
    label_patterns = _patterns(labels or unknown or images, with_classes=True)
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
        words = {
            word for part in _without_ending(path).split("/") if part not in shared for word in _words(part)
        }
        role = labels if words & LABEL_WORDS else images if words & set(IMAGE_WORDS) else unknown
        role.append(path)
    return images, labels, unknown


def _words(text: str) -> set[str]:
    """'imagesTr_P01' -> {'imagestr', 'images', 'tr', 'p01', 'p'}: with and without digits and inner capitals."""
    tokens = re.findall(r"[A-Za-z0-9]+", text)
    tokens += [part for token in tokens for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", token)]
    tokens += re.findall(r"[A-Za-z]+", text)
    return {token.lower() for token in tokens}


def _without_ending(path: str) -> str:
    ending = next((each for each in ENDINGS if path.lower().endswith(each)), "")
    return path[: len(path) - len(ending)]


def _patterns(paths: Iterable[str], with_classes: bool) -> list[_Pattern]:
    """All generalisations, those that fit most files first."""
    patterns: dict[str, _Pattern] = {}
    for path in paths:
        for text, values in _variants(_without_ending(path), with_classes):
            patterns.setdefault(text, _Pattern(text)).add(values, path)
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
            if not _words(folder) & PARTS_OF_A_SET:
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


def _pair(image: _Pattern, label: _Pattern) -> _Pair | None:
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
    classes = sorted(name for name, count in counts.items() if count >= fewest and names_a_class(name))
    shared = {key for key in shared if set(classes) & set(label.files[key])}
    pair = _Pair(image, label, frozenset(shared), tuple(classes))
    # With one file a case the text names something else, such as the hospital.
    return pair if pair.mask_files > len(shared) else None


def names_a_class(name: str) -> bool:
    """Whether what stands for {class} may be one: no number, and no word that means an image, a mask or a part."""
    plain = {name.lower(), name.lower().rstrip("0123456789")}
    return not plain & (LABEL_WORDS | set(IMAGE_WORDS) | PARTS_OF_A_SET) and not name.isdecimal()


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


def _with_endings(pattern: _Pattern) -> tuple[str, ...]:
    if pattern.text.endswith("/"):
        return (pattern.text.rstrip("/"),)
    return tuple(pattern.text + ending for ending in sorted(pattern.endings))
