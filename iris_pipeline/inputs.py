"""Which scans a path given by a user means: a file, a folder of files, a DICOM series, or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import RawDataError
from preprocessing.source import FileSource, Source
from preprocessing.volume import case_id_of, is_image_path


@dataclass(frozen=True)
class InputCase:
    """One scan to segment; None where its image should be and is not.

    subject: the person, where known.
    """

    id: str
    image: Source | None
    subject: str = ""


def find_inputs(path: Path) -> tuple[list[InputCase], list[str]]:
    """The scans that `path` means, sorted by id, and notes on what was left out.

    A NIfTI/mha/nrrd file; a folder of them (nnU-Net's `_0000` is no part of the id; further channels are left
    out); the folder of a DICOM series; or a folder of such folders. RawDataError if there is nothing to
    segment.
    """
    if path.is_file():
        if not is_image_path(path):
            raise RawDataError(
                f"An input is a NIfTI, mha, mhd or nrrd file or a folder; {path} is none (for DICOM give the "
                "series' folder)."
            )
        return [InputCase(case_id_of(path), FileSource(path))], []
    if not path.is_dir():
        raise RawDataError(f"The input {path} does not exist; give a scan or a folder of scans.")
    files = [p for p in sorted(path.iterdir()) if not p.name.startswith(".") and is_image_path(p)]
    if files:
        return _cases_of(files)
    if _is_dicom_series(path):
        return [InputCase(path.resolve().name, FileSource(path))], []
    series = [p for p in sorted(path.iterdir()) if p.is_dir() and _is_dicom_series(p)]
    if not series:
        raise RawDataError(
            f"The folder {path} holds no scan: put NIfTI, mha, mhd or nrrd files or DICOM series folders "
            "into it."
        )
    return [InputCase(p.name, FileSource(p)) for p in series], []


def _cases_of(files: Sequence[Path]) -> tuple[list[InputCase], list[str]]:
    cases: dict[str, Path] = {}
    notes = []
    first_channels = {case_id_of(p) for p in files if _stem(p).endswith("_0000")}
    for path in files:
        base, _, channel = _stem(path).rpartition("_")
        if base in first_channels and len(channel) == 4 and channel.isdigit() and channel != "0000":
            notes.append(f"{path.name} left out: the model reads one channel, {base}_0000.")
            continue
        name = case_id_of(path)
        if name in cases:
            raise RawDataError(
                f"Each case has one file; '{name}' has {cases[name].name} and {path.name}: take one of them "
                "away."
            )
        cases[name] = path
    return [InputCase(name, FileSource(path)) for name, path in sorted(cases.items())], notes


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


def _is_dicom_series(folder: Path) -> bool:
    """Whether a file in it is DICOM: "DICM" behind a preamble of 128 bytes."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False
