"""The intake as the store tells it: every case counted once, refusals of both stages, grids as ranges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from iris_pipeline.pages.intake import intake_of
from preprocessing.errors import StoreError
from preprocessing.store import Store


@pytest.fixture
def folder(tiny_store: Store, tmp_path: Path) -> Path:
    copy = tmp_path / "tiny"
    shutil.copytree(tiny_store.folder, copy)
    return copy


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_store_in_order(folder: Path) -> None:
    found = intake_of(folder)
    assert found.counts == {"ok": 5, "repaired": 0, "refused": 0} and found.said == ()
    assert (found.dataset, found.title, found.modality, found.role) == (
        *("tiny", "Five generated scans", "MR", "upstream"),
    )
    # conftest: a field of 48 mm at 3 mm (z), 1.4 mm (y) and 1.2 mm (x), turned by up to 12 degrees.
    assert found.grids == "16 x 34 x 40 voxels of 3 x 1.4 x 1.2 mm"
    assert found.parts.startswith("train ") and found.reasons


def test_what_was_refused_first_or_later_is_said(folder: Path) -> None:
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    first, second, third = fingerprint["cases"][:3]
    first |= {"verdict": "refused", "why": "Broken: /somewhere/else/s1_a.nii.gz is no NIfTI."}
    first["shape"], first["spacing_mm"] = [0, 0, 0], [0.0, 0.0, 0.0]
    change(folder / "fingerprint.json", cases=fingerprint["cases"])
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = [entry for entry in manifest["cases"] if entry["id"] not in (first["id"], second["id"])]
    next(e for e in entries if e["id"] == third["id"]).update(
        verdict="repaired", why="The label's corners moved."
    )
    change(folder / "manifest.json", cases=entries, refused={second["id"]: "It holds NaN."})
    found = intake_of(folder)
    assert found.counts == {"ok": 2, "repaired": 1, "refused": 2}
    assert found.said == (
        (first["id"], "refused", "Broken: .../s1_a.nii.gz is no NIfTI."),
        (second["id"], "refused", "It holds NaN."),
        (third["id"], "repaired", "The label's corners moved."),
    )
    assert found.grids == "16 x 34 x 40 voxels of 3 x 1.4 x 1.2 mm", "a refused case has no grid"


def test_ranges(folder: Path) -> None:
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    fingerprint["cases"][0]["shape"] = [9, 34, 128]
    change(folder / "fingerprint.json", cases=fingerprint["cases"])
    assert intake_of(folder).grids.startswith("9 to 16 x 34 x 40 to 128 voxels")


def test_without_a_fingerprint_the_manifest_tells(folder: Path, tmp_path: Path) -> None:
    (folder / "fingerprint.json").unlink()
    found = intake_of(folder)
    assert found.counts == {"ok": 5, "repaired": 0, "refused": 0}
    assert found.grids == "16 x 34 x 40 voxels in the files"
    with pytest.raises(StoreError, match="is no finished store"):
        intake_of(tmp_path / "gone")
