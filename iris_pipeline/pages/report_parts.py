"""The parts of a report's page: a dataset's tables, box plot and pictured cases, and the figures at the top.

Metrics are read by the names of their columns: an evaluation that has more of them shows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from iris_pipeline import paper
from iris_pipeline.evaluation.evaluate import dataset_spec, image_files, with_values
from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.pages.figures import box_plot
from iris_pipeline.pages.layers import plane_layers
from iris_pipeline.pages.overlays import PLANES, CaseView, view_case
from iris_pipeline.provenance import without_machine
from iris_pipeline.tables.comparisons import by_draw, distinct, drawn_strategy
from iris_pipeline.tables.draws_table import class_draws_table
from iris_pipeline.tables.measure_tables import COLUMNS, measures_table, with_absolute
from iris_pipeline.tables.result_tables import class_means, dataset_table, of_test_parts, strategy_place
from iris_pipeline.tables.table_format import Table
from preprocessing.adapters import find_cases
from preprocessing.case import on_grid_of_image
from preprocessing.errors import IrisError, RawDataError
from preprocessing.runtime.paths import Root
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.mending import by_segment_names
from preprocessing.sources.source import FileSource
from preprocessing.spec import DatasetSpec
from preprocessing.volume import case_id_of

RANKS = ("best", "median", "worst")
LARGEST_PLOT = 6
"""Strategies in a box plot: with more, boxes cannot be told apart."""


@dataclass(frozen=True)
class Picture:
    """One plane of one case, drawn."""

    plane: str
    drawing: Markup


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
    """One dataset on the page. over_draws: None where no references were drawn twice. problem: why there are no
    pictures, one sentence, or "".
    """

    name: str
    title: str
    modality: str
    role: str
    remarks: str
    over_draws: Table | None
    table: Table
    measures: Table | None
    strategy: str
    classes: Table
    boxes: Markup
    all_cases: Table
    cases: tuple[CasePart, ...]
    problem: str


def dataset_part(
    run: Path,
    rows: pd.DataFrame,
    name: str,
    root: Root,
    strategy: str | None,
    pixels: int,
    plotted: Sequence[str],
) -> DatasetPart:
    """A dataset whose scans cannot be had still gets its tables. rows: its own; plotted: strategies of the plots."""
    ours = rows[rows["run"] != BASELINE_RUN]
    chosen = strategy if strategy is not None else first_strategy(ours)
    shown = ours[ours["strategy"] == chosen]
    title, modality, role, remarks, column, problem = name, "", "", "", None, ""
    cases: list[CasePart] = []
    try:
        spec = dataset_spec(name, root.preprocessed)
        title, modality, role = spec.title, spec.modality, spec.role
        remarks, column = spec.remarks, paper.whole_column(spec)
        for rank, case in pick_cases(shown):
            view = read_view(run / "predictions" / name / chosen, case, spec, spec.raw_folder(root.raw))
            cases.append(_case_part(rank, case, shown[shown["case"] == case], view, pixels, title))
        if not cases:
            problem = f"the strategy '{chosen}' has no scored case here."
    except (IrisError, OSError) as error:
        problem = without_machine(str(error))
    return DatasetPart(
        name=name,
        title=title,
        modality=modality,
        role=role,
        remarks=remarks,
        over_draws=class_draws_table(rows, name, column),
        table=dataset_table(rows, name, column),
        measures=measures_table(rows, name),
        strategy=chosen,
        classes=class_table(shown, name),
        boxes=box_plot(ours, "class", plotted, f"Box plot of the Dice of each class of {title}"),
        all_cases=case_table(shown, name),
        cases=tuple(cases),
        problem=problem,
    )


def class_table(rows: pd.DataFrame, dataset: str) -> Table:
    """Rows: classes; columns: scored cases, Dice's mean, spread and range, the means of all other measures."""
    rows = with_absolute(rows)
    others = {name: shown for name, shown in COLUMNS.items() if name != "dice" and rows[name].notna().any()}
    lines = []
    for name, part in rows.groupby("class", sort=False):
        dice = part["dice"].dropna()
        line = {"class": str(name), "cases": str(len(dice))}
        line |= {"Dice": told_score(dice.mean()), "sd": told_score(dice.std() if len(dice) > 1 else None)}
        line |= {"median": told_score(dice.median()), "lowest": told_score(dice.min())}
        line |= {"highest": told_score(dice.max())}
        for measure, (heading, digits) in others.items():
            mean = part[measure].mean()
            line |= {heading: "" if pd.isna(mean) else f"{mean:.{digits}f}"}
        lines.append(line)
    note = (
        "Over the scored cases; sd is the sample's. Other measures are means over the cases that have them."
    )
    return Table(f"{dataset}_classes", "Classes", pd.DataFrame(lines).fillna(""), (note,))


def case_table(rows: pd.DataFrame, dataset: str) -> Table:
    """Rows: cases, worst first; columns: the Dice of each class, their mean."""
    wide = rows.pivot_table(
        index="case", columns="class", values="dice", aggfunc="mean", sort=False, dropna=False
    )
    wide = wide.assign(mean=wide.mean(axis=1)).sort_values("mean", kind="stable")
    frame = wide.map(lambda value: "" if pd.isna(value) else f"{value:.3f}").reset_index()
    frame.columns.name = None
    return Table(f"{dataset}_cases", "All cases", frame, ())


def headline(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(figure, what it is) for the top of the page: sizes, then each strategy's mean Dice, if all datasets have it.

    Of test parts alone where there are any, each split apart. Over a dataset's draws of the references first, those
    that gave the same masks once (as in Tables 1 and 2).
    """
    ours = rows[rows["run"] != BASELINE_RUN]
    tested = of_test_parts(ours)
    ours = ours if tested.empty else tested
    datasets = ours["dataset"].nunique()
    cases = len(ours[["dataset", "case"]].drop_duplicates())
    classes = len(ours[["dataset", "class"]].drop_duplicates())
    told = [
        (str(datasets), "dataset" if datasets == 1 else "datasets"),
        (str(cases), "scans segmented"),
        (str(classes), "class" if classes == 1 else "classes"),
    ]
    several = ours["split"].nunique() > 1
    for split in sorted(set(ours["split"])):
        where = f", {split}" if split and (several or tested.empty) else ""
        told += [
            (figure, what + where) for figure, what in _mean_dice(ours[ours["split"] == split], datasets)
        ]
    return told


def _mean_dice(rows: pd.DataFrame, datasets: int) -> list[tuple[str, str]]:
    """The figures of one split: of each strategy and number of references that as many datasets have."""
    named: dict[str, list[pd.DataFrame]] = {}
    for folder in ordered_strategies(rows):
        part = rows[rows["strategy"] == folder]
        named.setdefault(drawn_strategy(folder, part), []).append(part)
    told = []
    for name, parts in named.items():
        by_dataset = [
            pd.Series([class_means(one).mean() for one in distinct(by_draw(part)).values()]).dropna()
            for _, part in pd.concat(parts).groupby("dataset")
        ]
        counts = [len(means) for means in by_dataset]
        if len(counts) < datasets or not min(counts):
            continue
        drawn = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        figure = sum(means.mean() for means in by_dataset) / datasets
        told.append((f"{figure:.3f}", f"mean Dice, {name}" + (f", {drawn} draws" if drawn != "1" else "")))
    return told


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


def ordered_strategies(rows: pd.DataFrame) -> list[str]:
    """The strategies that are there, in the order of the tables."""
    return sorted(set(rows["strategy"]), key=strategy_place)


def first_strategy(rows: pd.DataFrame) -> str:
    """The one that is pictured if nobody says which; "" without any."""
    return next(iter(ordered_strategies(rows)), "")


def read_view(predictions: Path, case: str, spec: DatasetSpec, raw: Path) -> CaseView:
    """Read scan, truth and prediction of a case and bring them together; RawDataError where one is not there."""
    found = {item.id: item for item in find_cases(raw, spec)}
    if case not in found or found[case].labels is None:
        raise RawDataError(
            f"The scan or the label of case '{case}' is not under {raw}: put it there, or give --raw."
        )
    files = (
        {case_id_of(path, found): path for path in image_files(predictions)} if predictions.is_dir() else {}
    )
    if case not in files:
        raise RawDataError(f"The prediction of case '{case}' is not in {predictions}: predict it again.")
    labels = found[case].labels
    assert labels is not None
    classes = read_class_names(predictions) or spec.classes
    image = found[case].image.read_image()
    found_mask = by_segment_names(FileSource(files[case]), classes)
    truth, mask = (on_grid_of_image(image, each.read_labels()) for each in (labels, found_mask))
    predicted = with_values(mask.array, classes, spec.classes)
    named = {name: value for name, value in spec.classes.items() if name in classes}
    return view_case(image, truth, predicted, named, spec.modality, spec.intensity_offset)


def told_score(value: float | None) -> str:
    """Three digits behind the point, or that there is no score."""
    return "not scored" if value is None or pd.isna(value) else f"{value:.3f}"


def _case_part(rank: str, case: str, rows: pd.DataFrame, view: CaseView, pixels: int, title: str) -> CasePart:
    by_class = rows.set_index("class")["dice"]
    scores = tuple(
        (number, name, told_score(by_class.get(name)))
        for number, name in enumerate(view.classes, 1)
        if name in by_class
    )
    told = "; ".join(f"{name} Dice {dice}" for _, name, dice in scores)
    pictures = tuple(
        Picture(
            plane,
            plane_layers(
                view,
                plane,
                pixels,
                f"{plane.capitalize()} plane of {title}, case {case}, with the outlines of truth and prediction: "
                f"{told}",
            ),
        )
        for plane in PLANES
    )
    return CasePart(rank, case, told_score(by_class.mean()), scores, pictures)
