"""One plane of a case as an SVG of layers: the scan as a small picture, every outline as a path of its own.

Layers can be hidden and recoloured by the page that holds them, and outlines stay sharp at any size. Arrays are
[D,H,W] = (z,y,x) in RAS+; the SVG's units are mm, x to the right and y down, as `overlays.plane_of` turns a plane.
"""

from __future__ import annotations

import base64
import io
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from iris_pipeline.pages.overlays import (
    AXIS,
    LETTERS,
    CaseView,
    Plane,
    deepest_point,
    plane_of,
    plane_size_mm,
)

QUALITY = 82


def plane_layers(view: CaseView, plane: Plane, pixels: int, described: str) -> Markup:
    """The plane as <svg class="plane">; the picture's longer side has at most `pixels`.

    Truth is drawn in groups of the class "truth", the prediction in "prediction", every outline with the class
    "c1", "c2", ... of its number. described: what a reader who cannot see it is told.
    """
    width, height = plane_size_mm(view, plane)
    axis = AXIS[plane]
    index = view.centre[axis] - view.box[axis].start
    grey = plane_of(view.image[view.box], plane, index)
    maps = {
        name: plane_of(labels[view.box], plane, index)
        for name, labels in (("truth", view.truth), ("prediction", view.prediction))
    }
    rows, columns = grey.shape
    scale = f'transform="scale({width / columns:.6g} {height / rows:.6g})"'
    groups = []
    for name, labels in maps.items():
        paths = "".join(
            f'<path class="c{number}" d="{drawn}"/>'
            for number, value in enumerate(view.classes.values(), 1)
            if (drawn := outline(labels == value))
        )
        groups.append(f'<g class="{name}" {scale}>{paths}</g>')
    size = 0.045 * max(width, height)
    return Markup(
        f'<svg class="plane" viewBox="0 0 {width:.6g} {height:.6g}" role="img" aria-label="{escape(described)}">'
        f'<image href="{picture_uri(grey, view, (width, height), pixels)}" width="{width:.6g}" '
        f'height="{height:.6g}" preserveAspectRatio="none"/>'
        + "".join(groups)
        + _numbers(maps["truth"], view, (width, height), size)
        + _letters(plane, (width, height), size)
        + "</svg>"
    )


def outline(mask: np.ndarray) -> str:
    """The edges between a mask [rows, columns] and what is not in it, as SVG path data in voxels.

    Every piece and every hole is one closed path of horizontal and vertical lines along the voxels' edges.
    """
    if not mask.any():
        return ""
    padded = np.pad(mask.astype(np.int8), 1)
    # Steps from corner (row, column) with the mask at the right hand: each corner has as many ends as starts.
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across = np.diff(padded, axis=0)[:, 1:-1]
    for row, column in np.argwhere(across):
        into = across[row, column] > 0
        start, end = (row, column), (row, column + 1)
        steps.setdefault(start if into else end, []).append(end if into else start)
    down = np.diff(padded, axis=1)[1:-1]
    for row, column in np.argwhere(down):
        into = down[row, column] > 0
        start, end = (row + 1, column), (row, column)
        steps.setdefault(start if into else end, []).append(end if into else start)
    paths = []
    while steps:
        corners = [next(iter(steps))]
        while not (len(corners) > 1 and corners[-1] == corners[0]):
            corners.append(_follow(steps, corners))
        paths.append(_path(corners))
    return "".join(paths)


def picture_uri(grey: np.ndarray, view: CaseView, size_mm: tuple[float, float], pixels: int) -> str:
    """A plane's grey values [rows, columns] in the case's window as a WebP picture, itself in the address."""
    low, high = view.window
    shown = np.clip((grey.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    shown = np.rint(255 * (1 - shown if view.inverted else shown)).astype(np.uint8)
    scale = pixels / max(size_mm)
    width, height = (max(1, round(edge * scale)) for edge in size_mm)
    buffer = io.BytesIO()
    picture = Image.fromarray(shown).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(buffer, "WEBP", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _follow(
    steps: dict[tuple[int, int], list[tuple[int, int]]], corners: list[tuple[int, int]]
) -> tuple[int, int]:
    """Take the next step away; where two voxels touch at a corner, the one that turns, lest pieces cross."""
    here = corners[-1]
    choices = steps[here]
    before = corners[-2] if len(corners) > 1 else None
    straight = None if before is None else (2 * here[0] - before[0], 2 * here[1] - before[1])
    step = next((choice for choice in choices if choice != straight), choices[0])
    choices.remove(step)
    if not choices:
        del steps[here]
    return int(step[0]), int(step[1])


def _path(corners: list[tuple[int, int]]) -> str:
    """Corners (row, column) of a closed line -> path data, straight runs as one step."""
    turns = [
        here
        for before, here, after in zip([corners[-2], *corners[:-2]], corners[:-1], corners[1:], strict=True)
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
    ]
    drawn = f"M{turns[0][1]} {turns[0][0]}"
    for before, here in pairwise(turns):
        across, down = here[1] - before[1], here[0] - before[0]
        drawn += f"h{across}" if across else f"v{down}"
    return drawn + "z"


def _numbers(truth: np.ndarray, view: CaseView, size_mm: tuple[float, float], size: float) -> str:
    if len(view.classes) < 2:
        return ""
    rows, columns = truth.shape
    texts = ""
    for number, value in enumerate(view.classes.values(), 1):
        point = deepest_point(truth == value)
        if point is not None:
            x = (point[1] + 0.5) * size_mm[0] / columns
            y = (point[0] + 0.5) * size_mm[1] / rows
            texts += f'<text x="{x:.4g}" y="{y:.4g}">{number}</text>'
    return f'<g class="numbers truth-numbers" font-size="{0.85 * size:.4g}" aria-hidden="true">{texts}</g>'


def _letters(plane: Plane, size_mm: tuple[float, float], size: float) -> str:
    width, height = size_mm
    # LETTERS: left, right, top, bottom.
    sides = ((0.6 * size, height / 2), (width - 0.6 * size, height / 2))
    places = (*sides, (width / 2, 0.75 * size), (width / 2, height - 0.65 * size))
    texts = "".join(
        f'<text x="{x:.4g}" y="{y:.4g}">{letter}</text>'
        for letter, (x, y) in zip(LETTERS[plane], places, strict=True)
    )
    return f'<g class="letters" font-size="{size:.4g}" aria-hidden="true">{texts}</g>'
