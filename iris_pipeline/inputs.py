"""Which scans a path given by a user means: a file, a folder of files, a DICOM series, or several of them.

One channel of a scan is segmented. Scans with several have them as files (nnU-Net's `_0000`, `_0001`) or in one file
(a fourth axis, a vector in each voxel); `channel` chooses one by number or by the name that a dataset.json gives it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import RawDataError
from preprocessing.scan_paths import holds_dicom
from preprocessing.slicer import is_segmentation
from preprocessing.source import FileSource, Source, one_source
from preprocessing.volume import case_id_of, is_image_path, stem_of

MOST_CHANNELS = 8
"""of one scan as files: more of one name and a number are scans, case_0000 to case_0099"""


@dataclass(frozen=True)
class InputCase:
    """One scan to segment; None where its image should be and is not.

    subject: the person, where known.
    """

    id: str
    image: Source | None
    subject: str = ""


def find_inputs(path: Path, channel: str | None = None) -> tuple[list[InputCase], list[str]]:
    """The scans that `path` means, sorted by id, and notes on what was left out.

    A NIfTI/mha/nrrd file; a folder of them; the folder of a DICOM series; or a folder with such folders in it,
    at any depth (one series below is named as the folder, several by their paths, which a note tells: with the second
    one the first has another id). DICOM that is no slice makes no series. channel: a number from 0 on, or a name that a
    dataset.json in the folder or the one above gives ("channel_names", "modality");
    without one, nnU-Net's `_0000` is taken of several files, and it is no part of the id; more than eight of one name
    are no channels, but scans that are numbered. A case with two
    files cannot be read, the others can. RawDataError if there is nothing to segment or no such channel.
    """
    if path.is_file():
        if not is_image_path(path):
            raise RawDataError(
                f"An input is a NIfTI, mha, mhd or nrrd file or a folder; {path} is none (for DICOM give the "
                "series' folder)."
            )
        number = _channel_number(path.parent, channel)
        inside = None if number is not None and _channel_of(path) == number else number
        return [InputCase(_case_id(path, number), FileSource(path, inside))], []
    if not path.is_dir():
        raise RawDataError(f"The input {path} does not exist; give a scan or a folder of scans.")
    number = _channel_number(path, channel)
    files = _image_files(path)
    found, notes = _files_of(files, number)
    if holds_dicom(path):
        name = path.resolve().name
        series = [(name, path)]
        if found:
            notes.append(f"{path} holds DICOM slices beside files: they are one series, case {name}.")
    else:
        series, more = _series_below(path)
        notes += more
    for name, folder in series:
        found.setdefault(name, []).append(FileSource(folder, number))
    if not found:
        raise RawDataError(
            f"The folder {path} holds no scan{' of channel ' + channel if channel and files else ''}: put NIfTI, "
            "mha, mhd or nrrd files or DICOM series folders into it."
        )
    return [InputCase(name, one_source(name, found[name])) for name in sorted(found)], notes


def _channel_number(folder: Path, channel: str | None) -> int | None:
    """What --channel says: a number, or a name that dataset.json gives to one."""
    if channel is None or channel.isdecimal():
        return None if channel is None else int(channel)
    for place in (folder, folder.resolve().parent):
        try:
            content = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
            names = content.get("channel_names") or content.get("modality") or {}
            known = {str(name).lower(): int(number) for number, name in names.items()}
        except (OSError, ValueError, AttributeError):
            continue
        if channel.lower() in known:
            return known[channel.lower()]
        if known:
            raise RawDataError(
                f"{place / 'dataset.json'} names the channels {', '.join(known)}; got '{channel}': choose one of them."
            )
    raise RawDataError(
        f"A channel goes by its number from 0 on, or by a name that a dataset.json beside the scans gives it under "
        f"channel_names; there is no such file for '{channel}' in {folder}."
    )


def _files_of(files: Sequence[Path], number: int | None) -> tuple[dict[str, list[FileSource]], list[str]]:
    """Case id -> its files in a folder, one where all is well, and notes on the channels left out."""
    found: dict[str, list[FileSource]] = {}
    notes = []
    scans = [path for path in files if not is_segmentation(path)]  # a_0000.seg.nrrd is no channel of a
    bases = Counter(_case_id(path, of_file) for path in scans if (of_file := _channel_of(path)) is not None)
    numbered = {base for base, count in bases.items() if count > MOST_CHANNELS}  # case_0000 to case_0099
    split = {case_id_of(p) for p in scans if _channel_of(p) == 0} - numbered  # whose channels are files
    for path in files:
        if is_segmentation(path):
            notes.append(f"{path.name} left out: it is a segmentation of 3D Slicer's, not a scan.")
            continue
        of_file = _channel_of(path)
        base = _case_id(path, of_file)
        is_channel = of_file is not None and base in split
        if is_channel and of_file != (number or 0):
            if number is None:
                notes.append(
                    f"{path.name} left out: the model reads one channel, {base}_0000 (--channel {of_file} takes "
                    "this one)."
                )
            continue
        own = stem_of(path) if base in numbered else case_id_of(path)
        name = base if is_channel else own
        found.setdefault(name, []).append(FileSource(path, None if is_channel else number))
    for base in sorted(split - found.keys()):
        notes.append(f"{base} left out: it has no file {base}_{number:04d}.")
    return found, notes


def _channel_of(path: Path) -> int | None:
    """The number in nnU-Net's suffix `_0000`, `_0001`, ...; None without one."""
    base, _, suffix = stem_of(path).rpartition("_")
    return int(suffix) if base and len(suffix) == 4 and suffix.isdecimal() else None


def _case_id(path: Path, number: int | None) -> str:
    """The id without the suffix of this channel."""
    if number is None:
        return case_id_of(path)
    return stem_of(path).removesuffix(f"_{number:04d}").removesuffix("_0000")


def _image_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_image_path(path)]


def _series_below(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(name, folder) of the DICOM series at any depth below a folder, and notes: on several of one name, on files."""
    found: dict[str, list[Path]] = {}
    notes = []
    for walked, inner, _ in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        here = Path(walked)
        if here != folder and holds_dicom(here):
            found.setdefault(here.relative_to(folder).parts[0], []).append(here)
            inner.clear()
            if files := [path for path in _image_files(here) if not is_segmentation(path)]:
                shown = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
                notes.append(
                    f"{shown} left out: in {here}, among the slices of a series; give each by its name."
                )
    named = []
    for name, places in found.items():
        if len(places) == 1:
            named.append((name, places[0]))
            continue
        several = [("_".join(place.relative_to(folder).parts), place) for place in places]
        named += several
        notes.append(
            f"{name} holds {len(places)} series, each a case of its own: {', '.join(case for case, _ in several)} "
            f"(one alone is {name})."
        )
    return named, notes
