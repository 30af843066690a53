"""iris_encode: references -> task file. iris_tasks: what is known, what is in task files, and merging them."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import load_model
from iris_pipeline.checkpoints.memory_bank import bank_key
from iris_pipeline.cli._common import choose_device, run
from iris_pipeline.cli._models import add_device_options, add_model_options, autocast_of, find_run, load_run
from iris_pipeline.cli._references import (
    add_reference_options,
    check_fit,
    encoding_of,
    given_references,
    summary,
    tell_task,
    tuned_text,
)
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.query_tasks import ONE_TASK, encode_files
from iris_pipeline.tasks.task import merge
from iris_pipeline.tasks.task_file import check_task_path, load_task, save_task
from preprocessing.runtime.paths import Root
from preprocessing.volume import is_image_path


def encode_main(argv: list[str] | None = None) -> int:
    """`iris_encode -r REFS -o liver.task`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_encode", description="Make a small task file from labelled references."
    )
    parser.add_argument(
        "-r",
        nargs="+",
        required=True,
        metavar="REFS",
        help="folder with images/ and labels/; or IMAGE and LABEL; or IMAGE and a folder of its masks",
    )
    parser.add_argument("-o", required=True, metavar="FILE", help="the task file to write, e.g. liver.task")
    parser.add_argument(
        "--strategy",
        choices=ONE_TASK,
        help="how the references become a task (default: one-shot with one reference, ensemble with several)",
    )
    parser.add_argument(
        "--like", metavar="TASK", help="use the grid of this task file, so that the two can be merged"
    )
    parser.add_argument(
        "--dated",
        action="store_true",
        help="write the time into the file (otherwise the same references give the same bytes)",
    )
    add_model_options(parser)
    add_reference_options(parser)
    add_device_options(parser)
    arguments = parser.parse_args(argv)
    if is_image_path(Path(arguments.o)):
        parser.error(f"-o is the task file to write, such as liver.task, not a scan; got {arguments.o}")
    return run(lambda: _encode_command(arguments))


def _encode_command(arguments: argparse.Namespace) -> int:
    check_fit(arguments, arguments.strategy)
    check_task_path(arguments.o)
    device = choose_device(arguments.device)
    loaded, _ = load_run(arguments, Root.resolve(arguments.root), device)
    given = given_references(arguments)
    files = given.files
    task = encode_files(
        loaded,
        files,
        InferenceOptions(device=device, autocast=autocast_of(arguments.precision, device)),
        strategy=arguments.strategy,
        like=load_task(arguments.like, loaded.model_hash) if arguments.like else None,
        progress=True,
        **encoding_of(arguments),
    )
    tell_task(task, arguments, files.classes)
    if arguments.dated:
        task = replace(task, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    save_task(arguments.o, task)
    print(f"Written: {arguments.o} ({Path(arguments.o).stat().st_size / 1000:.0f} kB).")
    given.raise_for_refused()
    return 0


def tasks_main(argv: list[str] | None = None) -> int:
    """`iris_tasks`: what a model remembers, what is in task files, and their merging; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["merge"]:
        return _merge_main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="iris_tasks",
        description="List the tasks that a model remembers, or what is in task files.",
        epilog="iris_tasks merge A B -o C joins task files: see iris_tasks merge --help.",
    )
    parser.add_argument(
        "files", nargs="*", metavar="[show] FILE", help="task files (default: the model's memory bank)"
    )
    add_model_options(parser)
    arguments = parser.parse_args(argv[1:] if argv[:1] == ["show"] else argv)
    return run(lambda: _tasks_command(arguments))


def _tasks_command(arguments: argparse.Namespace) -> int:
    if arguments.files:
        expected = None
        if arguments.model:
            expected = load_model(find_run(Root.resolve(arguments.root).results, arguments.model)).model_hash
        for path in arguments.files:
            task = load_task(path, expected)
            made = f"{task.made_by}{f', {task.created}' if task.created else ''}"
            print(f"{path}: {summary(task)}; {task.modality}, {made}, model {task.model_hash}")
            for (name, value), count in zip(task.classes.items(), task.class_references, strict=True):
                source = f"{count} reference{'s' * (count != 1)}" if count else "the memory bank"
                print(f"  {value:>3}  {name}: {source}")
            for record in task.tuned:
                print(f"  tuned: {tuned_text(record)}")
        return 0
    loaded, _ = load_run(arguments, Root.resolve(arguments.root), "cpu")
    for dataset, plan in loaded.plans.items():
        spacing = " x ".join(f"{s:g}" for s in plan.spacing_mm)
        print(f"{dataset} ({plan.modality}, {spacing} mm):")
        for name, value in loaded.specs[dataset]["classes"].items():
            updates = loaded.bank.updates(bank_key(dataset, name))
            seen = f"met in {updates} episodes" if updates else "never met: not in the memory bank"
            print(f"  {value:>3}  {name}: {seen}")
    return 0


def _merge_main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="iris_tasks merge",
        description="Join task files of one model and grid: more classes in one task; a class that several have "
        "becomes the mean over all of its references.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="task files")
    parser.add_argument("-o", required=True, metavar="FILE", help="the task file to write")
    arguments = parser.parse_args(argv)
    return run(lambda: _merge_command(arguments))


def _merge_command(arguments: argparse.Namespace) -> int:
    task = merge([load_task(path) for path in arguments.files])
    save_task(arguments.o, task)
    print(f"Task: {summary(task)}; {task.made_by}.")
    print(f"Written: {arguments.o} ({Path(arguments.o).stat().st_size / 1000:.0f} kB).")
    return 0
