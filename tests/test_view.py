"""Which cases a viewer shows, in which order, and that what it gets is the scan and the labels, on their grid."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scans import affine_of, save

from iris_pipeline.measures.rows import Origin, Row, write_rows
from iris_pipeline.pages import view
from iris_pipeline.pages.view import (
    case_centre,
    find_predictions,
    gallery_content,
    layer_bytes,
    make_gallery,
    viewer_licence,
    viewer_script,
)
from preprocessing.errors import BrowserError, EvaluationError
from preprocessing.runtime.paths import Root
from preprocessing.store import Store
from preprocessing.volume import read_labels

ORIGIN = Origin("night", "tiny", "paper/test", "one-shot")


@pytest.fixture
def root(tiny_raw: Any, tiny_store: Store, tmp_path: Path) -> Root:
    """A run with predictions of all five cases; values 3, 1, 2 where the raw labels have left 1, right 2, core 5."""
    run = tmp_path / "results" / "night"
    folder = run / "predictions" / "tiny" / "one-shot"
    folder.mkdir(parents=True)
    table = np.array([0, 3, 1, 0, 0, 2], np.uint8)
    rows = []
    for number, case in enumerate(tiny_raw.cases):
        truth = read_labels(tiny_raw.dataset / "labelsTr" / f"{case}.nii.gz")
        save(folder / f"{case}.nii.gz", table[truth.array], truth.affine)
        rows += [Row(ORIGIN, case, case[:2], "left", 0.9 - number / 10, 9, 9)]
        rows += [Row(ORIGIN, case, case[:2], "core", float("nan"), 0, 0)]
    (folder / "classes.json").write_text(json.dumps({"left": 3, "right": 1, "core": 2}))
    write_rows(run / "evaluation" / "tiny__one-shot.csv", rows)
    return Root(raw=tiny_raw.root, preprocessed=tiny_store.folder.parent, results=tmp_path / "results")


def opened(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(content)


def test_a_runs_cases_worst_first(root: Root) -> None:
    folder = find_predictions("night", root, None, None)
    assert folder == root.results / "night" / "predictions" / "tiny" / "one-shot"
    gallery = make_gallery(folder, root)
    assert [case.id for case in gallery.cases] == ["s4_a", "s3_a", "s2_b", "s2_a", "s1_a"]
    assert gallery.cases[0].dice == {"left": pytest.approx(0.5)}, "a class without a Dice is left out"
    assert gallery.classes == {"left": 1, "right": 2, "core": 3}, "in the order of classes.json"
    content = gallery_content(gallery)
    assert content["title"] == "night tiny one-shot" and content["classes"] == ["left", "right", "core"]
    assert content["cases"][0] == {"id": "s4_a", "mean": 0.5, "dice": {"left": 0.5}, "truth": True}
    assert str(root.raw) not in json.dumps(content), "no path is told"


def test_layers_are_the_scan_and_both_maps_with_one_numbering(root: Root) -> None:
    gallery = make_gallery(find_predictions("night", root, None, None), root)
    for number, case in enumerate(gallery.cases):
        scan = case.image.read_image()
        image = opened(layer_bytes(gallery, number, "image"))
        np.testing.assert_array_equal(np.asarray(image.dataobj), scan.array.transpose(2, 1, 0))
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert image.get_data_dtype() == np.int16, "whole numbers stay small"
        low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
        assert low < 60 < high, "the window holds the background's grey"
        truth = np.asarray(opened(layer_bytes(gallery, number, "truth")).dataobj)
        assert case.truth is not None
        expected = np.array([0, 1, 2, 0, 0, 3])[case.truth.read_labels().array].transpose(2, 1, 0)
        np.testing.assert_array_equal(truth, expected)
        np.testing.assert_array_equal(opened(layer_bytes(gallery, number, "prediction")).dataobj, truth)


def test_the_first_look_is_at_the_object(root: Root) -> None:
    gallery = make_gallery(find_predictions("night", root, None, None), root)
    for number in range(len(gallery.cases)):
        x, y, z = case_centre(gallery, number)
        # conftest: the organs lie about the middle of the field, within 3 mm of 48.
        assert all(abs(share - 0.5) < 0.2 for share in (x, y, z))


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    grey = np.full((6, 7, 8), 0.5, np.float32)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[4, 5, 6] = 7  # z, y, x
    affine = affine_of("LPS", (2.0, 1.0, 1.0))
    save(tmp_path / "scans" / "a_0000.nii.gz", grey, affine)
    save(tmp_path / "masks" / "a.nii.gz", labels, affine)
    save(tmp_path / "masks" / "b.nii.gz", labels, affine)
    root = Root.resolve(str(tmp_path))
    masks = find_predictions(str(tmp_path / "masks"), root, None, None)
    with pytest.raises(EvaluationError, match="need their class names"):
        make_gallery(masks, root, images=tmp_path / "scans")
    (tmp_path / "masks" / "classes.json").write_text('{"cyst": 7}')
    gallery = make_gallery(masks, root, images=tmp_path / "scans")
    assert [(case.id, case.truth, case.mean) for case in gallery.cases] == [("a", None, None)]
    assert gallery.notes == ("No scan was found for b.",)
    assert opened(layer_bytes(gallery, 0, "image")).get_data_dtype() == np.float32
    with pytest.raises(EvaluationError, match="Case 'a' has no truth: name its folder with -g"):
        layer_bytes(gallery, 0, "truth")
    # LPS: left and posterior ends come first, so in RAS+ voxel (x,y) = (6,5) of 8 x 7 lies at (1,1).
    assert case_centre(gallery, 0) == pytest.approx([1.5 / 8, 1.5 / 7, 4.5 / 6], abs=1e-4)

    save(tmp_path / "drawn" / "a.nii.gz", labels * 0 + 2, affine)
    (tmp_path / "drawn" / "classes.json").write_text('{"cyst": 2}')
    gallery = make_gallery(masks, root, images=tmp_path / "scans", truth=tmp_path / "drawn", cases=["a"])
    assert (np.asarray(opened(layer_bytes(gallery, 0, "truth")).dataobj) == 1).all()
    with pytest.raises(EvaluationError, match="There is no prediction of c: check --cases"):
        make_gallery(masks, root, images=tmp_path / "scans", cases=["c"])
    with pytest.raises(
        EvaluationError, match="A viewer needs the scans .* with -i, or the raw datasets' with --raw"
    ):
        make_gallery(masks, root)


def test_which_folder_is_meant(root: Root) -> None:
    (root.results / "night" / "predictions" / "tiny" / "bank").mkdir()
    with pytest.raises(
        EvaluationError, match="2 fit: choose one of -d tiny --strategy bank, -d tiny --strategy one"
    ):
        find_predictions("night", root, None, None)
    assert find_predictions("night", root, "tiny", "bank").name == "bank"
    with pytest.raises(EvaluationError, match="'noon' is neither"):
        find_predictions("noon", root, None, None)


def test_the_viewer_is_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        BrowserError, match=r"package ipyniivue, which is not installed here: install it with pip"
    ):
        viewer_script()


def test_its_licence_goes_along() -> None:
    niivue: ModuleType | None = pytest.importorskip("ipyniivue", reason="the extra 'view' is not installed")
    assert niivue is not None and viewer_script().stat().st_size > 1_000_000
    assert "BSD 2-Clause License" in viewer_licence() and "Niivue" in viewer_licence()
