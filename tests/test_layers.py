"""Outlines as paths: exactly the voxels' edges, whatever the mask; and a plane with its layers in mm."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iris_pipeline.pages.layers import outline, picture_uri, plane_layers
from iris_pipeline.pages.overlays import PLANES, CaseView, plane_size_mm, view_case
from preprocessing.volume import Volume

SPACING = (4.0, 1.0, 2.0)  # (z,y,x)
SVG = "{http://www.w3.org/2000/svg}"


def view(labels: np.ndarray, prediction: np.ndarray | None = None, modality: str = "MR") -> CaseView:
    rng = np.random.default_rng(0)
    affine = np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0])
    image = Volume(rng.uniform(90, 110, labels.shape).astype(np.float32), affine)
    predicted = labels if prediction is None else prediction
    return view_case(image, Volume(labels, affine), predicted, {"ball": 1}, modality)


def corners(path: str) -> list[list[tuple[int, int]]]:
    """Path data -> the corners (x, y) of each closed piece."""
    pieces = []
    for piece in path.split("z")[:-1]:
        x, y = map(int, re.match(r"M(-?\d+) (-?\d+)", piece).groups())  # type: ignore[union-attr]
        points = [(x, y)]
        for kind, step in re.findall(r"([hv])(-?\d+)", piece):
            x, y = (x + int(step), y) if kind == "h" else (x, y + int(step))
            points.append((x, y))
        pieces.append(points)
    return pieces


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask that a path encloses (even-odd rule at the voxels' centres), from its vertical edges."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for points in corners(path):
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return np.cumsum(crossings, axis=1)[:, : shape[1]] % 2 == 1


def test_outlines_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    assert outline(mask) == "M1 1h3v2h-3z"
    mask[1, 2] = False
    assert outline(mask) == "M1 1h1v1h1v-1h1v2h-3z"
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert outline(ring) == "M0 0h3v3h-3zM2 1h-1v1h1z", "a hole runs the other way round"
    assert outline(np.eye(2, dtype=bool)) == "M0 0h1v1h-1zM1 1h1v1h-1z", "two that touch at a corner stay two"
    assert outline(np.zeros((3, 3), bool)) == ""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 0.9))
def test_a_path_encloses_its_mask_and_nothing_else(seed: int, rows: int, columns: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    path = outline(mask)
    np.testing.assert_array_equal(filled(path, (rows, columns)), mask)
    length = sum(abs(int(step)) for step in re.findall(r"[hv](-?\d+)", path))
    # Each piece's last line is drawn by z.
    length += sum(abs(p[0][0] - p[-1][0]) + abs(p[0][1] - p[-1][1]) for p in corners(path))
    padded = np.pad(mask, 1)
    edges = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    assert length == edges, "every edge of a voxel once"


def test_a_plane_in_mm_with_its_layers() -> None:
    truth = np.zeros((9, 41, 41), np.uint8)
    prediction = truth.copy()
    truth[2:7, 10:20, 24:34] = 1
    prediction[2:7, 22:32, 24:34] = 1  # 12 mm further anterior: higher up in the axial picture
    shown = view(truth, prediction)
    width, height = plane_size_mm(shown, "axial")
    drawing = ElementTree.fromstring(
        str(plane_layers(shown, "axial", 200, 'of "X" & <Y>')).replace(
            "<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1
        )
    )
    assert drawing.get("viewBox") == f"0 0 {width:g} {height:g}"
    assert drawing.get("aria-label") == 'of "X" & <Y>' and drawing.get("role") == "img"
    for name, anterior_edge in (("truth", 20), ("prediction", 32)):
        group = next(g for g in drawing.iter(f"{SVG}g") if g.get("class") == name)
        across, down = map(float, re.match(r"scale\((\S+) (\S+)\)", group.get("transform", "")).groups())  # type: ignore[union-attr]
        assert (across, down) == (2.0, 1.0), "x is 2 mm a voxel, y 1 mm"
        (path,) = group.findall(f"{SVG}path")
        assert path.get("class") == "c1"
        (points,) = corners(path.get("d", ""))
        top = min(y for _, y in points) * down
        assert top == shown.box[1].stop - anterior_edge
        assert max(y for _, y in points) * down == top + 10
        left = min(x for x, _ in points) * across
        assert left == (shown.box[2].stop - 34) * 2.0
        assert max(x for x, _ in points) * across == left + 20.0
    letters = [text.text for text in drawing.iter(f"{SVG}text")]
    assert letters == list("RLAP"), "one class needs no number"


def test_numbers_stand_on_the_truth_of_several_classes() -> None:
    truth = np.zeros((6, 20, 20), np.uint8)
    truth[:, 2:7, 2:7], truth[:, 12:17, 12:17] = 1, 2
    shown = replace(view(truth), classes={"one": 1, "two": 2})
    found = re.findall(r'<text x="(\S+)" y="(\S+)">(\d)</text>', str(plane_layers(shown, "axial", 100, "x")))
    # Deepest inside: voxel (4, 4) and (14, 14) of RAS+, turned by 180 degrees, in mm.
    assert [(float(x), float(y), n) for x, y, n in found] == [(31.0, 15.5, "1"), (11.0, 5.5, "2")]


def test_a_picture_has_the_bodys_proportions_and_its_window() -> None:
    labels = np.zeros((10, 40, 30), np.uint8)
    labels[4:6, 18:22, 14:16] = 1
    shown = view(labels)
    assert plane_size_mm(shown, "axial") == (56.0, 40.0)  # x: 13 + 2 + 13 voxels of 2 mm; y: all 40 of 1 mm
    assert plane_size_mm(shown, "coronal") == (56.0, 40.0)  # z: all 10 of 4 mm
    assert plane_size_mm(shown, "sagittal") == (40.0, 40.0)
    for plane in PLANES:
        width, height = plane_size_mm(shown, plane)
        uri = re.search(r'href="data:image/webp;base64,([^"]+)"', str(plane_layers(shown, plane, 280, "x")))
        assert uri is not None
        size = Image.open(io.BytesIO(base64.b64decode(uri[1]))).size
        assert max(size) == 280 and size[0] / size[1] == pytest.approx(width / height, rel=0.01)
    grey = np.array([[-50.0, 0.0], [5.0, 10.0]], np.float32)
    bright = replace(shown, window=(0.0, 10.0))
    for inverted, expected in ((False, [0, 0, 128, 255]), (True, [255, 255, 128, 0])):
        uri_text = picture_uri(grey, replace(bright, inverted=inverted), (2.0, 2.0), 2)
        decoded = Image.open(io.BytesIO(base64.b64decode(uri_text.partition(",")[2]))).convert("L")
        assert np.abs(np.asarray(decoded).ravel().astype(int) - expected).max() < 12, "but for WebP's loss"
