"""References become tasks: which crops are encoded, what is averaged with which weights, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stub_model import HASH, GreyModel, loaded_with, make_task
from torch import Tensor

from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.inference.strategies import (
    PreparedReference,
    Window,
    bank,
    class_boxes,
    ensemble,
    join_people,
    one_shot,
    plan_windows,
)
from iris_pipeline.model import build_iris
from preprocessing.errors import ReferenceCaseError, TaskError
from preprocessing.normalise import Normalisation
from preprocessing.plan import Plan

PLAN = Plan(
    dataset="toys",
    modality="MR",
    policy="fit",
    spacing_mm=(2.0, 1.5, 1.0),
    patch_size=(16, 16, 32),
    normalisation=Normalisation.for_modality("MR"),
    intensity_offset=7.0,
    reasons=(),
)


def make_reference(shape: tuple[int, ...], *blocks: tuple, classes: dict[str, int]) -> PreparedReference:
    """A random image with blocks (value, slices) in its labels."""
    labels = np.zeros(shape, np.uint8)
    for value, box in blocks:
        labels[box] = value
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return PreparedReference("ref", image, labels, classes, "somebody", "hash")


def mean_under(reference: PreparedReference, value: int) -> float:
    return float(reference.image[reference.labels == value].mean())


def test_one_shot_is_the_mean_under_the_mask_and_carries_the_plan() -> None:
    reference = make_reference(
        (20, 30, 40),
        (3, np.s_[2:6, 3:9, 4:14]),
        (9, np.s_[8:10, 5:6, 12:20]),
        classes={"b": 9, "none": 5, "a": 3},
    )
    model = GreyModel()
    task = one_shot(model, reference, PLAN, model_hash=HASH)
    assert task.classes == {"b": 9, "a": 3}, "classes without voxels are left out, the order is kept"
    assert task.tokens[0].shape == (1, 2, 1, 1)
    assert task.tokens[0].flatten().tolist() == pytest.approx(
        [mean_under(reference, 9), mean_under(reference, 3)]
    )
    assert (task.spacing_mm, task.patch_size, task.intensity_offset) == ((2.0, 1.5, 1.0), (16, 16, 32), 7.0)
    assert (task.references, task.made_by, task.reference_hashes) == (1, "one-shot", ("hash",))
    assert len(model.masks) == 1 and model.masks[0].shape == (1, 2, 16, 16, 32), "one pass for both classes"


def test_a_class_without_a_place_in_the_wide_view_leaves_the_task_without_it() -> None:
    """Two stones in one place of the halved map: the task has them all at the whole resolution."""
    blocks = ((1, np.s_[2:6, 3:9, 4:14]), (2, np.s_[8, 8, 8]), (3, np.s_[9, 9, 9]))
    classes = {"organ": 1, "stone a": 2, "stone b": 3}
    reference = make_reference((20, 30, 40), *blocks, classes=classes)
    task = one_shot(GreyModel(), reference, PLAN, model_hash=HASH, wide=True)
    assert task.class_names == ("organ", "stone a", "stone b") and task.wide_tokens == ()
    expected = [mean_under(reference, value) for value in (1, 2, 3)]
    assert task.tokens[0].flatten().tolist() == pytest.approx(expected)
    apart = make_reference((20, 30, 40), *blocks[:2], (3, np.s_[10, 9, 9]), classes=classes)
    assert one_shot(GreyModel(), apart, PLAN, model_hash=HASH, wide=True).wide_tokens[0].shape == (1, 3, 1, 1)


def test_a_scan_that_two_people_share_makes_them_one() -> None:
    assert join_people(["a", "b", "b", "c"], ["x", "x", "y", "z"]) == ["a", "a", "a", "c"]
    assert join_people(["a", "a", "b", "c"], ["x", "y", "z", "y"]) == ["a", "a", "b", "a"]
    assert join_people(["a", "b", "c"], ["x", "y", "y"]) == ["a", "b", "b"]
    assert join_people(["a", "b"], ["", ""]) == ["a", "b"], "of no known content"


def test_the_crop_is_centred_on_the_joint_box() -> None:
    reference = make_reference(
        (60, 60, 60),
        (1, np.s_[20:24, 30:34, 10:14]),
        (2, np.s_[26:28, 36:40, 30:34]),
        classes={"a": 1, "b": 2},
    )
    model = GreyModel()
    one_shot(model, reference, PLAN, model_hash=HASH)
    # joint box 20..28, 30..40, 10..34: middles 24, 35, 22; the patch of 16, 16, 32 begins at 16, 27, 6
    expected = reference.labels[16:32, 27:43, 6:38]
    assert np.array_equal(
        model.masks[0][0].numpy(), np.stack([expected == 1, expected == 2]).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("boxes", "shape", "expected"),
    [
        # at the border the crop stays inside the volume
        ({"a": ((0, 2), (0, 2), (0, 2))}, (40, 40, 40), [Window((0, 0, 0), ("a",))]),
        ({"a": ((38, 40), (38, 40), (38, 40))}, (40, 40, 40), [Window((24, 24, 8), ("a",))]),
        # a volume smaller than the patch lies in its middle: 16 - 5 = 11 missing, 6 before
        ({"a": ((0, 2), (0, 2), (0, 2))}, (5, 16, 31), [Window((-6, 0, -1), ("a",))]),
        # a and b fit one patch, c is too far away; d joins the first group it fits
        (
            {
                "a": ((0, 4), (0, 4), (0, 4)),
                "b": ((8, 12), (0, 4), (0, 4)),
                "c": ((36, 40), (0, 4), (0, 4)),
                "d": ((30, 34), (0, 4), (0, 4)),
            },
            (40, 40, 40),
            [Window((0, 0, 0), ("a", "b")), Window((24, 0, 0), ("c", "d"))],
        ),
        # larger than the patch along z (33 > 16): three windows along z, centred along the others
        (
            {"a": ((2, 35), (10, 14), (20, 30))},
            (40, 40, 60),
            [Window((2, 4, 9), ("a",)), Window((10, 4, 9), ("a",)), Window((19, 4, 9), ("a",))],
        ),
    ],
)
def test_windows_by_hand(boxes: dict, shape: tuple[int, ...], expected: list[Window]) -> None:
    assert plan_windows(boxes, shape, PLAN.patch_size) == expected


def test_windows_of_random_boxes_show_every_voxel() -> None:
    generator = np.random.default_rng(5)
    for _ in range(50):
        shape = generator.integers(5, 70, 3)
        boxes = {}
        for name in "abc":
            low = generator.integers(0, shape)
            high = generator.integers(low + 1, shape + 1)
            boxes[name] = tuple(zip(low.tolist(), high.tolist(), strict=True))
        windows = plan_windows(boxes, shape.tolist(), PLAN.patch_size)
        for name, box in boxes.items():
            seen = np.zeros(shape, bool)
            for window in windows:
                if name in window.classes:
                    seen[
                        tuple(
                            slice(max(s, 0), s + p)
                            for s, p in zip(window.start, PLAN.patch_size, strict=True)
                        )
                    ] = True
            assert seen[tuple(slice(*axis) for axis in box)].all()
        for window in windows:
            for start, edge, length in zip(window.start, PLAN.patch_size, shape, strict=True):
                assert (0 <= start <= length - edge) if length >= edge else (start < 0 or edge == length)


def test_boxes_of_classes() -> None:
    reference = make_reference(
        (8, 9, 10), (4, np.s_[1:3, 2:5, 9:10]), (4, np.s_[6:7, 2:3, 3:4]), classes={"none": 250, "x": 4}
    )
    assert class_boxes(reference) == {"x": ((1, 7), (2, 5), (3, 10))}


def test_an_object_larger_than_the_patch_is_averaged_with_its_voxels_as_weights() -> None:
    # 32 x 32 x 64 voxels: eight disjoint windows, unequally filled
    labels = np.random.default_rng(1).random((32, 32, 64)) < np.linspace(0.05, 0.95, 64)
    labels[0, 0, 0] = labels[-1, -1, -1] = True
    image = np.random.default_rng(2).normal(size=labels.shape).astype(np.float32) + np.linspace(
        0, 9, 64, dtype=np.float32
    )
    model = GreyModel()
    task = one_shot(
        model, PreparedReference("r", image, labels.astype(np.uint8), {"a": 1}), PLAN, model_hash=HASH
    )
    assert len(model.masks) == 8
    assert float(task.tokens[0]) == pytest.approx(float(image[labels].mean()), rel=1e-5)
    unweighted = np.mean(
        [float((m * i).sum() / m.sum()) for m, i in zip(model.masks, windows_of(image), strict=True)]
    )
    assert abs(unweighted - float(image[labels].mean())) > 0.1, "the test cannot tell weights from none"


def windows_of(image: np.ndarray) -> list[Tensor]:
    starts = [(z, y, x) for z in (0, 16) for y in (0, 16) for x in (0, 32)]
    return [torch.from_numpy(image[z : z + 16, y : y + 16, x : x + 32]) for z, y, x in starts]


def test_windows_without_the_object_are_not_encoded() -> None:
    # two ends of a 48 x 48 x 96 box: 27 windows, two of them with voxels
    reference = make_reference(
        (48, 48, 96), (1, np.s_[0:2, 0:2, 0:2]), (1, np.s_[46:, 46:, 94:]), classes={"a": 1}
    )
    model = GreyModel()
    task = one_shot(model, reference, PLAN, model_hash=HASH)
    assert len(model.masks) == 2
    assert float(task.tokens[0]) == pytest.approx(mean_under(reference, 1), rel=1e-5)


def test_small_volumes_are_padded_with_their_minimum_and_an_empty_mask() -> None:
    reference = make_reference((5, 9, 11), (1, np.s_[:, :, :]), classes={"a": 1})
    seen = []

    class Probe(GreyModel):
        def encode_task(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
            seen.append(image)
            return super().encode_task(image, masks)

    model = Probe()
    one_shot(model, reference, PLAN, model_hash=HASH)
    assert model.masks[0].sum() == reference.image.size
    inside = model.masks[0][0, 0] > 0
    assert (seen[0][0, 0][~inside] == float(reference.image.min())).all()
    assert torch.equal(seen[0][0, 0][inside].reshape(5, 9, 11), torch.from_numpy(reference.image))


def test_the_real_network_sees_the_crop() -> None:
    model = build_iris("tiny", seed=0).eval()
    reference = make_reference(
        (30, 20, 40), (1, np.s_[5:12, 4:9, 6:20]), (2, np.s_[13:15, 2:5, 8:10]), classes={"a": 1, "b": 2}
    )
    task = one_shot(model, reference, PLAN, model_hash=HASH)
    box = np.s_[2:18, 0:16, 0:32]  # joint box 5..15, 2..9, 6..20: starts 2, -3 -> 0, -3 -> 0
    masks = np.stack([reference.labels[box] == 1, reference.labels[box] == 2]).astype(np.float32)
    with torch.inference_mode():
        expected = model.encode_task(
            torch.from_numpy(reference.image[box])[None, None], torch.from_numpy(masks)[None]
        )
    assert len(task.tokens) == len(expected) == 2
    for found, level in zip(task.tokens, expected, strict=True):
        assert found.shape == level.shape and found.shape[:3] == (1, 2, 11)
        assert torch.allclose(found, level, atol=1e-5)


def test_an_empty_reference_is_refused() -> None:
    reference = make_reference((8, 8, 8), classes={"liver": 1, "spleen": 2})
    with pytest.raises(
        ReferenceCaseError,
        match=r"at least one of liver, spleen; the mask of 'ref' is empty at 2 x 1.5 x 1 mm",
    ):
        one_shot(GreyModel(), reference, PLAN, model_hash=HASH)


def test_ensemble_is_the_mean_per_class_over_the_tasks_that_have_it() -> None:
    first = make_task([1.0, 10.0], ("a", "b"), reference_hashes=("x",))
    second = make_task([5.0, 3.0], ("c", "a"), class_values=(3, 1), reference_hashes=("y", "x"))
    third = make_task([5.0], ("a",))
    task = ensemble([first, second, third])
    assert task.classes == {"a": 1, "b": 2, "c": 3}
    assert task.tokens[0].flatten().tolist() == [3.0, 10.0, 5.0]
    assert (task.references, task.made_by, task.reference_hashes) == (3, "ensemble", ("x", "y"))


def test_ensemble_refuses_what_cannot_be_averaged() -> None:
    task = make_task([1.0], ("a",))
    with pytest.raises(TaskError, match="one model, spacing, patch size and intensities; these differ"):
        ensemble([task, replace(task, intensity_offset=1.0)])
    with pytest.raises(TaskError, match="'a' has the value 1 in one task and 2 in another"):
        ensemble([task, replace(task, class_values=(2,))])
    with pytest.raises(TaskError, match="at least one task; got none"):
        ensemble([])


def test_bank_gives_the_seen_classes_of_a_dataset() -> None:
    memory = MemoryBank(0.5)
    memory.update("toys/ball", (torch.full((1, 1), 4.0),))
    memory.update("toys/ball", (torch.full((1, 1), 1.0),))
    memory.update("others/doll", (torch.full((1, 1), 9.0),))
    specs = {"toys": {"classes": {"doll": 2, "ball": 7}}, "new": {"classes": {"kite": 1}}}
    loaded = loaded_with(GreyModel(), bank=memory, plans={"toys": PLAN, "new": PLAN}, specs=specs)
    task = bank(loaded, "toys")
    assert task.classes == {"ball": 7}
    # (0.5 (0.5 * 4) + 0.5 * 1) / (1 - 0.25)
    assert float(task.tokens[0]) == pytest.approx(2.0)
    assert (task.references, task.made_by, task.model_hash) == (0, "bank", HASH)
    assert (task.spacing_mm, task.patch_size, task.intensity_offset) == ((2.0, 1.5, 1.0), (16, 16, 32), 7.0)
    with pytest.raises(
        TaskError, match="was trained on new, toys; it has no memory of 'hearts': give references"
    ):
        bank(loaded, "hearts")
    with pytest.raises(TaskError, match=r"none of the classes of 'new' \(kite\): train longer"):
        bank(loaded, "new")
