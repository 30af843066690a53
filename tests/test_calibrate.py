"""Ways to show a validation case that no model was trained on, so that a calibration has masks that fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stub_model import GreyModel, loaded_with

from iris_pipeline.calibrate import UNFAMILIAR_SCALES, unfamiliar_showings
from iris_pipeline.checkpoint import RunState
from iris_pipeline.inputs import InputCase
from iris_pipeline.judging import bank_witnesses, no_witnesses, stored_witnesses
from iris_pipeline.pose import POSES, turned_plan
from iris_pipeline.predict import InferenceOptions
from iris_pipeline.predict_split import Experiment, tasks_shown_otherwise
from iris_pipeline.references import prepare_reference
from iris_pipeline.showing import Showing
from iris_pipeline.strategies import one_shot
from preprocessing.adapters import find_cases
from preprocessing.orientation import UPRIGHT
from preprocessing.store import Store
from preprocessing.volume import Volume


def test_unfamiliar_showings_are_other_scales_and_then_other_poses() -> None:
    found = unfamiliar_showings("liver_ct", 6)
    assert found == unfamiliar_showings("liver_ct", 6) and found[:2] == unfamiliar_showings("liver_ct", 2)
    assert found[0].pose == UPRIGHT and all(each.pose in POSES[1:] for each in found[1:])
    scales = {each.scale for each in found}
    assert scales <= set(UNFAMILIAR_SCALES) and len(scales) > 1 and len({each.pose for each in found}) > 3
    assert found != unfamiliar_showings("spleen_ct", 6), "each dataset has its own"
    assert unfamiliar_showings("liver_ct", 0) == []


@pytest.mark.parametrize(("axes", "scale"), [(UPRIGHT, 1.5), ("LIP", 0.8)])
def test_tasks_in_a_pose_and_at_a_scale_that_are_asked_for(
    tiny_store: Store, tiny_raw: Any, axes: str, scale: float
) -> None:
    """The task is that of the drawn reference on this grid, and the query of the same subject never its reference."""
    loaded = loaded_with(
        GreyModel(width=0.45), plans={"tiny": tiny_store.plan}, state=RunState(1, 1.0, 0, {"split": "paper"})
    )
    raw = {case.id: case for case in find_cases(tiny_raw.dataset, tiny_raw.spec)}
    experiment = Experiment(showing=Showing(axes, scale, 0.0))
    train = ["s2_a", "s2_b"]  # one subject, so that the reference is one of the two
    task_of = tasks_shown_otherwise(loaded, tiny_store, raw, train, experiment, InferenceOptions())
    query = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    task = task_of(InputCase("s3_a", None, "s3"), query)
    z, y, x = (scale * edge for edge in tiny_store.plan.spacing_mm)
    plan = turned_plan(tiny_store.plan.model_copy(update={"spacing_mm": (z, y, x)}), axes)
    assert task.grey is None
    assert task.pose.axes == axes and task.spacing_mm == pytest.approx(plan.spacing_mm)
    expected = [
        one_shot(
            loaded.model,
            prepare_reference(raw[name], plan, tiny_store.manifest.classes),
            plan,
            model_hash=loaded.model_hash,
        )
        for name in train
    ]
    # Who is asked beside it is read on the same grid: the store's arrays lie on another.
    witnesses = stored_witnesses(loaded, tiny_store, train, InferenceOptions(), count=2, raw=raw)
    asked = witnesses(InputCase("s3_a", None, "s3"), task)
    assert len(asked) == 2 and {witness.pose.axes for witness in asked} == {axes}
    for witness in asked:
        assert any(torch.equal(witness.tokens[0], one.tokens[0]) for one in expected)
    assert any(
        all(torch.equal(mine, its) for mine, its in zip(task.tokens, one.tokens, strict=True))
        for one in expected
    )

    weighed = replace(experiment, showing=Showing(axes, scale, 2.0))
    found = tasks_shown_otherwise(loaded, tiny_store, raw, train, weighed, InferenceOptions())
    evidence = found(InputCase("s3_a", None, "s3"), query).grey
    assert evidence is not None and set(evidence.weights.tolist()) == {2.0}, (
        "grey values count as they are asked to"
    )


def test_a_store_that_was_planned_anew_is_not_asked(tiny_store: Store) -> None:
    """Its images lie on another grid than the bank's tokens."""
    other = tiny_store.plan.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)})
    for plan, asked in ((tiny_store.plan, True), (other, False)):
        loaded = loaded_with(
            GreyModel(width=0.45), plans={"tiny": plan}, state=RunState(1, 1.0, 0, {"split": "paper"})
        )
        witnesses = bank_witnesses(loaded, tiny_store.folder, InferenceOptions())
        assert (witnesses is not no_witnesses) == asked
