"""One scan and its tasks: the same label map as the naive way, whatever the slabs; masks, probabilities, certainty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scans import affine_of, volume
from scipy import ndimage
from stub_model import GreyModel, loaded_with, make_task
from torch import Tensor

from iris_pipeline.inference.sliding_window import InferenceOptions, segment_slabs, segment_volume
from iris_pipeline.scans.scan import Wanted, segment_scan, unite
from preprocessing.case import preprocess_case
from preprocessing.errors import ModelError, TaskError
from preprocessing.normalise import Normalisation


class SoftModel(GreyModel):
    """Probabilities of all sizes that depend on the place in the window, too."""

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        self.images.append(image)
        means = tokens[0][..., 0, 0][:, :, None, None, None]
        place = torch.linspace(-1, 1, image.shape[2])[:, None, None]
        return 2 * (1 - (image - means).abs()) + place


def scan(shape: tuple[int, int, int] = (30, 41, 33), order: str = "PSR") -> Any:
    array = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return volume(array, affine_of(order, (2.0, 1.3, 1.7), degrees=9.0))


def naive_scores(model: GreyModel, task: Any, image: Any, options: InferenceOptions) -> np.ndarray:
    """All classes at once on the file's grid, float32."""
    prepared = preprocess_case(image, task.spacing_mm, task.normalisation)
    slabs = list(whole(model, prepared.image, task, options))
    return np.stack([prepared.trace.undo_scores(each) for each in np.concatenate(slabs, axis=1)])


def whole(model: GreyModel, image: np.ndarray, task: Any, options: InferenceOptions) -> Any:
    for _, slab in segment_slabs(model, image, task, options):
        yield slab.numpy().copy()


def naive_labels(scores: np.ndarray, values: Any) -> np.ndarray:
    return np.where(scores.max(axis=0) > 0.5, np.array(values)[scores.argmax(axis=0)], 0)


@pytest.mark.parametrize("slab_bytes", [10**9, 200_000, 1])
@pytest.mark.parametrize("order", ["RAS", "PSR"])
def test_the_label_map_is_the_naive_one(order: str, slab_bytes: int) -> None:
    image, model = scan(order=order), SoftModel()
    task = make_task([1.0, -0.3, 1.0, 0.6], class_values=(5, 9, 2, 77), spacing_mm=(2.5, 1.9, 1.1))
    options = InferenceOptions(batch_size=2)
    scores = naive_scores(model, task, image, options)
    result = segment_scan(
        loaded_with(model), [task], image, options, Wanted(True, True, True), slab_bytes=slab_bytes
    )
    assert np.array_equal(result.labels, naive_labels(scores, task.class_values))
    assert set(np.unique(result.labels)) == {0, 5, 9, 77}, "the third class equals the first, which wins"
    for k, name in enumerate(task.class_names):
        assert np.array_equal(result.on_own_grid(name, result.masks[name]), scores[k] > 0.5)
        probabilities = result.on_own_grid(name, result.probabilities[name])
        assert np.abs(probabilities / 255 - scores[k]).max() < 0.51 / 255
        inside = result.labels == task.class_values[k]
        if inside.any():
            assert result.certainty[name] == pytest.approx(scores[k][inside].mean(), abs=1e-5)
    assert np.isnan(result.certainty["class_2"])
    overlapping = sum(result.on_own_grid(name, packed).astype(int) for name, packed in result.masks.items())
    assert overlapping.max() > 1, "masks may overlap"


def test_nothing_is_made_that_was_not_asked_for() -> None:
    result = segment_scan(loaded_with(SoftModel()), [make_task([1.0])], scan())
    assert (result.masks, result.probabilities, result.certainty) == ({}, {}, {})


def test_tasks_of_two_grids_share_one_label_map() -> None:
    image, model = scan(), SoftModel()
    fine = make_task([1.0, -0.3], ("a", "b"), spacing_mm=(1.0, 1.0, 1.0))
    coarse = make_task([0.8, -1.0], ("c", "d"), spacing_mm=(3.0, 2.0, 2.0))
    tasks = unite([fine, coarse])
    assert [task.classes for task in tasks] == [{"a": 1, "b": 2}, {"c": 3, "d": 4}]
    options = InferenceOptions()
    scores = np.concatenate([naive_scores(model, task, image, options) for task in tasks])
    result = segment_scan(loaded_with(model), tasks, image, options, Wanted(masks=True))
    assert np.array_equal(result.labels, naive_labels(scores, [1, 2, 3, 4]))
    assert set(np.unique(result.labels)) == {0, 1, 2, 3, 4}
    assert list(result.masks) == ["a", "b", "c", "d"]


def test_united_tasks_of_one_grid_are_one_pass() -> None:
    first, second = (
        make_task([1.0], ("liver",)),
        make_task([0.0, 2.0], ("heart", "spleen"), class_values=(7, 8)),
    )
    (both,) = unite([first, second])
    assert both.classes == {"liver": 1, "heart": 7, "spleen": 8}, "values that differ are kept"
    image = scan()
    model = SoftModel()
    segment_scan(loaded_with(model), [both], image)
    together = len(model.images)
    segment_scan(loaded_with(model), [first], image)
    assert len(model.images) == 2 * together, "one task alone takes as many windows as both"


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([], "at least one task; got none"),
        (
            [make_task([1.0], ("liver",)), make_task([2.0], ("liver",), spacing_mm=(2.0, 2.0, 2.0))],
            "liver came twice: leave one of the tasks out",
        ),
        (
            [make_task([1.0], ("a",)), make_task([2.0], ("b",), model_hash="f" * 16)],
            "serves only the model that encoded it",
        ),
        (
            [make_task([1.0] * 200), make_task([1.0] * 60, tuple(f"b{i}" for i in range(60)))],
            "at most 255 classes; got 260",
        ),
    ],
)
def test_tasks_that_cannot_be_united(tasks: Any, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        unite(tasks)


def test_empty_windows_are_answered_once_and_exactly() -> None:
    image = np.full((40, 33, 47), -1.0, np.float32)
    image[:9, :8, :11] = np.random.default_rng(0).normal(size=(9, 8, 11)).clip(-1)
    task = make_task([0.4, -0.8])
    model, plain = SoftModel(), SoftModel()
    result = segment_volume(model, image, task)
    seen = [tuple(np.ptp(i.numpy()) for i in model.images)]
    assert sum(spread == 0 for spread in seen[0]) == 1, "one empty window went through the network"
    assert len(model.images) < 12
    noisy = image.copy()
    noisy[20:, 20:, 20:] -= np.float32(2e-5)  # another minimum: no window counts as empty but those in there
    expected = segment_volume(plain, noisy, task)
    assert len(plain.images) > 40
    assert np.abs(result.astype(np.float32) - expected).max() < 1e-3


def test_windows_of_air_are_background_when_asked() -> None:
    rng = np.random.default_rng(1)
    image = -1 + rng.uniform(0, 0.09, size=(16, 16, 64)).astype(np.float32)
    image[:, :, :16] = rng.uniform(0, 1, size=(16, 16, 16))
    task, model = make_task([-1.0]), SoftModel()
    everywhere = segment_volume(model, image, task)
    count = len(model.images)
    slabs = list(whole(model, image, task, InferenceOptions(skip="air")))
    assert len(model.images) - count == 2, "the windows at 0 and 8 reach the object"
    found = slabs[0][0]
    assert not found[:, :, 24:].any() and everywhere[0, :, :, 24:].min() > 0.5
    assert np.abs(found[:, :, :8] - everywhere[0, :, :, :8]).max() < 1e-3
    with pytest.raises(ModelError, match="skip are never or air; got 'bone'"):
        InferenceOptions(skip="bone")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(7, 20, 10), (30, 16, 40)])
def test_windows_that_lie_elsewhere_cover_the_same(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    task, model = make_task([0.5, -1.0]), GreyModel()
    options = InferenceOptions(overlap=0.0, moved=True)
    found = np.concatenate(list(whole(model, image, task, options)), axis=1)
    straight = segment_volume(GreyModel(), image, task)
    assert np.abs(found - straight).max() < 1e-3, "a model that looks at single voxels does not mind"
    moved = np.concatenate(list(whole(SoftModel(), image, task, options)), axis=1)
    assert np.abs(moved - segment_volume(SoftModel(), image, task)).max() > 0.05
    if (
        shape[0] == 7
    ):  # 9 of 16 planes are missing: 5 before in the middle, 2 more when moved; of x 6: 3 and 1
        first, last = model.images[0][0, 0].numpy(), model.images[-1][0, 0].numpy()
        assert np.array_equal(last[7:14, :, 4:14], image[:, -16:])
        assert (np.delete(first, np.s_[7:14], axis=0) == image.min()).all()


@pytest.mark.parametrize("rows", [slice(0, 5), slice(17, 33), slice(40, 41)])
@pytest.mark.parametrize("halo", [0, 1])
def test_slabs_of_some_rows_are_those_rows(rows: slice, halo: int) -> None:
    image = np.random.default_rng(4).normal(size=(37, 41, 20)).astype(np.float32)
    task, model = make_task([0.5, -1.0]), SoftModel()
    expected = np.concatenate(list(whole(model, image, task, InferenceOptions())), axis=1)
    count = len(model.images)
    reached = 0
    for first, slab in segment_slabs(model, image, task, InferenceOptions(), rows=rows, halo=halo):
        assert first == max(0, reached - halo)
        assert np.allclose(slab.numpy(), expected[:, first : first + slab.shape[1], rows], atol=1e-6)
        reached = first + slab.shape[1]
    assert reached == 37 and len(model.images) - count < count


def test_normalisation_of_each_task_is_its_own() -> None:
    image = scan((16, 16, 16), "RAS")
    model = SoftModel()
    ct = make_task([0.0], ("a",), normalisation=Normalisation.for_modality("CT"), modality="CT")
    mr = make_task([0.0], ("b",))
    assert len(unite([ct, mr])) == 2
    segment_scan(loaded_with(model), unite([ct, mr]), image)
    assert not np.array_equal(model.images[0], model.images[-1])


def test_a_class_that_is_one_piece_loses_its_crumbs_unless_all_are_wanted() -> None:
    image, model = scan(), GreyModel()
    task = make_task([1.0, -1.0], largest_pieces=(0.95, 0.94))  # the second is not one piece
    crumbled = segment_scan(loaded_with(model), [task], image, InferenceOptions(all_pieces=True)).labels
    pieces, count = ndimage.label(crumbled == 1, structure=np.ones((3, 3, 3)))
    assert count > 1
    largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    result = segment_scan(loaded_with(model), [task], image, InferenceOptions(), Wanted(masks=True))
    assert np.array_equal(result.labels, np.where((pieces > 0) & (pieces != largest), 0, crumbled))
    assert np.array_equal(result.on_own_grid("class_0", result.masks["class_0"]), crumbled == 1), (
        "masks keep all"
    )
