"""Several runs of one network as one model: the mean of their weights and of their memory banks.

Runs that start from the same weights and see other episodes end near one another, and what differs between them is
mostly noise; the mean has less of it and costs no more to run ("model soups", Wortsman et al., 2022). The paper has one
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch

from iris_pipeline.checkpoints.checkpoint import LoadedModel, RunState, hash_weights
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.checkpoints.trained_cases import join_cases
from preprocessing.errors import CheckpointError

COMMON_START = 0.5
"""cosine of two networks' weights: about 0 for other starts, 0.99 after a night's training from one start"""


def averaged(models: Sequence[LoadedModel]) -> LoadedModel:
    """The mean of models; one of them alone is itself.

    Its state counts the steps and the time of all, and says whose mean it is. CheckpointError if there is none, or if
    they differ in network, datasets, plans or split, or did not start from the same weights, so that a mean would be
    nobody's.
    """
    if not models:
        raise CheckpointError("A mean is of one model or more; got none.")
    first = models[0]
    if len(models) == 1:
        return first
    for other in models[1:]:
        _check_alike(first, other)
        _check_common_start(first, other)
    model = deepcopy(first.model)
    parts = [each.model.state_dict() for each in models]
    model.load_state_dict({name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]})
    states = [each.state for each in models]
    told = [state.trained for state in states if state.trained is not None]
    return replace(
        first,
        model=model,
        bank=_mean_bank([each.bank for each in models]),
        model_hash=hash_weights(model),
        state=RunState(
            iteration=sum(state.iteration for state in states),
            seconds=sum(state.seconds for state in states),
            seed=first.state.seed,
            settings=first.state.settings | {"mean_of": [each.model_hash for each in models]},
            trained=join_cases(*told) if len(told) == len(states) else None,
            wide_datasets=_all_met([state.wide_datasets for state in states]),
        ),
    )


def _check_alike(first: LoadedModel, other: LoadedModel) -> None:
    def split(model: LoadedModel) -> object:
        return model.state.settings.get("split")

    plans, others = ({name: plan.digest for name, plan in each.plans.items()} for each in (first, other))
    differ = [
        word
        for word, same in (
            ("network", first.config == other.config),
            ("datasets", plans.keys() == others.keys()),
            ("plans", all(others.get(name, digest) == digest for name, digest in plans.items())),
            ("classes", _classes(first) == _classes(other)),
            ("split", split(first) == split(other)),
            ("momentum of the bank", first.bank.momentum == other.bank.momentum),
        )
        if not same
    ]
    if differ:
        raise CheckpointError(
            f"A mean is of runs of one network on the same data; {first.model_hash} and {other.model_hash} differ in "
            f"{', '.join(differ)}: leave one of them out."
        )


def _check_common_start(first: LoadedModel, other: LoadedModel) -> None:
    """The mean of networks that learned apart from the beginning is neither of them, and segments nothing."""
    cosine = float(torch.cosine_similarity(_kernels(first), _kernels(other), dim=0))
    if not cosine >= COMMON_START:
        raise CheckpointError(
            f"A mean is of runs that started from the same weights; those of {first.model_hash} and "
            f"{other.model_hash} have a cosine of {cosine:.2f} (of one start it is near 1): leave one of them out, or "
            "train both with the same --start-from."
        )


def _kernels(model: LoadedModel) -> torch.Tensor:
    """Matrices and kernels in a row; biases and norms begin alike in every network and tell nothing."""
    return torch.cat([each.detach().flatten() for each in model.model.parameters() if each.ndim > 1])


def _classes(model: LoadedModel) -> dict[str, object]:
    return {name: spec.get("classes") for name, spec in model.specs.items()}


def _mean_bank(banks: Sequence[MemoryBank]) -> MemoryBank:
    """Of each class the mean of what those that have met it remember."""
    momentum, tensors, counts = banks[0].momentum, {}, {}
    for key in dict.fromkeys(key for bank in banks for key in bank.keys()):  # noqa: SIM118  (not a dict)
        having = [bank for bank in banks if key in bank]
        counts[key] = sum(bank.updates(key) for bank in having)
        share = 1 - momentum ** counts[key]  # `MemoryBank.get` divides by it
        for level, tokens in enumerate(zip(*(bank.get([key]) for bank in having), strict=True)):
            tensors[f"{key}|{level}"] = torch.stack(tokens).mean(0)[0, 0] * share
    return MemoryBank.restore(momentum, tensors, counts)


def _all_met(known: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Datasets that any of the runs has met at half their resolution; None where one does not tell."""
    told = [each for each in known if each is not None]
    return tuple(sorted({name for each in told for name in each})) if len(told) == len(known) else None
