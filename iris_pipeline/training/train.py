"""Episodic training: a loop one can read aloud. Functions and values; what a run changes is one record, `Learner`.

B episodes of one dataset and class set; K classes; images [B,1,D,H,W], masks [B,K,D,H,W]. Each step draws `groups`
such groups and adds up their gradients. A group is used both ways: its references segment its queries and its queries,
as references, segment its references, so that each encoded volume serves twice (Sec. 3.4 of the paper trains one way).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from iris_pipeline.checkpoints.checkpoint import (
    RunState,
    restore_optimizer,
    restore_trained,
    save_checkpoint,
    usable_device,
)
from iris_pipeline.checkpoints.memory_bank import MemoryBank, bank_key
from iris_pipeline.measures.metrics import dice
from iris_pipeline.model import Iris, TaskTokens, count_parameters
from iris_pipeline.sampling.episode import Episode, stack_episodes
from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.training.curriculum import edge_share, shrink_group
from iris_pipeline.training.groups import group_stream
from iris_pipeline.training.interrupt import StopAtStepEnd
from iris_pipeline.training.losses import LossParts, episode_loss
from iris_pipeline.training.optim import Lamb, build_lamb, learning_rate
from iris_pipeline.training.precision import autocast, choose_precision
from iris_pipeline.training.run_log import RunLog
from iris_pipeline.training.train_settings import TrainSettings
from iris_pipeline.training.train_start import Run, Start, begin, check_stores, prepare_run
from iris_pipeline.training.weight_mean import WeightMean
from preprocessing.runtime.progress import Bar
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
            if not math.isnan(value):
                scores.setdefault(episode.dataset, []).append(value)
    model.train()
    return {name: sum(values) / len(values) for name, values in scores.items()}


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
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@dataclass
class Learner:
    """What learns, and how far it has come; every step changes it in place.

    mean: of the weights over the steps, where the run keeps one. iteration: optimiser steps done. seconds: of training
    so far. validation: the latest mean Dice by dataset. saved: the latest iteration on the disk. wide_met: datasets met
    at half their resolution. whole: no step is half done.
    """

    model: Iris
    mean: WeightMean | None
    optimizer: Lamb
    bank: MemoryBank
    iteration: int
    seconds: float
    validation: dict[str, float]
    saved: int
    wide_met: set[str]
    whole: bool = True

    @property
    def used(self) -> Iris:
        """What validates, is saved, and predicts."""
        return self.mean.model if self.mean else self.model


def _learner(start: Start, settings: TrainSettings, device: torch.device, checkpoint: Path | None) -> Learner:
    """checkpoint: of the run that is resumed, for the weights that go on learning and the optimiser's moments."""
    model, state = start.model.to(device).train(), start.state
    mean = WeightMean(model, settings.weight_momentum) if settings.weight_momentum else None
    if checkpoint:
        restore_trained(checkpoint, model)
    optimizer = build_lamb(model, settings.learning_rate, settings.weight_decay)
    if checkpoint:
        restore_optimizer(checkpoint, optimizer)
    return Learner(
        model=model,
        mean=mean,
        optimizer=optimizer,
        bank=start.bank,
        iteration=state.iteration,
        seconds=state.seconds,
        validation=state.validation,
        saved=state.iteration,
        wide_met=set(state.wide_datasets or ()),
    )


def _save(run: Run, learner: Learner) -> None:
    state = RunState(
        learner.iteration,
        learner.seconds,
        run.settings.seed,
        asdict(run.settings),
        learner.validation,
        run.trained,
        tuple(sorted(learner.wide_met)),
    )
    save_checkpoint(
        run.checkpoint,
        learner.used,
        learner.bank,
        state,
        plans=run.plans,
        specs=run.specs,
        optimizer=learner.optimizer,
        trained=learner.model if learner.mean else None,
    )
    learner.saved = learner.iteration


def _validate_and_save(run: Run, learner: Learner, log: RunLog) -> None:
    """A run without validation cases is saved all the same."""
    if run.fixed:
        learner.validation = validate(learner.used, run.fixed, run.device, run.settings.precision)
    _save(run, learner)  # before the row: of two the row is the one to be missing
    if run.fixed:
        log.validation(learner.iteration, learner.validation)


def _step(
    run: Run, learner: Learner, groups: Iterator[list[Episode]], done: float
) -> tuple[list[LossParts], float, float]:
    """One optimiser step at `done`, the share of the run before it; the groups' losses, learning rate, gradient norm.

    Broken off, it leaves the learner as it was, or not `whole`.
    """
    settings = run.settings
    started = time.perf_counter()
    rate = learning_rate(done, settings.learning_rate)
    share = edge_share(settings.curriculum, done)
    losses, met = [], []
    for _ in range(settings.groups):
        episodes = next(groups)
        with autocast(run.device, settings.precision):
            result = group_forward(learner.model, episodes, run.device, settings.both_ways, share)
        (result.loss.total / settings.groups).backward()
        losses.append(result.loss)
        met.append((episodes, result.tokens, result.shown))
    learner.whole = False  # until weights, their mean and the bank have all taken the step
    norm = optimise(learner.model, learner.optimizer, rate, settings.clip_norm)
    learner.iteration += 1
    if learner.mean:
        learner.mean.update(learner.model, learner.iteration)
    for episodes, tokens, shown in met:
        update_bank(learner.bank, episodes, tokens, shown)
        learner.wide_met.update(episode.dataset for episode in episodes if episode.wide)
    learner.seconds += time.perf_counter() - started
    learner.whole = True
    return losses, rate, norm


def _steps(
    run: Run,
    learner: Learner,
    groups: Iterator[list[Episode]],
    log: RunLog,
    stop: StopAtStepEnd,
    bar: Bar,
) -> None:
    """Step after step to the run's end, with a validation and a checkpoint every now and then."""
    settings = run.settings
    while (done := progress_of(settings, learner.iteration, learner.seconds)) < 1:
        losses, rate, norm = _step(run, learner, groups, done)
        log.step(learner.iteration, losses, rate, norm, learner.seconds)
        stop.check()
        if learner.iteration % settings.validate_every == 0:
            _validate_and_save(run, learner, log)
        bar.set_postfix_str(f"iteration {learner.iteration}, loss {log.smoothed_loss:.3f}", refresh=False)
        bar.update(min(100.0, 100 * progress_of(settings, learner.iteration, learner.seconds)) - bar.n)


def _learn(run: Run, learner: Learner, log: RunLog, stop: StopAtStepEnd, show_progress: bool) -> None:
    """All steps; where they break off, the last whole one is saved."""
    settings = run.settings
    groups = group_stream(run.sampler, settings, learner.iteration * settings.groups)
    bar = Bar(
        total=100,
        desc="Training",
        unit="%",
        initial=100 * progress_of(settings, learner.iteration, learner.seconds),
        disable=not show_progress,
        bar_format="{percentage:5.1f} %|{bar}| {elapsed} < {remaining}{postfix}",
        mininterval=1.0,
    )
    try:
        _steps(run, learner, groups, log, stop, bar)
    except KeyboardInterrupt:
        if learner.whole:
            _save(run, learner)
        log.say(
            f"Interrupted at iteration {learner.iteration}; --resume goes on from iteration {learner.saved}."
        )
        raise
    except Exception:
        if learner.whole and learner.iteration > learner.saved:
            with suppress(Exception):  # the first error is the one to be told
                _save(run, learner)
                log.say(
                    f"Saved at iteration {learner.iteration}, before the error; --resume goes on from here."
                )
        raise
    finally:
        bar.close()
        groups.close()


def _finish(run: Run, learner: Learner, log: RunLog) -> None:
    """The checkpoint and the scores that a finished run leaves."""
    validated = log.validated == learner.iteration  # by the last step, or by the part of the run before
    _save(run, learner)  # before the validation, which takes its time: a Ctrl-C in it costs nothing
    if run.fixed and not validated:
        _validate_and_save(run, learner, log)
    log.finish(learner.iteration, learner.seconds, learner.validation)


@torch.inference_mode(mode=False)
@torch.enable_grad()  # notebooks often switch gradients off for all that follows
def train(
    settings: TrainSettings,
    stores: Mapping[str, Store],
    folder: Path | str,
    *,
    device: torch.device | str | None = None,
    resume: bool = False,
    start_from: Path | str | None = None,
    show_progress: bool = True,
    episode_config: EpisodeConfig | None = None,
) -> Path:
    """Train one model over several stores; returns the checkpoint folder.

    start_from: a run whose weights (not its bank, not its optimiser) this one begins with; the cases it has learnt from
    count as this one's. Where the run is resumed, it is only read if the checkpoint does not tell these.

    Raises CheckpointError if `folder` holds a run already and `resume` is not set, or nothing where it is; StoreError
    for a held-out dataset, and for two with the same people.
    """
    check_stores(stores)
    folder, start_from = Path(folder), None if start_from is None else Path(start_from)
    device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = choose_precision(settings.precision, device)
    settings = replace(settings, precision=precision.precision)  # recorded, and kept when the run is resumed
    checkpoint = folder / "checkpoint"
    start = begin(settings, stores, folder, resume=resume, start_from=start_from)
    learner = _learner(start, settings, device, checkpoint if resume else None)
    run = prepare_run(start, settings, device, checkpoint, episode_config)
    if start.state.wide_datasets is None:  # an older checkpoint, which does not tell
        learner.wide_met.update(run.sampler.wide)
    log_of_run = RunLog(
        folder,
        settings,
        list(run.plans),
        resumed_at=learner.iteration if resume else None,
        network=learner.model.config.to_dict(),
    )
    with log_of_run as log, StopAtStepEnd() as stop:
        log.say(
            f"{count_parameters(learner.model) / 1e6:.1f} M parameters, size {settings.size}, on {device}."
        )
        log.say(f"Precision {precision.precision}: {precision.why}.")
        if start_from is not None and not resume:
            learnt = ", ".join(start.learnt_before)
            log.say(f"Starts from the weights of {start_from.name}, which have learnt from {learnt}.")
        log.say(f"{len(run.plans)} dataset(s): {', '.join(run.plans)}; {len(run.fixed)} validation episodes.")
        narrow = [name for name in run.plans if name not in run.sampler.wide]
        if settings.wide and narrow:
            log.say(f"No wide view of {', '.join(narrow)}: the scans are hardly larger than a crop.")
        _learn(run, learner, log, stop, show_progress)
        _finish(run, learner, log)
    return checkpoint
