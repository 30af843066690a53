"""What counts of a mask that a case has already: one that is whole, and of the scan that bears the name now.

Which scan a mask is of is written down before the mask appears (`kept_scans.py`). So one without an entry is of a
version that kept none, or of a folder whose file was lost: it has to lie on the scan's grid, and is entered then.
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.kept_scans import FILE, KeptScan, KeptScans, scan_of
from iris_pipeline.scans.outputs import label_path
from preprocessing.errors import RawDataError
from preprocessing.sources.whole import whole_grid
from preprocessing.volume import CORNER_VOXELS, corner_shift

OTHER_SCAN = "of another scan or channel"
OTHER_GRID = "on another grid than the scan's"
DAMAGED = "damaged"


@dataclass(frozen=True)
class FormerMask:
    """scan: what is under the case's name now; None where it cannot be told. file: the mask that the case has, if any.

    entered: whether it is known which scan the mask is of. fault: why it does not count, one of the phrases above.
    """

    scan: KeptScan | None = None
    file: os.stat_result | None = None
    entered: bool = False
    fault: str = ""

    @property
    def counts(self) -> bool:
        """Whether the case needs no other."""
        return self.file is not None and self.scan is not None and not self.fault

    @property
    def foreign(self) -> bool:
        """Whether it is surely not of the scan that is there now."""
        return self.fault in (OTHER_SCAN, OTHER_GRID)

    @property
    def skipped(self) -> str:
        """What is said where it counts."""
        grid = (
            "" if self.entered else f" and lies on the scan's grid ({FILE} did not say which scan it is of)"
        )
        return f"the result exists{grid}; --overwrite makes it anew."

    @property
    def replaced(self) -> list[str]:
        """What is said where it was made anew."""
        return [f"the former mask was {self.fault} and is made anew."] if self.fault else []

    def left(self, out: Path, case: str) -> str:
        """What became of it where no other could be made."""
        try:
            now = label_path(out, case).stat()
        except OSError:
            return f" The former mask, {self.fault}, was taken away." if self.foreign else ""
        if self.file is None or not os.path.samestat(self.file, now):
            return ""
        said = "" if self.scan is not None else "; it may be of another scan"
        if self.fault:
            said = "; it is of the former scan" if self.fault == OTHER_SCAN else f"; it is {self.fault}"
        return f" The mask that is there stays{said}."


def former_mask(out: Path, case: InputCase, scans: KeptScans) -> FormerMask:
    """The mask of a case in OUT, compared with the scan of now. Bytes are read where the files look otherwise than when
    it was made; voxels of the scan only where nothing says which scan the mask is of.
    """
    path = label_path(out, case.id)
    there = path.stat() if path.exists() else None
    known = scans.known(case.id) if there is not None else None
    scan = scan_of(case.image, known)  # before it is read: what is written meanwhile is another one
    if there is None or scan is None:
        return FormerMask(scan, there, known is not None)
    if known is not None and scan.content != known.content:
        return FormerMask(scan, there, True, OTHER_SCAN)
    try:
        shape, affine = whole_grid(path)
    except RawDataError:
        return FormerMask(scan, there, known is not None, DAMAGED)
    if known is None:
        try:
            image = case.image.read_image() if case.image is not None else None
        except RawDataError:  # is raised again where another mask is to be made
            return FormerMask(None, there)
        if (
            image is None
            or image.shape != shape
            or corner_shift(shape, image.affine, affine)[0] > CORNER_VOXELS
        ):
            return FormerMask(scan, there, False, OTHER_GRID)
    return FormerMask(scan, there, known is not None)


def left_behind(out: Path, case: str, scan: KeptScan, scans: KeptScans, inputs: Container[str]) -> list[str]:
    """What is said of masks of the same scan under names that no input has by now, as of a series that got another name
    when a second one came. inputs: the names of all.
    """
    return [
        f"{label_path(out, name).name} is of the same scan, and no input is called {name}: where {case} is its new "
        "name, take it away."
        for name in scans.names_of(scan)
        if name not in inputs and label_path(out, name).exists()
    ]
