"""All choices of a training run as one value, which is saved with it.

Lengths of crops are shares of their edge; what a setting does stands in the module that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from iris_pipeline.model import SIZES, IrisConfig, build_config
from iris_pipeline.training.curriculum import Curriculum, check_curriculum
from preprocessing.errors import ModelError

# The least value of each setting that counts something; without it a negative --iterations would never end.
_LEAST = {
    "iterations": 0,
    "minutes": 0,
    "groups": 1,
    "group_size": 1,
    "validate_every": 1,
    "workers": 0,
    "seed": 0,
}

CHANGES = (
    "task_levels",
    "context_tokens",
    "decoder_blocks",
    "rectified_stem",
    "foreground_token",
    "full_resolution_masking",
)
"""what options change of a size's network"""


def size_of(network: IrisConfig) -> str | None:
    """The name of the size whose network this one is, apart from what single options change; None for no size."""
    return next((name for name, whole in SIZES.items() if _of_size(whole) == _of_size(network)), None)


def network_options(network: IrisConfig) -> dict[str, str]:
    """What each option of `iris_train` that shapes a network would have to say for this one."""

    def flag(option: str, given: bool) -> str:
        return option if given else f"no {option}"

    def numbers(values: Iterable[int]) -> str:
        return " ".join(map(str, values))

    return {
        "size": f"--size {size_of(network) or 'of another kind'}",
        "task_levels": f"--task-levels {numbers(network.task_levels)}",
        "context_tokens": f"--context-tokens {network.context_tokens}",
        "decoder_blocks": f"--decoder-blocks {numbers(network.decoder_blocks)}",
        "rectified_stem": "--rectified-stem" if network.rectified_stem else "--no-rectified-stem",
        "foreground_token": flag("--no-foreground-token", not network.foreground_token),
        "full_resolution_masking": flag("--coarse-masking", not network.full_resolution_masking),
    }


def _of_size(network: IrisConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(network).items() if name not in CHANGES}


@dataclass(frozen=True)
class TrainSettings:
    """All choices of a run; saved with it, and a resumed run takes them from there.

    split: "paper", "0".."4" or "all". iterations: optimiser steps; minutes: a budget of training time, which then
    sets the pace of the schedule instead; groups x group_size: episodes per step. precision: "auto" becomes what is
    faster when the run begins (`precision.py`). bank_momentum: EMA of the memory bank. weight_momentum: EMA of the
    network's weights, which is then what validates and predicts; 0 keeps none. weights: how often each dataset
    is drawn, relative to 1 for those not named. task_levels, decoder_blocks, rectified_stem, context_tokens,
    foreground_token, full_resolution_masking: changes of the size's network (`IrisConfig`), None for none.
    curriculum: phases that see their crops coarser (`curriculum.py`).
    synthetic: probabilities of made tasks by kind (`synthetic.py`). wide: probability of crops of large scans at half
    their resolution (`halved.py`).
    """

    split: str = "paper"
    size: str = "small"
    seed: int = 0
    iterations: int | None = 80_000
    minutes: float | None = None
    groups: int = 1
    group_size: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    clip_norm: float = 1.0
    both_ways: bool = True
    task_levels: tuple[int, ...] | None = None
    decoder_blocks: tuple[int, ...] | None = None
    rectified_stem: bool | None = None
    curriculum: Curriculum = ()
    context_tokens: int | None = None
    foreground_token: bool = True
    full_resolution_masking: bool = True
    synthetic: tuple[tuple[str, float], ...] = ()
    wide: float = 0.0
    weights: dict[str, float] | None = None
    precision: str = "auto"
    bank_momentum: float = 0.999
    weight_momentum: float = 0.0
    validate_every: int = 250
    validation_episodes: int = 8
    workers: int = 0

    def __post_init__(self) -> None:
        if self.iterations is None and self.minutes is None:
            raise ModelError("Training needs an end: give --iterations, --minutes, or both.")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ModelError(f"--precision must be auto, bf16 or fp32; got {self.precision!r}.")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:  # also refuses NaN
                raise ModelError(f"--{name.replace('_', '-')} must be {least} or more; got {value}.")
        if not 0 < self.learning_rate < math.inf:
            raise ModelError(f"--learning-rate must be above 0; got {self.learning_rate}.")
        if not 0 <= self.bank_momentum < 1:
            raise ModelError(f"--bank-momentum must be 0 or more and under 1; got {self.bank_momentum}.")
        if not 0 <= self.weight_momentum < 1:
            raise ModelError(f"--weight-momentum must be 0 or more and under 1; got {self.weight_momentum}.")
        if not 0 <= self.wide <= 1:
            raise ModelError(f"--wide must lie between 0 and 1; got {self.wide}.")
        check_curriculum(self.curriculum)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The settings of a saved run: JSON's lists become tuples again."""

        def frozen(value: Any) -> Any:
            return tuple(frozen(each) for each in value) if isinstance(value, list) else value

        return cls(**{name: frozen(value) for name, value in values.items()})

    def network(self) -> IrisConfig:
        """The configuration of the size with this run's changes."""
        changes: dict[str, Any] = {
            "foreground_token": self.foreground_token,
            "full_resolution_masking": self.full_resolution_masking,
        }
        if self.rectified_stem is not None:
            changes["rectified_stem"] = self.rectified_stem
        if self.context_tokens is not None:
            changes["context_tokens"] = self.context_tokens
        if self.task_levels:
            changes["task_levels"] = self.task_levels
        if self.decoder_blocks is not None:
            changes["decoder_blocks"] = self.decoder_blocks
        return replace(build_config(self.size), **changes)
