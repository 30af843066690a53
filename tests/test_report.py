"""Pictures that show the right side of the right thing, and a page that holds everything itself."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scans import affine_of, save

from iris_pipeline.overlays import (
    PLANES,
    CaseView,
    case_figure,
    choose_centre,
    grey_window,
    plane_of,
    plane_picture,
    plane_size_mm,
    plt,
    shown_box,
    view_case,
)
from iris_pipeline.report import (
    LARGEST_PAGE_BYTES,
    PICTURE_PIXELS,
    pick_cases,
    picture_pixels,
    training_curve,
    with_code,
    write_report,
)
from iris_pipeline.rows import Origin, Row, write_rows
from preprocessing.errors import EvaluationError
from preprocessing.geometry import Reorientation
from preprocessing.paths import Root
from preprocessing.store import Store
from preprocessing.volume import Volume, read_labels

SPACING = (4.0, 1.0, 2.0)  # (z,y,x)


def view(labels: np.ndarray, prediction: np.ndarray | None = None, modality: str = "MR") -> CaseView:
    rng = np.random.default_rng(0)
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    image = Volume(rng.uniform(90, 110, labels.shape).astype(np.float32), affine)
    predicted = labels if prediction is None else prediction
    return view_case(image, Volume(labels, affine), predicted, {"ball": 1}, modality)


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_right_is_at_the_left_and_anterior_and_superior_on_top() -> None:
    scan = np.zeros((3, 4, 5))
    scan[-1, -1, -1] = 7  # most superior, most anterior, most right
    for plane, index in zip(PLANES, (2, 3, 4), strict=True):
        assert plane_of(scan, plane, index)[0, 0] == 7, plane
        assert plane_of(scan, plane, index).sum() == 7
    assert plane_of(scan, "axial", 0).shape == (4, 5)  # rows: A-P, columns: R-L
    assert plane_of(scan, "coronal", 0).shape == (3, 5)  # rows: S-I
    assert plane_of(scan, "sagittal", 0).shape == (3, 4)  # rows: S-I, columns: A-P


@pytest.mark.parametrize("order", ["RAS", "LPS", "PSR", "SAL"])
def test_the_files_orientation_does_not_change_the_view(order: str) -> None:
    rng = np.random.default_rng(1)
    grey = rng.uniform(0, 100, (6, 7, 8)).astype(np.float32)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 2:5, 4:7] = 1
    expected = view_case(
        Volume(grey, np.diag([2.0, 2, 2, 1])), Volume(labels, np.eye(4)), labels, {"ball": 1}, "MR"
    )
    affine = affine_of(order, (2.0, 2.0, 2.0))
    turn = Reorientation.to_ras(affine)
    stored, truth = turn.undo(grey), turn.undo(labels)
    found = view_case(Volume(stored, affine), Volume(truth, affine), truth, {"ball": 1}, "MR")
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.truth, expected.truth)
    assert (found.centre, found.box, found.spacing_mm) == (expected.centre, expected.box, expected.spacing_mm)


def test_planes_pass_through_the_centre_of_one_object() -> None:
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[4:9, 10:21, 30:37] = 1
    assert choose_centre(labels, {"ball": 1}) == (6, 15, 33)
    assert choose_centre(np.zeros((4, 6, 8), np.uint8), {"ball": 1}) == (2, 3, 4)


def test_planes_show_as_many_classes_as_any_do() -> None:
    labels = np.zeros((20, 8, 8), np.uint8)
    labels[2:8, 2:6, 2:6] = 1
    labels[7:12, 2:6, 6:8] = 2  # axially, both are in slice 7 alone
    labels[19, 0, 0] = 3  # of no declared class
    assert choose_centre(labels, {"liver": 1, "spleen": 2})[0] == 7


def test_the_part_shown_has_one_margin_in_mm() -> None:
    inside = np.zeros((40, 200, 100), bool)
    inside[20:22, 100:110, 95:98] = True
    z, y, x = shown_box(inside, SPACING)
    assert (z, y, x) == (slice(13, 29), slice(75, 135), slice(82, 100))  # 25 mm = 7, 25, 13 voxels
    assert shown_box(np.zeros((2, 3, 4), bool), SPACING) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_windows_by_modality() -> None:
    grey = np.concatenate([np.zeros(500), np.arange(1, 1001)]).astype(np.float32)
    assert grey_window(grey, "CT") == (-160.0, 240.0)
    low, high = grey_window(grey, "MR")
    assert low == pytest.approx(np.percentile(np.arange(1, 1001), 1))
    assert high == pytest.approx(np.percentile(np.arange(1, 1001), 99.5))
    assert grey_window(grey, "PET") == (0.0, pytest.approx(high))
    low, high = grey_window(np.full(9, 5.0), "MR")
    assert low == 5.0 and high > low


def test_an_offset_makes_hounsfield_units() -> None:
    stored = Volume(np.full((3, 3, 3), 1040.0, np.float32), np.eye(4))
    labels = np.ones((3, 3, 3), np.uint8)
    found = view_case(stored, Volume(labels, np.eye(4)), labels, {"organ": 1}, "CT", intensity_offset=-1000)
    assert (found.image == 40.0).all()
    with pytest.raises(EvaluationError, match="must have one shape to be drawn"):
        view_case(stored, Volume(labels, np.eye(4)), labels[:2], {"organ": 1}, "CT")


def test_a_picture_has_the_bodys_proportions() -> None:
    labels = np.zeros((10, 40, 30), np.uint8)
    labels[4:6, 18:22, 14:16] = 1
    shown = view(labels)
    assert plane_size_mm(shown, "axial") == (56.0, 40.0)  # x: 13 + 2 + 13 voxels of 2 mm; y: all 40 of 1 mm
    assert plane_size_mm(shown, "coronal") == (56.0, 40.0)  # z: all 10 of 4 mm
    assert plane_size_mm(shown, "sagittal") == (40.0, 40.0)
    for plane in PLANES:
        width, height = plane_size_mm(shown, plane)
        rows, columns, _ = decoded(plane_picture(shown, plane, pixels=280)).shape
        assert max(rows, columns) == 280
        assert columns / rows == pytest.approx(width / height, rel=0.02)


def blue_and_orange(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, blue = picture[..., 0], picture[..., 2]
    return blue - red > 60, red - blue > 60


def test_outlines_follow_truth_and_prediction() -> None:
    truth = np.zeros((9, 41, 41), np.uint8)
    prediction = truth.copy()
    truth[2:7, 10:20, 24:34] = 1
    prediction[2:7, 22:32, 24:34] = 1  # 12 mm further anterior: higher up in the axial picture
    shown = view(truth, prediction)
    blue, orange = blue_and_orange(decoded(plane_picture(shown, "axial", pixels=492, quality=100)))
    scale = 492 / plane_size_mm(shown, "axial")[0]
    for found, anterior_edge in ((blue, 20), (orange, 32)):
        rows = np.flatnonzero(found.any(axis=1))
        top = (shown.box[1].stop - anterior_edge) * SPACING[1] * scale
        assert rows.min() == pytest.approx(top, abs=4)
        assert rows.max() == pytest.approx(top + 10 * SPACING[1] * scale, abs=4)
        columns = np.flatnonzero(found.any(axis=0))
        left = (shown.box[2].stop - 34) * SPACING[2] * scale
        assert columns.min() == pytest.approx(left, abs=4)
        assert columns.max() == pytest.approx(left + 10 * SPACING[2] * scale, abs=4)
    # The truth's line is whole, the prediction's is broken.
    assert blue.sum() > 1.2 * orange.sum()
    blue, orange = blue_and_orange(decoded(plane_picture(view(truth * 0, truth), "axial")))
    assert not blue.any() and orange.any()


def test_a_figure_that_stands_alone() -> None:
    truth = np.zeros((6, 12, 12), np.uint8)
    truth[2:4, 3:9, 3:9] = 1
    shown = view(truth)
    two = CaseView(**{**shown.__dict__, "classes": {"ball": 1, "cube": 2}})
    figure = case_figure(two, "a title")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["truth", "prediction", "1 ball", "2 cube"]
    letters = ["".join(t.get_text() for t in axes.texts if t.get_text().isalpha()) for axes in figure.axes]
    assert letters == ["RLAP", "RLSI", "APSI"]
    plt.close(figure)


def test_best_median_and_worst() -> None:
    def scores(**means: float) -> pd.DataFrame:
        return pd.DataFrame({"case": list(means), "dice": list(means.values())})

    assert pick_cases(scores(a=0.1, b=0.9, c=0.5, d=0.6, e=float("nan"))) == [
        ("best", "b"),
        ("median", "d"),
        ("worst", "a"),
    ]
    assert pick_cases(scores(a=0.1, b=0.9)) == [("best", "b"), ("worst", "a")]
    assert pick_cases(scores(a=0.5)) == [("best", "a")]
    assert pick_cases(scores(b=0.5, a=0.5, c=0.5)) == [("best", "a"), ("median", "b"), ("worst", "c")]
    assert pick_cases(scores(a=float("nan"))) == []


def test_many_pictures_get_smaller() -> None:
    assert picture_pixels(9) == PICTURE_PIXELS
    many = picture_pixels(19 * 9)
    assert 250 < many < PICTURE_PIXELS
    noise = np.random.default_rng(0).uniform(0, 255, (4, many, many)).astype(np.float32)
    labels = np.ones(noise.shape, np.uint8)
    shown = view_case(Volume(noise, np.eye(4)), Volume(labels, np.eye(4)), labels, {"x": 1}, "MR")
    # Pure noise is dearer than any scan; even so the page would stay within twice its budget.
    assert len(plane_picture(shown, "axial", many)) * 19 * 9 * 4 / 3 < 2 * LARGEST_PAGE_BYTES


def test_the_curve_takes_the_pages_colour(tmp_path: Path) -> None:
    assert training_curve(tmp_path) == ""
    (tmp_path / "train.csv").write_text("iteration,loss,validation_dice\n20,1.5,\n40,1.1,\n40,,0.4\n")
    alone = training_curve(tmp_path)
    assert "validation Dice" in alone and "currentColor" in alone and "#123457" not in alone
    (tmp_path / "validation.csv").write_text("iteration,dataset,dice\n40,hearts,0.4\n40,livers,0.6\n")
    curve = training_curve(tmp_path)
    assert curve.startswith("<svg") and "hearts" in curve and "livers" in curve
    assert curve == training_curve(tmp_path), "the same run gives the same page"


def test_code_in_a_sentence_is_escaped() -> None:
    assert with_code("Made by `a --b <c>` & co") == "Made by <code>a --b &lt;c&gt;</code> &amp; co"


@pytest.fixture
def root(tiny_raw, tiny_store: Store, tmp_path: Path) -> Root:  # type: ignore[no-untyped-def]
    """A run whose masks are the truth moved by a voxel, evaluated with made-up scores."""
    run = tmp_path / "results" / "night"
    where = Origin("night", "tiny", "paper/test", "one-shot")
    found = []
    (run / "predictions" / "tiny" / "one-shot").mkdir(parents=True)
    for number, case in enumerate(tiny_raw.cases):
        truth = read_labels(tiny_raw.dataset / "labelsTr" / f"{case}.nii.gz")
        path = run / "predictions" / "tiny" / "one-shot" / f"{case}.nii.gz"
        save(path, np.roll(truth.array, 1, axis=2), truth.affine)
        found += [Row(where, case, case[:2], name, 0.5 + number / 10, 9, 9) for name in ("left", "right")]
    classes = tiny_store.manifest.classes
    (run / "predictions" / "tiny" / "one-shot" / "classes.json").write_text(json.dumps(classes))
    write_rows(run / "evaluation" / "tiny__one-shot.csv", found)
    (run / "train.csv").write_text("iteration,loss\n20,1.5\n40,1.1\n")
    (run / "run.json").write_text(json.dumps({"command": "iris_train paper -d <tiny>", "datasets": ["tiny"]}))
    return Root(raw=tiny_raw.root, preprocessed=tiny_store.folder.parent, results=tmp_path / "results")


def test_a_page_that_holds_everything(root: Root) -> None:
    run = root.results / "night"
    page, left_out = write_report(run, root, "Made by `iris_report night`.", progress=False)
    assert page == run / "report.html" and left_out == []
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) < LARGEST_PAGE_BYTES
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"|url\(([^)]*)\)', html)
    flat = ["".join(pair) for pair in addresses]
    assert flat and all(address.startswith(("data:image/webp;base64,", "#")) for address in flat)
    assert "<script" not in html and "@import" not in html and "<link" not in html

    pictures = [address for address in flat if address.startswith("data:")]
    assert len(pictures) == 9 == len(set(pictures)), "best, median and worst in three planes"
    assert decoded(base64.b64decode(pictures[0].partition(",")[2])).shape[2] == 3
    headings = re.findall(r"<h3>(.*?)</h3>", html)
    assert headings == [
        "Best case, one-shot: s4_a, mean Dice 0.900",
        "Median case, one-shot: s2_b, mean Dice 0.700",
        "Worst case, one-shot: s1_a, mean Dice 0.500",
    ]
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert "the patient's right (R) is at the left" in html.replace("&#39;", "'")
    assert "iris_train paper -d &lt;tiny&gt;" in html, "texts are escaped"
    assert html.count("<code>iris_report night</code>") == 2, "under the table and at the end"
    assert "currentColor" in html


def test_a_page_without_scans_tells_so(root: Root, tmp_path: Path) -> None:
    run = root.results / "night"
    elsewhere = Root(raw=tmp_path / "gone", preprocessed=root.preprocessed, results=root.results)
    _, left_out = write_report(run, elsewhere, "x", progress=False)
    assert len(left_out) == 1 and left_out[0].startswith("No pictures of tiny: The raw folder")
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html and "No pictures: The raw folder" in html and "0.700" in html

    (run / "predictions" / "tiny" / "one-shot" / "s2_b.nii.gz").unlink()
    out, left_out = write_report(run, root, "x", out=tmp_path / "page.html", progress=False)
    assert "The prediction of case 's2_b' is not in" in left_out[0]
    assert out.read_text(encoding="utf-8").count("data:image") == 3, "the best case came first and stays"
    _, left_out = write_report(run, root, "x", strategy="bank", progress=False)
    assert left_out == ["No pictures of tiny: the strategy 'bank' has no scored case here."]


def test_nothing_evaluated_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "results" / "night").mkdir(parents=True)
    with pytest.raises(EvaluationError, match="run iris_evaluate first"):
        write_report(tmp_path / "results" / "night", Root.resolve(str(tmp_path)), "x")
