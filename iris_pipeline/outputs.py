"""The files of one segmented scan: its label map and, where asked for, a mask and a probability map of each class.

Arrays are [D,H,W] = (z,y,x) on the scan's own grid. OUT/<case>.nii.gz is the label map;
OUT/per_class/<case>/<class>.nii.gz holds 1 where the class is above 0.5, so that masks may overlap;
OUT/probabilities/<case>/<class>.nii.gz holds 8-bit multiples of 1/255, which readers scale to 0..1.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.native import FULL
from iris_pipeline.scan import ScanResult, Wanted
from preprocessing.errors import RawDataError
from preprocessing.files import sweep
from preprocessing.volume import Volume, write_volume
from preprocessing.whole import whole_grid

PER_CLASS = "per_class"
PROBABILITIES = "probabilities"
ENDING = ".nii.gz"


@dataclass(frozen=True)
class Outputs:
    """What is written beside the label map of each case."""

    per_class: bool = False
    probabilities: bool = False

    def wanted(self, certainty: bool = False) -> Wanted:
        """What has to be made of a scan for it."""
        return Wanted(self.per_class, self.probabilities, certainty)

    def with_those_there(self, out: Path, case: str) -> Outputs:
        """And what a whole result has beside its label map: made again with it, it is not lost."""
        if not label_path(out, case).exists():
            return self
        return Outputs(
            self.per_class or (out / PER_CLASS / case).is_dir(),
            self.probabilities or (out / PROBABILITIES / case).is_dir(),
        )


def label_path(out: Path, case: str) -> Path:
    """The label map of a case."""
    return out / f"{case}{ENDING}"


def is_complete(out: Path, case: str, outputs: Outputs) -> bool:
    """Whether a label map is there (`former_masks.py` looks closer), and all that is asked for beside it, whole."""
    kinds = ((PER_CLASS, outputs.per_class), (PROBABILITIES, outputs.probabilities))
    return label_path(out, case).exists() and all(
        _holds_whole_files(out / kind / case) for kind, asked in kinds if asked
    )


def _holds_whole_files(folder: Path) -> bool:
    try:
        return bool([whole_grid(path) for path in folder.glob(f"[!.]*{ENDING}")])
    except RawDataError:
        return False


def write_result(
    out: Path, case: str, result: ScanResult, image: Volume, check: Callable[[], None] = lambda: None
) -> None:
    """Write the files of a case. The label map goes first and comes last: where it is, the others are whole.

    Of kinds that the result lacks none stays: they would pass for those of this label map. check: is called before each
    file, and raises where nothing is to be written any longer.
    """
    remove_result(out, case)
    for kind, maps, scale in (
        (PER_CLASS, result.masks, None),
        (PROBABILITIES, result.probabilities, 1 / FULL),
    ):
        files = file_names(list(maps))
        for name, packed in maps.items():
            volume = Volume(result.on_own_grid(name, packed), image.affine, image.header)
            check()
            write_volume(out / kind / case / files[name], volume, scale)
    check()
    write_volume(label_path(out, case), Volume(result.labels, image.affine, image.header))


def remove_result(out: Path, case: str) -> None:
    """Take away the files of a case, the label map first: without it nothing counts as whole."""
    label_path(out, case).unlink(missing_ok=True)
    for kind in (PER_CLASS, PROBABILITIES):
        if (out / kind / case).is_dir():
            shutil.rmtree(out / kind / case)


def sweep_results(out: Path) -> None:
    """Remove what killed runs left half written. Only where nobody else writes now."""
    for folder in (out, *out.glob(f"{PER_CLASS}/*/"), *out.glob(f"{PROBABILITIES}/*/")):
        sweep(folder)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Class name -> file name: letters, digits, `.`, `-` and `_` stay, others become `_`; none comes twice."""
    files: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "class"
        number, tried = 1, plain
        while f"{tried}{ENDING}".lower() in {file.lower() for file in files.values()}:
            number += 1
            tried = f"{plain}_{number}"
        files[name] = f"{tried}{ENDING}"
    return files
