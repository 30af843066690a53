"""Poses: how the arrays of scans lie when the network sees them.

Arrays are [D,H,W] = (z,y,x). All scans lie in RAS+, and yet "up" differs from dataset to dataset: a heart is cut across
its own axis and the slices are named sagittal or coronal as it happens. A network that learned the heart in one of the
cube's 48 poses (24 turns, and their mirror images) finds it badly in the others. `showing.py` searches for the pose.
The task remembers it (`TaskEmbedding.pose`), and every query is turned alike, in the frame of the first reference. The
paper knows no poses: they are ours.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np

from iris_pipeline.inference.strategies import PreparedReference
from preprocessing.errors import PredictionError
from preprocessing.orientation import AS_IT_IS, UPRIGHT, Pose, Reorientation, parse_axes
from preprocessing.plan import Plan

POSES = tuple(
    "".join(letters)
    for order in permutations(("SI", "AP", "RL"))
    for letters in product(*order)  # UPRIGHT comes first
)
SEARCH = "auto"
NAMES = {"auto": SEARCH, "upright": UPRIGHT}


def pose_named(text: str) -> str:
    """What --pose says: "auto", or the axes of one pose ("upright" is that of RAS+). PredictionError for another."""
    axes = NAMES.get(text, text)
    try:
        if axes != SEARCH:
            parse_axes(axes)
    except (ValueError, TypeError):
        raise PredictionError(
            f"The pose is auto, upright, or three letters, one each of S or I, A or P, R or L; got {text!r}."
        ) from None
    return axes


def turned_plan(plan: Plan, axes: str) -> Plan:
    """An upright plan in another pose of the same frame: its spacing and patch in the order of the new axes."""
    order = [axis for axis, _ in parse_axes(axes)]
    spacing, patch = ([values[axis] for axis in order] for values in (plan.spacing_mm, plan.patch_size))
    return plan.model_copy(
        update={
            "pose": Pose(axes, plan.pose.frame),
            "spacing_mm": (spacing[0], spacing[1], spacing[2]),
            "patch_size": (int(patch[0]), int(patch[1]), int(patch[2])),
        }
    )


def in_frame_of(plan: Plan, affine: np.ndarray) -> Plan:
    """An upright plan in the frame of a scan: what lies askew in space lies there as it does in this one."""
    return plan.model_copy(update={"pose": Pose(frame=Reorientation.to_ras(affine).frame(affine))})


def turned_reference(reference: PreparedReference, axes: str) -> PreparedReference:
    """An upright reference in another pose."""
    turn = AS_IT_IS.turned(axes)
    return replace(reference, image=turn.apply(reference.image), labels=turn.apply(reference.labels))
