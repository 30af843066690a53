"""Figures of a report as SVG in the page's own colours: training curve, box plots, the map of embeddings.

Text and lines take the page's text colour; series and groups take the page's CSS variables --s0, --s1, ..., so
that light and dark readers see the same figure. Every point tells its name when pointed at.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from iris_pipeline.pages.anatomy import GROUPS, OTHER

SERIES = 8
"""How many series colours the page has."""
_INK = "#123457"  # stands for the page's own text colour inside the curve
# Stand for the page's series colours there.
_LINES = tuple(f"#12345{digit}" for digit in "89abcdef")
_SHAPES = ("circle", "square", "triangle", "diamond", "cross")
ROW = 22.0
WIDTH = 560.0


@dataclass(frozen=True)
class Box:
    """Five numbers of a sample (Tukey): quartiles, median, and the last values within 1.5 of their distance."""

    low: float
    first: float
    median: float
    third: float
    high: float

    @staticmethod
    def of(values: Sequence[float] | np.ndarray) -> Box:
        sample = np.asarray(values, float)
        first, median, third = (float(value) for value in np.percentile(sample, (25, 50, 75)))
        reach = 1.5 * (third - first)
        inside = sample[(sample >= first - reach) & (sample <= third + reach)]
        return Box(float(inside.min()), first, median, third, float(inside.max()))


def box_plot(rows: pd.DataFrame, by: str, strategies: Sequence[str], described: str) -> Markup:
    """Dice as boxes along 0..1: a line for each value of column `by` and each strategy, a dot for each row.

    rows need the columns `by`, strategy, case, dice; those without a Dice are left out. "" where none is left. A
    strategy's place in `strategies` is its colour, so that it has one colour in all plots of a page.
    """
    scored = rows[rows["strategy"].isin(list(strategies))].dropna(subset=["dice"])
    if scored.empty:
        return Markup("")
    names = [str(name) for name in dict.fromkeys(scored[by])]
    there = set(scored["strategy"])
    left = min(230.0, 16.0 + 8.3 * max(len(name) for name in names))
    lines, y = [], 8.0

    def x(value: float) -> float:
        return left + (WIDTH - left - 14.0) * value

    for name in names:
        top = y
        for number, strategy in enumerate(strategies):
            if strategy not in there:
                continue
            part = scored[(scored[by] == name) & (scored["strategy"] == strategy)]
            if len(part):
                lines.append(_box(part, number, y + ROW / 2, x))
            y += ROW * 0.8 if len(there) > 1 else ROW
        lines.append(
            f'<text x="{left - 8}" y="{(top + y) / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        y += 6.0
    ticks = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{y:.1f}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{y + 14:.1f}" text-anchor="middle">{t:g}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    return Markup(
        f'<svg class="boxes" viewBox="0 0 {WIDTH:g} {y + 34:.1f}" role="img" aria-label="{escape(described)}">'
        f'{ticks}{"".join(lines)}<text class="tick" x="{x(0.5):.1f}" y="{y + 30:.1f}" text-anchor="middle">Dice'
        "</text></svg>"
    )


def map_plot(points: pd.DataFrame, plane: str, described: str) -> Markup:
    """The embeddings of `plane` ("tsne" or "pca") as a map; class numbers, from 1, stand at each class's middle.

    points: those of `embedding_map`. The memory bank's points are rings round a dot.
    """
    size, edge = (440.0, 380.0), 18.0
    places = points[[f"{plane}_x", f"{plane}_y"]].to_numpy(float)
    low, high = places.min(axis=0), places.max(axis=0)
    shown = edge + (places - low) / np.maximum(high - low, 1e-12) * (np.array(size) - 2 * edge)
    shown[:, 1] = size[1] - shown[:, 1]
    order = group_order(points["group"])
    marks = []
    for (x, y), point in zip(shown, points.to_dict("records"), strict=True):
        number = order[point["group"]]
        name = f"{point['dataset']}: {point['class']}"
        case = f"case {point['case']}" if point["case"] else "memory bank"
        drawn = marker(number, float(x), float(y), 4.0)
        if not point["case"]:
            drawn += f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
        marks.append(
            f'<g class="point s{number % SERIES}" data-place="{point["place"]}">'
            f"<title>{escape(name)}, {escape(case)}</title>{drawn}</g>"
        )
    numbers = ""
    for place, rows in enumerate(points.groupby("place").indices.values()):
        of_cases = [row for row in rows if points["case"].iloc[row]]
        x, y = np.median(shown[of_cases or rows], axis=0)
        numbers += f'<text class="number" data-place="{place}" x="{x:.1f}" y="{y + 4:.1f}">{place + 1}</text>'
    return Markup(
        f'<svg class="map" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" aria-label="{escape(described)}">'
        f"{''.join(marks)}{numbers}</svg>"
    )


def group_order(groups: pd.Series) -> dict[str, int]:
    """The number of each group that is there, in the order of `anatomy.GROUPS`: it chooses colour and shape."""
    there = set(groups)
    return {name: number for number, name in enumerate(name for name in (*GROUPS, OTHER) if name in there)}


def marker(number: int, x: float, y: float, r: float) -> str:
    """A small shape of the group's number: with its colour it tells more groups apart than colours alone."""
    shape = _SHAPES[number % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'
    if shape == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:g}" height="{2 * r:g}"/>'
    a, b, c = r * 1.3, r * 0.45, r * 1.1
    corners = {
        "triangle": ((0, -a), (a, c), (-a, c)),
        "diamond": ((0, -a), (a, 0), (0, a), (-a, 0)),
        "cross": (
            *((-b, -c), (b, -c), (b, -b), (c, -b), (c, b), (b, b)),
            *((b, c), (-b, c), (-b, b), (-c, b), (-c, -b), (-b, -b)),
        ),
    }[shape]
    return '<polygon points="' + " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners) + '"/>'


def training_curve(run: Path) -> Markup:
    """Loss and validation Dice as an SVG in the page's own colours; "" where there is no train.csv."""
    try:
        steps = pd.read_csv(run / "train.csv")
    except (OSError, ValueError):
        return Markup("")
    losses = steps.dropna(subset=["loss"])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": run.name, "font.size": 11}):
        figure = Figure(figsize=(7.5, 4.0), layout="constrained")
        left = figure.subplots()
        left.plot(losses["iteration"], losses["loss"], color="#8a8f98", linewidth=1.2, label="training loss")
        left.set(xlabel="iteration", ylabel="Dice + cross-entropy loss", ylim=(0, None))
        right = left.twinx()
        for number, (name, points) in enumerate(_validation(run, steps)):
            marks = "os^Dv"[number % 5]
            colour = _LINES[number % SERIES]
            style = "-" if number < SERIES else "--"
            right.plot(
                points["iteration"],
                points["dice"],
                style,
                marker=marks,
                markersize=4,
                color=colour,
                label=name,
            )
        right.set(ylabel="validation Dice", ylim=(0, 1))
        handles = [handle for axes in (left, right) for handle in axes.get_legend_handles_labels()[0]]
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        for text in legend.get_texts():
            text.set_color(_INK)
        for axes in (left, right):
            axes.tick_params(colors=_INK)
            axes.xaxis.label.set_color(_INK)
            axes.yaxis.label.set_color(_INK)
            for spine in axes.spines.values():
                spine.set_color(_INK)
        written = io.StringIO()
        figure.savefig(
            written,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    drawing = written.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    for number, colour in enumerate(_LINES):
        drawing = drawing.replace(colour, f"var(--s{number})")
    label = 'role="img" aria-label="Training loss and validation Dice over the iterations" '
    return Markup(drawing.replace("<svg ", f"<svg {label}", 1))


def _box(part: pd.DataFrame, number: int, y: float, at: Callable[[float], float]) -> str:
    box = Box.of(part["dice"].to_numpy())
    dots = "".join(
        f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="2.6"><title>{escape(case)}: {value:.3f}</title></circle>'
        for case, value in zip(part["case"], part["dice"], strict=True)
    )
    drawn = ""
    if len(part) > 2:
        low, first, third, high = (at(v) for v in (box.low, box.first, box.third, box.high))
        drawn = (
            f'<path class="whisker" d="M{low:.1f} {y - 4:.1f}v8m0 -4H{first:.1f}M{third:.1f} {y:.1f}H{high:.1f}'
            f'm0 -4v8"/><rect class="box" x="{first:.1f}" y="{y - 7:.1f}" width="{max(third - first, 0.6):.1f}" '
            'height="14" rx="2"/>'
        )
    middle = f'<path class="median" d="M{at(box.median):.1f} {y - 8:.1f}v16"/>'
    return f'<g class="series s{number % SERIES}">{drawn}{dots}{middle}</g>'


def _validation(run: Path, steps: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Validation Dice over iterations: per dataset from validation.csv, else the mean from train.csv."""
    try:
        scores = pd.read_csv(run / "validation.csv")
    except (OSError, ValueError):
        scores = pd.DataFrame()
    if not scores.empty:
        return [(str(name), points) for name, points in scores.groupby("dataset", sort=False)]
    if "validation_dice" not in steps:
        return []
    points = steps.dropna(subset=["validation_dice"]).rename(columns={"validation_dice": "dice"})
    return [("validation Dice", points)] if len(points) else []
