"""iris_encode: references -> task file. iris_tasks: what is known, what is in task files, and merging them."""

from __future__ import annotations

import argparse
from pathlib import Path

from iris_pipeline.checkpoint import load_model
from iris_pipeline.cli._common import choose_device, run
from iris_pipeline.cli._models import (
    add_device_options,
    add_model_options,
    add_reference_options,
    autocast_of,
    encode_references,
    find_run,
    load_run,
    summary,
)
from iris_pipeline.memory_bank import bank_key
from iris_pipeline.task import load_task, save_task
from preprocessing.paths import Root


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
    add_model_options(parser)
    add_reference_options(parser)
    add_device_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _encode_command(arguments))


def _encode_command(arguments: argparse.Namespace) -> int:
    device = choose_device(arguments.device)
    loaded, _ = load_run(arguments, Root.resolve(arguments.root), device)
    task = encode_references(
        loaded, arguments, device, autocast_of(arguments.precision, device), arguments.strategy
    )
    save_task(arguments.o, task)
    print(f"Written: {arguments.o} ({Path(arguments.o).stat().st_size / 1000:.0f} kB).")
    return 0


def tasks_main(argv: list[str] | None = None) -> int:
    """`iris_tasks`: what a model remembers, or what is in task files; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_tasks", description="List the tasks that a model remembers, or what is in task files."
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="task files (default: the model's memory bank)"
    )
    add_model_options(parser)
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
            print(f"{path}: {summary(task)}; {task.modality}, {made}, model {task.model_hash}")
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
