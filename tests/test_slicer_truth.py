"""Segmentations of 3D Slicer's as truth and as predictions: scored and shown as the label maps that they are.

Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segmentations import AFFINE, CLASSES, SHAPE, SPEC, older, one_layer, painted, plain, scan

from iris_pipeline.evaluation.evaluate import compare, evaluate_folder, truth_cases
from iris_pipeline.measures.rows import Origin
from iris_pipeline.pages.report_parts import read_view
from iris_pipeline.pages.view import case_centre, layer_bytes, make_gallery
from preprocessing.runtime.paths import Root
from preprocessing.spec import parse_spec
from preprocessing.volume import Volume, read_labels


def given(folder: Path) -> Path:
    (folder / "predictions").mkdir(parents=True)
    (folder / "predictions" / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def test_a_segmentation_as_truth_is_scored_as_its_label_map(tmp_path: Path) -> None:
    """Its values are another order's; a voxel too many and, beyond the part, three."""
    predicted = painted(1, 2)
    predicted[0, 2, 3], predicted[5, 11, 11:] = 1, 2
    tables = []
    for name in ("map", "slicer"):
        folder = given(tmp_path / name)
        plain(folder / "predictions" / "a.nii.gz", predicted)
        if name == "map":
            plain(folder / "truth" / "a.nii.gz", painted(1, 2))
        else:
            one_layer(folder / "truth" / "a.seg.nrrd", liver=2, kidney=1)
        result = evaluate_folder(
            folder / "predictions", truth_cases(folder / "truth"), Origin("r", "toy", "", "s"), progress=False
        )
        assert not result.failures
        tables.append((result.rows, result.baseline))
    by_map, by_slicer = tables
    assert [row.dice for row in by_map[0]] == [2 * 40 / 81, 2 * 18 / 39]
    assert [(r.case, r.class_name, r.dice, r.truth_voxels, r.predicted_voxels) for r in by_slicer[0]] == [
        (r.case, r.class_name, r.dice, r.truth_voxels, r.predicted_voxels) for r in by_map[0]
    ]
    for one, other in zip(by_map[0], by_slicer[0], strict=True):
        assert one.measures == pytest.approx(other.measures)
    assert by_slicer[1] == by_map[1], "everything foreground is the whole scan"


def test_predictions_as_segmentations_are_laid_and_named(tmp_path: Path) -> None:
    folder = given(tmp_path)
    plain(folder / "truth" / "a.nii.gz", painted(1, 2))
    plain(folder / "truth" / "b.nii.gz", painted(1, 2))
    one_layer(folder / "predictions" / "a.seg.nrrd", liver=2, kidney=1)
    older(folder / "predictions" / "b.seg.nrrd")
    result = evaluate_folder(
        folder / "predictions", truth_cases(folder / "truth"), Origin("r", "toy", "", "s"), progress=False
    )
    assert not result.failures and [row.dice for row in result.rows] == [1.0] * 4


def test_a_truth_of_a_part_without_a_prediction_has_no_baseline(tmp_path: Path) -> None:
    folder = given(tmp_path)
    one_layer(folder / "truth" / "a.seg.nrrd")
    result = evaluate_folder(
        folder / "predictions", truth_cases(folder / "truth"), Origin("r", "toy", "", "s"), progress=False
    )
    assert result.baseline == () and "no prediction" in result.failures["a"]
    assert [row.truth_voxels for row in result.rows] == [40, 18]


def test_compare_lays_a_partial_truth_too(tmp_path: Path) -> None:
    truth = read_labels(one_layer(tmp_path / "a.seg.nrrd"))
    found = compare(Volume(painted(1, 2), AFFINE), truth, CLASSES)
    assert {name: (each.truth, each.dice) for name, each in found.items()} == {
        "liver": (40, 1.0),
        "kidney": (18, 1.0),
    }


def test_a_page_and_the_viewer_show_them_in_place(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    scan(raw / "a.nrrd")
    one_layer(raw / "a.seg.nrrd", liver=2, kidney=1)
    folder = given(tmp_path)
    older(folder / "predictions" / "a.seg.nrrd")
    view = read_view(folder / "predictions", "a", parse_spec(SPEC, "made.yaml"), raw)
    assert np.array_equal(view.truth, view.prediction) and view.truth.shape == SHAPE
    assert sorted(np.unique(view.truth, return_counts=True)[1].tolist())[:2] == [18, 40]
    (tmp_path / "scans").mkdir()
    scan(tmp_path / "scans" / "a.nrrd")
    one_layer(tmp_path / "truth" / "a.seg.nrrd", liver=2, kidney=1)
    gallery = make_gallery(
        folder / "predictions",
        Root(tmp_path, tmp_path, tmp_path),
        images=tmp_path / "scans",
        truth=tmp_path / "truth",
    )
    for layer in ("truth", "prediction"):
        file = nib.Nifti1Image.from_bytes(layer_bytes(gallery, 0, layer))  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(file.dataobj).transpose(), painted(1, 2))
    plain(tmp_path / "whole" / "a.nii.gz", painted(1, 2))
    whole = make_gallery(
        folder / "predictions",
        Root(tmp_path, tmp_path, tmp_path),
        images=tmp_path / "scans",
        truth=tmp_path / "whole",
    )
    assert case_centre(gallery, 0) == case_centre(whole, 0)
