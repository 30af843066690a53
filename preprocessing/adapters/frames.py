"""Frames of a series in time: a table or a file a subject says which of them are labelled.

The frames lie as files of their own (ACDC: the pattern holds {frame}) or inside one 4D file (M&Ms).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.adapters.files import nothing_found, pair_up
from preprocessing.errors import RawDataError
from preprocessing.layouts import FrameFiles
from preprocessing.patterns import Match, fill, find
from preprocessing.sources.source import FileSource, FrameSource, Source, Unreadable, one_of
from preprocessing.spec import DatasetSpec

FRAME = "frame"


def find_frame_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """Layout `frames`: one case for each subject and each of the frames that the specification names.

    RawDataError where there is no image, or no table that can be read.
    """
    form = spec.raw_files
    assert isinstance(form, FrameFiles)
    folder = spec.settled_folder(raw)
    images, labels = (_by_subject(find(folder, each, form.where)) for each in (form.image, form.labels))
    if not images:
        raise nothing_found(folder, spec, form.image)
    infos = {_key(match): match.path for match in find(folder, form.info, form.where)}
    rows = _read_table(folder, form) if form.table else {}
    image_sources: dict[str, Source] = {}
    label_sources: dict[str, Source] = {}
    for key in sorted(images.keys() | labels.keys() | infos.keys()):
        names = dict(key)
        who = " ".join(names.values())
        try:
            row = _row(form, names, rows, infos.get(key), who)
            numbers = {phase: _number(row, phase, who) for phase in form.frames}
        except RawDataError as error:  # which frames are labelled nobody says: one case stands for all
            image_sources[_case_id(form, names, form.frames[0], 0)] = Unreadable(str(error))
            continue
        for phase, number in numbers.items():
            case_id = _case_id(form, names, phase, number)
            image = _source(images.get(key, {}), number, form.first)
            mask = _source(labels.get(key, {}), number, form.first, labelled=True)
            if image is None and mask is None:
                image = Unreadable(
                    f"Frame {number} ({phase}) of {who} has neither image nor labels: copy it again."
                )
            image_sources |= {case_id: image} if image else {}
            label_sources |= {case_id: mask} if mask else {}
    return pair_up(image_sources, label_sources, spec)


def _case_id(form: FrameFiles, names: Mapping[str, str], phase: str, number: int) -> str:
    return fill(form.case, {**names, "phase": phase, FRAME: f"{number:02d}"})


def _by_subject(matches: Iterable[Match]) -> dict[tuple[tuple[str, str], ...], dict[int | None, list[Path]]]:
    """Named parts without {frame} -> frame number (None: a 4D file) -> file; several where it is there twice."""
    found: dict[tuple[tuple[str, str], ...], dict[int | None, list[Path]]] = {}
    for match in matches:
        number = int(match.names[FRAME]) if match.names.get(FRAME, "").isdecimal() else None
        paths = found.setdefault(_key(match), {}).setdefault(number, [])
        if match.path not in paths:  # several patterns may fit one file
            paths.append(match.path)
    return found


def _key(match: Match) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in match.names.items() if name != FRAME))


def _source(
    files: Mapping[int | None, list[Path]], number: int, first: int, labelled: bool = False
) -> Source | None:
    if None in files:
        return one_of([FrameSource(path, number - first, labelled) for path in files[None]])
    return one_of([FileSource(path) for path in files[number]]) if number in files else None


def _row(
    form: FrameFiles,
    names: Mapping[str, str],
    rows: Mapping[str, Mapping[str, str]],
    info: Path | None,
    who: str,
) -> Mapping[str, str]:
    """What is said about one subject: its row of the table, or its own file of lines `key: value`."""
    if form.table:
        if names["case"] not in rows:
            raise RawDataError(
                f"{who} has no row in the table {form.table[0]}, which says which frames are labelled: add one."
            )
        return rows[names["case"]]
    if info is None:
        where = form.info[0].rpartition("/")[2]
        raise RawDataError(
            f"{who} has no {where}, which says which frames are labelled: copy the case again."
        )
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RawDataError(f"{info} cannot be read ({error.strerror}): copy the case again.") from None
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _number(row: Mapping[str, str], phase: str, who: str) -> int:
    text = (row.get(phase) or "").strip()
    number = text.removesuffix(".0")  # what a spreadsheet makes of it
    if not number.isdecimal():
        raise RawDataError(
            f"A frame number is a whole number from 0 on, but {phase} of {who} is '{text}': correct it."
        )
    return int(number)


def _read_table(folder: Path, form: FrameFiles) -> dict[str, dict[str, str]]:
    """Rows by the key column. A byte order mark and an unnamed first column do no harm."""
    table = next(find(folder, form.table), None)
    if table is None:
        raise RawDataError(
            f"{folder} lacks the table {form.table[0]}, which says which frames are labelled: copy it there."
        )
    try:
        text = table.path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RawDataError(f"{table.path} cannot be read ({error}): copy it again.") from None
    delimiter = ";" if text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",") else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    columns = [name or "" for name in reader.fieldnames or ()]
    missing = [name for name in (form.key, *form.frames) if name not in columns]
    if missing:
        raise RawDataError(
            f"{table.path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(filter(None, columns))}: give the table of the download."
        )
    return {row[form.key].strip(): row for row in reader if row[form.key]}
