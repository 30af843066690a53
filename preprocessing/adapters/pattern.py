"""Any folder whose paths follow a pattern: the specification's `images` and `labels` say which.

A pattern is a path under the raw folder, with `{case}` where the case's name stands: `images/{case}.nii.gz`,
`{case}/{case}_seg`, `scans/volume-{case}`. Several other fields ({subject}/{visit}/ct) make up the name together,
joined by "_"; `{class}` in `labels` is the name of a class that has a mask file of its own; `*` is any text within
a folder's or file's name. Without an ending every format that can be read fits; "/" at the end is a folder
with one DICOM series.

>>> path_fields("scans/volume-{case}", "scans/volume-12.nii.gz", ())
{'case': '12'}
>>> path_fields("{subject}/{visit}/masks/{class}", "p1/v2/masks/liver.nii", ("liver", "spleen"))
{'subject': 'p1', 'visit': 'v2', 'class': 'liver'}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.errors import RawDataError, SpecError
from preprocessing.masks import MaskFiles
from preprocessing.source import FileSource, Source
from preprocessing.spec import DatasetSpec
from preprocessing.volume import ITK, NIFTI, is_image_path

ENDINGS = NIFTI + ITK
FIELD = re.compile(r"(\{[a-z]+\}|\*)")
CLASS = "{class}"
JUNK = ("__MACOSX",)
Key = tuple[str, ...]


def find_pattern_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """All cases under `raw`, sorted by id; a label without an image names the pattern that found nothing.

    RawDataError where no image fits, where two fit one case, or where nothing under `raw` can be read.
    """
    if spec.images is None or spec.labels is None:
        raise SpecError(
            f"The layout 'pattern' of dataset {spec.name} needs the keys images and labels, such as "
            "images/{case}.nii.gz and labels/{case}.nii.gz: add them to the specification."
        )
    fields = _fields(spec)
    paths = scan_paths(raw)
    labels = _labels(paths, spec, fields)
    # `{case}` fits `x_seg.nii.gz` too, and `{case}/{class}` the image: the more exact pattern has the file.
    if _exactness(spec.labels) > _exactness(spec.images):
        claimed = {path for found in labels.values() for path in found.values()}
        images = _files([path for path in paths if path not in claimed], spec.images, fields)
    else:
        images = _files(paths, spec.images, fields)
        labels = _labels(sorted(set(paths) - set(images.values())), spec, fields)
    if not images:
        raise RawDataError(
            f"No file under {raw} fits the pattern {spec.images} of dataset {spec.name}: correct the pattern or "
            "the folder."
        )
    cases = []
    for key in images.keys() | labels.keys():
        case_id = "_".join(key)
        path = images.get(key) or _filled(spec.images, fields, key)
        cases.append(
            Case(
                id=case_id,
                subject=key[fields.index("subject")] if "subject" in fields else spec.subject_of(case_id),
                image=FileSource(raw / path),
                labels=_source(raw, labels.get(key, {}), spec),
                modality=spec.modality,
            )
        )
    twice = [case_id for case_id, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise RawDataError(
            f"Each case has a name of its own, but the fields of {spec.images} give several the name {twice[0]}: "
            "make the pattern more exact."
        )
    return sorted(cases, key=lambda case: case.id)


def scan_paths(raw: Path) -> list[str]:
    """Paths under `raw` with "/" between folders, sorted: files that can be read, and DICOM folders with a "/" behind.

    Hidden files and folders, and what macOS packs beside them, are left out.
    """
    found: set[str] = set()
    for path in raw.rglob("*"):
        inner = path.relative_to(raw)
        if any(part.startswith(".") or part in JUNK for part in inner.parts):
            continue
        if is_image_path(path):
            found.add(inner.as_posix())
        elif path.suffix.lower() == ".dcm" and len(inner.parts) > 1:
            found.add(inner.parent.as_posix() + "/")
    return sorted(found)


def path_fields(pattern: str, path: str, classes: Sequence[str]) -> dict[str, str] | None:
    """The fields of a path that fits the pattern, else None. Without `classes` any text may be a class."""
    match = _expression(pattern, tuple(classes)).fullmatch(path)
    return match.groupdict() if match else None


@lru_cache(maxsize=256)
def _expression(pattern: str, classes: Key) -> re.Pattern[str]:
    parts, seen = [], set()
    for token in FIELD.split(pattern):
        name = token[1:-1] if token.startswith("{") and FIELD.fullmatch(token) else ""
        if token == "*":
            parts.append("[^/]*")
        elif not name:
            parts.append(re.escape(token))
        elif name in seen:
            parts.append(f"(?P={name})")
        else:
            seen.add(name)
            choice = "|".join(map(re.escape, sorted(classes, key=len, reverse=True)))
            text = choice if name == "class" and classes else "[^/]+?"
            parts.append(f"(?P<{name}>{text})")
    whole = pattern.endswith("/") or pattern.lower().endswith(ENDINGS)
    ending = "" if whole else f"(?i:{'|'.join(map(re.escape, ENDINGS))})"
    return re.compile("".join(parts) + ending)


def _fields(spec: DatasetSpec) -> Key:
    """The fields that make up the case's name, in the order of `images`; SpecError where `labels` has others."""
    assert spec.images is not None and spec.labels is not None
    orders = [
        tuple(dict.fromkeys(token[1:-1] for token in FIELD.findall(pattern) if token not in ("*", CLASS)))
        for pattern in (spec.images, spec.labels)
    ]
    if not orders[0] or set(orders[0]) != set(orders[1]) or CLASS in spec.images:
        raise SpecError(
            "images and labels name the case by the same fields, such as {case}, and only labels may have "
            f"{{class}}, but dataset {spec.name} has {spec.images} and {spec.labels}: correct the specification."
        )
    return orders[0]


def _files(paths: Iterable[str], pattern: str, fields: Key, classes: Sequence[str] = ()) -> dict[Key, str]:
    found: dict[Key, str] = {}
    for path in paths:
        values = path_fields(pattern, path, classes)
        if values is None:
            continue
        key = tuple(values[name] for name in fields)
        if key in found:
            raise RawDataError(
                f"One file fits the pattern {pattern} for case '{'_'.join(key)}', but {found[key]} and {path} do: "
                "keep one, or make the pattern more exact."
            )
        found[key] = path
    return found


def _labels(paths: Iterable[str], spec: DatasetSpec, fields: Key) -> dict[Key, dict[str, str]]:
    """Case -> class -> its file; the class "" has the file of all classes."""
    assert spec.labels is not None
    if CLASS not in spec.labels:
        return {key: {"": path} for key, path in _files(paths, spec.labels, fields).items()}
    labels: dict[Key, dict[str, str]] = {}
    for key, path in _files(paths, spec.labels, (*fields, "class"), tuple(spec.classes)).items():
        labels.setdefault(key[:-1], {})[key[-1]] = path
    return labels


def _exactness(pattern: str) -> int:
    ending = next((each for each in ENDINGS if pattern.lower().endswith(each)), "")
    return len(FIELD.sub("", pattern.removesuffix("/"))) - len(ending)


def _source(raw: Path, files: dict[str, str], spec: DatasetSpec) -> Source | None:
    if not files:
        return None
    if "" in files:
        return FileSource(raw / files[""])
    return MaskFiles(tuple((spec.classes[name], raw / files[name]) for name in spec.classes if name in files))


def _filled(pattern: str, fields: Key, key: Key) -> str:
    """Where the image of a label without one should be."""
    for name, value in zip(fields, key, strict=True):
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern if pattern.endswith("/") or pattern.lower().endswith(ENDINGS) else pattern + NIFTI[0]
