"""What every console script shares: one-sentence errors and the exit status, and options of several commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from iris_pipeline.memory import keep_freed_memory
from preprocessing.errors import ModelError
from preprocessing.runtime.options import INTERRUPTED, ending


def run(function: Callable[[], int], interrupted: str = INTERRUPTED) -> int:
    """Call a command; its exit status and its one sentence are those of `preprocessing.runtime.options.ending`."""
    keep_freed_memory()
    return ending(function, interrupted)


def choose_device(choice: str) -> str:
    """ "auto" is the GPU where there is one; ModelError for "cuda" without one."""
    if choice == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda needs a CUDA device and there is none; use --device cpu or auto.")
    return choice


def at_least_one(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1 on, not '{text}'")
    return number


def not_negative(text: str) -> int:
    """For argparse: a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 on, not '{text}'")
    return int(text)
