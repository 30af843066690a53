"""Signs of trouble: perfect ones where the model cannot err, and lower ones where answers differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scans import affine_of, paint, volume
from stub_model import GreyModel, loaded_with, make_task

from iris_pipeline.confidence import disagreement
from iris_pipeline.confidence.disagreement import _grown, gather_signs
from iris_pipeline.inference.focus import label_volume
from iris_pipeline.inference.sliding_window import InferenceOptions, segment_slabs
from iris_pipeline.scans.scan import ScanResult, Wanted, segment_scan
from iris_pipeline.tasks.grey import BINS, GreyEvidence, bins_of
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.errors import TaskError
from preprocessing.normalise import Normalisation, normalise
from preprocessing.orientation import Pose

BLOCKS = {1: np.s_[4:14, 6:18, 8:22], 2: np.s_[12:20, 24:36, 12:30]}
SHAPE = (24, 40, 34)


def scene() -> tuple[Any, GreyModel, TaskEmbedding, np.ndarray]:
    """A scan of two blocks, the model that finds them by their grey, and the task."""
    image, labels = paint(SHAPE, BLOCKS)
    scores = normalise(image, Normalisation.for_modality("MR"))
    means = [float(scores[labels == value].mean()) for value in (1, 2)]
    task = make_task(means, ("ball", "doll"), class_values=(1, 2))
    return (
        volume(image, affine_of("PSR", (1.0, 1.0, 1.0))),
        GreyModel(0.5 * abs(means[0] - means[1])),
        task,
        labels,
    )


def signs_of(
    image: Any, model: GreyModel, tasks: list[TaskEmbedding], **more: Any
) -> dict[str, dict[str, float]]:
    loaded = loaded_with(model)
    result = segment_scan(loaded, tasks, image, wanted=Wanted(certainty=True))
    return gather_signs(loaded, tasks, image, result, InferenceOptions(), **more)


def test_where_nothing_is_in_doubt_all_signs_are_good() -> None:
    image, model, task, labels = scene()
    expected = {
        "ball": np.count_nonzero(labels == 1) / 1000,
        "doll": 2 * np.count_nonzero(labels == 2) / 1000,
    }
    signs = signs_of(image, model, [task], witnesses=lambda _: [task, task, task], volumes_ml=expected)
    for name in ("ball", "doll"):
        assert signs[name]["windows"] == signs[name]["references"] == signs[name]["cycle"] == 1.0
        assert signs[name]["likeness"] == pytest.approx(1.0, abs=1e-5)
        assert signs[name]["certainty"] > 0.99
    assert signs["ball"]["volume"] == pytest.approx(1.0)
    assert signs["doll"]["volume"] == pytest.approx(0.5)


def test_the_scan_is_prepared_as_the_task_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values 1000 too high, which would all be clipped to one, and axes in another order."""
    array = 1000 + 200 * paint(SHAPE, BLOCKS)[1].astype(np.float32)
    rule = Normalisation.for_modality("CT")
    scores = normalise(array - 1000, rule)
    means = [float(scores[BLOCKS[value]].mean()) for value in (1, 2)]
    task = make_task(means, ("ball", "doll"), normalisation=rule, modality="CT", intensity_offset=-1000.0)
    asked: list[tuple[int, ...]] = []

    def noted(network: Any, scan: np.ndarray, given: TaskEmbedding, options: Any) -> np.ndarray:
        asked.append(scan.shape)
        return label_volume(network, scan, given, options)

    monkeypatch.setattr(disagreement, "label_volume", noted)
    image = volume(array, affine_of("RAS", (1.0, 1.0, 1.0)))
    model = GreyModel(0.5 * abs(means[0] - means[1]))
    for axes in ("SAR", "LSA"):
        signs = signs_of(image, model, [replace(task, pose=Pose(axes))])
        for name in ("ball", "doll"):
            assert signs[name]["windows"] == signs[name]["cycle"] == 1.0
            assert signs[name]["likeness"] == pytest.approx(1.0, abs=1e-5)
    (z, y, x), turned = asked[0], asked[-1]
    assert turned == (x, z, y) != (z, y, x), "D, H, W toward L, S, A"


class HalfBlindModel(GreyModel):
    """Finds nothing in the first four planes of a window, so that its answer hangs on where the windows lie."""

    def segment(self, image: Any, tokens: Any) -> Any:
        logits = super().segment(image, tokens)
        logits[:, :, :4] = -40
        return logits


def test_windows_that_lie_elsewhere_are_seen() -> None:
    """24 planes, windows of 16. Moved by 8 they begin at -8 and 8: of the mask, planes 4 to 20, the second one does
    not see 8 to 12. So 12 of 16 planes are found: Dice 2 x 12 / (12 + 16). Unmoved they begin at 0 and 8, and what
    the second one does not see lies in the middle of the first one, which has the greater weight there.
    """
    image, labels = paint((24, 8, 8), {1: np.s_[4:20, 2:6, 2:6]})
    grey = float(normalise(image, Normalisation.for_modality("MR"))[labels == 1].mean())
    task, scan = make_task([grey], ("ball",)), volume(image, np.eye(4))
    loaded = loaded_with(HalfBlindModel())
    unmoved = segment_scan(loaded, [task], scan, InferenceOptions(overlap=0.0)).labels
    assert np.array_equal(unmoved, labels)
    signs = gather_signs(loaded, [task], scan, ScanResult(labels), InferenceOptions())
    assert signs["ball"]["windows"] == pytest.approx(24 / 28)
    assert signs["ball"]["cycle"] == 1.0, "windows where they lay"


def test_the_way_back_weighs_grey_values_like_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the found mask shows of its grey values takes the place of what the references showed."""
    image, model, task, _ = scene()
    weighed = replace(task, grey=GreyEvidence(torch.zeros(2, BINS), torch.tensor([0.0, 2.0])))
    asked: list[TaskEmbedding] = []

    def noted(network: Any, scan: np.ndarray, given: TaskEmbedding, options: Any) -> np.ndarray:
        asked.append(given)
        return label_volume(network, scan, given, options)

    monkeypatch.setattr(disagreement, "label_volume", noted)
    signs = signs_of(image, model, [weighed])
    moved, back = asked
    assert moved.grey is weighed.grey and signs["ball"]["cycle"] == 1.0
    assert 0.99 < signs["doll"]["cycle"] < 1, "at its corners grey values are averaged with what is round it"
    assert back.grey is not None and back.grey.weights.tolist() == [0.0, 2.0]
    # with one grey inside each block and another outside, a block's own grey speaks for it and nothing else does
    own = task.tokens[0][0, :, 0, 0]
    for row, grey in zip(back.grey.ratios, own, strict=True):
        (place,) = bins_of(grey[None])
        assert row[place] > 2 and row.argmax() in (place - 1, place, place + 1)
    asked.clear()
    signs_of(image, model, [task])
    assert all(given.grey is None for given in asked)


def test_references_that_disagree_are_seen_class_by_class() -> None:
    image, model, task, _ = scene()
    means = task.tokens[0][0, :, 0, 0].tolist()
    # the second witness takes the first class's grey for the second class; the third knows the first class only
    other = make_task([means[0] + 9, means[0]], ("ball", "doll"), class_values=(7, 9))
    single = make_task([means[0]], ("ball",))
    signs = signs_of(image, model, [task], witnesses=lambda _: [task, other, single])
    # ball: task = single (1), other finds nothing (0, 0); doll: task against other, which found the ball
    assert signs["ball"]["references"] == pytest.approx(1 / 3)
    assert signs["doll"]["references"] == 0.0
    alone = signs_of(image, model, [task], witnesses=lambda _: [task])
    assert "references" not in alone["ball"], "one reference cannot disagree with itself"
    with pytest.raises(TaskError, match="Witnesses of a task share its model, spacing"):
        signs_of(
            image,
            model,
            [task],
            witnesses=lambda _: [make_task([0.0], ("ball",), spacing_mm=(2.0, 2.0, 2.0))],
        )


def test_an_empty_mask_has_no_signs() -> None:
    image, model, task, _ = scene()
    nothing = make_task([task.tokens[0][0, 0, 0, 0].item(), 99.0], ("ball", "doll"))
    signs = signs_of(image, model, [nothing], volumes_ml={"doll": 3.0})
    assert signs["doll"] == {} and signs["ball"]["cycle"] == 1.0
    assert signs_of(image, model, [make_task([99.0], ("doll",))]) == {"doll": {}}


def test_tasks_of_two_grids_are_judged_each_on_its_own() -> None:
    image, model, task, _ = scene()
    means = task.tokens[0][0, :, 0, 0].tolist()
    tasks = [
        make_task(means[:1], ("ball",)),
        make_task(means[1:], ("doll",), class_values=(2,), patch_size=(16, 16, 32)),
    ]
    asked = []

    def witnesses(given: TaskEmbedding) -> list[TaskEmbedding]:
        asked.append(given.patch_size)
        return [given, given]

    signs = signs_of(image, model, tasks, witnesses=witnesses)
    assert asked == [(16, 16, 16), (16, 16, 32)]
    assert all(signs[name]["references"] == signs[name]["cycle"] == 1.0 for name in ("ball", "doll"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((slice(20, 30), slice(0, 5), slice(90, 100)), (slice(16, 34), slice(0, 16), slice(82, 100))),
        ((slice(50, 52), slice(2, 60), slice(0, 100)), (slice(43, 59), slice(0, 66), slice(0, 100))),
    ],
)
def test_the_region_has_a_margin_and_holds_a_window(found: Any, expected: Any) -> None:
    assert _grown(found, (100, 100, 100), (16, 16, 16)) == expected
    small = _grown((slice(1, 3), slice(0, 8), slice(2, 4)), (4, 9, 40), (16, 16, 16))
    assert small == (slice(0, 4), slice(0, 9), slice(0, 16)), "never more than there is"


def test_label_volume_is_the_argmax_of_all_probabilities() -> None:
    image = np.random.default_rng(0).normal(size=(30, 17, 25)).astype(np.float32)
    task = make_task([0.4, -0.9, 0.4], class_values=(9, 3, 5))
    slabs = segment_slabs(GreyModel(), image, task, InferenceOptions())
    scores = np.concatenate([slab.numpy().copy() for _, slab in slabs], axis=1)
    expected = np.where(scores.max(0) > 0.5, np.array([9, 3, 5])[scores.argmax(0)], 0)
    found = label_volume(GreyModel(), image, task, InferenceOptions())
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
