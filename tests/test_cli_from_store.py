"""iris_predict -i with references that the store lends: whose they are, and what else is no result of the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import TinyRaw, draw_case
from scans import load, save
from test_cli_predict import write_run

from iris_pipeline.cli.predict import predict_main
from preprocessing.run import plan_and_preprocess
from preprocessing.store import Store

TRAIN = ["s2_a", "s2_b", "s4_a"]


@pytest.fixture
def root(tiny_store: Store, tmp_path: Path) -> Path:
    """A root folder with a store of its own, without the raw scans."""
    shutil.copytree(tiny_store.folder, tmp_path / "root" / "preprocessed" / "tiny")
    write_run(tmp_path / "root" / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    assert tiny_store.manifest.splits["paper"]["train"] == TRAIN
    return tmp_path / "root"


def predict(root: Path, scans: Path, *more: str) -> int:
    options = ["-d", "tiny", "--strategy", "ensemble", "-k", "9", "--overlap", "0", "--root", str(root)]
    return predict_main(["-i", str(scans), "-o", str(root / "out"), *options, *more])


def used(root: Path) -> dict[str, list[str]]:
    """Query -> its references."""
    said = json.loads((root / "out" / "references.json").read_text(encoding="utf-8"))
    return {query: sorted(given["references"]) for query, given in said.items()}


def scans_of(folder: Path, raw: TinyRaw, *names: str) -> Path:
    """Scans of the dataset under their names, and one of nobody known."""
    folder.mkdir(exist_ok=True)
    nib.save(draw_case("RAS", 77, True)[0], folder / "stranger.nii.gz")
    for name in names:
        shutil.copy(raw.dataset / "imagesTr" / f"{name}.nii.gz", folder / f"{name}_0000.nii.gz")
    return folder


def test_who_a_scan_may_show_is_no_reference_of_this_scan_alone(
    root: Path, tiny_raw: TinyRaw, capsys: Any
) -> None:
    scans = scans_of(root / "scans", tiny_raw, "s3_a")
    assert predict(root, scans) == 0
    assert "ensemble from 3 references among the 3 train cases of tiny." in capsys.readouterr().out
    assert used(root) == {"s3_a": TRAIN, "stranger": TRAIN}
    record = json.loads((root / "out" / "predict.json").read_text(encoding="utf-8"))
    before = (root / "out" / "stranger.nii.gz").read_bytes()
    # the next night a scan comes that bears the name of a train case, which has a second one of the same person
    assert predict(root, scans_of(scans, tiny_raw, "s2_a")) == 0
    assert "1 segmented, 2 skipped as already there, 0 refused." in capsys.readouterr().out
    assert used(root) == {"s2_a": ["s4_a"], "s3_a": TRAIN, "stranger": TRAIN}
    assert (root / "out" / "stranger.nii.gz").read_bytes() == before
    assert json.loads((root / "out" / "predict.json").read_text(encoding="utf-8")) == record
    assert record["made_from"]["from"] == TRAIN and len(record["made_from"]["stored"]) == 16


def test_a_copy_of_a_reference_is_refused_without_the_raw_scans_too(
    root: Path, tiny_raw: TinyRaw, capsys: Any
) -> None:
    image, affine = load(tiny_raw.dataset / "imagesTr" / "s2_b.nii.gz")
    copy = save(root / "scans" / "copy.nii.gz", image, affine)
    assert predict(root, copy) == 1
    told = capsys.readouterr().err
    assert "Case 'copy' could not be segmented: A reference is never its own query" in told
    assert "Warning" not in told
    (root / "preprocessed" / "tiny" / "fingerprint.json").unlink()
    assert predict(root, copy, "--raw", str(tiny_raw.root)) == 1
    told = capsys.readouterr().err
    assert "A reference is never its own query" in told and "Warning" not in told
    assert predict(root, copy) == 0
    assert (
        "Warning: neither the store nor raw files tell which scans 3 of the 3 train cases of tiny are: a copy of one "
        "under another name is not known as its own reference; run iris_plan_and_preprocess -d tiny, with its raw "
        "folder at hand." in capsys.readouterr().err
    )


def test_references_that_were_corrected_make_another_result(
    root: Path, tiny_raw: TinyRaw, capsys: Any
) -> None:
    shutil.copytree(tiny_raw.root, root / "raw")
    scans = scans_of(root / "scans", tiny_raw)
    split = [
        "--split",
        "paper",
        "-d",
        "tiny",
        "--strategy",
        "one-shot",
        "--overlap",
        "0",
        "--root",
        str(root),
    ]
    assert predict(root, scans) == 0 and predict_main(split) == 0
    assert predict(root, scans) == 0 and predict_main(split) == 0
    said = capsys.readouterr().out
    assert "0 segmented, 1 skipped as already there, 0 refused." in said
    path = root / "raw" / "tiny" / "labelsTr" / "s2_a.nii.gz"
    labels, affine = load(path)
    save(path, np.where(labels == 5, 1, labels).astype(np.uint8), affine)
    names = [str(root / "raw" / "tiny.yaml")]
    stored = root / "preprocessed"
    plan_and_preprocess(root / "raw", stored, names, crop=(32, 32, 32), workers=1, progress=False)
    capsys.readouterr()
    assert predict(root, scans) == 1
    assert f"those in {root.resolve() / 'out'} were made otherwise" in capsys.readouterr().err
    assert predict_main(split) == 1
    assert "one-shot were made otherwise" in capsys.readouterr().err
    assert predict(root, scans, "--overwrite") == 0
    # a record of before does not say it: skipped, as it was then
    record = json.loads((root / "out" / "predict.json").read_text(encoding="utf-8"))
    del record["made_from"]["stored"]
    (root / "out" / "predict.json").write_text(json.dumps(record), encoding="utf-8")
    assert predict(root, scans) == 0
    assert "0 segmented, 1 skipped as already there, 0 refused." in capsys.readouterr().out
