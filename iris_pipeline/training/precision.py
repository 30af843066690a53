"""bfloat16 or float32: what a machine multiplies faster, measured once and not guessed from its name.

Processors that know bfloat16 differ: with matrix units (AMX) it is up to three times faster, with vector instructions
alone it won by half on one maker's and lost a third on another's (LOG.md). Measuring takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "bf16", "fp32"]
WORTH = 1.1
"""bfloat16 is coarser: it has to be this much faster"""
ROUNDS = 3
FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""of a processor that multiplies bfloat16 in hardware (the last one is ARM's)"""


@dataclass(frozen=True)
class Choice:
    """precision: "bf16" or "fp32". why: half a sentence for the log."""

    precision: Precision
    why: str


def choose_precision(asked: str, device: torch.device) -> Choice:
    """What "auto" means on this device; anything else is itself."""
    if asked != "auto":
        return Choice("bf16" if asked == "bf16" else "fp32", "as asked for")
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice("bf16" if has else "fp32", f"the GPU has {'' if has else 'no '}bfloat16")
    if not knows_bfloat16():
        return Choice("fp32", "the processor has no bfloat16")
    return decide(measured_ratio())


def decide(ratio: float) -> Choice:
    """ratio: seconds in float32 by seconds in bfloat16."""
    return Choice(
        "bf16" if ratio >= WORTH else "fp32",
        f"bfloat16 took {1 / ratio:.2f} of float32's time in a short measurement",
    )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a run."""
    enabled = choose_precision(precision, device).precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def knows_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a CPU multiplies bfloat16 in hardware at all; without it products are emulated."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return bool(set(FLAGS) & set(text.split()))


@cache
def measured_ratio() -> float:
    """Seconds of a few convolutions, forth and back, in float32 by those in bfloat16, on this process's threads."""
    layers = [
        nn.Conv3d(16, 32, 3, padding=1),
        nn.InstanceNorm3d(32),
        nn.ReLU(),
        nn.Conv3d(32, 32, 3, padding=1),
    ]
    network, image = nn.Sequential(*layers), torch.zeros(2, 16, 24, 24, 24)

    def step(enabled: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = network(image).float().square().mean()
        loss.backward()

    return fastest(lambda: step(False)) / fastest(lambda: step(True))


def fastest(work: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of a few rounds; the first, which allocates, does not count."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        begun = clock()
        work()
        seconds.append(clock() - begun)
    return min(seconds)
