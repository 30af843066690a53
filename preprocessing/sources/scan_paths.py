"""Which paths below a folder are scans: files that can be read, and folders that hold a DICOM series."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from preprocessing.formats.itk_files import DICOM_MAGIC, HEAD, IMAGE_KINDS
from preprocessing.volume import is_image_path

JUNK = re.compile(r"[*?\[\]{}]|(^|/)(\.|__MACOSX)")  # what patterns cannot say, what hides, what macOS packs
# (0002,0002), what a DICOM file is, and the length of what is said
KIND = re.compile(rb"\x02\x00\x02\x00UI(..)", re.DOTALL)
OTHER_KINDS = re.compile(
    rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(9|1[01]|6[678]|78|79|80|88|9[01]|104|131|20[01]|481))(\.|$)"
    rb"|1\.3\.12\.2\.1107\.5\.9\.1$"
)
"""DICOM that is no slice: directories, curves, views, registrations, reports, documents, plans of radiation with their
doses and contours, protocols (PS3.4, B.5); Siemens' notes."""


def scan_paths(folder: Path) -> list[str]:
    """Files that can be read, as sorted paths inside `folder`, and DICOM folders with a "/" behind."""
    found: set[str] = set()
    walked: set[Path] = set()
    for place, inside, names in os.walk(folder, followlinks=True):
        here = Path(place)
        if here.resolve() in walked:  # a link that leads back to where it lies
            inside.clear()
            continue
        walked.add(here.resolve())
        inner = here.relative_to(folder)
        found |= {(inner / name).as_posix() for name in names if is_image_path(here / name)}
        if here != folder and not JUNK.search(inner.as_posix()) and holds_dicom(here):
            found.add(inner.as_posix() + "/")
    return sorted(path for path in found if not JUNK.search(path))


def holds_dicom(folder: Path) -> bool:
    """Whether a file in it is a slice, by its first bytes: archives and CDs name slices IM0001. What cannot be read
    is none (`is_slice` raises there).
    """
    for path in sorted(folder.iterdir()):
        with suppress(OSError):
            if is_slice(path):
                return True
    return False


def may_be_slice(path: Path) -> bool:
    """Whether the name alone leaves that open: no ending, numbers (UIDs), or one of DICOM's."""
    return not re.search("[A-Za-z]", path.suffix) or path.suffix.lower() in (".dcm", ".dicom", ".dic", ".ima")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, be it a slice or not. OSError where it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(HEAD)[128:132] == DICOM_MAGIC


def is_slice(path: Path) -> bool:
    """Whether a file is DICOM and holds an image; the directory of an exported disc, say, does not.

    OSError where it cannot be read.
    """
    hidden = path.name.startswith(".") or path.name.upper() == "DICOMDIR"
    if hidden or is_image_path(path) or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if head[128:132] != DICOM_MAGIC:
        return path.suffix.lower() == ".dcm"  # of old scanners, or damaged: reading it says which
    if said := KIND.search(head):
        kind = head[said.end() :][: int.from_bytes(said[1], "little")].rstrip(b"\0 ")
    else:  # against the standard, and read all the same
        kind = found.group() if (found := IMAGE_KINDS.search(head)) else b""
    return bool(kind) and not OTHER_KINDS.match(kind)
