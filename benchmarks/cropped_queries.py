"""What is lost where a query shows less of the body than its reference: whole scans, and scans cropped to the classes.

Each test case of a held-out dataset is segmented one-shot, from references of other people as `iris_predict --split`
draws them, with one look and with two (`second_look.py`): the whole scan, and the box of all of its classes with
`--margin` voxels on each side. Dice is counted on what was segmented. OUT/cropped.csv has a row a case, and
OUT/cropped.md the means over classes and cases.

    python benchmarks/cropped_queries.py lung_mr mscmr -m iris_small_5 --draws 0 1 2 --raw ../shared/data
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.cli._common import choose_device, not_negative
from iris_pipeline.cli._models import add_device_options, add_model_options, autocast_of, load_run
from iris_pipeline.cli._splits import raw_cases
from iris_pipeline.inputs import InputCase
from iris_pipeline.metrics import label_overlaps
from iris_pipeline.pool import EmbeddingCache
from iris_pipeline.predict_split import Experiment, held_out_tasks, reference_ids
from iris_pipeline.scan import segment_scan
from iris_pipeline.sliding_window import InferenceOptions
from preprocessing.files import write_text
from preprocessing.geometry import bounding_box
from preprocessing.paths import Root
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


def rows_of(
    loaded: LoadedModel, root: Root, store: Store, draw: int, margin: int, options: InferenceOptions
) -> Iterator[dict[str, object]]:
    """A row a test case, way of showing it and number of looks."""
    raw = {case.id: case for case in raw_cases(root, store)}
    task_of = held_out_tasks(
        loaded,
        store,
        raw,
        reference_ids(store, "paper"),
        Experiment(seed=draw),
        options,
        cache=EmbeddingCache(),
    )
    classes = store.manifest.classes
    cases = store.manifest.splits["paper"]["test"]
    for name in tqdm(cases, desc=f"{store.manifest.dataset}, draw {draw}", leave=False):
        labelled = raw[name].labels
        if labelled is None:
            continue
        image, truth = raw[name].image.read_image(), labelled.read_labels()
        task = task_of(InputCase(name, raw[name].image, store.entry(name).subject), image)
        for shown in SHOWN:
            scan, labels = (image, truth) if shown == SHOWN[0] else cropped(image, truth, margin)
            for looks in (1, 2):
                asked = task if looks == 2 else replace(task, surroundings=())
                found = segment_scan(loaded, [asked], scan, options).labels
                dice = [each.dice for each in label_overlaps(found, labels.array, classes).values()]
                yield {
                    "dataset": store.manifest.dataset,
                    "draw": draw,
                    "case": name,
                    "query": shown,
                    "looks": looks,
                    "dice": float(np.nanmean(dice)),
                }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME", help="held-out datasets of the store")
    parser.add_argument("--draws", nargs="+", type=not_negative, default=[0], metavar="N")
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
    loaded, _ = load_run(arguments, root, device, options.autocast)
    rows: list[dict[str, object]] = []
    for store in open_stores(root.preprocessed, arguments.datasets).values():
        for draw in arguments.draws:
            rows += rows_of(loaded, root, store, draw, arguments.margin, options)
    frame = pd.DataFrame(rows)
    means = frame.groupby(["dataset", "draw", "query", "looks"])["dice"].mean().unstack("looks")
    table = means.rename(columns=lambda looks: f"--looks {looks}").round(3).reset_index()
    command = shlex.join(["python", *sys.argv])
    lines = [
        "# Queries that show less of the body than their reference",
        "",
        "One-shot Dice: mean over the classes of a case, and over the test cases.",
        "",
        "| " + " | ".join(map(str, table.columns)) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)),
        "",
        f"Made by `{command}`.",
        "",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    frame.round(4).to_csv(arguments.out / "cropped.csv", index=False)
    write_text(arguments.out / "cropped.md", "\n".join(lines))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
