"""What a training run begins with: a network of its own, the weights of another run, or its own checkpoint; and what
stays as it is while it learns: settings, episodes, and what its checkpoints tell of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iris_pipeline.checkpoints.checkpoint import STATE_FILE, LoadedModel, RunState, load_model
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.checkpoints.not_trained import cases_of_model
from iris_pipeline.checkpoints.trained_cases import TrainedCases, cases_of_stores, join_cases
from iris_pipeline.model import Iris, IrisConfig, build_iris
from iris_pipeline.sampling.episode import Episode
from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.sampling.episodes import EpisodeSampler, validation_episodes
from iris_pipeline.sampling.synthetic import SyntheticTasks
from iris_pipeline.training.train_settings import TrainSettings, network_options
from preprocessing.errors import CheckpointError, ModelError, StoreError
from preprocessing.plan import Plan
from preprocessing.store import Store


@dataclass(frozen=True)
class Start:
    """What a run has before its first step; one that is resumed has what its checkpoint holds.

    stores: in the order by which episodes are drawn, as are plans. model: with the weights that predict, which are a
    running mean where the checkpoint keeps one. state: step 0 of a run that is new. learnt_before: the cases that the
    weights have learnt from.
    """

    stores: dict[str, Store]
    plans: dict[str, Plan]
    model: Iris
    bank: MemoryBank
    state: RunState
    learnt_before: TrainedCases


@dataclass(frozen=True)
class Run:
    """What stays as it is from a run's first step to its last.

    fixed: the validation episodes. plans, specs: by dataset name, in the order by which episodes are drawn. trained:
    the cases that the weights will have learnt from.
    """

    settings: TrainSettings
    device: torch.device
    checkpoint: Path
    sampler: EpisodeSampler
    fixed: list[Episode]
    plans: dict[str, Plan]
    specs: dict[str, dict[str, Any]]
    trained: TrainedCases


def check_stores(stores: Mapping[str, Store]) -> None:
    """StoreError for a held-out dataset, and for two with the same people."""
    held_out = [name for name, store in stores.items() if store.manifest.role == "held-out"]
    if held_out:
        raise StoreError(f"{', '.join(held_out)} is held out: it is never trained on; leave it out of -d.")
    for name, store in stores.items():
        for other in store.manifest.spec.overlaps:
            if other in stores:
                raise StoreError(
                    f"{name} and {other} show the same people under other names, so that one could train and test: "
                    "train on one of them, by -d."
                )


def begin(
    settings: TrainSettings,
    stores: Mapping[str, Store],
    folder: Path,
    *,
    resume: bool,
    start_from: Path | None,
) -> Start:
    """The start of the run in `folder`, from its checkpoint where it is resumed.

    start_from: see `train`. Raises CheckpointError if the folder holds a run already and `resume` is not set, nothing
    where it is, or a run on other stores; ModelError where the other run has another network.
    """
    checkpoint = folder / "checkpoint"
    exists = (checkpoint / STATE_FILE).exists()
    if exists and not resume:
        raise CheckpointError(
            f"{folder} holds a run already: add --resume to go on with it, or give another --name."
        )
    if resume and not exists:
        raise CheckpointError(f"Nothing to resume in {folder}: start it without --resume.")

    config = settings.network()
    before = load_model(checkpoint) if resume else None
    # A run that goes on has its own weights, and tells what those it began with had learnt from.
    needs_other = before is None or before.state.trained is None
    other = None if start_from is None or not needs_other else _run_to_start_from(start_from, config)
    learnt_before = {} if other is None else cases_of_model(other)
    plans = {name: store.plan for name, store in stores.items()}
    if before is None:
        model = build_iris(config, seed=settings.seed) if other is None else other.model
        state = RunState(iteration=0, seconds=0.0, seed=settings.seed, wide_datasets=())
        return Start(dict(stores), plans, model, MemoryBank(settings.bank_momentum), state, learnt_before)
    if before.plans != plans:
        raise CheckpointError(
            f"{folder} was trained on {', '.join(before.plans)}, each with its plan of then, and the stores of "
            f"{', '.join(plans)} are others: give the same -d, make the stores as they were, or start anew."
        )
    # Episodes are drawn by the datasets' places, so that another order would be another run.
    in_order = {name: stores[name] for name in before.plans}
    learnt_before = join_cases(cases_of_model(before), learnt_before)
    return Start(in_order, before.plans, before.model, before.bank, before.state, learnt_before)


def prepare_run(
    start: Start,
    settings: TrainSettings,
    device: torch.device,
    checkpoint: Path,
    episode_config: EpisodeConfig | None,
) -> Run:
    """The data of a run: what its steps are drawn from, and what its checkpoints tell. episode_config: see `train`."""
    stores = start.stores
    sampler = EpisodeSampler(
        stores,
        split=settings.split,
        part="train",
        seed=settings.seed,
        config=episode_config
        or EpisodeConfig(
            synthetic=SyntheticTasks(**dict(settings.synthetic)), wide_probability=settings.wide
        ),
        weights=dataset_weights(settings.weights, list(stores)),
    )
    # Of now and of then: a case that was added between two parts of a run has drawn its split anew.
    trained = join_cases(cases_of_stores(stores, settings.split), start.learnt_before)
    fixed = validation_episodes(stores, settings.split, settings.validation_episodes, settings.seed)
    specs = {
        name: store.manifest.spec.model_dump(mode="json", exclude={"raw"}) for name, store in stores.items()
    }
    return Run(settings, device, checkpoint, sampler, fixed, start.plans, specs, trained)


def dataset_weights(given: Mapping[str, float] | None, names: list[str]) -> dict[str, float] | None:
    """A weight for every dataset, 1 where none is given; ModelError names one that is not trained on."""
    if not given:
        return None
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ModelError(
            f"--weights may name {', '.join(names)}; got {', '.join(unknown)}: add it to -d or drop it."
        )
    return {name: given.get(name, 1.0) for name in names}


def _run_to_start_from(run: Path, config: IrisConfig) -> LoadedModel:
    """Another run; ModelError names the options by which its network is another one."""
    loaded = load_model(run)
    if loaded.model.config != config:
        own, here = network_options(loaded.model.config), network_options(config)
        differ = [text for name, text in own.items() if text != here[name]]
        raise ModelError(
            f"The run to start from, {run}, has another network than this one; its own has {', '.join(differ)}: give "
            "that, or leave these options out, and they are as its own."
        )
    return loaded
