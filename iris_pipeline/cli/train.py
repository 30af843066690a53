"""`iris_train FOLD`: train one model on one or several preprocessed datasets."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import torch

from iris_pipeline.checkpoints.checkpoint import RunState, load_model
from iris_pipeline.cli._common import choose_device, run
from iris_pipeline.cli._training import find_start, given_options, resumed_settings, with_start
from iris_pipeline.model import SIZES
from iris_pipeline.sampling.synthetic import SyntheticTasks
from iris_pipeline.training.curriculum import Curriculum
from iris_pipeline.training.train import progress_of, train
from iris_pipeline.training.train_settings import TrainSettings
from preprocessing.errors import ModelError, StoreError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.lock import only_run_in
from preprocessing.runtime.options import add_root_option
from preprocessing.runtime.paths import Root
from preprocessing.store import Store, open_stores

# Steps of a run when neither --iterations nor --minutes is given: the paper's 80,000 for its size.
DEFAULT_ITERATIONS = {"tiny": 3_000, "small": 20_000, "paper": 80_000}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="iris_train", description=__doc__)
    parser.add_argument(
        "fold",
        choices=["paper", "all", "0", "1", "2", "3", "4"],
        help="which split to train on: paper (75/5/20), all, or a cross-validation fold",
    )
    parser.add_argument(
        "-d",
        "--datasets",
        type=stored_name,
        nargs="+",
        metavar="NAME",
        help="datasets to train on (default: all preprocessed upstream ones)",
    )
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument(
        "--iterations",
        type=int,
        help="optimiser steps; 0: the untrained baseline (default by size, unless --minutes)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="stop after this much training time; the learning rate schedule is fitted to it",
    )
    parser.add_argument("--groups", type=int, default=1, help="groups of episodes per optimiser step")
    parser.add_argument(
        "--group-size", type=int, default=1, help="episodes of one dataset that run as a batch (GPU)"
    )
    parser.add_argument("--learning-rate", type=float, default=TrainSettings.learning_rate)
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="NAME=W",
        help="draw these datasets W times as often (default: all equally often)",
    )
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp32"], default="auto", help="auto: whichever is faster here"
    )
    parser.add_argument(
        "--one-way",
        action="store_true",
        help="only references segment queries, not the other way round; as in the paper",
    )
    parser.add_argument(
        "--task-levels",
        type=int,
        nargs="+",
        help="levels at which tasks are encoded, as log2 of their stride",
    )
    parser.add_argument(
        "--context-tokens", type=int, metavar="M", help="context tokens of a task at each level (default: 10)"
    )
    parser.add_argument(
        "--no-foreground-token", action="store_true", help="ablation: no token is pooled under the mask"
    )
    parser.add_argument(
        "--coarse-masking", action="store_true", help="ablation: masks at the resolution of the features"
    )
    parser.add_argument(
        "--decoder-blocks",
        type=int,
        nargs=4,
        metavar="N",
        help="residual blocks of the decoder at strides 1, 2, 4, 8 (default by size); 0 at stride 1 saves a "
        "third of a step's time on a CPU",
    )
    parser.add_argument(
        "--rectified-stem",
        action=argparse.BooleanOptionalAction,
        help="ReLU after the first convolution, so that its channels act as grey-value windows (default by size: "
        "if the encoder has no other at full resolution)",
    )
    parser.add_argument(
        "--curriculum",
        nargs="+",
        metavar="RUN:EDGE",
        help="start with coarse crops: with 0.2:0.5, the first fifth of the run sees its crops at half their "
        "edge (default: never)",
    )
    parser.add_argument(
        "--synthetic",
        nargs="+",
        metavar="KIND=P",
        help="probability of each kind of made-up task: recolour, tones, turn, unite, split, cells, bands, "
        "shapes, such as recolour=0.3 cells=0.1 (default: none)",
    )
    parser.add_argument(
        "--wide",
        type=float,
        default=TrainSettings.wide,
        metavar="P",
        help="probability of showing a scan larger than a crop at half the resolution; prediction can then look "
        "at half resolution first (default: 0)",
    )
    parser.add_argument(
        "--bank-momentum",
        type=float,
        default=TrainSettings.bank_momentum,
        metavar="A",
        help="momentum of the memory bank's running mean, which is corrected for its start (default: %(default)s, as "
        "in the paper; in short runs less makes no difference)",
    )
    parser.add_argument(
        "--weight-momentum",
        type=float,
        default=TrainSettings.weight_momentum,
        metavar="A",
        help="keep a running mean of the weights, such as 0.999, and predict with it; steadier than the last "
        "step (default: 0, off)",
    )
    parser.add_argument(
        "--validate-every",
        type=int,
        default=TrainSettings.validate_every,
        metavar="N",
        help="steps between validations (and checkpoints) (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, help="processes that prepare episodes (default: 0 on a CPU, 8 on a GPU)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--name", help="name of the run under results/ (default: datasets_size_fold)")
    add_root_option(parser)
    parser.add_argument(
        "--start-from",
        metavar="RUN",
        help="start with the weights and the network of a run under results/, of the folder of a run or exported "
        "model, or of the bundled model; options given here change the network",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue a stopped run with its own settings (only --workers, --device, --precision and "
        "--validate-every can be changed)",
    )
    return parser


def _numbers(option: str, entries: list[str], example: str) -> dict[str, float]:
    """["openkbp=2"] -> {"openkbp": 2.0}; ModelError for anything else."""
    numbers = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ModelError(f"{option} takes NAME=NUMBER, such as {example}; got {entry!r}.") from None
    return numbers


def _synthetic(entries: list[str] | None) -> tuple[tuple[str, float], ...]:
    """["cells=0.1"] -> (("cells", 0.1),); ModelError names an unknown kind."""
    chosen = _numbers("--synthetic", entries or [], "cells=0.1")
    kinds = [field.name for field in fields(SyntheticTasks)]
    unknown = sorted(set(chosen) - set(kinds))
    if unknown:
        raise ModelError(
            f"--synthetic takes the kinds {', '.join(kinds)}; got {', '.join(unknown)}: name one of these."
        )
    return tuple(sorted(chosen.items()))


def _curriculum(entries: list[str] | None) -> Curriculum:
    """["0.2:0.5"] -> ((0.2, 0.5),); ModelError for anything else."""
    phases = []
    for entry in entries or ():
        run, _, edge = entry.partition(":")
        try:
            phases.append((float(run), float(edge)))
        except ValueError:
            raise ModelError(f"--curriculum takes RUN:EDGE, such as 0.2:0.5; got {entry!r}.") from None
    return tuple(phases)


def _settings(arguments: argparse.Namespace, device: torch.device) -> TrainSettings:
    iterations = arguments.iterations
    if iterations is None and arguments.minutes is None:
        iterations = DEFAULT_ITERATIONS[arguments.size]
    rectified = arguments.rectified_stem
    if rectified is None:
        rectified = SIZES[arguments.size].rectified_stem
    workers = arguments.workers if arguments.workers is not None else (8 if device.type == "cuda" else 0)
    return TrainSettings(
        split=arguments.fold,
        size=arguments.size,
        seed=arguments.seed,
        iterations=iterations,
        minutes=arguments.minutes,
        groups=arguments.groups,
        group_size=arguments.group_size,
        learning_rate=arguments.learning_rate,
        both_ways=not arguments.one_way,
        task_levels=tuple(arguments.task_levels) if arguments.task_levels else None,
        decoder_blocks=tuple(arguments.decoder_blocks) if arguments.decoder_blocks else None,
        rectified_stem=rectified,
        context_tokens=arguments.context_tokens,
        foreground_token=not arguments.no_foreground_token,
        full_resolution_masking=not arguments.coarse_masking,
        curriculum=_curriculum(arguments.curriculum),
        bank_momentum=arguments.bank_momentum,
        weight_momentum=arguments.weight_momentum,
        synthetic=_synthetic(arguments.synthetic),
        wide=arguments.wide,
        weights=_numbers("--weights", arguments.weights, "openkbp=2") if arguments.weights else None,
        precision=arguments.precision,
        validate_every=arguments.validate_every,
        workers=workers,
    )


def _trainable_stores(root: Root, names: list[str] | None) -> dict[str, Store]:
    """Stores to train on; a held-out dataset is refused by name and left out by default."""
    stores = open_stores(root.preprocessed, names)
    held_out = [name for name, store in stores.items() if store.manifest.role == "held-out"]
    if names and held_out:
        raise StoreError(f"{', '.join(held_out)} is held out: it is never trained on; leave it out of -d.")
    stores = {name: store for name, store in stores.items() if name not in held_out}
    if not stores:
        raise StoreError(f"No finished dataset in {root.preprocessed}: run iris_plan_and_preprocess first.")
    return stores


def _command(arguments: argparse.Namespace, given: Collection[str]) -> int:
    root = Root.resolve(arguments.root)
    device = torch.device(choose_device(arguments.device))
    stores = _trainable_stores(root, arguments.datasets)
    arguments, start = with_start(arguments, given, root.results)
    default_name = f"{next(iter(stores)) if len(stores) == 1 else f'{len(stores)}_datasets'}"
    folder: Path = root.results / (arguments.name or f"{default_name}_{arguments.size}_{arguments.fold}")
    with only_run_in(folder, "wait until it has ended, or give another --name"):
        settings = _settings(arguments, device)
        if arguments.resume and (folder / "checkpoint" / "state.json").exists():
            before = load_model(folder)
            settings = resumed_settings(before.state, settings, given, folder)
            if arguments.datasets is None:
                stores = open_stores(root.preprocessed, list(before.plans))
            if arguments.start_from and start is None and before.state.trained is None:
                # it is needed, and this says why it is not there
                find_start(root.results, arguments.start_from)
            _tell_end(settings, before.state, folder)
        return _train(arguments, device, settings, stores, folder, start)


def _tell_end(settings: TrainSettings, state: RunState, folder: Path) -> None:
    if progress_of(settings, state.iteration, state.seconds) >= 1:
        print(
            f"{folder.name} had come to its end, so nothing is trained; to train on, start another run from it: "
            f"--start-from {folder.name} --name OTHER."
        )


def _train(
    arguments: argparse.Namespace,
    device: torch.device,
    settings: TrainSettings,
    stores: dict[str, Store],
    folder: Path,
    start: Path | None,
) -> int:
    """The run in its folder, which is ours alone meanwhile."""
    print(f"Training {settings.size} on {', '.join(stores)} ({settings.split}); log: {folder / 'train.log'}")
    checkpoint = train(settings, stores, folder, device=device, resume=arguments.resume, start_from=start)
    print(f"Finished. Checkpoint: {checkpoint}; curve: {folder / 'curve.png'}")
    return 0


def train_main(argv: list[str] | None = None) -> int:
    """Console script; returns the exit status."""
    parser = _parser()
    arguments, given = parser.parse_args(argv), given_options(parser, argv)
    return run(
        lambda: _command(arguments, given),
        "Interrupted; run the same command with --resume to go on from where it was.",
    )


if __name__ == "__main__":
    raise SystemExit(train_main())
