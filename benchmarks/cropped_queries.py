"""What is lost where a query shows less of the body: whole scans, and scans cropped to the classes.

Each test case is segmented with one look and with two (`second_look.py`): the whole scan, and the box of all of its
classes with `--margin` voxels on each side. Of a held-out dataset one-shot, from references of other people as
`iris_predict --split` draws them; of one that the model was trained on by its memory bank. Dice is counted on what was
segmented. OUT/cropped.csv has a row a case, and OUT/cropped.md the means over classes and cases.

    python benchmarks/cropped_queries.py lung_mr chaos_t2 -m iris_small_6 --draws 0 1 --raw ../shared/data
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.cli._common import choose_device, not_negative
from iris_pipeline.cli._models import (
    add_device_options,
    add_model_options,
    autocast_of,
    load_run,
    results_folder,
)
from iris_pipeline.cli._splits import raw_cases
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.measures.metrics import label_overlaps
from iris_pipeline.prediction.bank_tasks import bank_task
from iris_pipeline.prediction.predict_split import Experiment, TaskOf, held_out_tasks, reference_ids
from iris_pipeline.provenance import made_by
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.scan import segment_scan
from iris_pipeline.search.kept_showings import kept_showings
from iris_pipeline.tables.table_format import Table, to_markdown
from preprocessing.adapters import Case
from preprocessing.geometry import bounding_box
from preprocessing.runtime.files import write_text
from preprocessing.runtime.paths import Root
from preprocessing.store import Store, open_stores
from preprocessing.volume import Volume

SHOWN = ("whole scan", "cropped")


def cropped(image: Volume, labels: Volume, margin: int) -> tuple[Volume, Volume]:
    """Both in the box of all labels and `margin` voxels more on each side."""
    found = bounding_box(labels.array > 0)
    assert found is not None
    box = tuple(slice(max(0, edge.start - margin), edge.stop + margin) for edge in found)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [edge.start for edge in reversed(box)]
    return Volume(image.array[box].copy(), affine), Volume(labels.array[box].copy(), affine)


def ways_of(
    loaded: LoadedModel,
    store: Store,
    raw: dict[str, Case],
    draws: list[int],
    options: InferenceOptions,
    cache: EmbeddingCache,
) -> Iterator[tuple[str, TaskOf]]:
    """How a dataset's tasks are made: the name of the way, and what makes a query's task."""
    if store.manifest.role != "held-out":
        task = bank_task(loaded, store.manifest.dataset, store)
        yield "bank", lambda _case, _image: task
        return
    for draw in draws:
        experiment, ids = Experiment(seed=draw), reference_ids(store, "paper")
        yield (
            f"one-shot, draw {draw}",
            held_out_tasks(loaded, store, raw, ids, experiment, options, cache=cache),
        )


def rows_of(
    loaded: LoadedModel,
    store: Store,
    raw: dict[str, Case],
    way: tuple[str, TaskOf],
    margin: int,
    options: InferenceOptions,
) -> Iterator[dict[str, object]]:
    """A row a test case, way of showing it and number of looks."""
    name, task_of = way
    classes, cases = store.manifest.classes, store.manifest.splits["paper"]["test"]
    for case in tqdm(cases, desc=f"{store.manifest.dataset}, {name}", leave=False):
        labelled = raw[case].labels
        if labelled is None:
            continue
        image, truth = raw[case].image.read_image(), labelled.read_labels()
        task = task_of(InputCase(case, raw[case].image, store.entry(case).subject), image)
        for shown in SHOWN:
            scan, labels = (image, truth) if shown == SHOWN[0] else cropped(image, truth, margin)
            for looks in (1, 2):
                asked = task if looks == 2 else replace(task, surroundings=())
                found = segment_scan(loaded, [asked], scan, options).labels
                dice = [each.dice for each in label_overlaps(found, labels.array, classes).values()]
                yield {
                    "dataset": store.manifest.dataset,
                    "task": name,
                    "case": case,
                    "query": shown,
                    "looks": looks,
                    "dice": float(np.nanmean(dice)),
                }


def table_of(frame: pd.DataFrame, margin: int) -> Table:
    """Means over the cases, a column a number of looks."""
    keys = ["dataset", "task", "query"]
    means = frame.groupby([*keys, "looks"], sort=False)["dice"].mean().unstack("looks").reset_index()
    for looks in (1, 2):
        means[looks] = means[looks].map("{:.3f}".format)
    means = means.rename(columns={1: "--looks 1", 2: "--looks 2"}).rename_axis(columns=None)
    return Table(
        "cropped",
        "Queries that show less of the body than their reference",
        means,
        (
            "Dice: mean over the classes of a case, and over the test cases.",
            f"cropped: the box of all classes and {margin} voxels more on each side.",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME", help="datasets of the store")
    parser.add_argument(
        "--draws",
        nargs="+",
        type=not_negative,
        default=[0],
        metavar="N",
        help="of references, of held-out datasets (default: 0)",
    )
    parser.add_argument(
        "--margin", type=not_negative, default=4, help="voxels round the structures (default: 4)"
    )
    parser.add_argument("--raw", help="folder of the raw datasets (default: raw/ under the root)")
    parser.add_argument("--out", type=Path, default=Path("results/cropped"))
    add_model_options(parser)
    add_device_options(parser)
    arguments = parser.parse_args()
    root, device = Root.resolve(arguments.root, arguments.raw), choose_device(arguments.device)
    options = InferenceOptions(
        overlap=0.25, device=device, autocast=autocast_of(arguments.precision, device), skip="air"
    )
    loaded, folder = load_run(arguments, root, device, options.autocast)
    cache = EmbeddingCache(showings=kept_showings(results_folder(folder, root)))
    rows: list[dict[str, object]] = []
    for store in open_stores(root.preprocessed, arguments.datasets).values():
        raw = {case.id: case for case in raw_cases(root, store)}
        for way in ways_of(loaded, store, raw, arguments.draws, options, cache):
            rows += rows_of(loaded, store, raw, way, arguments.margin, options)
    frame = pd.DataFrame(rows)
    page = to_markdown(table_of(frame, arguments.margin), made_by("python", sys.argv), 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    frame.round(4).to_csv(arguments.out / "cropped.csv", index=False)
    write_text(arguments.out / "cropped.md", page)
    print(page)


if __name__ == "__main__":
    main()
