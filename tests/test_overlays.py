"""Pictures that show the right side of the right thing: planes, windows, the part shown, outlines in place."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scans import affine_of

from iris_pipeline.pages.overlays import (
    PLANES,
    CaseView,
    case_figure,
    choose_centre,
    deepest_point,
    draw_plane,
    grey_window,
    plane_of,
    plane_size_mm,
    shown_box,
    view_case,
)
from preprocessing.errors import EvaluationError
from preprocessing.orientation import Reorientation
from preprocessing.volume import Volume

SPACING = (4.0, 1.0, 2.0)  # (z,y,x)


def view(labels: np.ndarray, prediction: np.ndarray | None = None, modality: str = "MR") -> CaseView:
    rng = np.random.default_rng(0)
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    image = Volume(rng.uniform(90, 110, labels.shape).astype(np.float32), affine)
    predicted = labels if prediction is None else prediction
    return view_case(image, Volume(labels, affine), predicted, {"ball": 1}, modality)


def drawn(shown: CaseView) -> np.ndarray:
    """The axial plane as [rows, columns, 3], 492 pixels wide and nothing round it."""
    width, height = plane_size_mm(shown, "axial")
    figure = Figure(figsize=(4.0, 4.0 * height / width), facecolor="black")
    draw_plane(figure.add_axes((0.0, 0.0, 1.0, 1.0)), shown, "axial")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=123, facecolor="black")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


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


def test_the_deepest_point_of_the_largest_piece() -> None:
    mask = np.zeros((12, 12), bool)
    mask[0:2, 0:2] = True
    mask[4:9, 5:10] = True
    assert deepest_point(mask) == (6, 7)
    assert deepest_point(np.zeros((3, 3), bool)) is None


def blue_and_orange(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, blue = picture[..., 0], picture[..., 2]
    return blue - red > 60, red - blue > 60


def test_outlines_follow_truth_and_prediction() -> None:
    truth = np.zeros((9, 41, 41), np.uint8)
    prediction = truth.copy()
    truth[2:7, 10:20, 24:34] = 1
    prediction[2:7, 22:32, 24:34] = 1  # 12 mm further anterior: higher up in the axial picture
    shown = view(truth, prediction)
    width, _ = plane_size_mm(shown, "axial")
    blue, orange = blue_and_orange(drawn(shown))
    scale = blue.shape[1] / width
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
    assert blue.sum() > 1.1 * orange.sum()
    blue, orange = blue_and_orange(drawn(view(truth * 0, truth)))
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
