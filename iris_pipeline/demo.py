"""`make demo`: the real commands in a row on three drawn datasets, from raw scans to a table and a page.

Each command is shown as it would be typed and runs in a process of its own. The demo ends with status 1 if a
command fails or if the mean Dice stays under FLOOR.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import load_model
from iris_pipeline.measures.rows import BASELINE_RUN
from iris_pipeline.tables.result_tables import class_means, collect_rows
from preprocessing.errors import EvaluationError, IrisError, RawDataError
from preprocessing.phantoms import KINDS
from preprocessing.store import Store

RUN = "demo"
STRATEGIES = ("one-shot", "bank")
MINUTES = 6.0
FLOOR = 0.35
"""Mean Dice over datasets that each strategy must reach. An untrained model marks nothing (0.00) and marking everything
gives less than 0.1; a busy machine, which fits fewer steps into MINUTES, should still pass."""
MARK = ".made-by-the-demo"


@dataclass(frozen=True)
class Step:
    """One command, and what it is for in a few words."""

    title: str
    command: tuple[str, ...]


def prepare_steps(folder: Path, seed: int) -> list[Step]:
    """Drawn scans -> unified store."""
    return [
        Step(
            "Draw three datasets",
            ("python", "-m", "preprocessing.phantoms", f"{folder}/raw", "--seed", f"{seed}"),
        ),
        Step(
            "Raw scans -> unified store",
            (
                "iris_plan_and_preprocess",
                "-d",
                "all",
                "--policy",
                "fit",
                "--crop",
                "32",
                "32",
                "32",
                "--root",
                f"{folder}",
            ),
        ),
    ]


def train_step(folder: Path, seed: int, length: tuple[str, ...]) -> Step:
    """Unified store -> model; `length` is --minutes or --iterations and its value."""
    # Without blocks at full resolution half as many steps again fit into the minutes; and a bank of the last fifty
    # references, not of the last thousand, remembers nothing of the beginning of so short a run.
    shape = ("--decoder-blocks", "0", "1", "1", "1", "--bank-momentum", "0.98")
    pace = ("--learning-rate", "0.003", "--weight-momentum", "0.99")  # LOG.md: ahead at every validation
    options = (
        "--size",
        "tiny",
        *shape,
        *pace,
        *length,
        "--seed",
        f"{seed}",
        "--name",
        RUN,
        "--root",
        f"{folder}",
    )
    return Step("Train the tiny size", ("iris_train", "paper", *options))


def predict_steps(folder: Path) -> list[Step]:
    """Model -> masks of every test split: from one reference, and from the memory bank."""
    return [
        Step(
            f"Segment the test scans of {kind.name}: {strategy}",
            (
                "iris_predict",
                "--split",
                "paper",
                "-d",
                kind.name,
                "--strategy",
                strategy,
                "-m",
                RUN,
                "--root",
                f"{folder}",
            ),
        )
        for kind in KINDS
        for strategy in STRATEGIES
    ]


def task_file_steps(folder: Path) -> list[Step]:
    """The way a new structure goes: one labelled scan -> a task file -> masks of an unseen scan."""
    name = KINDS[0].name
    store = Store.open(folder / "preprocessed" / name)
    split = store.manifest.splits["paper"]
    whole = [i for i in split["train"] if len(store.entry(i).classes) == len(store.manifest.classes)]
    reference, query, raw = whole[0], split["test"][0], folder / "raw" / name
    model = ("-m", RUN, "--root", f"{folder}")
    return [
        Step(
            "One labelled scan -> a task file",
            (
                *(
                    "iris_encode",
                    "-r",
                    f"{raw}/imagesTr/{reference}.nii.gz",
                    f"{raw}/labelsTr/{reference}.nii.gz",
                ),
                *("--modality", "CT", "-o", f"{folder}/trunk.task", *model),
            ),
        ),
        Step(
            "Task file + new scan -> mask",
            (
                *("iris_predict", "-t", f"{folder}/trunk.task", "-i", f"{raw}/imagesTr/{query}.nii.gz"),
                *("-o", f"{folder}/masks", *model),
            ),
        ),
    ]


def result_steps(folder: Path) -> list[Step]:
    """Masks -> rows, table, page."""
    root = ("--root", f"{folder}")
    return [
        Step("Masks against the truth", ("iris_evaluate", "-p", RUN, *root)),
        Step("Rows -> tables", ("iris_tables", RUN, *root)),
        Step("Pictures -> one page", ("iris_report", RUN, *root)),
    ]


def run_step(step: Step) -> None:
    """Run one command with this environment's scripts; EvaluationError if it fails."""
    print(f"\n=== {step.title}\n$ {' '.join(step.command)}", flush=True)
    started = time.monotonic()
    program, *arguments = step.command
    scripts = Path(sys.executable).parent
    path = sys.executable if program == "python" else shutil.which(program, path=str(scripts))
    if path is None:
        raise RawDataError(f"{program} is not in {scripts}: install the package there (pip install -e .).")
    status = subprocess.run([path, *arguments]).returncode
    if status:
        raise EvaluationError(
            f"The step '{step.title}' ended with status {status}; its own words stand above."
        )
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def mean_dice(results: Path) -> dict[str, float]:
    """Strategy -> mean Dice: over cases, then over classes, then over datasets."""
    rows = collect_rows(results, [RUN])
    rows = rows[rows["run"] != BASELINE_RUN]
    return {
        str(strategy): float(
            sum(class_means(part).mean() for _, part in group.groupby("dataset")) / group["dataset"].nunique()
        )
        for strategy, group in rows.groupby("strategy")
    }


def check_floor(scores: dict[str, float], floor: float, steps: int) -> None:
    """EvaluationError where a strategy is missing or under the floor after `steps` of training; NaN counts as under."""
    for strategy in STRATEGIES:
        score = scores.get(strategy, float("nan"))
        if not score >= floor:
            raise EvaluationError(
                f"The mean Dice must be at least {floor:.2f}, which no untrained model reaches; {strategy} has "
                f"{score:.3f} after {steps} training steps: a busy machine makes too few of them in its minutes "
                "(about a thousand are needed), so try again with python -m iris_pipeline.demo --iterations 1200; if "
                "they were enough, something in the path is broken."
            )


def make_room(folder: Path) -> None:
    """An empty folder: a former demo is removed, anything else is left alone (RawDataError)."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise RawDataError(
                f"The demo needs a new folder, and {folder} holds something else: name another one."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("This folder is removed when the demo runs again.\n", encoding="utf-8")


def run_demo(folder: Path, seed: int, length: tuple[str, ...], floor: float) -> dict[str, float]:
    """All steps; returns the mean Dice of each strategy."""
    started = time.monotonic()
    make_room(folder)
    for step in [*prepare_steps(folder, seed), train_step(folder, seed, length), *predict_steps(folder)]:
        run_step(step)
    for step in [*task_file_steps(folder), *result_steps(folder)]:
        run_step(step)
    scores = mean_dice(folder / "results")
    print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Mean Dice on scans unseen in training:"
    )
    for strategy in STRATEGIES:
        print(f"  {strategy:<9} {scores.get(strategy, float('nan')):.3f}")
    print(
        f"Table: {folder}/results/tables.md\nPage:  {folder}/results/{RUN}/report.html (open it in a browser)"
    )
    check_floor(scores, floor, load_model(folder / "results" / RUN).state.iteration)
    return scores


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m iris_pipeline.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="is made anew (default: demo)")
    parser.add_argument("--seed", type=int, default=0)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=MINUTES, help="of training (default: %(default)s)")
    length.add_argument("--iterations", type=int, help="of training, instead of --minutes")
    parser.add_argument("--floor", type=float, default=FLOOR, help="of the mean Dice (default: %(default)s)")
    options = parser.parse_args(argv)
    steps = (
        ("--iterations", str(options.iterations))
        if options.iterations
        else ("--minutes", str(options.minutes))
    )
    try:
        run_demo(options.folder, options.seed, steps, options.floor)
    except IrisError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
