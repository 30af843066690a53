"""What lies in a folder of scans to segment: its files and DICOM series, and whatever is there and cannot be taken.

Nothing that may be a scan vanishes: what cannot be opened is a case that is refused, and what is left out is a note.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.scan_paths import is_slice, may_be_slice
from preprocessing.slicer import is_segmentation
from preprocessing.source import FileSource, RefusedSource, Source
from preprocessing.volume import is_image_path

SYSTEM = ("lost+found", "System Volume Information")  # of the disk, for its administrator alone
RESULTS = "predict.json"
"""in folders that `iris_predict` wrote: masks are no inputs"""
SHOWN = 3


@dataclass
class Looked:
    """One folder: its images, whether it holds a DICOM series, folders and links to folders in it, sorted.

    broken: file -> why it cannot be opened, a phrase; only what may be an image or a slice by its name, or a link that
    leads nowhere. notes: on what is no file and is called like an image, and on other files that cannot be read.
    """

    images: list[Path] = field(default_factory=list)
    is_series: bool = False
    folders: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def look(folder: Path) -> Looked:
    """What lies in a folder, hidden things aside. OSError where it cannot be listed."""
    found = Looked()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SYSTEM:
            continue
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                (found.links if path.is_symlink() else found.folders).append(path)
            elif not stat.S_ISREG(mode):
                if is_image_path(path):
                    found.notes.append(
                        f"{path} left out: it is no file that can be read again (a pipe, a device)."
                    )
            elif is_image_path(path):
                found.images.append(path)  # where it cannot be opened, reading it says so
            elif not found.is_series:
                found.is_series = is_slice(path)
        except OSError as error:
            why = _why(path, error)
            if path.is_symlink() or is_image_path(path) or may_be_slice(path):
                found.broken[path] = why
            else:
                found.notes.append(f"{path} left out: it {why}.")
    return found


def refused(path: Path, why: str) -> RefusedSource:
    """The source of a case that cannot be opened. why: a phrase that follows the path."""
    return RefusedSource((path,), f"{path} {why}: mend that, or take it away.")


def series_below(folder: Path, top: Looked) -> tuple[list[tuple[str, Source]], list[str]]:
    """(name, source) of the DICOM series at any depth below a folder, those that cannot be read among them, and notes:
    on several of one name, on files and links that are left out.

    Links are followed where they do not lead to a folder that is taken already, after all that is there without them.
    """
    found: dict[str, list[tuple[Path, Source]]] = {}
    notes: list[str] = []
    top_real = os.path.realpath(folder)
    seen = {top_real}
    ahead, links = top.folders[::-1], list(top.links)
    while ahead or links:
        if ahead:
            here = ahead.pop()
        else:
            here = links.pop(0)
            real = os.path.realpath(here)
            if real in seen or f"{top_real}{os.sep}".startswith(real.rstrip(os.sep) + os.sep):
                notes.append(f"{here} left out: it is a link to {real}, which is looked through already.")
                continue
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        source, told = _take(here, ahead, links)
        notes += told
        if source is not None:
            found.setdefault(here.relative_to(folder).parts[0], []).append((here, source))
    named: list[tuple[str, Source]] = []
    for name, places in sorted(found.items()):
        if len(places) == 1:
            named.append((name, places[0][1]))
            continue
        several = [
            ("_".join(place.relative_to(folder).parts), source) for place, source in sorted(places, key=_path)
        ]
        named += several
        notes.append(
            f"{name} holds {len(places)} series, each a case of its own: {', '.join(case for case, _ in several)} "
            f"(one alone is {name})."
        )
    return named, notes


def _take(here: Path, ahead: list[Path], links: list[Path]) -> tuple[Source | None, list[str]]:
    """The series of one folder, if it holds one, and notes; what is to be looked at next is put into the lists."""
    try:
        looked = look(here)
    except OSError as error:
        return refused(here, _why(here, error)), []
    if (here / RESULTS).is_file():
        return None, []
    images = [path for path in looked.images if not is_segmentation(path)]
    images += [path for path in looked.broken if is_image_path(path)]
    if looked.is_series:
        notes = [f"{_few(images)} left out: in {here}, among the slices of a series; give each by its name."]
        return FileSource(here), notes[: len(images)] + looked.notes
    ahead += looked.folders[::-1]
    links += looked.links
    notes = [
        f"{_few(images)} left out: they lie in {here}, and below the folder given only DICOM series are looked for; "
        "give that folder, or move the files up."
    ]
    if is_image_path(here) and not images:
        looked.notes.append(f"{here} left out: it is a folder, although it is called like a file.")
    slices = {path: why for path, why in looked.broken.items() if not is_image_path(path)}
    source = refused(*next(iter(slices.items()))) if slices else None
    return source, notes[: len(images)] + looked.notes


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return f"is a link to {os.readlink(path)}, which does not exist"
    return f"cannot be read ({error.strerror})"


def _few(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")


def _path(place: tuple[Path, Source]) -> Path:
    return place[0]
