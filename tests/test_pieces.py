"""Connected pieces: shares by hand, which crumbs go, and that a task says when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.tasks.pieces import keep_largest, largest_share
from iris_pipeline.tasks.task import TaskEmbedding, merge
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.errors import TaskError
from preprocessing.normalise import Normalisation


def crumbled() -> np.ndarray:
    """Class 1: 8 + 1 voxels; class 2: 4 + 2; class 4: one piece of 2 that touches itself by a corner."""
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[0:2, 0:2, 0:2] = 1
    labels[6, 6, 6] = 1
    labels[4, 0, 0:4] = 2
    labels[7, 7, 0:2] = 2
    labels[2, 5, 5] = labels[3, 6, 6] = 4
    return labels


def task(
    names: tuple[str, ...], pieces: tuple[float, ...] = (), hashes: tuple[str, ...] = ()
) -> TaskEmbedding:
    return TaskEmbedding(
        class_names=names,
        tokens=(torch.ones(1, len(names), 3, 4),),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=(32, 32, 32),
        normalisation=Normalisation.for_modality("MR"),
        intensity_offset=0.0,
        modality="MR",
        references=1,
        model_hash="m",
        made_by="one-shot",
        reference_hashes=hashes,
        class_values=tuple(range(1, len(names) + 1)),
        largest_pieces=pieces,
    )


def test_shares_by_hand() -> None:
    labels = crumbled()
    assert largest_share(labels, 1) == pytest.approx(8 / 9)
    assert largest_share(labels, 2) == pytest.approx(4 / 6)
    assert largest_share(labels, 4) == 1.0  # corners touch
    assert largest_share(labels, 3) == 0.0


def test_only_the_asked_classes_lose_their_crumbs() -> None:
    labels, before = crumbled(), crumbled()
    assert keep_largest(labels, [1, 3, 4, 9]) == 1
    expected = before.copy()
    expected[6, 6, 6] = 0
    assert np.array_equal(labels, expected)
    assert keep_largest(labels, [2]) == 2
    assert (labels == 2).sum() == 4 and not labels[7, 7].any()


def test_of_equal_pieces_the_first_stays() -> None:
    labels = np.zeros((4, 1, 9), dtype=np.uint8)
    labels[0, 0, 0:2] = labels[3, 0, 6:8] = 1
    keep_largest(labels, [1])
    assert np.argwhere(labels).tolist() == [[0, 0, 0], [0, 0, 1]]


def test_a_neighbour_inside_the_box_is_left_alone() -> None:
    labels = crumbled()
    labels[3, 3, 3] = 5  # between the pieces of class 1
    keep_largest(labels, [1])
    assert labels[3, 3, 3] == 5


def test_a_class_is_one_piece_if_every_reference_says_so() -> None:
    first, second = task(("a", "b"), (1.0, 0.96), ("1",)), task(("a", "b"), (0.5, 0.99), ("2",))
    assert list(first.one_piece()) == ["a", "b"] and list(second.one_piece()) == ["b"]
    for joined in (ensemble([first, second]), merge([first, second])):
        assert joined.largest_pieces == (0.5, 0.96) and list(joined.one_piece()) == ["b"]
    assert first.select(["b"]).largest_pieces == (0.96,)


def test_not_known_is_not_one_piece() -> None:
    assert task(("a",)).largest_pieces == (0.0,) and not task(("a",)).one_piece()
    with pytest.raises(TaskError, match=r"largest piece of each of its 2 classes or of none; got \[1\.0\]"):
        task(("a", "b"), (1.0,))


def test_the_task_file_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    save_task(tmp_path / "a.task", task(("a", "b"), (1.0, 0.25)))
    assert load_task(tmp_path / "a.task").largest_pieces == (1.0, 0.25)
    assert not replace(task(("a",), (1.0,)), largest_pieces=()).one_piece()
