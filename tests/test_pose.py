"""Poses: turning scans, references and plans alike, finding the pose that a model knows, segmenting in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import PLAN
from scans import affine_of, volume
from stub_model import GreyModel, loaded_with, make_task
from torch import Tensor

from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.strategies import PreparedReference
from iris_pipeline.scans.scan import Wanted, segment_scan
from iris_pipeline.search.pose import POSES, pose_named, turned_plan, turned_reference
from iris_pipeline.search.showing import (
    Search,
    SearchSettings,
    Showing,
    settle_showing,
)
from preprocessing.case import preprocess_case
from preprocessing.errors import PredictionError
from preprocessing.normalise import Normalisation
from preprocessing.orientation import UPRIGHT, Pose, Reorientation
from preprocessing.plan import Plan

POSE_ONLY = Showing("auto", 1.0, tones="never")
QUICK = SearchSettings(pose_scales=(1.0,), scales=(1.0,), first_judges=1, rivals=8, judges=2)


class TowardFirstAxis(torch.nn.Module):
    """A network that knows one thing, learned in one pose: the object fills the far half of the first axis."""

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        return (torch.zeros(1, masks.shape[1], 1, 1),)

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        image = features[0]
        far = torch.linspace(-1, 1, image.shape[2])[None, None, :, None, None]
        return (20 * far).expand(1, tokens[0].shape[1], *image.shape[2:])


class KnowsNothing(TowardFirstAxis):
    """A network that calls everything equally likely."""

    def segment_from_features(self, features: tuple[Tensor, ...], tokens: tuple[Tensor, ...]) -> Tensor:
        return 0 * super().segment_from_features(features, tokens)


def half_filled(axis: int, far: bool, subject: str = "") -> PreparedReference:
    """The object is one half of the patch along an axis (0, 1, 2 for z, y, x)."""
    labels = np.zeros((16, 32, 32), dtype=np.uint8)
    part: list[Any] = [slice(None)] * 3
    middle = labels.shape[axis] // 2
    part[axis] = slice(middle, None) if far else slice(0, middle)
    labels[tuple(part)] = 1
    return PreparedReference(subject, labels.astype(np.float32), labels, {"half": 1}, subject)


def find_pose(
    model: torch.nn.Module, references: Sequence[PreparedReference], cache: EmbeddingCache | None = None
) -> str:
    search = Search(
        loaded_with(model), lambda _: (plan(), references), settings=QUICK, cache=cache or EmbeddingCache()
    )
    return search.showing()[0]


def plan() -> Any:
    return PLAN.model_copy(update={"spacing_mm": (3.0, 2.0, 1.0), "patch_size": (16, 32, 32)})


def test_the_forty_eight_poses_are_all_different_and_upright_comes_first() -> None:
    assert len(set(POSES)) == 48 and POSES[0] == UPRIGHT
    array = np.arange(24).reshape(2, 3, 4)
    turned = {
        (t.shape, t.tobytes())
        for t in (Reorientation.to_ras(np.eye(4)).turned(p).apply(array) for p in POSES)
    }
    assert len(turned) == 48


def test_axes_grow_toward_their_letters() -> None:
    # a file in LPS+: x grows toward Left, y toward Posterior, z toward Superior
    upright = Reorientation.to_ras(np.diag([-1.0, -1.0, 1.0, 1.0]))
    file = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(upright.turned("SPL").apply(file), file)
    turned = upright.turned("RIA")
    assert np.array_equal(turned.apply(file), file.transpose(2, 0, 1)[::-1, ::-1, ::-1])
    assert np.array_equal(turned.undo(turned.apply(file)), file)
    with pytest.raises(
        ValueError, match="three letters, one each of S or I, A or P, R or L, such as SAR; got 'SSA'"
    ):
        upright.turned("SSA")


def test_what_is_written_into_a_view_is_written_into_the_array() -> None:
    turn = Reorientation.to_ras(affine_of("PSR", (1.0, 2.0, 3.0))).turned("LAI")
    array = np.zeros((2, 3, 4), dtype=int)
    values = np.arange(24).reshape(turn.apply(array).shape)
    turn.view(array)[...] = values
    assert np.array_equal(turn.apply(array), values)


@pytest.mark.parametrize("axes", ["LSA", "IPR", "ALS"])
def test_a_case_prepared_in_a_pose_is_the_upright_one_turned(axes: str) -> None:
    rng = np.random.default_rng(0)
    affine = affine_of("PSR", (2.0, 1.3, 1.7), degrees=9.0)
    image = volume(rng.normal(size=(13, 11, 9)).astype(np.float32), affine)
    labels = volume((image.array > 0.5).astype(np.uint8), affine)
    upright_plan = plan()
    turned = turned_plan(upright_plan, axes)
    normalisation = Normalisation.for_modality("MR")
    upright = preprocess_case(image, upright_plan.spacing_mm, normalisation, labels)
    found = preprocess_case(image, turned.spacing_mm, normalisation, labels, pose=turned.pose)
    assert upright.labels is not None and found.labels is not None
    expected = turned_reference(PreparedReference("r", upright.image, upright.labels, {"a": 1}), axes)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-4)
    assert (found.labels == expected.labels).mean() > 0.999, "but for rounding at equal shares"
    assert np.array_equal(found.trace.undo_labels(found.labels), upright.trace.undo_labels(upright.labels))


def test_a_turned_plan_is_another_plan() -> None:
    turned = turned_plan(plan(), "RSA")
    assert (turned.spacing_mm, turned.patch_size) == ((1.0, 3.0, 2.0), (32, 16, 32))
    assert turned.pose == Pose("RSA")
    assert turned.digest != turned_plan(plan(), "LSA").digest
    assert turned_plan(plan(), UPRIGHT).digest == plan().digest


@pytest.mark.parametrize(
    ("axis", "far", "letter"), [(2, True, "R"), (2, False, "L"), (1, False, "P"), (0, False, "I")]
)
@pytest.mark.parametrize("others", [False, True])
def test_the_pose_that_the_model_knows_is_found(axis: int, far: bool, letter: str, others: bool) -> None:
    references = [half_filled(axis, far, name) for name in (("a", "b") if others else ("a",))]
    found = find_pose(TowardFirstAxis(), references)
    assert found[0] == letter


def test_upright_stays_where_it_is_right_and_where_no_pose_is_known() -> None:
    assert find_pose(TowardFirstAxis(), [half_filled(0, True, "a")]) == UPRIGHT
    assert find_pose(KnowsNothing(), [half_filled(2, True, "a")]) == UPRIGHT


def test_a_search_is_done_once_for_equal_references(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(_: Search, scale: float | None) -> tuple[str, float]:
        calls.append(1)
        assert scale == 1.0
        return "LSA", scale

    monkeypatch.setattr(Search, "showing", counted)
    cache, loaded = EmbeddingCache(), loaded_with(TowardFirstAxis())
    prepare = {
        "a": half_filled(2, True, "a"),
        "b": replace(half_filled(2, True, "b"), labels=np.zeros((16, 32, 32), np.uint8)),
    }

    def settle(wanted: Showing, names: list[str]) -> Plan:
        return settle_showing(
            loaded, lambda _: plan(), wanted, names, lambda _: prepare.__getitem__, np.eye(4), cache=cache
        )

    for _ in range(2):
        settled = settle(POSE_ONLY, ["a", "b"])
        assert settled.pose.axes == "LSA" and calls == [1]
    assert settle(POSE_ONLY, ["b"]).pose.axes == UPRIGHT, "nothing to judge by"
    assert settle(Showing("IPR", 1.0), ["a"]).pose.axes == "IPR"
    assert calls == [1]


class Counting(TowardFirstAxis):
    """Counts the references that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        self.encoded += 1
        return super().encode_task(image, masks)


def test_a_reference_is_encoded_once_a_pose_however_many_sets_it_is_in() -> None:
    a, b, c = (half_filled(2, True, name) for name in "abc")
    b, c = (replace(r, image=r.image + number) for number, r in enumerate((b, c), 1))
    model, cache = Counting(), EmbeddingCache()
    assert find_pose(model, [a, b], cache)[0] == "R"
    assert model.encoded == 2 * len(POSES)
    before = model.encoded
    assert find_pose(model, [a, b], cache)[0] == "R"
    assert model.encoded == before
    assert find_pose(model, [b, c], cache)[0] == "R"
    assert model.encoded - before == len(POSES)
    alone = Counting()
    find_pose(alone, [b, c])
    assert alone.encoded == 2 * len(POSES)


def test_no_more_references_are_read_than_take_part() -> None:
    read: list[str] = []
    subjects = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}

    def prepare(name: str) -> PreparedReference:
        read.append(name)
        return replace(half_filled(0, True, subjects[name]), id=name)

    loaded = loaded_with(TowardFirstAxis())
    settle_showing(loaded, lambda _: plan(), POSE_ONLY, list(subjects), lambda _: prepare, np.eye(4))
    assert read[:4] == ["a1", "a2", "b", "c"]
    assert set(read[4:]) == {"a1", "b", "c"}, "again at other scales, where they take part"


@pytest.mark.parametrize("order", ["RAS", "PSR"])
def test_a_scan_is_segmented_alike_in_every_pose(order: str) -> None:
    array = np.random.default_rng(3).normal(size=(14, 21, 17)).astype(np.float32)
    image = volume(array, affine_of(order, (2.0, 1.3, 1.7), degrees=9.0))
    task = make_task([1.0, -0.3], class_values=(5, 9), spacing_mm=(2.0, 1.7, 1.3))
    wanted = Wanted(masks=True, probabilities=True, certainty=True)
    upright = segment_scan(loaded_with(GreyModel(width=0.4)), [task], image, wanted=wanted)
    assert len(np.unique(upright.labels)) == 3
    turned_task = replace(task, pose=Pose("LSA"), spacing_mm=(1.3, 2.0, 1.7))
    turned = segment_scan(loaded_with(GreyModel(width=0.4)), [turned_task], image, wanted=wanted)
    assert (turned.labels == upright.labels).mean() > 0.995, "but for rounding"
    for name in task.class_names:
        first, second = (each.on_own_grid(name, each.masks[name]) for each in (upright, turned))
        assert (first == second).mean() > 0.995 and first.any()
        near = (each.on_own_grid(name, each.probabilities[name]).astype(int) for each in (upright, turned))
        assert abs(next(near) - next(near)).mean() < 1
        assert turned.certainty[name] == pytest.approx(upright.certainty[name], abs=1e-2)


def test_tasks_of_two_poses_share_one_label_map() -> None:
    array = np.random.default_rng(3).normal(size=(14, 21, 17)).astype(np.float32)
    image = volume(array, affine_of("PSR", (2.0, 1.3, 1.7)))
    one = make_task([1.0], ("bright",), class_values=(5,), spacing_mm=(2.0, 1.7, 1.3))
    two = make_task([-1.0], ("dark",), class_values=(9,), spacing_mm=(1.3, 2.0, 1.7), pose=Pose("LSA"))
    both = segment_scan(loaded_with(GreyModel(width=0.4)), [one, two], image).labels
    for task in (one, two):
        alone = segment_scan(loaded_with(GreyModel(width=0.4)), [task], image).labels
        assert np.array_equal(both == task.class_values[0], alone == task.class_values[0]) and alone.any()


def test_a_pose_is_told_by_name_or_letters() -> None:
    assert [pose_named(text) for text in ("auto", "upright", "LSA")] == ["auto", "SAR", "LSA"]
    with pytest.raises(PredictionError, match="The pose is auto, upright, or three letters, .* got 'RAX'"):
        pose_named("RAX")


def sliced_across(degrees: float) -> np.ndarray:
    """Affine of a scan whose slices' normal lies that far from Right toward Anterior; x in plane, y toward Superior."""
    angle = np.deg2rad(degrees)
    normal, in_plane = [np.cos(angle), np.sin(angle), 0], [np.sin(angle), -np.cos(angle), 0]
    affine = np.eye(4)
    affine[:3, :3] = np.array([in_plane, [0, 0, 1], normal]).T * (1.0, 1.0, 8.0)
    return affine


def test_scans_askew_lie_alike_in_the_frame_of_one_of_them() -> None:
    # slices across an axis 44 and 46 degrees from Right toward Anterior: nearest to Right, and to Anterior
    first, second = (sliced_across(degrees) for degrees in (44.0, 46.0))

    def slice_axis(reorientation: Reorientation) -> int:
        return reorientation.axes.index(0)  # the file's axis 0 (z) runs across its slices

    apart = [Reorientation.to_ras(affine) for affine in (first, second)]
    assert slice_axis(apart[0]) != slice_axis(apart[1])
    pose_of_first = Pose(frame=apart[0].frame(first))
    assert pose_of_first.orient(first) == apart[0]
    assert slice_axis(pose_of_first.orient(second)) == slice_axis(apart[0])
    both = [pose_of_first.orient(affine).frame(affine) for affine in (first, second)]
    assert np.sum(np.multiply(*both), axis=1) == pytest.approx(
        [1, np.cos(np.deg2rad(2)), np.cos(np.deg2rad(2))], abs=1e-6
    )


@pytest.mark.parametrize("order", ["RAS", "LPS", "PSR", "SAL"])
def test_the_frame_of_an_upright_scan_is_that_of_ras(order: str) -> None:
    affine = affine_of(order, (1.0, 2.0, 3.0))
    upright = Reorientation.to_ras(affine)
    assert upright.frame(affine) == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert Reorientation.toward(affine, upright.frame(affine)) == upright
