"""The root folder: where raw scans are read and where stores and results are written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Root:
    """The three folders of a working place. Each writer makes the folder it needs."""

    raw: Path
    preprocessed: Path
    results: Path

    @staticmethod
    def resolve(root: str | None = None, raw: str | None = None) -> Root:
        """`root`, else the variable IRIS_ROOT, else the current folder; `raw` overrides <root>/raw."""
        base = Path(root or os.environ.get("IRIS_ROOT") or ".").expanduser()
        return Root(
            raw=Path(raw).expanduser() if raw else base / "raw",
            preprocessed=base / "preprocessed",
            results=base / "results",
        )
