"""The files of one segmented scan: its label map and, where asked for, a mask and a probability map of each class.

Arrays are [D,H,W] = (z,y,x) on the scan's own grid. OUT/<case>.nii.gz is the label map;
OUT/per_class/<case>/<class>.nii.gz holds 1 where the class is above 0.5, so that masks may overlap;
OUT/probabilities/<case>/<class>.nii.gz holds 8-bit multiples of 1/255, which readers scale to 0..1.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.scans.native import FULL
from iris_pipeline.scans.scan import ScanResult, Wanted
from preprocessing.errors import RawDataError
from preprocessing.runtime.files import is_unfinished, sweep
from preprocessing.sources.whole import whole_grid
from preprocessing.volume import Volume, coming_volume

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
    out: Path,
    case: str,
    result: ScanResult,
    image: Volume,
    check: Callable[[], None] = lambda: None,
    away: Callable[[], None] | None = None,
) -> None:
    """Write the files of a case: all of them whole under hidden names, then the former ones go, then these come.

    So a full disk costs no result that is there. The former label map goes first and the new one comes last: where one
    is, the others are whole. Of kinds that the result lacks none stays: they would pass for those of this label map.
    check: is called before each file and before the former ones go, and raises where nothing is to be written any
    longer. away: takes the former ones away in the place of `remove_result`, and what was said of them.
    """
    kinds = ((PER_CLASS, result.masks, None), (PROBABILITIES, result.probabilities, 1 / FULL))
    try:
        with ExitStack() as coming:  # the first that is written is the last that gets its name
            check()
            labels = Volume(result.labels, image.affine, image.header)
            coming.enter_context(coming_volume(label_path(out, case), labels))
            for kind, maps, scale in kinds:
                files = file_names(list(maps))
                for name, packed in maps.items():
                    volume = Volume(result.on_own_grid(name, packed), image.affine, image.header)
                    check()
                    coming.enter_context(coming_volume(out / kind / case / files[name], volume, scale))
            check()
            away() if away is not None else remove_result(out, case)
    finally:
        _remove_empty(out, case)  # made for files that did not come


def remove_result(out: Path, case: str) -> None:
    """Take away the files of a case, the label map first: without it nothing counts as whole. Those that are being
    written stay.
    """
    label_path(out, case).unlink(missing_ok=True)
    for kind in (PER_CLASS, PROBABILITIES):
        folder = out / kind / case
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif not is_unfinished(path):
                path.unlink()
    _remove_empty(out, case)


def _remove_empty(out: Path, case: str) -> None:
    """The folders of a case in which nothing is: they would say that this kind was made."""
    for kind in (PER_CLASS, PROBABILITIES):
        with suppress(OSError):
            (out / kind / case).rmdir()


def sweep_results(out: Path) -> None:
    """Remove what killed runs left half written. Only where nobody else writes now."""
    sweep(out)
    for folder in (*out.glob(f"{PER_CLASS}/*/"), *out.glob(f"{PROBABILITIES}/*/")):
        sweep(folder)
        _remove_empty(out, folder.name)


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
