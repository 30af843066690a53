"""The scale at which references and queries are shown: found on the references, far better or not taken, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import PLAN, blob_reference
from stub_model import loaded_with, tiny_model
from torch import Tensor

from iris_pipeline.inference.examples import Example, draw_example
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, one_shot
from iris_pipeline.search import trial
from iris_pipeline.search.grey_weights import WeightSettings, grey_evidence, losses_by_weight
from iris_pipeline.search.pose import turned_plan, turned_reference
from iris_pipeline.search.showing import AS_PLANNED, Search, Showing, grey_named, scale_named, settle_showing
from preprocessing.errors import PredictionError
from preprocessing.orientation import UPRIGHT, Pose
from preprocessing.plan import Plan

RADIUS_MM = 12.0
EXTENT_MM = 40


class KnowsOneSize(torch.nn.Module):
    """A network that calls a ball of one size in voxels, round the middle of what is bright, the object."""

    def __init__(self, radius: float):
        super().__init__()
        self.radius, self.encoded = radius, 0

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        self.encoded += 1
        return (torch.zeros(1, masks.shape[1], 1, 1),)

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        image = features[0]
        places = torch.nonzero(image[0, 0] > 0.5 * image.max()).float()
        grid = torch.stack(
            torch.meshgrid(*(torch.arange(n).float() for n in image.shape[2:]), indexing="ij"), -1
        )
        away = (grid - places.mean(0)).norm(dim=-1)
        return 4 * (self.radius - away).expand(1, tokens[0].shape[1], *image.shape[2:])


def plan_at(scale: float) -> Plan:
    return PLAN.model_copy(update={"spacing_mm": (scale, scale, scale)})


def ball(name: str, scale: float, speck: bool = False) -> PreparedReference:
    """A ball of 12 mm in 40 mm at a spacing of `scale` mm; `speck`: a class that only a grid of 1 mm can show."""
    edge = round(EXTENT_MM / scale)
    grid = (np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1) + 0.5) * scale - EXTENT_MM / 2
    labels = (np.linalg.norm(grid, axis=-1) < RADIUS_MM).astype(np.uint8)
    image = labels.astype(np.float32)
    if speck and scale <= 1:
        labels[0, 0, :4] = 2
    return PreparedReference(name, image, labels, {"ball": 1, "speck": 2}, name)


def found(radius: float, speck: bool = False) -> float:
    search = Search(
        loaded_with(KnowsOneSize(radius)),
        lambda scale: (plan_at(scale), [ball("a", scale, speck), ball("b", scale, speck)]),
    )
    return search.scale(UPRIGHT)


@pytest.mark.parametrize(("radius", "scale"), [(12.0, 1.0), (9.6, 1.25), (7.5, 1.6)])
def test_the_scale_that_the_model_knows_is_found(radius: float, scale: float) -> None:
    assert found(radius) == scale


def test_another_scale_must_be_far_better_and_of_two_alike_the_finer_is_taken() -> None:
    assert found(11.4) == 1.0, "1.25 would be a ball of 9.6: no better"
    # 1.25 and 1.6 show balls of 9.6 and 7.5 voxels: one of 8.5 lies between them
    assert found(8.5) == 1.25


@pytest.mark.parametrize(("people", "scale"), [("ab", 1.25), ("aa", 1.6)])
def test_one_person_does_not_tell_how_large_others_are(
    people: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finer of two scales is taken that lose 0.5 and 0.4, of one person the coarser."""
    told = {1.0: 0.8, 1.25: 0.5, 1.6: 0.4}
    monkeypatch.setattr(Search, "_judged", lambda _, axes, at: told[at])
    references = [replace(blob_reference(number), subject=name) for number, name in enumerate(people)]
    assert Search(tiny_model(), lambda _: (PLAN, references)).scale(UPRIGHT) == scale


@pytest.mark.parametrize(
    ("people", "toned", "scale"), [("ab", False, 1.0), ("ab", True, 1.25), ("aa", True, 1.0)]
)
def test_in_other_tones_the_planned_spacing_is_one_of_many(
    people: str, toned: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is better by less than a tenth is taken there alone, and not of one person."""
    told = {1.0: 0.62, 1.25: 0.57, 1.6: 0.56}
    monkeypatch.setattr(Search, "_judged", lambda _, axes, at: told[at])
    references = [replace(blob_reference(number), subject=name) for number, name in enumerate(people)]
    assert Search(tiny_model(), lambda _: (PLAN, references), toned=toned).scale(UPRIGHT) == scale


def test_a_scale_that_loses_a_class_is_none() -> None:
    assert found(7.5, speck=True) == 1.0, "coarser grids lose the speck"


def test_the_plan_says_what_was_found_and_equal_references_are_tried_once() -> None:
    model, cache = KnowsOneSize(7.5), EmbeddingCache()
    loaded = loaded_with(model)

    def settle(wanted: Showing) -> Plan:
        def prepare_at(plan: Plan):  # type: ignore[no-untyped-def]
            return lambda name: ball(name, plan.spacing_mm[0])

        return settle_showing(loaded, plan_at, wanted, ["a", "b"], prepare_at, np.eye(4), cache=cache)

    assert settle(Showing()).spacing_mm == (1.6, 1.6, 1.6)
    before = model.encoded
    assert settle(Showing()).spacing_mm == (1.6, 1.6, 1.6) and model.encoded == before > 0
    settle(Showing(grey=3.0))
    assert model.encoded == before, "judged anew with that weight, by tasks that are there"
    turned = settle(Showing("LSA"))
    assert (turned.pose, turned.spacing_mm[0]) == (Pose("LSA"), 1.6)
    before = model.encoded
    for wanted, spacing in ((AS_PLANNED, 1.0), (Showing(UPRIGHT, 1.25), 1.25)):
        assert settle(wanted).spacing_mm == (spacing,) * 3
    assert model.encoded == before, "nothing to search for"


class ToldLosses:
    """A trial whose losses are told: pose -> loss of one crop, 9 for all others."""

    classes = ()
    of_one_person = False

    def __init__(self, told: dict[str, float]):
        self.told = told

    def losses(self, poses: Iterable[str], numbers: Sequence[int]) -> dict[str, float]:
        return {axes: len(numbers) * self.told.get(axes, 9.0) for axes in poses}


@pytest.mark.parametrize(
    ("upright", "scale", "found"),
    [
        # ASL has the least sum of plain losses and, at 1.6, the least loss with grey values; but at the two scales at
        # which they would be shown LIP has 0.6 + 0.5, ASL 0.9 + 0.25
        (0.64, None, ("LIP", 1.25)),
        (0.63, None, (UPRIGHT, 1.25)),  # less than a twentieth better, both being shown at 1.25
        (0.8, 1.6, ("ASL", 1.6)),  # at a scale that is wanted, whatever would be best
    ],
)
def test_a_pose_is_judged_as_it_would_be_shown(
    upright: float, scale: float | None, found: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {
        1.0: {},
        1.25: {UPRIGHT: 0.6, "LIP": 0.5, "ASL": 0.6},
        1.6: {UPRIGHT: 0.7, "LIP": 0.9, "ASL": 0.2},
        2.0: {UPRIGHT: 0.9, "LIP": 0.8, "ASL": 0.3, "AIL": 0.1},
    }
    as_shown = {
        (UPRIGHT, 1.0): 0.8,
        (UPRIGHT, 1.25): upright,
        (UPRIGHT, 1.6): 0.9,
        ("LIP", 1.0): 0.9,
        ("LIP", 1.25): 0.6,
        ("LIP", 1.6): 0.5 if scale is None else 0.3,  # less than 0.3 better than the finer scale
        ("ASL", 1.0): 0.9,
        ("ASL", 1.25): 0.9,
        ("ASL", 1.6): 0.25,
    }
    monkeypatch.setattr(Search, "_trial", lambda _, scale: ToldLosses(plain[scale]))
    monkeypatch.setattr(Search, "_judged", lambda _, axes, at: as_shown.get((axes, at), 5.0 * at))
    search = Search(tiny_model(), lambda _: pytest.fail("nothing is read"))
    assert search.showing(scale) == found


@pytest.mark.parametrize("grey", ["auto", 0.0, 2.0])
def test_as_shown_is_with_the_grey_values_that_will_count(grey: float | str) -> None:
    """The naive way: each crop by the other's task, the mean over classes at the weight that wins."""
    loaded, references = tiny_model(), [blob_reference(1), blob_reference(2)]
    found = Search(loaded, lambda _: (PLAN, references), grey)._loss_as_shown("LSA", 1.0)
    plan, turned = turned_plan(PLAN, "LSA"), [turned_reference(each, "LSA") for each in references]
    tasks = []
    for each in turned:
        task = one_shot(loaded.model, each, plan, model_hash=loaded.model_hash)
        tasks.append(replace(task, grey=grey_evidence(each, task.class_names, plan.patch_size)))
    weights = WeightSettings().weights if grey == "auto" else (float(grey),)
    shown = Search(loaded, lambda _: (PLAN, references))._trial(1.0)
    crops = []
    for number in range(8):
        example = shown.lesson("LSA", tasks, number)[2]
        losses = losses_by_weight(loaded, tasks[1 - number % 2], example, InferenceOptions(), weights)
        crops.append(np.stack([losses[name] for name in ("ball", "disc")]))
    means = np.mean(crops, axis=0)  # [class, weight]
    if grey != "auto":
        assert found == pytest.approx(means.mean())
        return
    gained = means.min(axis=1) < 0.95 * means[:, 0]
    assert gained.any(), "an untrained network is helped"
    assert found == pytest.approx(np.where(gained, means.min(axis=1), means[:, 0]).mean())


@pytest.mark.parametrize("text", ["0.1", "5", "half", "nan"])
def test_a_scale_is_auto_or_a_sensible_number(text: str) -> None:
    assert (scale_named("auto"), scale_named("1.6"), scale_named(2)) == ("auto", 1.6, 2.0)
    with pytest.raises(
        PredictionError, match=f"The scale is auto, or how many times the planned .* 0.25 to 4; got '{text}'"
    ):
        scale_named(text)


@pytest.mark.parametrize("text", ["-0.1", "10.5", "heavy", "nan", "inf", ""])
def test_a_weight_of_grey_values_is_auto_or_a_sensible_number(text: str) -> None:
    assert [grey_named(value) for value in ("auto", "0", "1.5", 10)] == ["auto", 0.0, 1.5, 10.0]
    assert Showing.of("upright", "1", "2") == Showing("SAR", 1.0, 2.0) and Showing().grey == "auto"
    with pytest.raises(
        PredictionError,
        match=rf"The weight of grey values is auto, or 0 \(none\) to 10 \(1: .*\); got '{text}'\.",
    ):
        Showing.of("upright", 1, text)


@pytest.mark.parametrize(("content", "alone"), [("hash1", True), ("hash2", False)])
def test_a_scan_is_not_tried_on_its_copy(content: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another person's name: then each is its own teacher, on augmented crops."""
    references = [blob_reference(1), blob_reference(2, image_hash=content)]
    augmented = []

    def drawn(*given: Any, **options: Any) -> Example:
        augmented.append(options["augmented"])
        return draw_example(*given, **options)

    monkeypatch.setattr(trial, "draw_example", drawn)
    shown = trial.Trial(tiny_model(), references, PLAN, InferenceOptions(), 0, {}, False)
    assert shown.losses([UPRIGHT], range(2))[UPRIGHT] > 0 and augmented == [alone, alone]
