"""iris_predict: scans -> label maps, with a task file, with references, or with what a model remembers."""

from __future__ import annotations

import argparse
from pathlib import Path

from iris_pipeline.checkpoint import LoadedModel
from iris_pipeline.cli._common import choose_device, run
from iris_pipeline.cli._models import (
    add_device_options,
    add_model_options,
    add_reference_options,
    autocast_of,
    encode_references,
    load_run,
    summary,
)
from iris_pipeline.inputs import InputCase, find_inputs
from iris_pipeline.predict import InferenceOptions, Verdict, predict_folder, raise_for_refused
from iris_pipeline.predict_split import (
    DEFAULT_REFERENCES,
    STRATEGIES,
    check_plan,
    predict_split,
    stored_tasks,
)
from iris_pipeline.strategies import bank
from iris_pipeline.task import TaskEmbedding, load_task
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import RawDataError, TaskError
from preprocessing.paths import Root
from preprocessing.store import Store, open_stores


def predict_main(argv: list[str] | None = None) -> int:
    """`iris_predict -i IN -o OUT`; returns the exit status, 1 if a case could not be segmented."""
    parser = argparse.ArgumentParser(
        prog="iris_predict",
        description="Segment scans: with a task file, with references, or with what a model remembers.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-i", metavar="IN", help="a scan, a folder of scans (nnU-Net names too), a DICOM series folder"
    )
    what.add_argument("--split", metavar="SPLIT", help="instead: this split's part of -d, from the raw files")
    parser.add_argument(
        "--part", choices=["test", "validation"], default="test", help="of --split (default: test)"
    )
    parser.add_argument(
        "-o", metavar="OUT", help="folder of the results (--split: default results/<run>/predictions/...)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-t", metavar="FILE", help="a task file of iris_encode")
    how.add_argument("-r", nargs="+", metavar="REFS", help="folder with images/ and labels/, or IMAGE LABEL")
    how.add_argument(
        "-d", metavar="DATASET", help="a dataset (default: the one the model knows, if it is one)"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="default: bank for -d; for -r one-shot, or ensemble if there are several",
    )
    add_model_options(parser)
    parser.add_argument("--raw", help="folder of the raw datasets (default: raw/ under the root)")
    add_reference_options(parser)
    add_device_options(parser)
    parser.add_argument(
        "--weights", choices=["gaussian", "uniform"], default="gaussian", help="of window voxels"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.5, help="share of a window that its neighbour covers too"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="windows run together")
    parser.add_argument("--overwrite", action="store_true", help="make results anew that are there")
    arguments = parser.parse_args(argv)
    if arguments.i is not None and arguments.o is None:
        parser.error("-o OUT is needed with -i IN")
    return run(lambda: _predict_command(arguments))


def _predict_command(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    device = choose_device(arguments.device)
    options = InferenceOptions(
        overlap=arguments.overlap,
        weighting=arguments.weights,
        batch_size=arguments.batch_size,
        device=device,
        autocast=autocast_of(arguments.precision, device),
    )
    if arguments.strategy == "bank" and (arguments.t or arguments.r):
        raise TaskError("The memory bank serves datasets: --strategy bank goes with -d, not with -t or -r.")
    if arguments.strategy and arguments.t:
        raise TaskError("A task file has its strategy in it: leave --strategy out with -t.")
    if arguments.split is not None:
        verdicts = _predict_split(arguments, root, options)
    else:
        verdicts = _predict_inputs(arguments, root, options)
    done, skipped = (sum(v.status == status for v in verdicts) for status in ("done", "skipped"))
    print(f"{done} segmented, {skipped} skipped as already there, {len(verdicts) - done - skipped} refused.")
    raise_for_refused(verdicts)
    return 0


def _predict_inputs(arguments: argparse.Namespace, root: Root, options: InferenceOptions) -> list[Verdict]:
    inputs, notes = find_inputs(Path(arguments.i))
    for note in notes:
        print(f"Note: {note}")
    loaded, _ = load_run(arguments, root, options.device)
    out = Path(arguments.o)
    print(f"{len(inputs)} scan{'s' * (len(inputs) != 1)} from {arguments.i} to {out}.")
    if arguments.t or arguments.r:
        if arguments.t:
            task = load_task(arguments.t, loaded.model_hash)
            print(f"Task: {summary(task)}.")
        else:
            task = encode_references(loaded, arguments, options.device, options.autocast, arguments.strategy)
        return predict_folder(loaded, task, inputs, out, options, overwrite=arguments.overwrite)
    dataset = _dataset(arguments, loaded)
    if arguments.strategy in (None, "bank"):
        task = bank(loaded, dataset)
        print(f"Task: {summary(task)}.")
        return predict_folder(loaded, task, inputs, out, options, overwrite=arguments.overwrite)
    task = _stored_task(arguments, root, loaded, dataset, {case.id for case in inputs}, options)
    print(f"Task: {summary(task)}.")
    return predict_folder(loaded, task, inputs, out, options, overwrite=arguments.overwrite)


def _dataset(arguments: argparse.Namespace, loaded: LoadedModel) -> str:
    """-d, or the one dataset that the model knows."""
    if arguments.d:
        return str(arguments.d)
    if len(loaded.plans) != 1:
        raise TaskError(
            f"The model knows {len(loaded.plans)} datasets ({', '.join(loaded.plans)}): choose one with -d, "
            "or give a task file with -t or references with -r."
        )
    return next(iter(loaded.plans))


def _stored_task(
    arguments: argparse.Namespace,
    root: Root,
    loaded: LoadedModel,
    dataset: str,
    input_ids: set[str],
    options: InferenceOptions,
) -> TaskEmbedding:
    """A task from references of the unified store's train part."""
    store = open_stores(root.preprocessed, [dataset])[dataset]
    check_plan(loaded, store)
    split = store.manifest.splits.get(str(loaded.state.settings.get("split")), store.manifest.splits["paper"])
    # A scan that bears the name of a stored case may be that case: it is no reference then.
    ids = [case_id for case_id in split["train"] if case_id not in input_ids]
    if not ids:
        raise TaskError(
            f"Dataset {dataset} has no train case to be a reference ({store.manifest.role}): give references "
            "with -r."
        )
    count = 1 if arguments.strategy == "one-shot" else arguments.references or DEFAULT_REFERENCES
    raw = {case.id: case for case in _raw_cases(root, store)}
    return stored_tasks(loaded, store, ids, count, arguments.seed, options, raw)(InputCase("", None))


def _raw_cases(root: Root, store: Store) -> list[Case]:
    """The dataset's raw cases; none where its raw folder is not at hand."""
    folder = root.raw / store.manifest.dataset
    return find_cases(folder, store.manifest.spec) if folder.is_dir() else []


def _predict_split(arguments: argparse.Namespace, root: Root, options: InferenceOptions) -> list[Verdict]:
    if arguments.t or arguments.r:
        raise TaskError("--split is a split of a dataset: it goes with -d, not with -t or -r.")
    loaded, folder = load_run(arguments, root, options.device)
    dataset = _dataset(arguments, loaded)
    strategy = arguments.strategy or "bank"
    store = open_stores(root.preprocessed, [dataset])[dataset]
    cases = _raw_cases(root, store)
    if not cases:
        raise RawDataError(
            "Results are to lie on the raw grids, so the raw scans are needed: there is no "
            f"{root.raw / dataset}; name the folder of the raw datasets with --raw."
        )
    name = strategy if arguments.part == "test" else f"{strategy}_{arguments.part}"
    out = Path(arguments.o) if arguments.o else folder / "predictions" / dataset / name
    print(f"{dataset}, {arguments.part} part of split '{arguments.split}', {strategy}, to {out}.")
    return predict_split(
        loaded,
        store,
        cases,
        split=arguments.split,
        part=arguments.part,
        strategy=strategy,
        references=arguments.references or DEFAULT_REFERENCES,
        seed=arguments.seed,
        out=out,
        options=options,
        overwrite=arguments.overwrite,
    )
