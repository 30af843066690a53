"""Which scans a path given by a user means: a file, a folder of files, a DICOM series, or several of them.

One channel of a scan is segmented. Scans with several have them as files (nnU-Net's `_0000`, `_0001`) or in one file
(a fourth axis, a vector in each voxel); `channel` chooses one by number or by the name that a dataset.json gives it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iris_pipeline.scans.inbox import RECORD, look, refused, series_below
from preprocessing.errors import RawDataError
from preprocessing.formats.slicer import is_segmentation
from preprocessing.runtime.files import plain_name, unspeakable, utf8_problem
from preprocessing.sources.source import FileSource, RefusedSource, Source, one_source
from preprocessing.volume import case_id_of, grid_of, is_image_path, same_grid, stem_of

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
    without one, nnU-Net's `_0000` is taken of several files, and it is no part of the id; more than eight of one name,
    or files of other grids, are no channels, but scans that are numbered. A case with two files cannot be read, nor one
    whose name is no text, the others can; what cannot be opened is a case whose image says why when it is read.
    RawDataError if there is nothing to segment or no such channel, or if the folder is one of results,
    OSError if the folder cannot be listed.
    """
    if path.is_file():
        if not is_image_path(path):
            raise RawDataError(
                f"An input is a NIfTI, mha, mhd or nrrd file or a folder; {path} is none (for DICOM give the "
                "series' folder)."
            )
        number = _channel_number(path.parent, channel)
        inside = None if number is not None and _channel_of(path) == number else number
        return [_case(_case_id(path, number), [FileSource(path, inside)])], []
    if not path.is_dir():
        raise RawDataError(f"The input {path} does not exist; give a scan or a folder of scans.")
    if (path / RECORD).is_file():
        raise RawDataError(
            f"An input is a scan or a folder of scans, but {path} is a folder of results ({RECORD} is in it), and "
            "masks are no scans: give the folder that they were made from."
        )
    number = _channel_number(path, channel)
    top = look(path)
    broken: dict[Path, Source] = {each: refused(each, why) for each, why in top.broken.items()}
    files = sorted([*top.images, *(each for each in broken if is_image_path(each))])
    found, notes = _files_of(files, number, broken)
    notes += top.notes
    series, more = series_below(path, top)
    own = path.resolve().name
    if top.is_series:
        if found:
            notes.append(f"{path} holds DICOM slices beside files: they are one series, case {own}.")
        if series:
            notes.append(
                f"{', '.join(name for name, _ in series)} left out: below {path}, which is a DICOM series itself; give "
                "each series by its folder."
            )
        series = [(own, FileSource(path))]
    else:
        notes += more
        slices = [each for each in broken if not is_image_path(each) and not each.is_symlink()]
        series += [(own, broken[each]) for each in slices[:1]]
        series += [
            (each.name, broken[each]) for each in broken if not is_image_path(each) and each.is_symlink()
        ]
    for name, source in series:
        if isinstance(source, FileSource):
            source = replace(source, channel=number)
        found.setdefault(name, []).append(source)
    if not found:
        raise RawDataError(
            f"The folder {path} holds no scan{' of channel ' + channel if channel and files else ''}: put NIfTI, "
            f"mha, mhd or nrrd files or DICOM series folders into it.{''.join(f' Note: {note}' for note in notes)}"
        )
    return [_case(name, found[name]) for name in sorted(found)], notes


def _case(name: str, sources: Sequence[Source]) -> InputCase:
    """One case; its name becomes that of files and stands in tables, so it has to be text."""
    if not unspeakable(name):
        return InputCase(name, one_source(name, sources))
    files = tuple(path for source in sources for path in source.files)
    why = f"The name of {plain_name(str(files[0]))} {utf8_problem(name)}, then run again."
    return InputCase(plain_name(name), RefusedSource(files, why))


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


def _files_of(
    files: Sequence[Path], number: int | None, broken: Mapping[Path, Source]
) -> tuple[dict[str, list[Source]], list[str]]:
    """Case id -> its files in a folder, one where all is well, and notes on the channels left out.

    broken: those that cannot be opened.
    """
    found: dict[str, list[Source]] = {}
    notes = []
    scans = [path for path in files if not is_segmentation(path)]  # a_0000.seg.nrrd is no channel of a
    bases = Counter(_numbered(path) for path in scans if _channel_of(path) is not None)
    numbered = {base for base, count in bases.items() if count > MOST_CHANNELS}  # case_0000 to case_0099
    split = {case_id_of(p) for p in scans if _channel_of(p) == 0} - numbered  # whose channels are files
    if number is None:  # who names a channel says that the files are channels
        for base in sorted(split):
            of_base = [path for path in scans if _channel_of(path) is not None and _numbered(path) == base]
            if _of_several_grids([path for path in of_base if path not in broken]):
                split.remove(base)
                numbered.add(base)
                notes.append(
                    f"{of_base[0].name} to {of_base[-1].name} are {len(of_base)} scans, not channels of one: their "
                    f"grids differ ({base}_0000 alone is {base})."
                )
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
        source = broken.get(path) or FileSource(path, None if is_channel else number)
        found.setdefault(name, []).append(source)
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


def _numbered(path: Path) -> str:
    """The id without the number of its channel."""
    return _case_id(path, _channel_of(path))


def _of_several_grids(files: Sequence[Path]) -> bool:
    """Whether a header places its voxels otherwise than the first one; what cannot be read says nothing."""
    first = None
    for path in files:
        try:
            grid = grid_of(path)
        except (RawDataError, OSError):
            continue
        first = first or grid
        if not same_grid(first, grid):
            return True
    return False
