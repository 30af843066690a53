"""Tones for references whose grey values the network reads badly: bright where a class is likely, dark elsewhere.

Arrays are [D,H,W] = (z,y,x), prepared at one grid. A network that learnt sarcomas in PET and MR, where they are bright,
takes the bones for them in CT, where muscle and tumour differ by 20 HU out of 1,500. What differs the references know:
the logarithm of how often a grey value is met inside their classes over how often outside is a curve over grey values,
and the scan seen through it shows what looks like the class as bright, in any modality, and all else as dark. The
network then does what it can: find the bright thing that is shaped, and lies, like the reference's. The paper knows
nothing like it: this is ours (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from iris_pipeline.grey import log_ratio
from iris_pipeline.pose import SEARCH
from iris_pipeline.strategies import PreparedReference
from preprocessing.errors import PredictionError
from preprocessing.plan import Plan
from preprocessing.tones import Tones

ALWAYS, NEVER = "always", "never"
TONINGS = (SEARCH, ALWAYS, NEVER)
KNOTS = 256
"""of a curve: 6 HU of CT apart"""
RADIUS = 1
"""voxels to each side over which grey values are averaged: the noise of CT is as large as what tissues differ by"""
DEPTH = 4.0
"""of log ratios: what is less likely than the likeliest by more than this is equally dark"""
RANGE = (-4.0, 8.0)
"""standard deviations of MR and PET between which grey values have tones of their own"""


def toning_named(value: str) -> str:
    """What --tones says; PredictionError for something else."""
    if value not in TONINGS:
        raise PredictionError(f"Tones are given {', '.join(TONINGS)}; got {value!r}.")
    return value


def toned_plan(
    plan: Plan, names: Sequence[str], prepare_at: Callable[[Plan], Callable[[str], PreparedReference]]
) -> Plan:
    """The plan with the tones that the references of these names give; as it is where none shows a class.

    prepare_at: for a plan, what reads a reference by its name.
    """
    low, high = plan.normalisation.clip or RANGE
    as_they_are = Tones(low=low, high=high, values=(low, high), radius=RADIUS)
    prepare = prepare_at(_with(plan, as_they_are))
    curve = curve_of([prepare(name) for name in names], low, high)
    return plan if curve is None else _with(plan, curve)


def curve_of(references: Sequence[PreparedReference], low: float, high: float) -> Tones | None:
    """Tones of grey values from `low` to `high`: the log ratio of their share inside any class over their share
    outside, each reference counting alike, scaled so that the references have a mean of 0 and a spread of 1. None where
    no reference shows a class, or where there is nothing but one.
    """
    inside, outside = np.zeros(KNOTS), np.zeros(KNOTS)
    for reference in references:
        mask = np.isin(reference.labels, list(reference.classes.values()))
        if mask.any() and not mask.all():
            inside += _shares(reference.image[mask], low, high)
            outside += _shares(reference.image[~mask], low, high)
    if not inside.any():
        return None
    ratios = log_ratio(inside, outside)
    ratios = np.maximum(ratios, ratios.max() - DEPTH)
    whole = sum(_shares(reference.image, low, high) for reference in references) / len(references)
    mean = float(np.average(ratios, weights=whole))
    spread = float(np.sqrt(np.average(np.square(ratios - mean), weights=whole)))
    if spread == 0.0:
        return None
    half = (high - low) / KNOTS / 2  # knots are the middles of bins
    values = tuple(((ratios - mean) / spread).round(4).tolist())
    return Tones(low=low + half, high=high - half, values=values, radius=RADIUS)


def _shares(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of each bin; what lies beyond counts in the outermost."""
    counts = np.histogram(np.clip(grey, low, high), KNOTS, (low, high))[0]
    return counts / counts.sum()


def _with(plan: Plan, tones: Tones) -> Plan:
    return plan.model_copy(update={"normalisation": plan.normalisation.model_copy(update={"tones": tones})})
