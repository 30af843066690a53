"""What lies in a folder of scans to segment: its files and DICOM series, and whatever is there and cannot be taken.

Nothing that may be a scan vanishes: what cannot be opened is a case that is refused, and what is left out is a note.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.formats.itk_files import HEADERS, data_files
from preprocessing.formats.slicer import is_segmentation
from preprocessing.sources.scan_paths import is_dicom, is_slice, may_be_slice
from preprocessing.sources.source import FileSource, RefusedSource, Source
from preprocessing.volume import is_image_path

SYSTEM = ("lost+found", "System Volume Information")  # of the disk, for its administrator alone
RECORD = "predict.json"
"""in folders that `iris_predict` wrote: masks are no inputs"""
SHOWN = 3
USUAL = re.compile(
    r"(README|LICENSE|CHANGES|CITATION|VERSION|COPYING|NOTICE|DICOMDIR"  # whole names
    r"|.*\.(txt|md|rst|rtf|pdf|docx?|odt|csv|tsv|xlsx?|ods|jsonl?|xml|ya?ml|toml|ini|cfg|inf|log|html?|css|js|py|sh|bat"
    r"|ipynb|exe|dll|jar|png|jpe?g|gif|bmp|svg|db|lnk|md5|sha256|bval|bvec|task))",
    re.IGNORECASE,
)
"""what lies beside scans and is none by its name: texts, tables, pictures, a disc's viewer, tasks of iris_encode"""


@dataclass
class Looked:
    """One folder: its images, whether it holds a DICOM series, folders and links to folders in it, sorted.

    broken: file -> why it cannot be opened, a phrase; only what may be an image or a slice by its name, or a link that
    leads nowhere. notes: on what is no file and is called like an image, on other files that cannot be read, and on
    those of no format that is read. is_empty: whether nothing is there but what hides.
    """

    images: list[Path] = field(default_factory=list)
    is_series: bool = False
    folders: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_empty: bool = True


def look(folder: Path) -> Looked:
    """What lies in a folder, hidden things aside. OSError where it cannot be listed."""
    found = Looked()
    strange: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SYSTEM:
            continue
        found.is_empty = False
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
            elif not found.is_series and is_slice(path):
                found.is_series = True
            elif not (
                USUAL.fullmatch(path.name) or (may_be_slice(path) and (found.is_series or is_dicom(path)))
            ):
                strange.append(path)
        except OSError as error:
            why = _why(path, error)
            if path.is_symlink() or is_image_path(path) or may_be_slice(path):
                found.broken[path] = why
            else:
                found.notes.append(f"{path} left out: it {why}.")
    if strange := _no_parts(strange, found):
        found.notes.append(
            f"{len(strange)} file{'s' * (len(strange) != 1)} in {folder} left out, of no format that is read: "
            f"{_few(strange)}; convert or unpack what is a scan."
        )
    return found


def _no_parts(strange: list[Path], looked: Looked) -> list[Path]:
    """Files that are part of no image: neither a slice beside slices, nor voxels of an mhd or nhdr header."""
    headers = [image for image in looked.images if image.suffix.lower() in HEADERS]
    rest = [
        path
        for path in strange
        if not (looked.is_series and may_be_slice(path))
        and not (headers and path.suffix.lower() in (".raw", ".zraw"))  # headers may name them by a pattern
    ]
    voxels: set[Path] = set()
    for header in headers if rest else []:
        with suppress(OSError):  # reading the scan says it
            voxels.update(data_files(header))
    return [path for path in rest if path not in voxels]


def refused(path: Path, why: str) -> RefusedSource:
    """The source of a case that cannot be opened. why: a phrase that follows the path."""
    return RefusedSource((path,), f"{path} {why}: mend that, or take it away.")


def series_below(folder: Path, top: Looked) -> tuple[list[tuple[str, Source]], list[str]]:
    """(name, source) of the DICOM series at any depth below a folder, those that cannot be read among them, and notes:
    on several of one name, on files and links that are left out, and on folders without a scan.

    Links are followed where they do not lead to a folder that is taken already, after all that is there without them.
    """
    found: dict[str, list[tuple[Path, Source]]] = {}
    notes: list[str] = []
    bare: list[Path] = []
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
        source, told = _take(here, ahead, links, bare)
        notes += told
        if source is not None:
            found.setdefault(here.relative_to(folder).parts[0], []).append((here, source))
    # beside a series they are an archive's viewer, its texts
    notes += [
        f"{here} left out: it holds no scan."
        for here in bare
        if here.relative_to(folder).parts[0] not in found
    ]
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


def _take(
    here: Path, ahead: list[Path], links: list[Path], bare: list[Path]
) -> tuple[Source | None, list[str]]:
    """The series of one folder, if it holds one, and notes; what is to be looked at next is put into the lists, and
    into `bare` what holds files, but nothing to be taken and nothing that is noted.
    """
    try:
        looked = look(here)
    except OSError as error:
        return refused(here, _why(here, error)), []
    if (here / RECORD).is_file():
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
    if looked.is_empty:
        looked.notes = looked.notes or [f"{here} left out: it is empty."]
    elif not (images or looked.notes or looked.broken or looked.folders or looked.links):
        bare.append(here)
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
