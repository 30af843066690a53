"""Where an export for nnU-Net may be written: into folders that are new or that an export of ours made, no others.

A folder DatasetNNN_NAME may hold the only copy of somebody's scans. That it was made by us says `iris_export.json`
in it, and nothing else; without that it is neither written to nor cleared, whatever was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preprocessing.adapters import Case
from preprocessing.errors import ExportError
from preprocessing.nnunet import RECORD
from preprocessing.runtime.lock import FILE as LOCK

RAW, PREPROCESSED = "nnUNet_raw", "nnUNet_preprocessed"
ENDINGS = {
    **dict.fromkeys(("imagesTr", "imagesTs"), "_0000.nii.gz"),
    **dict.fromkeys(("labelsTr", "labelsTs"), ".nii.gz"),
}
"""How the files of an export end, by folder."""
FIRST_NUMBER = 501


def choose_folders(out: Path, dataset: str, name: str, number: int | None) -> tuple[Path, Path]:
    """The raw and the preprocessed folder of an export of `dataset` that is called `name`.

    A number stands for one dataset over both. By default it is that of a former export, else the first free one from
    501 on. ExportError where it is another dataset's, or that of a folder of this name that we did not make.
    """
    taken: dict[int, set[str]] = {}
    for path in (*(out / RAW).glob("Dataset*_*"), *(out / PREPROCESSED).glob("Dataset*_*")):
        found = re.fullmatch(r"Dataset(\d{3})_(.+)", path.name)
        if found:
            taken.setdefault(int(found.group(1)), set()).add(found.group(2))

    def folders(of: int) -> tuple[Path, Path]:
        return out / RAW / f"Dataset{of:03d}_{name}", out / PREPROCESSED / f"Dataset{of:03d}_{name}"

    if number is None:
        own = [each for each in sorted(taken) if taken[each] == {name} and _is_ours(*folders(each), dataset)]
        number = own[0] if own else next(n for n in range(FIRST_NUMBER, 1000) if n not in taken)
    others = sorted(taken.get(number, set()) - {name})
    if not 1 <= number <= 999 or others:
        raise ExportError(
            f"nnU-Net's datasets have numbers from 1 to 999, each for one dataset; {number} "
            f"{'is that of ' + others[0] if others else 'is none of them'}: give another --number."
        )
    raw, preprocessed = folders(number)
    if number in taken and not _is_ours(raw, preprocessed, dataset):
        raise ExportError(
            f"{raw} or {preprocessed} is there and was not made by iris_export_nnunet of dataset {dataset} (the raw "
            f"folder has no {RECORD} that says so), so nothing in it is touched: give another --number or another -o."
        )
    return raw, preprocessed


def check_sources(folders: Iterable[Path], cases: Iterable[Case]) -> None:
    """ExportError where a scan or label map of the dataset itself lies in a folder that would be written to."""
    written = {
        path.resolve() for folder in folders for path in (folder, *(folder / name for name in ENDINGS))
    }
    for case in cases:
        for source in filter(None, (case.image, case.labels)):
            for path in source.contents:
                if written & {path.resolve(), *path.resolve().parents}:
                    raise ExportError(
                        f"{path} is one of the scans and label maps to export, and the export would be written into "
                        "the same folder: give another --number or another -o."
                    )


def check_former(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """ExportError where a former export was made from something else and is not to be replaced."""
    if overwrite or _is_empty(folder):
        return
    if _made_from(folder) != json.loads(json.dumps(identity)):
        raise ExportError(
            f"{folder} was made from other scans, classes or splits than those of now: give --overwrite to make it "
            "anew, or another -o."
        )


def remove_former(folder: Path, overwrite: bool) -> None:
    """Left-overs of killed writers, which nnU-Net would take for cases; with `overwrite` every case.

    Those that will be written again too: a run broken off must not leave a former scan that the next one keeps.
    """
    for name, ending in ENDINGS.items():
        for path in sorted((folder / name).glob("*")):
            unfinished = path.name.startswith(".") and ".part" in path.name
            if unfinished or (overwrite and path.name.endswith(ending)):
                path.unlink()


def _is_ours(raw: Path, preprocessed: Path, dataset: str) -> bool:
    """Whether nothing can be lost in these folders but an export of `dataset`."""
    made_from = _made_from(raw)
    if made_from is not None:
        return bool(made_from.get("dataset") == dataset)
    return _is_empty(raw) and _is_empty(preprocessed)


def _is_empty(folder: Path) -> bool:
    """Whether it holds nothing, or the lock of a run that was killed at its very beginning."""
    return not folder.exists() or (folder.is_dir() and all(path.name == LOCK for path in folder.iterdir()))


def _made_from(folder: Path) -> dict[str, Any] | None:
    """What the export in a folder was made from; None where no record of ours can be read there."""
    try:
        made_from = json.loads((folder / RECORD).read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made_from if isinstance(made_from, dict) else None
