"""Which scan each mask of a folder is of, kept beside the masks: another scan under the same name is segmented.

A name says little: scans are replaced by corrected ones, another channel is asked for. The bytes of the files decide,
and how they become voxels. They are read again only where sizes and times are not those of then, as after copying.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocessing.runtime.files import file_digest, text_digest, write_json
from preprocessing.sources.source import RefusedSource, Source

FILE = "scans.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class KeptScan:
    """content: a digest of the files' bytes and of the channel that is read. seen: one of names, sizes and times."""

    content: str
    seen: str


def scan_of(source: Source | None, known: KeptScan | None = None) -> KeptScan | None:
    """What `source` is now; files that look as those of `known` did are not read.

    The time of the last change of a file's state is looked at, too: unlike that of its content no copy brings it along.
    None where nothing can be told: no file, one that cannot be read, or two of one case. Then no mask counts as its.
    """
    if source is None or isinstance(source, RefusedSource):
        return None
    try:
        files = _files(source)
        looks = [_look(file) for file in files]
        seen = text_digest(f"{looks} {source.recipe}")
        if known is not None and known.seen == seen:
            return known
        return KeptScan(text_digest(f"{file_digest(files)} {source.recipe}"), seen) if files else None
    except OSError:  # reading the scan says it in a sentence
        return None


def _look(file: Path) -> tuple[str, int, int, int]:
    stat = file.stat()
    return file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _files(source: Source) -> list[Path]:
    """All whose bytes decide the voxels: those of a DICOM series, and not what its folder holds below."""
    found: list[Path] = []
    for path in source.contents:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and not file.name.startswith(".")]
    return found


class KeptScans:
    """Those of one folder of results, while it is this run's; each that is kept is written to the file at once.

    A scan is kept before its mask appears: however a run ends, no mask is without its scan, and an entry without a mask
    says nothing. Folders of before have none, see `former_masks.py`.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / FILE
        self._scans = _read(self._path)

    def known(self, case: str) -> KeptScan | None:
        """The scan that the mask of a case is of; None where nothing says it."""
        return self._scans.get(case)

    def names_of(self, scan: KeptScan) -> list[str]:
        """All cases, with a mask or without, that are known to be of this scan."""
        return sorted(name for name, each in self._scans.items() if each.content == scan.content)

    def keep(self, case: str, scan: KeptScan) -> None:
        """The mask of a case, or the one that is about to be written, is of this scan."""
        if self._scans.get(case) != scan:
            self._scans[case] = scan
            scans = {name: asdict(each) for name, each in sorted(self._scans.items())}
            write_json(self._path, {"schema_version": SCHEMA_VERSION, "scans": scans})


def _read(path: Path) -> dict[str, KeptScan]:
    """None where there is no such file, or one that this version cannot read."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema_version"] != SCHEMA_VERSION:
            return {}
        return {str(name): KeptScan(**each) for name, each in said["scans"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
