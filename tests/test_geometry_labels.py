"""Label maps and scores to other grids and back: against hand-made arrays and naive formulas. (z,y,x)."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from grids import SHAPES, blobs, oblique, one_hot_argmax, sampled, small_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.geometry import GridTrace, Resampling, label_counts
from preprocessing.orientation import Reorientation

TRACE_SHAPES = [
    ((6, 9, 8), (9, 5, 8)),
    ((7, 7, 7), (3, 4, 5)),
    ((4, 5, 3), (9, 5, 10)),
    ((4, 5, 3), (4, 5, 3)),
]


# Resampling: labels


@pytest.mark.parametrize("shape_out", [(9, 8, 7), (5, 6, 4), (18, 5, 6), (3, 2, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coarser_labels_are_the_argmax_of_one_hot_linear(shape_out: tuple[int, int, int], seed: int) -> None:
    labels = blobs((18, 16, 14), 5, seed)
    resampling = Resampling(labels.shape, shape_out)
    result = resampling.apply_labels(labels)
    assert result.dtype == np.uint8
    assert np.array_equal(result, one_hot_argmax(labels, shape_out))
    assert np.array_equal(resampling.undo_labels(result), one_hot_argmax(result, labels.shape))
    assert len(np.unique(result)) > 1


def test_labels_coarser_along_one_axis_and_finer_along_another() -> None:
    labels = blobs((6, 16, 14), 4, 0)
    resampling = Resampling((6, 16, 14), (18, 7, 14))
    result = resampling.apply_labels(labels)
    assert np.array_equal(result, one_hot_argmax(labels, (18, 7, 14)))
    assert np.array_equal(resampling.undo_labels(result), one_hot_argmax(result, (6, 16, 14)))


@pytest.mark.parametrize("shape_out", [(12, 21, 10), (5, 8, 31), (4, 7, 15)])
def test_finer_labels_are_one_hot_linear_but_for_the_voxels_own_centres(
    shape_out: tuple[int, int, int],
) -> None:
    labels = blobs((4, 7, 5), 3, 4)
    rough = np.random.default_rng(1).integers(0, 4, (4, 7, 5), dtype=np.uint8)
    for native in (labels, rough):
        expected = one_hot_argmax(native, shape_out)
        for z, y, x in np.ndindex(4, 7, 5):
            middle = np.divide(np.multiply(np.add((z, y, x), 0.5), shape_out), (4, 7, 5))  # in new voxels
            expected[tuple(np.floor(middle).astype(int))] = native[z, y, x]
        assert np.array_equal(Resampling((4, 7, 5), shape_out).apply_labels(native), expected)


def test_a_lone_voxel_survives_on_a_finer_grid() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = 4
    resampling = Resampling((3, 3, 3), (6, 6, 6))
    assert not one_hot_argmax(labels, (6, 6, 6)).any()  # 0.75 cubed is less than half
    assert np.argwhere(resampling.apply_labels(labels)).tolist() == [[3, 3, 3]]


@pytest.mark.parametrize("n_out", [9, 12, 15])
def test_along_one_finer_axis_it_is_nearest_neighbour(n_out: int) -> None:
    labels = blobs((3, 5, 6), 3, 4)
    result = Resampling((3, 5, 6), (n_out, 5, 6)).apply_labels(labels)
    assert np.array_equal(result, np.repeat(labels, n_out // 3, axis=0))


def test_labels_by_hand() -> None:
    def line(values: list[int], n_out: int) -> list[int]:
        array = np.array(values, np.uint8).reshape(1, 1, -1)
        return Resampling(array.shape, (1, 1, n_out)).apply_labels(array).ravel().tolist()

    assert line([1, 2], 4) == [1, 1, 2, 2]
    assert line([3, 0], 5) == [3, 3, 0, 0, 0]  # equal shares in the middle
    assert line([5, 5, 0, 7, 7, 7], 2) == [5, 7]  # each takes the voxel in the middle of its three
    assert line([0, 1], 1) == [0]  # equal shares: the lower label
    assert line([2, 1], 1) == [1]
    assert line([0, 0, 0, 9, 0, 0, 0, 0, 0], 3) == [0, 0, 0]  # slips between
    assert line([0, 4, 6, 0], 2) == [0, 0]  # background has as much as either
    assert line([4, 4, 6, 4], 2) == [4, 4]
    assert line([0, 4, 4, 0, 0], 2) == [4, 0]  # centres 0.75 (0.75 of 4) and 3.25


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SHAPES, st.tuples(*[st.integers(0, 12)] * 3), st.integers(0, 10**6))
def test_on_a_grid_no_coarser_every_voxel_comes_back(
    shape: tuple[int, int, int], more: tuple[int, int, int], seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint8)  # lone voxels everywhere
    finer = Resampling(shape, (shape[0] + more[0], shape[1] + more[1], shape[2] + more[2]))
    prepared = finer.apply_labels(labels)
    assert prepared.shape == finer.shape_out
    assert np.array_equal(finer.undo_labels(prepared), labels)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.int32])
def test_labels_keep_their_type_and_high_values(kind: type) -> None:
    value = 1 if kind is bool else 250 if kind is np.uint8 else 40_000
    labels = np.zeros((6, 6, 6), dtype=kind)
    labels[:3] = value
    result = Resampling((6, 6, 6), (2, 3, 9)).apply_labels(labels)
    assert result.dtype == kind
    assert (result[0] == value).all() and not result[1].any()


# GridTrace


def trace_between(native_upright: tuple[int, int, int], prepared: tuple[int, int, int]) -> GridTrace:
    affine = oblique((2, 0, 1), (-1, 1, -1), small_turn(5), (1.0, 1.0, 1.0))
    turn = Reorientation.to_ras(affine)
    native = turn.undo(np.zeros(native_upright)).shape
    return GridTrace(turn, Resampling(native_upright, prepared), (native[0], native[1], native[2]), affine)


@pytest.mark.parametrize(("native", "prepared"), TRACE_SHAPES)
def test_the_trace_undoes_resampling_then_orientation(
    native: tuple[int, int, int], prepared: tuple[int, int, int]
) -> None:
    trace = trace_between(native, prepared)
    labels = blobs(prepared, 3, 1)
    expected = trace.reorientation.undo(trace.resampling.undo_labels(labels))
    assert np.array_equal(trace.undo_labels(labels), expected)
    assert trace.undo_labels(labels).shape == trace.native_shape == trace.undo_scores(labels).shape
    scores = np.random.default_rng(0).uniform(size=prepared)
    back = trace.reorientation.apply(trace.undo_scores(scores))
    assert np.allclose(back, sampled(scores, native, 1, "nearest"), atol=1e-6)


# Voxels of each value


def test_voxels_of_each_value_are_counted_without_a_wider_copy_of_the_labels() -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 7, 255], np.uint8), size=(64, 96, 96))
    tracemalloc.start()
    counts = label_counts(labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(counts, np.bincount(labels.ravel(), minlength=256))
    assert peak < labels.size, "bincount over the whole would take 8 bytes a voxel"
