"""One small module per raw layout (not per dataset): raw folder + specification -> list of cases."""

from __future__ import annotations

from pathlib import Path

from preprocessing.adapters.base import Adapter, Case
from preprocessing.adapters.msd import find_msd_cases
from preprocessing.adapters.pattern import find_pattern_cases
from preprocessing.errors import RawDataError, SpecError
from preprocessing.spec import DatasetSpec

LAYOUTS: dict[str, Adapter] = {"msd": find_msd_cases, "pattern": find_pattern_cases}

__all__ = ["LAYOUTS", "Case", "find_cases"]


def find_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """The cases of one dataset, sorted by id. `raw` is the dataset's own folder (raw/<name>).

    SpecError for an unknown layout, RawDataError for a missing or empty folder.
    """
    if spec.layout not in LAYOUTS:
        raise SpecError(
            f"Dataset {spec.name} has the layout '{spec.layout}': known are {', '.join(sorted(LAYOUTS))}; "
            "correct the specification or add an adapter."
        )
    if not raw.is_dir():
        raise RawDataError(
            f"The raw folder {raw} of dataset {spec.name} does not exist: put the scans there."
        )
    return LAYOUTS[spec.layout](raw, spec)
