"""One HTML page about one run: what was run, its tables, its training, pictures of good and bad cases, what the
model makes of each class, and what became of the raw scans.

The page holds everything itself (styles, script, figures, pictures) and asks nothing of a network. Arrays are
[D,H,W] = (z,y,x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from iris_pipeline.evaluation.evaluate import dataset_spec
from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.pages.embedding_map import EmbeddingMap, embedding_map
from iris_pipeline.pages.embeddings import CASES_PER_DATASET, run_embeddings
from iris_pipeline.pages.environment import page_environment
from iris_pipeline.pages.figures import SERIES, box_plot, group_order, map_plot, marker, training_curve
from iris_pipeline.pages.intake import WORDS, Intake, intake_of
from iris_pipeline.pages.overlays import CONVENTION, PLANES, PREDICTION, TRUTH, case_figure
from iris_pipeline.pages.report_parts import (
    LARGEST_PLOT,
    RANKS,
    DatasetPart,
    dataset_part,
    first_strategy,
    headline,
    ordered_strategies,
    pick_cases,
    read_view,
    told_score,
)
from iris_pipeline.provenance import without_machine
from iris_pipeline.tables.draws_table import dataset_draws_table
from iris_pipeline.tables.result_tables import (
    PAPER_RUN,
    ROW_KEY,
    collect_rows,
    of_test_parts,
    overview_table,
    read_run,
)
from preprocessing.errors import EvaluationError, IrisError
from preprocessing.plan import MANIFEST
from preprocessing.runtime.files import replaced, write_text
from preprocessing.runtime.paths import Root
from preprocessing.runtime.progress import Bar

PAGE = "report.html"
LARGEST_PAGE_BYTES = 10_000_000
PICTURE_PIXELS = 560
# Measured on noisy MR, the costliest: bytes of a pixel as WebP at quality 82, in base64.
BYTES_A_PIXEL = 0.5


@dataclass(frozen=True)
class MapPart:
    """The embeddings on the page. legend: (group, its number, its marker)."""

    found: EmbeddingMap
    tsne: Markup
    pca: Markup
    legend: tuple[tuple[str, int, Markup], ...]


def write_report(
    run: Path,
    root: Root,
    made_by: str,
    *,
    out: Path | None = None,
    strategy: str | None = None,
    embedded_cases: int = CASES_PER_DATASET,
    progress: bool = True,
) -> tuple[Path, list[str]]:
    """Write the page of the run in folder `run`, by default as report.html inside.

    Returns the page and sentences about what it had to leave out. root.raw has the scans for the pictures,
    root.preprocessed the stores for intake and embeddings; what is not there the page goes without and tells
    so. strategy: the one that is pictured, by default the first of one-shot, ensemble, ... that a dataset has.
    Raises EvaluationError if nothing of the run was evaluated, or the page would be above 10 MB.
    """
    rows = collect_rows(run.parent, [run.name])
    datasets = sorted(set(rows["dataset"]))
    pixels = picture_pixels(len(datasets) * len(RANKS) * len(PLANES))
    bar = Bar(datasets, desc="pictures", unit="dataset", disable=not progress, dynamic_ncols=True)
    plotted = ordered_strategies(rows[rows["run"] != BASELINE_RUN])[:LARGEST_PLOT]
    parts = [
        dataset_part(run, rows[rows["dataset"] == name], name, root, strategy, pixels, plotted)
        for name in bar
    ]
    left_out = [f"No pictures of {part.name}: {part.problem}" for part in parts if part.problem]
    intakes: list[Intake] = []
    for name in dict.fromkeys([*datasets, *_stored(root.preprocessed)]):
        try:
            intakes.append(intake_of(root.preprocessed / name))
        except IrisError as error:
            left_out.append(f"No intake of {name}: {error}")
    embedded: MapPart | str
    try:
        embedded = _map_part(run, root, embedded_cases, progress)
    except IrisError as error:
        embedded = without_machine(str(error))
        left_out.append(f"No map of embeddings: {error}")
    html = render(run, rows, parts, intakes, embedded, made_by)
    if len(html.encode()) > LARGEST_PAGE_BYTES:
        raise EvaluationError(
            f"A page holds at most {LARGEST_PAGE_BYTES / 1e6:.0f} MB; this one has "
            f"{len(html.encode()) / 1e6:.1f} MB: report fewer datasets."
        )
    path = out or run / PAGE
    write_text(path, html)
    return path, left_out


def write_picture(
    run: Path, root: Root, dataset: str, out: Path, *, strategy: str | None = None, case: str | None = None
) -> str:
    """One case of a run as a picture of its own, in the format that the name `out` ends with; returns its title.

    case: by default the median one by mean Dice, so that nothing is picked by hand. Raises EvaluationError for a
    dataset, strategy or case that the run did not evaluate, RawDataError where a scan or mask is not there.
    """
    rows = collect_rows(run.parent, [run.name])
    rows = rows[(rows["dataset"] == dataset) & (rows["run"] != BASELINE_RUN)]
    chosen = strategy or first_strategy(rows)
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
    view = read_view(run / "predictions" / dataset / chosen, str(case), spec, spec.raw_folder(root.raw))
    kind = "case" if of_test_parts(rows[rows["case"] == case]).empty else "test case"
    title = f"{spec.title}, {kind} {case}, {chosen}: mean Dice {told_score(scores.mean())}"
    figure = case_figure(view, title)
    with replaced(out, out.suffix) as temporary:
        figure.savefig(temporary, dpi=100, facecolor="black")
    return title


def render(
    run: Path,
    rows: pd.DataFrame,
    parts: Sequence[DatasetPart],
    intakes: Sequence[Intake],
    embedded: MapPart | str,
    made_by: str,
) -> str:
    """The page's HTML. embedded: the map, or one sentence why there is none."""
    ours = rows[rows["run"] != BASELINE_RUN]
    strategies = ordered_strategies(ours)[:LARGEST_PLOT]
    return (
        page_environment()
        .get_template(PAGE)
        .render(
            run=run.name,
            facts=read_run(run),
            headline=headline(rows),
            overview=overview_table(rows) if len(parts) > 1 else None,
            overview_over_draws=dataset_draws_table(rows) if len(parts) > 1 else None,
            overview_boxes=_overview_boxes(ours, strategies) if len(parts) > 1 else "",
            strategies=strategies,
            parts=parts,
            intakes=intakes,
            words=WORDS,
            curve=training_curve(run),
            map=None if isinstance(embedded, str) else embedded,
            map_problem=embedded if isinstance(embedded, str) else "",
            convention=CONVENTION,
            truth=TRUTH,
            prediction=PREDICTION,
            quiet_runs=(BASELINE_RUN, PAPER_RUN),
            row_key=ROW_KEY,
            series=SERIES,
            made_by=made_by,
        )
    )


def picture_pixels(pictures: int) -> int:
    """The longer side of each picture, so that all of them together leave the page under its limit."""
    each = 0.8 * LARGEST_PAGE_BYTES / max(pictures, 1) / BYTES_A_PIXEL
    return max(120, min(PICTURE_PIXELS, int(math.sqrt(each))))


def _stored(preprocessed: Path) -> list[str]:
    return sorted(path.parent.name for path in preprocessed.glob(f"*/{MANIFEST}"))


def _overview_boxes(rows: pd.DataFrame, strategies: Sequence[str]) -> Markup:
    """Box plots of the cases' mean Dice: a line a dataset and strategy."""
    means = rows.groupby(["dataset", "strategy", "case"], sort=False)["dice"].mean().reset_index()
    return box_plot(
        means.sort_values("dataset", kind="stable"), "dataset", strategies, "Box plot of each dataset's Dice"
    )


def _map_part(run: Path, root: Root, cases: int, progress: bool) -> MapPart:
    found = embedding_map(run_embeddings(run, root.preprocessed, cases=cases, progress=progress))
    order = group_order(found.points["group"])
    legend = tuple((name, number % SERIES, Markup(marker(number, 8, 8, 5))) for name, number in order.items())
    return MapPart(
        found,
        map_plot(found.points, "tsne", "Map of task embeddings by t-SNE, coloured by anatomy"),
        map_plot(found.points, "pca", "Map of task embeddings by principal components, coloured by anatomy"),
        legend,
    )
