"""Which paths below a folder are scans: files that can be read, and folders that hold a DICOM series."""

from __future__ import annotations

import os
import re
from pathlib import Path

from preprocessing.itk_files import DICOM_MAGIC
from preprocessing.volume import is_image_path

JUNK = re.compile(r"[*?\[\]{}]|(^|/)(\.|__MACOSX)")  # what patterns cannot say, what hides, what macOS packs


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
    """Whether a file in it is DICOM, by its ending or by its first bytes: archives and CDs name slices IM0001.

    A DICOMDIR is only the list of what lies in other folders.
    """
    return any(_is_dicom(path) for path in sorted(folder.iterdir()))


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR" or is_image_path(path) or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == DICOM_MAGIC
    except OSError:  # reading the series says why, where it is one
        return False
