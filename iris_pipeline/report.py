"""One HTML page about one run: what was run, its tables, the training curve, pictures of good and bad cases.

The page holds everything itself (styles, curve, pictures) and asks nothing of a network. Arrays are [D,H,W] =
(z,y,x).
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from tqdm import tqdm

from iris_pipeline.evaluate import (
    BASELINE_RUN,
    dataset_spec,
    image_files,
    with_values,
)
from iris_pipeline.overlays import (
    CONVENTION,
    PLANES,
    PREDICTION,
    TRUTH,
    CaseView,
    case_figure,
    plane_picture,
    view_case,
)
from iris_pipeline.tables import (
    PAPER_RUN,
    STRATEGY_ORDER,
    Table,
    collect_rows,
    dataset_table,
    overview_table,
    read_run,
)
from preprocessing.adapters import find_cases
from preprocessing.class_names import read_class_names
from preprocessing.errors import EvaluationError, IrisError, RawDataError
from preprocessing.files import write_text
from preprocessing.paths import Root
from preprocessing.spec import DatasetSpec
from preprocessing.volume import case_id_of, read_labels

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PAGE = "report.html"
LARGEST_PAGE_BYTES = 10_000_000
PICTURE_PIXELS = 560
# Measured on noisy MR, the costliest: bytes of a pixel as WebP at quality 82, in base64.
BYTES_A_PIXEL = 0.5
RANKS = ("best", "median", "worst")
_INK = "#123457"  # stands for the page's own text colour inside the curve


@dataclass(frozen=True)
class Picture:
    """One plane of one case. uri: the picture itself, as a data address."""

    plane: str
    uri: str


@dataclass(frozen=True)
class CasePart:
    """One case on the page. scores: (number in the picture, class, Dice as text)."""

    rank: str
    case: str
    mean: str
    scores: tuple[tuple[int, str, str], ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class DatasetPart:
    """One dataset on the page. problem: why there are no pictures, one sentence, or ""."""

    name: str
    title: str
    modality: str
    remarks: str
    table: Table
    strategy: str
    cases: tuple[CasePart, ...]
    problem: str


def write_report(
    run: Path,
    root: Root,
    made_by: str,
    *,
    out: Path | None = None,
    strategy: str | None = None,
    progress: bool = True,
) -> tuple[Path, list[str]]:
    """Write the page of the run in folder `run`, by default as report.html inside.

    Returns the page and sentences about what it had to leave out. root.raw has the scans for the pictures;
    without them the page tells so and goes without. strategy: the one that is pictured, by default the first
    of one-shot, ensemble, ... that a dataset has. Raises EvaluationError if nothing of the run was evaluated,
    or the page would be above 10 MB.
    """
    rows = collect_rows(run.parent, [run.name])
    datasets = sorted(set(rows["dataset"]))
    pixels = picture_pixels(len(datasets) * len(RANKS) * len(PLANES))
    bar = tqdm(datasets, desc="pictures", unit="dataset", disable=not progress, dynamic_ncols=True)
    parts = [_dataset_part(run, rows[rows["dataset"] == name], name, root, strategy, pixels) for name in bar]
    html = render(run, rows, parts, made_by)
    if len(html.encode()) > LARGEST_PAGE_BYTES:
        raise EvaluationError(
            f"A page holds at most {LARGEST_PAGE_BYTES / 1e6:.0f} MB; this one has "
            f"{len(html.encode()) / 1e6:.1f} MB: report fewer datasets."
        )
    path = out or run / PAGE
    write_text(path, html)
    return path, [f"No pictures of {part.name}: {part.problem}" for part in parts if part.problem]


def write_picture(
    run: Path, root: Root, dataset: str, out: Path, *, strategy: str | None = None, case: str | None = None
) -> str:
    """One case of a run as a picture of its own, in the format that the name `out` ends with; returns its title.

    case: by default the median one by mean Dice, so that nothing is picked by hand. Raises EvaluationError for a
    dataset, strategy or case that the run did not evaluate, RawDataError where a scan or mask is not there.
    """
    rows = collect_rows(run.parent, [run.name])
    rows = rows[(rows["dataset"] == dataset) & (rows["run"] != BASELINE_RUN)]
    chosen = strategy or _first_strategy(rows)
    rows = rows[rows["strategy"] == chosen]
    ranked = {rank: name for rank, name in pick_cases(rows)}
    case = case or ranked.get("median") or ranked.get("best")
    scores = rows[rows["case"] == case].set_index("class")["dice"]
    if scores.empty:
        raise EvaluationError(
            f"A picture shows an evaluated case; run '{run.name}' has none for dataset '{dataset}', strategy "
            f"'{chosen}', case '{case}': run iris_evaluate, or choose others."
        )
    spec = dataset_spec(dataset, root.preprocessed)
    view = _view(run / "predictions" / dataset / chosen, str(case), spec, spec.raw_folder(root.raw))
    title = f"{spec.title}, test case {case}, {chosen}: mean Dice {_text(scores.mean())}"
    figure = case_figure(view, title)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".part.{out.name}")
    figure.savefig(temporary, dpi=100, facecolor="black")
    plt.close(figure)
    os.replace(temporary, out)
    return title


def render(run: Path, rows: pd.DataFrame, parts: Sequence[DatasetPart], made_by: str) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iris_pipeline"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["with_code"] = with_code
    return environment.get_template(PAGE).render(
        run=run.name,
        facts=read_run(run),
        overview=overview_table(rows) if len(parts) > 1 else None,
        parts=parts,
        curve=training_curve(run),
        convention=CONVENTION,
        truth=TRUTH,
        prediction=PREDICTION,
        quiet_runs=(BASELINE_RUN, PAPER_RUN),
        made_by=made_by,
    )


def with_code(text: str) -> Markup:
    """Text for HTML, escaped, where what stands between backquotes is set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def picture_pixels(pictures: int) -> int:
    """The longer side of each picture, so that all of them together leave the page under its limit."""
    each = 0.8 * LARGEST_PAGE_BYTES / max(pictures, 1) / BYTES_A_PIXEL
    return max(120, min(PICTURE_PIXELS, int(math.sqrt(each))))


def pick_cases(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(rank, case) of the best, median and worst case by mean Dice over the scored classes, none twice.

    Of an even number of cases the better one of the middle is the median. Cases without a score cannot be
    ranked.
    """
    means = rows.groupby("case")["dice"].mean().dropna()
    # Equal scores in the order of the names, so that the page is the same each time.
    order = list(means.sort_index().sort_values(ascending=False, kind="stable").index)
    if not order:
        return []
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    chosen: dict[str, str] = {}
    for rank in ("best", "worst", "median"):
        case = str(order[places[rank]])
        if case not in chosen.values():
            chosen[rank] = case
    return [(rank, chosen[rank]) for rank in RANKS if rank in chosen]


def training_curve(run: Path) -> str:
    """Loss and validation Dice as an SVG in the page's own text colour; "" where there is no train.csv."""
    try:
        steps = pd.read_csv(run / "train.csv")
    except (OSError, ValueError):
        return ""
    losses = steps.dropna(subset=["loss"])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": run.name, "font.size": 11}):
        figure, left = plt.subplots(figsize=(7.5, 4.0), layout="constrained")
        left.plot(losses["iteration"], losses["loss"], color="#8a8f98", linewidth=1.2, label="training loss")
        left.set(xlabel="iteration", ylabel="Dice + cross-entropy loss", ylim=(0, None))
        right = left.twinx()
        for name, points in _validation(run, steps):
            right.plot(points["iteration"], points["dice"], marker="o", markersize=3, label=name)
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
        text = io.StringIO()
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
        plt.close(figure)
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace(_INK, "currentColor")


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


def _dataset_part(
    run: Path, rows: pd.DataFrame, name: str, root: Root, strategy: str | None, pixels: int
) -> DatasetPart:
    """A dataset whose scans cannot be had still gets its table."""
    ours = rows[rows["run"] != BASELINE_RUN]
    chosen = strategy if strategy is not None else _first_strategy(ours)
    title, modality, remarks, column, problem = name, "", "", None, ""
    cases: list[CasePart] = []
    try:
        spec = dataset_spec(name, root.preprocessed)
        title, modality, remarks, column = spec.title, spec.modality, spec.remarks, spec.paper_column
        shown = ours[ours["strategy"] == chosen]
        for rank, case in pick_cases(shown):
            view = _view(run / "predictions" / name / chosen, case, spec, spec.raw_folder(root.raw))
            cases.append(_case_part(rank, case, shown[shown["case"] == case], view, pixels))
        if not cases:
            problem = f"the strategy '{chosen}' has no scored case here."
    except (IrisError, OSError) as error:
        problem = str(error)
    table = dataset_table(rows, name, column)
    return DatasetPart(name, title, modality, remarks, table, chosen, tuple(cases), problem)


def _first_strategy(rows: pd.DataFrame) -> str:
    there = sorted(set(rows["strategy"]))
    return next((name for name in STRATEGY_ORDER if name in there), there[0] if there else "")


def _view(predictions: Path, case: str, spec: DatasetSpec, raw: Path) -> CaseView:
    """Read scan, truth and prediction of a case and bring them together."""
    found = {item.id: item for item in find_cases(raw, spec)}
    if case not in found or found[case].labels is None:
        raise RawDataError(
            f"The scan or the label of case '{case}' is not under {raw}: put it there, or give --raw."
        )
    files = {case_id_of(path): path for path in image_files(predictions)} if predictions.is_dir() else {}
    if case not in files:
        raise RawDataError(f"The prediction of case '{case}' is not in {predictions}: predict it again.")
    labels = found[case].labels
    assert labels is not None
    classes = read_class_names(predictions) or spec.classes
    predicted = with_values(read_labels(files[case]).array, classes, spec.classes)
    named = {name: value for name, value in spec.classes.items() if name in classes}
    image = found[case].image.read_image()
    return view_case(image, labels.read_labels(), predicted, named, spec.modality, spec.intensity_offset)


def _case_part(rank: str, case: str, rows: pd.DataFrame, view: CaseView, pixels: int) -> CasePart:
    by_class = rows.set_index("class")["dice"]
    scores = tuple(
        (number, name, _text(by_class.get(name)))
        for number, name in enumerate(view.classes, 1)
        if name in by_class
    )
    pictures = tuple(Picture(plane, _uri(plane_picture(view, plane, pixels))) for plane in PLANES)
    return CasePart(rank, case, _text(by_class.mean()), scores, pictures)


def _uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def _text(value: float | None) -> str:
    return "not scored" if value is None or pd.isna(value) else f"{value:.3f}"
