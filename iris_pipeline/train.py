"""Episodic training: a loop one can read aloud. Functions and values; no trainer object.

B episodes of one dataset and class set; K classes; images [B,1,D,H,W], masks [B,K,D,H,W]. Each step draws `groups`
such groups and adds up their gradients. A group is used both ways: its references segment its queries and its queries,
as references, segment its references, so that each encoded volume serves twice (Sec. 3.4 of the paper trains one way).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from iris_pipeline.checkpoint import (
    LoadedModel,
    RunState,
    load_model,
    restore_optimizer,
    restore_trained,
    save_checkpoint,
)
from iris_pipeline.curriculum import edge_share, shrink_group
from iris_pipeline.episode import Episode, stack_episodes
from iris_pipeline.episode_config import EpisodeConfig
from iris_pipeline.episodes import EpisodeSampler, validation_episodes
from iris_pipeline.groups import group_stream
from iris_pipeline.interrupt import StopAtStepEnd
from iris_pipeline.losses import LossParts, episode_loss
from iris_pipeline.memory_bank import MemoryBank, bank_key
from iris_pipeline.metrics import dice
from iris_pipeline.model import Iris, IrisConfig, TaskTokens, build_iris, count_parameters
from iris_pipeline.not_trained import cases_of_model
from iris_pipeline.optim import Lamb, build_lamb, learning_rate
from iris_pipeline.precision import autocast, choose_precision
from iris_pipeline.run_log import RunLog
from iris_pipeline.synthetic import SyntheticTasks
from iris_pipeline.train_settings import TrainSettings, network_options
from iris_pipeline.trained_cases import cases_of_stores, join_cases
from iris_pipeline.weight_mean import WeightMean
from preprocessing.errors import CheckpointError, ModelError, StoreError
from preprocessing.store import Store


@dataclass(frozen=True)
class GroupResult:
    """Loss of a group; of its references the task tokens, each level [B,K,m+1,C_l], and the classes shown, [B,K]."""

    loss: LossParts
    tokens: TaskTokens
    shown: Tensor


def group_forward(
    model: Iris, episodes: list[Episode], device: torch.device, both_ways: bool, share: float = 1.0
) -> GroupResult:
    """Forward pass of episodes that share dataset and classes; `share` of the crops' edge is kept (`curriculum.py`)."""
    group = shrink_group(stack_episodes(episodes), share)
    references, queries = group.reference_images.to(device), group.query_images.to(device)
    reference_masks, query_masks = group.reference_masks.to(device), group.query_masks.to(device)
    count = len(episodes)
    # One pass of the encoder over references and queries together: instance norm keeps samples apart.
    features = model.encode_image(torch.cat([references, queries]))
    # A class that the other volume does not show says nothing: half of one that was cut, or what shrinking took.
    shown = reference_masks.flatten(2).any(-1)
    if not both_ways:
        tokens = model.encode_task_from_features(tuple(f[:count] for f in features), reference_masks)
        logits = model.segment_from_features(tuple(f[count:] for f in features), tokens)
        return GroupResult(episode_loss(logits, query_masks, shown), tokens, shown)
    masks = torch.cat([reference_masks, query_masks])
    tokens = model.encode_task_from_features(features, masks)
    swapped = tuple(torch.cat([t[count:], t[:count]]) for t in tokens)
    logits = model.segment_from_features(features, swapped)
    valid = torch.cat([query_masks.flatten(2).any(-1), shown])
    return GroupResult(episode_loss(logits, masks, valid), tuple(t[:count] for t in tokens), shown)


def update_bank(
    bank: MemoryBank, episodes: list[Episode], tokens: TaskTokens, shown: Tensor | None = None
) -> None:
    """Every class that a reference shows moves its running mean; synthetic tasks are nobody's classes.

    shown: [B,K], as of `GroupResult`; all by default.
    """
    if any(episode.is_made for episode in episodes):
        return
    kept = tuple(t.detach().to("cpu", torch.float32) for t in tokens)
    for b, episode in enumerate(episodes):
        for k, name in enumerate(episode.class_names):
            if shown is not None and not shown[b, k]:
                continue
            bank.update(bank_key(episode.dataset, name, episode.wide), tuple(t[b, k] for t in kept))


@torch.no_grad()
def validate(model: Iris, episodes: list[Episode], device: torch.device, precision: str) -> dict[str, float]:
    """Mean Dice per dataset over fixed validation crops, one-shot; a class absent from truth and mask is left out."""
    model.eval()
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        with autocast(device, precision):
            logits = model(
                episode.reference.image[None].to(device),
                episode.reference.masks[None].to(device),
                episode.query.image[None].to(device),
            )
        predicted = (logits[0] > 0).cpu().numpy()
        for k in range(len(episode.class_names)):
            value = dice(predicted[k], episode.query.masks[k].numpy() > 0)
            if value == value:  # not NaN
                scores.setdefault(episode.dataset, []).append(value)
    model.train()
    return {name: sum(values) / len(values) for name, values in scores.items()}


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


def progress_of(settings: TrainSettings, iteration: int, seconds: float) -> float:
    """Share of the run that is done, 0..1: by steps, by time, or by whichever is further."""
    if settings.iterations == 0 or settings.minutes == 0:
        return 1.0  # an untrained model, the baseline of every table
    by_steps = iteration / settings.iterations if settings.iterations else 0.0
    by_time = seconds / (60 * settings.minutes) if settings.minutes else 0.0
    return max(by_steps, by_time)


def optimise(model: nn.Module, optimizer: Lamb, rate: float, clip_norm: float) -> float:
    """One LAMB step from the gathered gradients; returns their norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
    if norm == norm and norm != float("inf"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


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


def _check_stores(stores: Mapping[str, Store]) -> None:
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


def train(
    settings: TrainSettings,
    stores: Mapping[str, Store],
    folder: Path,
    *,
    device: torch.device | None = None,
    resume: bool = False,
    start_from: Path | None = None,
    show_progress: bool = True,
    episode_config: EpisodeConfig | None = None,
) -> Path:
    """Train one model over several stores; returns the checkpoint folder.

    start_from: a run whose weights (not its bank, not its optimiser) this one begins with; the cases it has learnt from
    count as this one's. Where the run is resumed, it is only read if the checkpoint does not tell these.

    Raises CheckpointError if `folder` holds a run already and `resume` is not set, or nothing where it is; StoreError
    for a held-out dataset, and for two with the same people.
    """
    _check_stores(stores)
    stores = dict(stores)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(settings.precision, device)
    settings = replace(settings, precision=precision.precision)  # recorded, and kept when the run is resumed
    checkpoint = folder / "checkpoint"
    exists = (checkpoint / "state.json").exists()
    if exists and not resume:
        raise CheckpointError(
            f"{folder} holds a run already: add --resume to go on with it, or give another --name."
        )
    if resume and not exists:
        raise CheckpointError(f"Nothing to resume in {folder}: start it without --resume.")

    config = settings.network()
    before = load_model(checkpoint) if resume else None
    # A run that goes on has its own weights, and tells what those it began with had learnt from.
    needs_start = before is None or before.state.trained is None
    start = None if start_from is None or not needs_start else _run_to_start_from(start_from, config)
    model = build_iris(config, seed=settings.seed) if start is None else start.model
    bank, iteration, seconds = MemoryBank(settings.bank_momentum), 0, 0.0
    best: dict[str, float] = {}
    learnt_before = cases_of_model(start) if start is not None else {}
    wide_met: set[str] = set()
    plans = {name: store.plan for name, store in stores.items()}
    if before is not None:
        if before.plans != plans:
            raise CheckpointError(
                f"{folder} was trained on {', '.join(before.plans)}, each with its plan of then, and the stores of "
                f"{', '.join(plans)} are others: give the same -d, make the stores as they were, or start anew."
            )
        # Episodes are drawn by the datasets' places, so that another order would be another run.
        stores = {name: stores[name] for name in before.plans}
        plans = before.plans
        model, bank = before.model, before.bank
        iteration, seconds, best = before.state.iteration, before.state.seconds, before.state.validation
        learnt_before = join_cases(cases_of_model(before), learnt_before)
    model.to(device).train()
    mean = WeightMean(model, settings.weight_momentum) if settings.weight_momentum else None
    used = mean.model if mean else model  # what validates, is saved, and predicts
    if resume:
        restore_trained(checkpoint, model)
    optimizer = build_lamb(model, settings.learning_rate, settings.weight_decay)
    if resume:
        restore_optimizer(checkpoint, optimizer)

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
    if before is not None:
        known = before.state.wide_datasets
        wide_met.update(sampler.wide if known is None else known)
    # Of now and of then: a case that was added between two parts of a run has drawn its split anew.
    trained = join_cases(cases_of_stores(stores, settings.split), learnt_before)
    fixed = validation_episodes(stores, settings.split, settings.validation_episodes, settings.seed)
    specs = {
        name: store.manifest.spec.model_dump(mode="json", exclude={"raw"}) for name, store in stores.items()
    }

    saved, whole = iteration, True  # the latest step on the disk; no step is half done

    def save() -> None:
        nonlocal saved
        state = RunState(
            iteration, seconds, settings.seed, asdict(settings), best, trained, tuple(sorted(wide_met))
        )
        save_checkpoint(
            checkpoint,
            used,
            bank,
            state,
            plans=plans,
            specs=specs,
            optimizer=optimizer,
            trained=model if mean else None,
        )
        saved = iteration

    log_of_run = RunLog(
        folder,
        settings,
        list(stores),
        resumed_at=iteration if resume else None,
        network=model.config.to_dict(),
    )
    with log_of_run as log, StopAtStepEnd() as stop:
        log.say(f"{count_parameters(model) / 1e6:.1f} M parameters, size {settings.size}, on {device}.")
        log.say(f"Precision {precision.precision}: {precision.why}.")
        if start_from is not None and not resume:
            log.say(
                f"Starts from the weights of {start_from.name}, which have learnt from {', '.join(learnt_before)}."
            )
        log.say(f"{len(stores)} dataset(s): {', '.join(stores)}; {len(fixed)} validation episodes.")
        narrow = [name for name in stores if name not in sampler.wide]
        if settings.wide and narrow:
            log.say(f"No wide view of {', '.join(narrow)}: the scans are hardly larger than a crop.")
        groups = group_stream(sampler, settings, iteration * settings.groups)
        bar = tqdm(
            total=100,
            initial=100 * progress_of(settings, iteration, seconds),
            disable=not show_progress,
            bar_format="{percentage:5.1f} %|{bar}| {elapsed} < {remaining}{postfix}",
            mininterval=1.0,
        )
        try:
            while (done := progress_of(settings, iteration, seconds)) < 1:
                started = time.perf_counter()
                rate = learning_rate(done, settings.learning_rate)
                share = edge_share(settings.curriculum, done)
                losses, met = [], []
                for _ in range(settings.groups):
                    episodes = next(groups)
                    with autocast(device, settings.precision):
                        result = group_forward(model, episodes, device, settings.both_ways, share)
                    (result.loss.total / settings.groups).backward()
                    losses.append(result.loss)
                    met.append((episodes, result.tokens, result.shown))
                whole = False  # until weights, their mean and the bank have all taken the step
                norm = optimise(model, optimizer, rate, settings.clip_norm)
                iteration += 1
                if mean:
                    mean.update(model, iteration)
                for episodes, tokens, shown in met:
                    update_bank(bank, episodes, tokens, shown)
                    wide_met.update(episode.dataset for episode in episodes if episode.wide)
                seconds += time.perf_counter() - started
                whole = True
                log.step(iteration, losses, rate, norm, seconds)
                stop.check()
                if iteration % settings.validate_every == 0:
                    if fixed:
                        best = validate(used, fixed, device, settings.precision)
                    save()  # before the row: of two the row is the one to be missing
                    if fixed:
                        log.validation(iteration, best)
                bar.set_postfix_str(f"iteration {iteration}, loss {log.smoothed_loss:.3f}", refresh=False)
                bar.update(min(100.0, 100 * progress_of(settings, iteration, seconds)) - bar.n)
        except KeyboardInterrupt:
            if whole:
                save()
            log.say(f"Interrupted at iteration {iteration}; --resume goes on from iteration {saved}.")
            raise
        except Exception:
            if whole and iteration > saved:
                with suppress(Exception):  # the first error is the one to be told
                    save()
                    log.say(f"Saved at iteration {iteration}, before the error; --resume goes on from here.")
            raise
        finally:
            bar.close()
            groups.close()
        validated = log.validated == iteration  # by the last step, or by the part of the run before
        save()  # before the validation, which takes its time: a Ctrl-C in it costs nothing
        if fixed and not validated:
            best = validate(used, fixed, device, settings.precision)
            save()
            log.validation(iteration, best)
        log.finish(iteration, seconds, best)
    return checkpoint
