"""How much of the truth survives a store's grid: the Dice of label maps sent there and back, the most a model can get.

Each test case's labels are brought to the plan's spacing and back to their own grid, as prediction brings masks back;
no model has a part in it. A class whose ceiling is low asks for a finer spacing than the plan's. The paper gives no
such figure. `--spacing` tries another one (mm, all axes) without making a store.

    python benchmarks/grid_ceiling.py --raw ../shared/data
    python benchmarks/grid_ceiling.py -d ibsr18 --spacing 1.5 --raw ../shared/data
"""

from __future__ import annotations

import argparse

import pandas as pd
from tqdm import tqdm

from iris_pipeline.cli._splits import raw_cases
from iris_pipeline.measures.metrics import dice
from preprocessing.case import preprocess_case
from preprocessing.runtime.paths import Root
from preprocessing.store import Store, open_stores


def ceilings(root: Root, store: Store, spacing_mm: tuple[float, float, float]) -> list[dict[str, object]]:
    """One row a test case and class: the Dice of its labels with themselves after the journey."""
    cases = {case.id: case for case in raw_cases(root, store)}
    rows = []
    for name in tqdm(store.manifest.splits["paper"]["test"], desc=store.manifest.dataset, leave=False):
        labels = cases[name].labels
        if labels is None:
            continue
        image, truth = cases[name].image.read_image(), labels.read_labels()
        prepared = preprocess_case(image, spacing_mm, store.plan.normalisation, truth)
        assert prepared.labels is not None
        back = prepared.trace.undo_labels(prepared.labels)
        rows += [
            {
                "dataset": store.manifest.dataset,
                "spacing, mm": " x ".join(f"{s:g}" for s in spacing_mm),
                "class": class_name,
                "ceiling": dice(truth.array == value, back == value),
            }
            for class_name, value in store.manifest.classes.items()
            if (truth.array == value).any()
        ]
    return rows


def main() -> None:
    """Print the mean of every class over the test cases, datasets in the order of their names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-d", nargs="+", metavar="NAME", help="datasets of the store (default: all)")
    parser.add_argument("--spacing", type=float, metavar="MM", help="default: the plan's")
    parser.add_argument("--raw", help="folder of the raw datasets (default: raw/ under the root)")
    parser.add_argument("--root", help="folder of raw/, preprocessed/ (else IRIS_ROOT, else here)")
    arguments = parser.parse_args()
    root = Root.resolve(arguments.root, arguments.raw)
    rows = []
    for store in open_stores(root.preprocessed, arguments.d).values():
        spacing = (arguments.spacing,) * 3 if arguments.spacing else store.plan.spacing_mm
        rows += ceilings(root, store, spacing)
    frame = pd.DataFrame(rows)
    keys = ["dataset", "spacing, mm", "class"]
    print(frame.groupby(keys, sort=False)["ceiling"].mean().round(3).to_string())
    print(frame.groupby(keys[:2], sort=False)["ceiling"].mean().round(3).to_string())


if __name__ == "__main__":
    main()
