"""Where exports for nnU-Net go: numbers, what --overwrite clears, and what is never touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TinyRaw

from iris_pipeline.nnunet.export import Export, export_dataset
from preprocessing.adapters import find_cases
from preprocessing.errors import ExportError
from preprocessing.nnunet import RECORD
from preprocessing.store import Store

FOLDER = "Dataset501_tiny"


@pytest.fixture
def place(tiny_raw: TinyRaw, tmp_path: Path) -> Path:
    (tmp_path / "raw").symlink_to(tiny_raw.root)
    return tmp_path


def export(place: Path, store: Store, **options: object) -> Export:
    cases = find_cases(place / "raw" / "tiny", store.manifest.spec)
    return export_dataset(store, cases, place / "out", workers=1, progress=False, **options)  # type: ignore[arg-type]


def test_overwrite_leaves_no_case_of_a_former_split(place: Path, tiny_store: Store) -> None:
    """A training case became a test case and another one went: neither may stay among nnU-Net's training files."""
    done = export(place, tiny_store)
    paper = tiny_store.manifest.splits["paper"]
    moved, gone, *stay = sorted(paper["train"] + paper["validation"])
    test = [*paper["test"], moved]
    splits = {name: {"train": stay, "validation": stay, "test": test} for name in tiny_store.manifest.splits}
    other = Store(tiny_store.folder, tiny_store.manifest.model_copy(update={"splits": splits}))
    kept = [done.raw / "imagesTr" / "notes.txt", done.raw / "labelsTs" / "mine.nrrd"]
    for path in kept:
        path.write_text("not of the export", encoding="utf-8")
    assert export(place, other, overwrite=True).written == len(stay) + len(test)
    for image, label, cases in (("imagesTr", "labelsTr", stay), ("imagesTs", "labelsTs", test)):
        names = {
            folder: sorted(p.name for p in (done.raw / folder).glob("*.nii.gz")) for folder in (image, label)
        }
        assert names[image] == sorted(f"{case}_0000.nii.gz" for case in cases)
        assert names[label] == sorted(f"{case}.nii.gz" for case in cases)
    assert json.loads((done.raw / "dataset.json").read_text())["numTraining"] == len(stay)
    assert not list(done.raw.rglob(f"{gone}*")) and all(path.is_file() for path in kept)


def test_numbers(place: Path, tiny_store: Store) -> None:
    (place / "out" / "nnUNet_raw" / "Dataset501_hearts").mkdir(parents=True)
    (place / "out" / "nnUNet_preprocessed" / "Dataset502_lungs").mkdir(parents=True)
    assert export(place, tiny_store).dataset == "Dataset503_tiny"
    assert export(place, tiny_store).dataset == "Dataset503_tiny", "its own number is found again"
    assert export(place, tiny_store, number=7).dataset == "Dataset007_tiny"
    with pytest.raises(ExportError, match="501 is that of hearts: give another --number"):
        export(place, tiny_store, number=501)
    with pytest.raises(ExportError, match="1000 is none of them"):
        export(place, tiny_store, number=1000)


def test_a_folder_that_no_export_made_is_never_touched(
    tiny_raw: TinyRaw, tiny_store: Store, tmp_path: Path
) -> None:
    """Somebody's own raw dataset of the same name, and the splits beside it, outlive --overwrite to the byte."""
    raw = tmp_path / "out" / "nnUNet_raw" / "Dataset010_tiny"
    shutil.copytree(tiny_raw.dataset, raw)
    beside = tmp_path / "out" / "nnUNet_preprocessed" / "Dataset011_tiny" / "splits_final.json"
    beside.parent.mkdir(parents=True)
    beside.write_text("theirs", encoding="utf-8")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    cases = find_cases(raw, tiny_store.manifest.spec)
    refused = (
        r"was not made by iris_export_nnunet of dataset tiny .* nothing in it is touched: give another --n"
    )
    for number in (10, 11):
        for overwrite in (False, True):
            with pytest.raises(ExportError, match=refused):
                export_dataset(
                    tiny_store, cases, tmp_path / "out", number=number, overwrite=overwrite, progress=False
                )
    done = export_dataset(tiny_store, cases, tmp_path / "out", overwrite=True, workers=1, progress=False)
    assert (done.dataset, done.written) == (FOLDER, 5), "their numbers are taken"
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(raw.glob("*.json"))
    (raw / RECORD).write_text(json.dumps({"made_from": {"dataset": "another"}}), encoding="utf-8")
    with pytest.raises(ExportError, match=refused):
        export_dataset(tiny_store, cases, tmp_path / "out", number=10, overwrite=True, progress=False)


def test_nothing_is_written_among_the_scans_themselves(
    tiny_raw: TinyRaw, tiny_store: Store, tmp_path: Path
) -> None:
    """Even where a record says that the folder is an export, as one that was broken off may have left it."""
    raw = tmp_path / "out" / "nnUNet_raw" / "Dataset010_tiny"
    shutil.copytree(tiny_raw.dataset, tmp_path / "scans")
    raw.mkdir(parents=True)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).symlink_to(tmp_path / "scans" / name)
    (raw / RECORD).write_text(json.dumps({"made_from": {"dataset": "tiny"}}), encoding="utf-8")
    for folder in (raw, tmp_path / "scans"):
        cases = find_cases(folder, tiny_store.manifest.spec)
        with pytest.raises(ExportError, match="s1_a.nii.gz is one of the scans .* written into the same fol"):
            export_dataset(tiny_store, cases, tmp_path / "out", overwrite=True, progress=False)
    assert len(list((tmp_path / "scans").rglob("*.nii.gz"))) == 10
