"""iris_export_nnunet: the same cases and the same split for nnU-Net. iris_export_model: a run's model to share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from iris_pipeline.checkpoints.averaged import averaged
from iris_pipeline.checkpoints.checkpoint import check_no_model_in, export_checkpoint, load_model
from iris_pipeline.cli._common import at_least_one, run
from iris_pipeline.cli._models import find_run
from iris_pipeline.confidence.judging import store_at_hand
from iris_pipeline.nnunet.export import export_dataset
from iris_pipeline.prediction.bank_tasks import stored_pieces, stored_surroundings
from preprocessing.adapters import find_cases
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option, add_root_option
from preprocessing.runtime.parallel import default_workers
from preprocessing.runtime.paths import Root
from preprocessing.store import open_stores


def export_nnunet_main(argv: list[str] | None = None) -> int:
    """`iris_export_nnunet -d NAME`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_export_nnunet",
        description="Write a preprocessed dataset's raw cases and its split as an nnU-Net (v2) dataset.",
    )
    parser.add_argument("-d", type=stored_name, required=True, metavar="NAME", help="a preprocessed dataset")
    parser.add_argument(
        "-o",
        metavar="OUT",
        help="folder for nnUNet_raw/ and nnUNet_preprocessed/ (default: nnunet/ under the root)",
    )
    parser.add_argument(
        "--references",
        nargs="+",
        metavar="CASE",
        default=[],
        help="train on these labelled cases only, as an in-context model does; the test part is the test cases "
        "of other people (a held-out dataset must be exported this way)",
    )
    parser.add_argument(
        "--number",
        type=at_least_one,
        metavar="N",
        help="number of nnU-Net's dataset (default: a free one from 501 on)",
    )
    parser.add_argument("--overwrite", action="store_true", help="make files again that are already there")
    parser.add_argument(
        "--workers", type=at_least_one, default=default_workers(), help="processes (default: one per core)"
    )
    add_root_option(parser)
    add_raw_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _export_command(arguments))


def export_model_main(argv: list[str] | None = None) -> int:
    """`iris_export_model RUN... -o FOLDER`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_export_model",
        description="Export a run's model as float16 weights with its memory bank: half as large, but training cannot "
        "be resumed. From several runs that started from the same weights, export their mean.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs under results/, or their folders")
    parser.add_argument(
        "-o", required=True, metavar="FOLDER", help="the new model's folder, for iris_predict -m"
    )
    add_root_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _export_model_command(arguments))


def _export_model_command(arguments: argparse.Namespace) -> int:
    root, out = Root.resolve(arguments.root), Path(arguments.o).expanduser()
    check_no_model_in(out)  # before what takes minutes
    loaded = averaged([load_model(find_run(root.results, name)) for name in arguments.runs])
    at_hand = {name: store_at_hand(loaded, root.preprocessed / name) for name in loaded.plans}
    stores = {name: store for name, store in at_hand.items() if store is not None}
    told, around = loaded.state.pieces or {}, loaded.state.surroundings or {}
    pieces = {name: stored_pieces(loaded, store) for name, store in stores.items() if name not in told}
    found = {name: stored_surroundings(loaded, stores[name]) for name in stores.keys() - around.keys()}
    surroundings = {name: each for name, each in found.items() if each is not None}
    model_hash = export_checkpoint(loaded, out, pieces, surroundings)
    size = sum(path.stat().st_size for path in out.iterdir())
    whose = f", the mean of {len(arguments.runs)} runs" if len(arguments.runs) > 1 else ""
    print(f"Written: {out} ({size / 1e6:.1f} MB), model {model_hash}{whose}; use it with -m {out}.")
    trained = loaded.state.trained or {}
    cases = {(name, each) for name, parts in trained.items() for part in parts for each in part.cases or ()}
    if cases:
        print(
            f"Its state.json names the {len(cases)} cases that it has learnt from, and their subjects: see whether "
            "they may be known before you give it away."
        )
    return 0


def _export_command(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    store = open_stores(root.preprocessed, [arguments.d])[arguments.d]
    out = Path(arguments.o).expanduser() if arguments.o else root.results.parent / "nnunet"
    done = export_dataset(
        store,
        find_cases(store.manifest.spec.raw_folder(root.raw), store.manifest.spec),
        out,
        references=arguments.references,
        number=arguments.number,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
    )
    numbers = ", ".join(f"{len(done.split[part])} {part}" for part in ("train", "validation", "test"))
    print(
        f"{done.dataset}: {numbers} cases{' (the references train and validate)' if arguments.references else ''}; "
        f"{done.written} written, {done.skipped} there already."
    )
    print("Labels: " + ", ".join(f"{value} {name}" for name, value in done.values.items()))
    if done.unvalidated and not arguments.references:
        print(
            f"Note: no validation case in fold {', '.join(map(str, done.unvalidated))}: since nnU-Net needs some, its "
            "training cases validate it, and its validation score says nothing."
        )
    if store.manifest.spec.partly_labelled:
        print(
            f"Note: {store.manifest.dataset} is partly labelled: a class that a case lacks is unknown there, but "
            "nnU-Net will learn it as background."
        )
    folds = "" if arguments.references else "; folds 1 to 5: our folds 0 to 4"
    if arguments.references:
        tests, count = " ".join(done.split["test"]), len(done.split["train"])
        print(
            f"Its masks in the tables: iris_evaluate --method nnU-Net -p MASKS -d {arguments.d} --strategy trained "
            f"--references {count} --cases {tests}"
        )
    print(f"Written: {done.raw} and {done.splits} (fold 0: train and validation{folds})")
    return 0
