"""iris_encode: references -> task file. iris_predict: scans -> label maps. iris_tasks: what is known."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from iris_pipeline.checkpoint import LoadedModel, load_model
from iris_pipeline.cli._common import at_least_one, choose_device, run
from iris_pipeline.inputs import InputCase, find_inputs
from iris_pipeline.memory_bank import bank_key
from iris_pipeline.predict import InferenceOptions, Verdict, predict_folder, raise_for_refused
from iris_pipeline.predict_split import (
    DEFAULT_REFERENCES,
    STRATEGIES,
    check_plan,
    predict_split,
    stored_tasks,
)
from iris_pipeline.references import ReferenceFiles, encode_files, find_references, reference_pair
from iris_pipeline.strategies import bank
from iris_pipeline.task import TaskEmbedding, load_task, save_task
from iris_pipeline.train import native_bfloat16
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import CheckpointError, RawDataError, TaskError
from preprocessing.paths import Root
from preprocessing.store import Store, open_stores


def newest_run(results: Path) -> Path:
    """The finished training run that ended last; CheckpointError if there is none."""
    finished = []
    for path in results.glob("*/run.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if record.get("status") == "finished":
            finished.append((str(record.get("finished", "")), path.parent))
    if not finished:
        raise CheckpointError(
            f"No finished run in {results}: train one with iris_train, or name a model with -m."
        )
    return max(finished)[1]


def find_run(results: Path, model: str | None) -> Path:
    """The run folder that -m means: a name under results/, a path, or (None) the newest finished run."""
    if model is None:
        return newest_run(results)
    for folder in (results / model, Path(model).expanduser()):
        if folder.is_dir():
            return folder
    known = sorted(path.parent.name for path in results.glob("*/run.json"))
    raise CheckpointError(
        f"-m names a run under {results} ({', '.join(known) or 'there is none'}) or a run's folder; got "
        f"{model!r}."
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", help="a run under results/ or its path (default: the newest finished run)"
    )
    parser.add_argument("--root", help="folder of raw/, preprocessed/, results/ (else IRIS_ROOT, else here)")


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="auto: bf16 on GPUs that have it, else fp32",
    )


def _add_reference_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--references",
        type=at_least_one,
        metavar="N",
        help="draw N of the references (default: all of -r, 5 of -d)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of references")
    parser.add_argument(
        "--modality", choices=["CT", "MR", "PET"], help="of the references of -r (default: guessed)"
    )


def _autocast(precision: str, device: str) -> bool:
    return precision == "bf16" or (
        precision == "auto" and device == "cuda" and native_bfloat16(torch.device(device))
    )


def _load(arguments: argparse.Namespace, root: Root, device: str) -> tuple[LoadedModel, Path]:
    folder = find_run(root.results, arguments.model)
    loaded = load_model(folder, device)
    known = ", ".join(loaded.plans) or "nothing"
    print(f"Model: {folder} ({loaded.model_hash}), trained on {known}; on {device}.")
    return loaded, folder


def _reference_files(paths: Sequence[str]) -> ReferenceFiles:
    """-r FOLDER, or -r IMAGE LABEL."""
    if len(paths) > 2:
        raise RawDataError(
            f"-r takes one folder of references, or one image and its label file; got {len(paths)} paths."
        )
    if len(paths) == 2:
        return reference_pair(Path(paths[0]), Path(paths[1]))
    files = find_references(Path(paths[0]))
    if files.unpaired:
        print(f"Left out, for want of an image or a label file: {', '.join(files.unpaired)}.")
    return files


def _encode(
    loaded: LoadedModel, arguments: argparse.Namespace, device: str, autocast: bool, strategy: str | None
) -> TaskEmbedding:
    files = _reference_files(arguments.r)
    task = encode_files(
        loaded,
        files,
        strategy=strategy,
        count=arguments.references,
        seed=arguments.seed,
        modality=arguments.modality,
        device=device,
        autocast=autocast,
    )
    guessed = "" if arguments.modality else " (guessed: --modality says it better)"
    print(f"Task: {_summary(task)}; modality {task.modality}{guessed}.")
    absent = [name for name in files.classes if name not in task.class_names]
    if absent:
        print(f"Warning: no reference shows {', '.join(absent)}; the task is without.")
    return replace(task, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def _summary(task: TaskEmbedding) -> str:
    spacing = " x ".join(f"{s:g}" for s in task.spacing_mm)
    source = (
        f"{task.references} reference{'s' * (task.references != 1)}" if task.references else "the memory bank"
    )
    return f"{', '.join(task.class_names)} from {source} at {spacing} mm"


def encode_main(argv: list[str] | None = None) -> int:
    """`iris_encode -r REFS -o liver.task`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_encode", description="Labelled references -> a small task file."
    )
    parser.add_argument(
        "-r", nargs="+", required=True, metavar="REFS", help="folder with images/ and labels/, or IMAGE LABEL"
    )
    parser.add_argument("-o", required=True, metavar="FILE", help="the task file to write, e.g. liver.task")
    parser.add_argument(
        "--strategy", choices=["one-shot", "ensemble"], help="default: ensemble if there are several"
    )
    _add_model_options(parser)
    _add_reference_options(parser)
    _add_device_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _encode_command(arguments))


def _encode_command(arguments: argparse.Namespace) -> int:
    device = choose_device(arguments.device)
    loaded, _ = _load(arguments, Root.resolve(arguments.root), device)
    task = _encode(loaded, arguments, device, _autocast(arguments.precision, device), arguments.strategy)
    save_task(arguments.o, task)
    print(f"Written: {arguments.o} ({Path(arguments.o).stat().st_size / 1000:.0f} kB).")
    return 0


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
    _add_model_options(parser)
    parser.add_argument("--raw", help="folder of the raw datasets (default: raw/ under the root)")
    _add_reference_options(parser)
    _add_device_options(parser)
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
        autocast=_autocast(arguments.precision, device),
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
    loaded, _ = _load(arguments, root, options.device)
    out = Path(arguments.o)
    print(f"{len(inputs)} scan{'s' * (len(inputs) != 1)} from {arguments.i} to {out}.")
    if arguments.t or arguments.r:
        if arguments.t:
            task = load_task(arguments.t, loaded.model_hash)
            print(f"Task: {_summary(task)}.")
        else:
            task = _encode(loaded, arguments, options.device, options.autocast, arguments.strategy)
        return predict_folder(loaded, task, inputs, out, options, overwrite=arguments.overwrite)
    dataset = _dataset(arguments, loaded)
    if arguments.strategy in (None, "bank"):
        task = bank(loaded, dataset)
        print(f"Task: {_summary(task)}.")
        return predict_folder(loaded, task, inputs, out, options, overwrite=arguments.overwrite)
    task = _stored_task(arguments, root, loaded, dataset, {case.id for case in inputs}, options)
    print(f"Task: {_summary(task)}.")
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
    folder = store.manifest.spec.raw_folder(root.raw)
    return find_cases(folder, store.manifest.spec) if folder.is_dir() else []


def _predict_split(arguments: argparse.Namespace, root: Root, options: InferenceOptions) -> list[Verdict]:
    if arguments.t or arguments.r:
        raise TaskError("--split is a split of a dataset: it goes with -d, not with -t or -r.")
    loaded, folder = _load(arguments, root, options.device)
    dataset = _dataset(arguments, loaded)
    strategy = arguments.strategy or "bank"
    store = open_stores(root.preprocessed, [dataset])[dataset]
    cases = _raw_cases(root, store)
    if not cases:
        raise RawDataError(
            "Results are to lie on the raw grids, so the raw scans are needed: there is no "
            f"{store.manifest.spec.raw_folder(root.raw)}; name the folder of the raw datasets with --raw."
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


def tasks_main(argv: list[str] | None = None) -> int:
    """`iris_tasks`: what a model remembers, or what is in task files; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_tasks", description="List the tasks that a model remembers, or what is in task files."
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="task files (default: the model's memory bank)"
    )
    _add_model_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _tasks_command(arguments))


def _tasks_command(arguments: argparse.Namespace) -> int:
    if arguments.files:
        expected = None
        if arguments.model:
            expected = load_model(find_run(Root.resolve(arguments.root).results, arguments.model)).model_hash
        for path in arguments.files:
            task = load_task(path, expected)
            made = f"{task.made_by}{f', {task.created}' if task.created else ''}"
            print(f"{path}: {_summary(task)}; {task.modality}, {made}, model {task.model_hash}")
        return 0
    loaded, _ = _load(arguments, Root.resolve(arguments.root), "cpu")
    for dataset, plan in loaded.plans.items():
        spacing = " x ".join(f"{s:g}" for s in plan.spacing_mm)
        print(f"{dataset} ({plan.modality}, {spacing} mm):")
        for name, value in loaded.specs[dataset]["classes"].items():
            updates = loaded.bank.updates(bank_key(dataset, name))
            seen = f"met in {updates} episodes" if updates else "never met: not in the memory bank"
            print(f"  {value:>3}  {name}: {seen}")
    return 0
