"""Pictures of a result: truth and prediction outlined on the scan, in three planes through the object.

Arrays are [D,H,W] = (z,y,x) in RAS+, brought there without loss: z grows towards superior, y anterior, x
right; spacings (mm) have the same order. Planes are shown as radiologists do: the patient's right is at the
left of axial and coronal pictures, sagittal ones look from the side with anterior at the left; letters on
every picture say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import ndimage

from preprocessing.errors import EvaluationError
from preprocessing.orientation import Reorientation
from preprocessing.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
# Letters at the left, right, top and bottom of each plane.
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
CONVENTION = (
    "Radiological display: the patient's right (R) is at the left of axial and coronal pictures; A anterior, "
    "P posterior, S superior, I inferior."
)
LINE_WIDTH = 1.5
CT_WINDOW_HU = (-160.0, 240.0)
MARGIN_MM = 25.0
# A class counts as shown where a plane has at least this share of its largest cross-section.
SHOWN_SHARE = 0.5


@dataclass(frozen=True)
class Style:
    """How an outline is drawn; dashes as matplotlib takes them: offset, then lengths of dash and gap."""

    colour: str
    dashes: str | tuple[float, tuple[float, ...]]


# Blue and orange stay apart for colour-blind readers and on any grey; in print the line style tells.
TRUTH = Style("#3fb2ff", "solid")
PREDICTION = Style("#ffa01f", (0.0, (3.0, 1.6)))


@dataclass(frozen=True)
class CaseView:
    """One case ready to be drawn.

    image, truth, prediction: [D,H,W] on one RAS+ grid, the labels with one numbering.
    classes: name -> value; spacing_mm (z,y,x); window: grey values shown as black and white; inverted: PET,
    where uptake is dark; centre: index (z,y,x) of the three planes; box: the part shown, half-open along
    (z,y,x).
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    classes: Mapping[str, int]
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float]
    inverted: bool
    centre: tuple[int, int, int]
    box: tuple[slice, slice, slice]


def view_case(
    image: Volume,
    truth: Volume,
    prediction: np.ndarray,
    classes: Mapping[str, int],
    modality: str,
    intensity_offset: float = 0.0,
) -> CaseView:
    """Bring a case to RAS+ and choose planes, window and the part shown.

    prediction: label array on the truth's grid with the truth's values. modality: "CT" (soft-tissue window in
    HU, after `intensity_offset` is added), "MR" or "PET". Raises EvaluationError if the shapes differ.
    """
    shapes = {image.array.shape, truth.array.shape, prediction.shape}
    if len(shapes) != 1:
        raise EvaluationError(
            f"Image, truth and prediction must have one shape to be drawn; they have {sorted(shapes)}: check "
            "the files."
        )
    turn = Reorientation.to_ras(image.affine)
    grey, true, predicted = (turn.apply(array) for array in (image.array, truth.array, prediction))
    affine = turn.apply_affine(image.affine, image.array.shape)
    x, y, z = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    spacing = (z, y, x)
    box = shown_box((true > 0) | (predicted > 0), spacing)
    grey = np.nan_to_num(grey.astype(np.float32)) + np.float32(intensity_offset)
    return CaseView(
        image=grey,
        truth=true,
        prediction=predicted,
        classes=classes,
        spacing_mm=spacing,
        window=grey_window(grey[box], modality),
        inverted=modality == "PET",
        centre=choose_centre(true if true.any() else predicted, classes),
        box=box,
    )


def choose_centre(labels: np.ndarray, classes: Mapping[str, int]) -> tuple[int, int, int]:
    """Index (z,y,x) of the planes: nearest to the object's centre of those that show the most classes.

    A class counts as shown where the plane has half of its largest cross-section. Without labels: the
    volume's middle.
    """
    inside = np.isin(labels, list(classes.values()))
    if not inside.any():
        return (labels.shape[0] // 2, labels.shape[1] // 2, labels.shape[2] // 2)
    middle = ndimage.center_of_mass(inside)
    chosen = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        shown = np.zeros(labels.shape[axis], int)
        for value in classes.values():
            area = (labels == value).sum(axis=others)
            shown += (area > 0) & (area >= SHOWN_SHARE * area.max())
        best = np.flatnonzero(shown == shown.max())
        chosen.append(int(best[np.abs(best - middle[axis]).argmin()]))
    return chosen[0], chosen[1], chosen[2]


def shown_box(inside: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """The bounding box of a mask with MARGIN_MM around it inside the volume; all of it for no mask."""
    if not inside.any():
        return slice(0, inside.shape[0]), slice(0, inside.shape[1]), slice(0, inside.shape[2])
    found = ndimage.find_objects(inside.astype(np.uint8))[0]
    z, y, x = (
        slice(max(0, part.start - margin), min(edge, part.stop + margin))
        for part, edge, margin in zip(
            found, inside.shape, (int(np.ceil(MARGIN_MM / mm)) for mm in spacing_mm), strict=True
        )
    )
    return z, y, x


def grey_window(grey: np.ndarray, modality: str) -> tuple[float, float]:
    """The grey values drawn as black and white: CT soft tissue (HU), MR 1st to 99.5th percentile, PET from 0.

    Percentiles are of what is above the minimum, which is background.
    """
    if modality == "CT":
        return CT_WINDOW_HU
    body = grey[grey > grey.min()]
    if not body.size:
        return float(grey.min()), float(grey.min()) + 1.0
    low, high = (float(value) for value in np.percentile(body, (1.0, 99.5)))
    low = min(0.0, low) if modality == "PET" else low
    return low, max(high, low + 1e-6)


def plane_of(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """One slice of [D,H,W] RAS+ as a picture [rows, columns], turned as LETTERS says."""
    picture = np.take(array, index, axis=AXIS[plane])
    # Top: superior, or anterior in axial pictures. Left: the patient's right, or anterior in sagittal ones.
    return picture[::-1, ::-1]


def plane_size_mm(view: CaseView, plane: Plane) -> tuple[float, float]:
    """Width and height in mm of the part that a plane shows."""
    rows, columns = (axis for axis in range(3) if axis != AXIS[plane])
    width, height = (
        (view.box[axis].stop - view.box[axis].start) * view.spacing_mm[axis] for axis in (columns, rows)
    )
    return width, height


def deepest_point(mask: np.ndarray) -> tuple[int, int] | None:
    """(row, column) deepest inside the largest piece of a mask [rows, columns]; None for an empty one."""
    if not mask.any():
        return None
    pieces, _ = ndimage.label(mask)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    deep = ndimage.distance_transform_edt(np.pad(pieces == largest, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(deep.argmax()), mask.shape)
    return int(row), int(column)


def draw_plane(axes: Axes, view: CaseView, plane: Plane, numbers: bool = True) -> None:
    """Draw one plane: the scan, the contours, the letters and, with several classes, their numbers."""
    axis = AXIS[plane]
    index = view.centre[axis] - view.box[axis].start
    width, height = plane_size_mm(view, plane)
    # In mm, so that the pixel's shape is the voxel's whatever the anisotropy.
    extent = (0.0, width, height, 0.0)
    axes.imshow(
        plane_of(view.image[view.box], plane, index),
        cmap="gray_r" if view.inverted else "gray",
        vmin=view.window[0],
        vmax=view.window[1],
        extent=extent,
        interpolation="bilinear",
        aspect="equal",
    )
    truth = plane_of(view.truth[view.box], plane, index)
    prediction = plane_of(view.prediction[view.box], plane, index)
    for number, value in enumerate(view.classes.values(), 1):
        _contour(axes, truth == value, (width, height), TRUTH)
        _contour(axes, prediction == value, (width, height), PREDICTION)
        if numbers and len(view.classes) > 1:
            _number(axes, truth == value, (width, height), number)
    for letter, (x, y), (across, up) in zip(
        LETTERS[plane],
        ((0.015, 0.5), (0.985, 0.5), (0.5, 0.985), (0.5, 0.015)),
        (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom")),
        strict=True,
    ):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=up, color="white", fontsize=9)
        text.set_path_effects([patheffects.withStroke(linewidth=2.0, foreground="black")])
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()


def case_figure(view: CaseView, title: str = "") -> Figure:
    """The three planes side by side on one scale, with a legend; not one of pyplot's figures, so nothing to close."""
    sizes = [plane_size_mm(view, plane) for plane in PLANES]
    inches = 11.0 / sum(width for width, _ in sizes)
    highest = max(height for _, height in sizes) * inches
    figure = Figure(figsize=(11.0, highest + 0.75), facecolor="black", layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[width for width, _ in sizes])
    for axes, plane in zip(panels, PLANES, strict=True):
        draw_plane(axes, view, plane)
    figure.legend(
        handles=_handles(view), loc="outside lower center", ncols=6, frameon=False, labelcolor="white"
    )
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    return figure


def _handles(view: CaseView) -> list[Line2D]:
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.dashes, linewidth=2, label=label)
        for label, style in (("truth", TRUTH), ("prediction", PREDICTION))
    ]
    if len(view.classes) > 1:
        handles += [
            Line2D([], [], linestyle="none", label=f"{number} {name}")
            for number, name in enumerate(view.classes, 1)
        ]
    return handles


def _contour(axes: Axes, mask: np.ndarray, size_mm: tuple[float, float], style: Style) -> None:
    """The outline of a mask [rows, columns] along the edges of its voxels, nothing smoothed."""
    if not mask.any():
        return
    fine = 6
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    padded = np.pad(mask[rows, columns], 1)  # a mask that touches the border is closed there
    blocks = np.kron(padded, np.ones((fine, fine), np.float32))
    pixel = size_mm[0] / mask.shape[1], size_mm[1] / mask.shape[0]
    x = ((np.arange(blocks.shape[1]) + 0.5) / fine - 1 + columns.start) * pixel[0]
    y = ((np.arange(blocks.shape[0]) + 0.5) / fine - 1 + rows.start) * pixel[1]
    drawn = axes.contour(
        x, y, blocks, levels=[0.5], colors=style.colour, linestyles=[style.dashes], linewidths=LINE_WIDTH
    )
    drawn.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="#00000090")])


def _number(axes: Axes, mask: np.ndarray, size_mm: tuple[float, float], number: int) -> None:
    """The class's number on its truth."""
    point = deepest_point(mask)
    if point is None:
        return
    x = (point[1] + 0.5) * size_mm[0] / mask.shape[1]
    y = (point[0] + 0.5) * size_mm[1] / mask.shape[0]
    text = axes.text(x, y, str(number), color="white", fontsize=8, ha="center", va="center")
    text.set_path_effects([patheffects.withStroke(linewidth=2.0, foreground="black")])
