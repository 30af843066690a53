"""Image and label files found by patterns: flat pairs, a folder a case, several folders, any depth.

`pair_up` is the common part of all layouts with patterns: two lists of found files become cases, and what
lacks its partner is listed all the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.errors import RawDataError
from preprocessing.layouts import PairFiles
from preprocessing.patterns import Match, fill, find
from preprocessing.sources.masks import MaskFiles
from preprocessing.sources.source import FileSource, Source, Unreadable, one_name, one_of
from preprocessing.spec import DatasetSpec

_DATE = re.compile(r"(\d{2})-(\d{2})-(\d{4})")


def find_file_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """Layout `files`: one image file and one label file a case.

    RawDataError where there is no image.
    """
    form = spec.raw_files
    assert isinstance(form, PairFiles)
    folder = spec.settled_folder(raw)
    images = list(find(folder, form.image, form.where))
    of_class = {"class": "|".join(re.escape(name) for name in spec.classes)}
    labels = list(find(folder, form.labels, of_class | form.where))
    images, labels = one_role_each(images, labels)
    if form.numbered:
        numbers = _numbers([*images, *labels], form.numbered)
        images, labels = (_numbered(each, form.numbered, numbers) for each in (images, labels))
    if not images:
        raise nothing_found(folder, spec, form.image)
    cases = pair_up(
        file_sources(images, form.case),
        _mask_files(labels, form.case, spec)
        if "{class}" in form.labels[0]
        else file_sources(labels, form.case),
        spec,
    )
    if form.subject is None:
        return cases
    people = {fill(form.case, match.names): fill(form.subject, match.names) for match in (*images, *labels)}
    return [replace(case, subject=people[case.id]) for case in cases]


def one_role_each(images: list[Match], labels: list[Match]) -> tuple[list[Match], list[Match]]:
    """`{case}` fits x_seg.nii.gz as well as `{case}_seg` does: a file that fits both goes to the more exact."""
    as_image = {match.path: match.exactness for match in images}
    as_labels = {match.path: match.exactness for match in labels}
    return (
        [match for match in images if as_labels.get(match.path, -1) <= match.exactness],
        [match for match in labels if as_image.get(match.path, -1) < match.exactness],
    )


def _mask_files(labels: list[Match], template: str, spec: DatasetSpec) -> dict[str, Source]:
    """Case id -> its mask files, in the order of the classes; a class with two files makes its case unreadable."""
    of_class: dict[str, list[Match]] = defaultdict(list)
    for match in labels:
        of_class[match.names["class"]].append(match)
    found: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    for name in spec.classes:
        for case, paths in by_case(of_class[name], template).items():
            found[case][name] = paths
    return {
        case: one_file_each(files)
        or MaskFiles(tuple((spec.classes[name], paths[0]) for name, paths in files.items()))
        for case, files in found.items()
    }


def one_file_each(files: Mapping[str, list[Path]]) -> Unreadable | None:
    """None, or what becomes of a case in which a class (name -> its files) has more than one file."""
    twice = next(((name, paths) for name, paths in files.items() if len(paths) > 1), None)
    if twice is None:
        return None
    return Unreadable(f"{one_name(twice[1])} in the class {twice[0]}: keep one.")


def pair_up(images: Mapping[str, Source], labels: Mapping[str, Source], spec: DatasetSpec) -> list[Case]:
    """One case for each id on either side, sorted; what lacks its image is refused by name when it is read."""
    cases = []
    for case_id in sorted(images.keys() | labels.keys()):
        image, mask = images.get(case_id), labels.get(case_id)
        if image is None:
            image = Unreadable(
                f"Case {case_id} has labels ({labels[case_id].name}) but no image: add the image or remove them."
            )
        if mask is None and isinstance(image, Unreadable):
            mask = image  # its sentence is to be told, not that labels are missing too
        cases.append(Case(case_id, spec.subject_of(case_id), image, mask, spec.modality))
    return cases


def by_case(matches: Iterable[Match], template: str) -> dict[str, list[Path]]:
    """Case id -> its file; several where it is there more than once."""
    found: dict[str, list[Path]] = defaultdict(list)
    for match in matches:
        paths = found[fill(template, match.names)]
        if match.path not in paths:  # several patterns may fit one file
            paths.append(match.path)
    return dict(found)


def file_sources(matches: Iterable[Match], template: str) -> dict[str, Source]:
    """Case id -> its file as a source, or its copies."""
    return {
        case: one_of([FileSource(path) for path in paths])
        for case, paths in by_case(matches, template).items()
    }


def nothing_found(folder: Path, spec: DatasetSpec, patterns: Iterable[str]) -> RawDataError:
    """The sentence for a raw folder in which no image lies where the specification says."""
    tops = spec.raw_files.top
    place = f" (or below its folder {tops[0]})" if tops else ""
    return RawDataError(
        f"{folder} holds no image of dataset {spec.name}: the layout '{spec.layout}' looks there{place} for "
        f"{' or '.join(patterns)}; unpack the download there as it is."
    )


def _numbers(matches: Iterable[Match], part: str) -> dict[tuple[tuple[str, str], ...], int]:
    """(all named parts) -> the place, from 0, of `part` among those whose other parts are the same.

    By the date month-day-year with which a name begins, if it does, then by the name.
    """
    groups: dict[tuple[tuple[str, str], ...], set[str]] = defaultdict(set)
    for match in matches:
        groups[_without(match, part)].add(match.names[part])
    return {
        (*others, (part, name)): number
        for others, names in groups.items()
        for number, name in enumerate(sorted(names, key=_by_date))
    }


def _numbered(
    matches: list[Match], part: str, numbers: Mapping[tuple[tuple[str, str], ...], int]
) -> list[Match]:
    return [
        replace(
            match,
            names={
                **match.names,
                "number": str(numbers[(*_without(match, part), (part, match.names[part]))]),
            },
        )
        for match in matches
    ]


def _without(match: Match, part: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in match.names.items() if name != part))


def _by_date(name: str) -> tuple[str, str]:
    date = _DATE.match(name)
    return (f"{date[3]}{date[1]}{date[2]}" if date else "", name)
