"""The look at half the resolution, with a model whose answers can be worked out by hand. Arrays are (z,y,x)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stub_model import GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline.checkpoints.memory_bank import bank_key
from iris_pipeline.inference.focus import grown, label_volume, look_first, object_box, wide_task
from iris_pipeline.inference.pool import embed
from iris_pipeline.inference.sliding_window import Focus, InferenceOptions, segment_slabs
from iris_pipeline.inference.strategies import PreparedReference, bank, ensemble, one_shot, plan_like
from iris_pipeline.scans.scan import segment_scan
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.case import preprocess_case
from preprocessing.volume import Volume

OPTIONS = InferenceOptions()


def both_views(means: list[float], **changes: object) -> TaskEmbedding:
    """A task of the grey model that looks for the same grey values in both views."""
    task = make_task(means, **changes)
    return replace(task, wide_tokens=task.tokens)


def scene() -> np.ndarray:
    """Two objects of the same grey value 1, one of 2; the rest is 0."""
    image = np.zeros((40, 48, 64), dtype=np.float32)
    image[4:14, 6:18, 8:22] = 1
    image[30:38, 40:46, 50:60] = 1
    image[10:18, 30:38, 24:36] = 2
    return image


def whole(model: GreyModel, image: np.ndarray, task: TaskEmbedding, focus: Focus | None) -> torch.Tensor:
    result = torch.zeros(len(task.class_names), *image.shape)
    for first, slab in segment_slabs(model, image, task, OPTIONS, focus=focus):
        result[:, first : first + slab.shape[1]] = slab
    return result


# --- where to look ----------------------------------------------------------------------------------


def test_boxes_are_those_of_the_objects_with_a_margin() -> None:
    focus = look_first(GreyModel(), scene(), both_views([2.0]), OPTIONS)
    # z 10..18 and y 30..38: 8 voxels, 25 % of that is less than the least margin of 8; x 24..36 likewise.
    assert focus == Focus((((2, 26), (22, 46), (16, 44)),))


def test_the_margin_grows_with_the_object_and_stays_inside() -> None:
    assert grown(((10, 40), (0, 4), (2, 4)), (90, 40, 9)) == ((5, 90), (0, 16), (0, 9))
    # 2 * 30 * 0.25 = 15: 20 - 15 = 5 and 80 + 15 = 95, of which there are 90


def test_all_pieces_or_the_largest_one() -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[1:5, 1:5, 1:5], mask[10:13, 10:13, 10:13], mask[18, 18, 18] = True, True, True
    assert object_box(mask, one_piece=True) == ((1, 5), (1, 5), (1, 5))
    assert object_box(mask, one_piece=False) == ((1, 13), (1, 13), (1, 13))  # one voxel of 64 is a crumb
    assert object_box(np.zeros((3, 3, 3), dtype=bool), one_piece=True) is None


@pytest.mark.parametrize("why", ["one pass", "no tokens", "small scan", "class not found"])
def test_the_whole_scan_is_searched_where_there_is_no_focus(why: str) -> None:
    task, image = both_views([2.0]), scene()
    assert look_first(GreyModel(), image, task, OPTIONS) is not None
    options = replace(OPTIONS, one_pass=why == "one pass")
    task = replace(task, wide_tokens=()) if why == "no tokens" else task
    task = both_views([2.0, 5.0]) if why == "class not found" else task
    image = image[:18, 22:40, 20:40] if why == "small scan" else image
    assert look_first(GreyModel(), image, task, options) is None


def test_a_faint_class_is_looked_for_where_it_is_faint() -> None:
    image = scene()
    faint = replace(both_views([2.0]), wide_tokens=(torch.tensor([2.525]).reshape(1, 1, 1, 1),))
    # logits 40 * (0.5 - 0.525) = -1 inside: probability 0.27
    assert look_first(GreyModel(), image, faint, OPTIONS) == look_first(
        GreyModel(), image, both_views([2.0]), OPTIONS
    )


def test_a_class_that_is_sure_somewhere_is_not_looked_for_where_it_is_faint() -> None:
    image = scene()
    image[30:38, 40:46, 50:60] = 1.475  # 40 * (0.5 - 0.525): as faint as above
    assert look_first(GreyModel(), image, both_views([2.0]), OPTIONS) == Focus(
        (((2, 26), (22, 46), (16, 44)),)
    )
    alone = np.where(image == 2, 0, image).astype(np.float32)
    assert look_first(GreyModel(), alone, both_views([2.0]), OPTIONS) == Focus(
        (((22, 40), (32, 48), (42, 64)),)
    )


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[1:3, 1:3, 1:3], mask[3, 3, 3] = True, True
    assert object_box(mask, one_piece=True) == ((1, 4), (1, 4), (1, 4))


def test_a_probability_of_one_half_is_not_above_it() -> None:
    image = np.full((16, 16, 16), 0.5, np.float32)  # 40 * (0.5 - 0.5)
    image[:4] = 0.45
    labels = label_volume(GreyModel(), image, make_task([0.0]), OPTIONS)
    assert labels[:4].all() and not labels[4:].any()


def test_the_wide_task_is_on_the_halved_grid() -> None:
    task = replace(make_task([1.0], patch_size=(32, 64, 64), spacing_mm=(1.0, 2.0, 3.0)))
    task = replace(task, wide_tokens=(torch.tensor([7.0]).reshape(1, 1, 1, 1),))
    wide = wide_task(task, (20, 50, 70))
    assert wide.spacing_mm == (2.0, 4.0, 6.0) and wide.patch_size == (32, 64, 64)
    assert wide_task(task, (16, 30, 70)).patch_size == (16, 32, 64)
    assert wide.tokens[0].item() == 7.0 and wide.wide_tokens == ()


# --- what the second pass gives ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_inside_its_box_a_class_is_what_one_pass_finds_and_outside_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(int(rng.integers(17, 70)), 40, 52)).astype(np.float32)
    task, boxes = make_task([0.0, 1.0]), []
    for _ in range(2):
        low = [int(rng.integers(0, n - 4)) for n in image.shape]
        high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, image.shape, strict=True)]
        boxes.append(tuple(zip(low, high, strict=True)))
    model, expected = GreyModel(), whole(GreyModel(), image, task, None)
    found = whole(model, image, task, Focus((boxes[0], boxes[1])))
    for k, box in enumerate(boxes):
        part = tuple(slice(a, b) for a, b in box)
        # the stub answers voxel by voxel, so that other windows give the same mean
        torch.testing.assert_close(found[k][part], expected[k][part], atol=1e-5, rtol=0)
        found[k][part] = 0
        assert not found[k].any()


@pytest.mark.parametrize("depth", [10, 40])
@pytest.mark.parametrize("rows", [slice(0, 9), slice(13, 31), slice(30, 48)])
def test_boxes_stay_in_place_where_a_part_of_the_rows_is_made(depth: int, rows: slice) -> None:
    """Ten planes are fewer than a window has: they lie in the middle of their padding."""
    image = np.random.default_rng(depth).normal(size=(depth, 48, 40)).astype(np.float32)
    task, box = make_task([0.0]), ((2, 9), (11, 33), (5, 30))
    expected = whole(GreyModel(), image, task, None)
    outside = torch.ones(image.shape, dtype=torch.bool)
    outside[2:9, 11:33, 5:30] = False
    expected[0][outside] = 0
    reached = 0
    for first, slab in segment_slabs(GreyModel(), image, task, OPTIONS, rows=rows, focus=Focus((box,))):
        assert first == reached
        reached += slab.shape[1]
        torch.testing.assert_close(slab, expected[:, first:reached, rows], atol=1e-5, rtol=0)
    assert reached == depth


@pytest.mark.parametrize("last", range(1, 41))
def test_every_plane_is_answered_wherever_the_focus_ends(last: int) -> None:
    image = np.random.default_rng(0).normal(size=(40, 16, 16)).astype(np.float32)
    focus = Focus((((last - 1, last), (0, 16), (0, 16)),))
    planes = []
    for first, slab in segment_slabs(GreyModel(), image, make_task([0.0]), OPTIONS, focus=focus):
        planes += [(first + z, bool(plane.any())) for z, plane in enumerate(slab[0])]
    assert planes == [(z, z == last - 1) for z in range(40)]


def test_fewer_windows_are_run() -> None:
    first, second = GreyModel(), GreyModel()
    # No two voxels alike: windows of nothing but one grey value would be answered by the first of them.
    task, image = both_views([2.0]), scene() + np.linspace(0, 0.01, 40 * 48 * 64).reshape(40, 48, 64)
    label_volume(first, image, task, replace(OPTIONS, one_pass=True))
    label_volume(second, image, task, OPTIONS)
    assert len(first.images) == 4 * 5 * 7  # of 16 voxels, every 8
    # the wide view: 20 x 24 x 32 voxels by windows of 16 x 16 x 32; then the box of 24 x 24 x 28
    assert len(second.images) == 2 * 2 * 1 + 2 * 2 * 3


def test_the_other_object_of_the_same_grey_is_not_taken_for_the_one_piece() -> None:
    task = replace(both_views([1.0]), largest_pieces=(1.0,))
    labels = label_volume(GreyModel(), scene(), task, OPTIONS)
    assert labels[4:14, 6:18, 8:22].all() and labels.sum() == 10 * 12 * 14
    both = label_volume(GreyModel(), scene(), replace(task, largest_pieces=(0.5,)), OPTIONS)
    assert both[30:38, 40:46, 50:60].all()


def test_a_scan_is_segmented_the_same_by_one_pass_and_by_two() -> None:
    array = scene()
    array[20:30, 4:24, 30:60] = (
        2  # large enough to lie below the 98th percentile, at which grey values are clipped
    )
    image = Volume(array, np.diag([1.0, 1.0, 1.0, 1.0]))
    task = both_views([1.0, 2.0])
    grey = preprocess_case(image, task.spacing_mm, task.normalisation).image
    means = [float(grey[5, 8, 10]), float(grey[25, 12, 45])]
    task = both_views(means, model_hash=task.model_hash)
    task = replace(task, wide_tokens=task.tokens)
    loaded = loaded_with(GreyModel(width=0.3))
    two = segment_scan(loaded, [task], image).labels
    one = segment_scan(loaded, [task], image, replace(OPTIONS, one_pass=True)).labels
    np.testing.assert_array_equal(one, two)
    assert two[8, 12, 15] == 1 and two[25, 12, 45] == 2


# --- where its tokens come from ---------------------------------------------------------------------


def reference(seed: int = 0) -> PreparedReference:
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 40, 36), dtype=np.uint8)
    labels[4:12, 8:20, 10:22], labels[20, 30, 30] = 1, 2  # the second class has one voxel
    return PreparedReference("r", rng.normal(size=labels.shape).astype(np.float32), labels, {"a": 1, "b": 2})


def test_wide_tokens_are_those_of_the_halved_reference() -> None:
    model, task = GreyModel(), make_task([0.0, 0.0], names=("a", "b"), patch_size=(32, 48, 48))
    found = one_shot(model, reference(), plan_like(task), model_hash="0", wide=True)
    image, labels = reference().image, reference().labels
    blocks = image.reshape(12, 2, 20, 2, 18, 2).mean((1, 3, 5))
    expected = [float(blocks[2:6, 4:10, 5:11].mean()), float(blocks[10, 15, 15])]
    assert found.wide_tokens[0].flatten().tolist() == pytest.approx(expected, abs=1e-5)
    means = [float(image[labels == value].mean()) for value in (1, 2)]
    assert found.tokens[0].flatten().tolist() == pytest.approx(means, abs=1e-5)
    assert one_shot(model, reference(), plan_like(task), model_hash="0").wide_tokens == ()


def test_models_that_know_the_view_encode_it_once_with_the_reference() -> None:
    loaded, plan = tiny_model(), plan_like(make_task([0.0], patch_size=(32, 32, 32)))
    assert embed(loaded, reference(), plan).task.wide_tokens == ()
    loaded.knows_wide_view = True
    task = embed(loaded, reference(1), plan).task
    assert [t.shape for t in task.wide_tokens] == [t.shape for t in task.tokens]


def test_an_ensemble_means_both_views_and_drops_what_not_all_have() -> None:
    first, second = both_views([1.0]), both_views([3.0])
    assert ensemble([first, second]).wide_tokens[0].item() == 2.0
    assert ensemble([first, replace(second, wide_tokens=())]).wide_tokens == ()


def test_the_bank_gives_the_wide_view_of_what_it_saw_widely() -> None:
    task = make_task([0.0], names=("a",))
    loaded = loaded_with(GreyModel(), plans={"d": plan_like(task)}, specs={"d": {"classes": {"a": 1}}})
    loaded.bank.update(bank_key("d", "a"), (torch.full((1, 1), 2.0),))
    assert bank(loaded, "d").wide_tokens == ()
    loaded.bank.update(bank_key("d", "a", wide=True), (torch.full((1, 1), 5.0),))
    found = bank(loaded, "d")
    assert found.tokens[0].item() == pytest.approx(2.0) and found.wide_tokens[0].item() == pytest.approx(5.0)
