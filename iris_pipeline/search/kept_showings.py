"""Poses and scales that were found, kept beside a run: the next row of the same references needs no search.

A search takes minutes a set of references, and strategies, confidence and a command that was broken off ask for the
same sets. Keys are content hashes (`showing.py`), so that another model, plan or reference is another entry.
"""

from __future__ import annotations

import json
from collections import UserDict
from contextlib import suppress
from pathlib import Path

from iris_pipeline.search.pose import POSES
from preprocessing.runtime.files import write_json

FILE = "showings.json"
Found = tuple[str, float, bool]


class KeptShowings(UserDict[str, Found]):
    """Key -> (pose, scale, whether in other tones), as `EmbeddingCache.showings`; each new one is in the file at once.

    fresh: what the file has is not used, and stays there until it is found anew. A file that cannot be read says
    nothing, and one that cannot be written costs the next search and no result.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        super().__init__({} if fresh else _read(path))

    def __setitem__(self, key: str, found: Found) -> None:
        super().__setitem__(key, found)
        there = _read(self.path)
        if there.get(key) != found and self.path.parent.is_dir():
            kept = there | self.data  # what another process has found meanwhile is kept
            with suppress(OSError):
                write_json(self.path, {name: list(each) for name, each in sorted(kept.items())})


def kept_showings(run: Path, fresh: bool = False) -> KeptShowings:
    """Those of a run's folder."""
    return KeptShowings(run / FILE, fresh)


def _read(path: Path) -> dict[str, Found]:
    """The entries of the file that make sense; none where there is no such file."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(key): (pose, float(scale), bool(toned[0]) if toned else False)  # none were told of before
            for key, (pose, scale, *toned) in said.items()
            if pose in POSES
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
