"""iris_check's report: every case, remarks on the whole, and not a byte changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import TinyRaw

from preprocessing.check import check_dataset, dataset_folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_sound_dataset_has_no_remarks_and_is_not_touched(tiny_raw: TinyRaw) -> None:
    before = snapshot(tiny_raw.root)
    report = check_dataset(tiny_raw.dataset, tiny_raw.spec, workers=1, progress=False)
    assert snapshot(tiny_raw.root) == before
    assert report.counts == {"ok": 5, "repaired": 0, "refused": 0}
    assert report.remarks == () and report.usable
    assert report.text() == "tiny: 5 ok, 0 repaired, 0 refused"
    first = report.cases[0]
    assert (first.id, first.subject, first.shape, first.orientation) == ("s1_a", "s1", (16, 34, 40), "RAS")
    assert set(first.voxels) == {"left", "right", "core"}


def test_remarks_on_the_whole(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = tmp_path / "tiny"
    shutil.copytree(tiny_raw.dataset, raw)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(raw / folder / "s3_a.nii.gz", raw / folder / "s9_a.nii.gz")
    (raw / "labelsTr" / "s1_a.nii.gz").unlink()
    (raw / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "left", "2": "right"}}))
    classes = tiny_raw.spec.classes | {"spleen": 6}
    split = {"test_subjects": ["s77"], "validation_subjects": ["s1"]}
    spec = type(tiny_raw.spec).model_validate(
        tiny_raw.spec.model_dump() | {"classes": classes, "split": split}
    )
    report = check_dataset(raw, spec, workers=1, progress=False)
    assert not report.usable
    assert report.remarks == (
        "6 cases were found, the specification expects 5.",
        "No usable case holds spleen.",
        "The split lists subjects that are not there: s77.",
        "The cases s3_a, s9_a are one image under several subjects: keep one.",
        "dataset.json has the label values [1, 2], the specification [1, 2, 5, 6].",
    )
    assert "  s1_a: refused: Case s1_a has an image (s1_a.nii.gz) but no label file" in report.text()
    assert report.cases[0].shape is None


def test_raw_may_be_the_dataset_itself(tiny_raw: TinyRaw) -> None:
    assert dataset_folder(tiny_raw.root, "tiny") == tiny_raw.dataset
    assert dataset_folder(tiny_raw.dataset, "tiny") == tiny_raw.dataset
    assert dataset_folder(tiny_raw.root, "other") == tiny_raw.root / "other"
