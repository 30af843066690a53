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

from iris_pipeline.inference.strategies import Prepare, PreparedReference
from iris_pipeline.search.pose import SEARCH
from iris_pipeline.tasks.tone_curves import curve_between, unchanged
from preprocessing.errors import PredictionError
from preprocessing.plan import Plan
from preprocessing.tones import Tones

ALWAYS, NEVER = "always", "never"
TONINGS = (SEARCH, ALWAYS, NEVER)
RANGE = (-4.0, 8.0)
"""standard deviations of MR and PET between which grey values have tones of their own"""


def toning_named(value: str) -> str:
    """What --tones says; PredictionError for something else."""
    if value not in TONINGS:
        raise PredictionError(f"Tones are one of {', '.join(TONINGS)}; got {value!r}.")
    return value


def toned_plan(plan: Plan, names: Sequence[str], prepare_at: Callable[[Plan], Prepare]) -> Plan:
    """The plan with the tones that the references of these names give; as it is where none shows a class.

    prepare_at: for a plan, what reads a reference by its name.
    """
    low, high = plan.normalisation.clip or RANGE
    prepare = prepare_at(_with(plan, unchanged(low, high)))
    curve = curve_of([prepare(name) for name in names], low, high)
    return plan if curve is None else _with(plan, curve)


def curve_of(references: Sequence[PreparedReference], low: float, high: float) -> Tones | None:
    """Tones in which what looks like any class of the references is bright; None where none shows a class, or where
    there is nothing but one.
    """
    shown = [(each.image, np.isin(each.labels, list(each.classes.values()))) for each in references]
    return curve_between(shown, low, high)


def _with(plan: Plan, tones: Tones) -> Plan:
    return plan.model_copy(update={"normalisation": plan.normalisation.model_copy(update={"tones": tones})})
