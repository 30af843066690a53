"""One small module per raw layout (not per dataset): raw folder + specification -> list of cases."""

from __future__ import annotations

from pathlib import Path

from preprocessing.adapters.base import Adapter, Case
from preprocessing.adapters.dicom_png import find_dicom_png_cases
from preprocessing.adapters.files import find_file_cases
from preprocessing.adapters.frames import find_frame_cases
from preprocessing.adapters.msd import find_msd_cases
from preprocessing.adapters.probability_maps import find_probability_cases
from preprocessing.adapters.quirks import mended
from preprocessing.errors import RawDataError, SpecError
from preprocessing.spec import DatasetSpec

LAYOUTS: dict[str, Adapter] = {
    "msd": find_msd_cases,
    "files": find_file_cases,
    "frames": find_frame_cases,
    "dicom_png": find_dicom_png_cases,
    "probability_maps": find_probability_cases,
}

__all__ = ["LAYOUTS", "Case", "find_cases"]


def find_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """The cases of one dataset, sorted by id. `raw` is the dataset's own folder (`spec.raw_folder`).

    SpecError for an unknown layout, RawDataError for a missing or empty folder.
    """
    if spec.layout not in LAYOUTS:
        raise SpecError(
            f"Dataset {spec.name} has the layout '{spec.layout}', which is none of "
            f"{', '.join(sorted(LAYOUTS))}: correct the specification or add an adapter."
        )
    if not raw.is_dir():
        raise RawDataError(
            f"The raw folder {raw} of dataset {spec.name} does not exist: put the scans there."
        )
    return [mended(case, spec) for case in LAYOUTS[spec.layout](raw, spec)]
