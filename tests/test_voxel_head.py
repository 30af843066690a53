"""The voxel head: a naive loop over voxels, nothing at its beginning, exact mixing, its way into masks and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, blob_reference
from scipy import ndimage
from stub_model import GreyModel, make_task, tiny_model
from torch import Tensor

from iris_pipeline.inference.focus import wide_task
from iris_pipeline.inference.pool import embed
from iris_pipeline.inference.sliding_window import segment_volume
from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.inference.tuning import TuningSettings, tune
from iris_pipeline.prediction.predict import describe, digest
from iris_pipeline.scans.scan import unite
from iris_pipeline.tasks.task import TaskEmbedding, merge
from iris_pipeline.tasks.task_file import load_task, save_task
from iris_pipeline.tasks.voxel_head import FEATURES, HIDDEN, VoxelHead, mix
from preprocessing.errors import TaskError


def drawn_head(classes: int, seed: int) -> VoxelHead:
    generator = torch.Generator().manual_seed(seed)
    begin = VoxelHead.begin(classes, seed)
    return VoxelHead(
        begin.inner,
        begin.inner_bias,
        torch.randn(classes, HIDDEN, generator=generator),
        torch.randn(classes, generator=generator),
    )


def volumes(classes: int, shape: tuple[int, int, int] = (7, 6, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 1, *shape, generator=generator)
    return image, 5 * torch.randn(2, classes, *shape, generator=generator)


def naive(head: VoxelHead, image: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """One sample, image [D,H,W] and logits [K,D,H,W], by scipy and a loop over classes and hidden units."""
    result = logits.astype(float)

    def mean(values: np.ndarray, edge: int) -> np.ndarray:
        return ndimage.uniform_filter(values.astype(float), edge, mode="nearest")

    for k, logit in enumerate(logits):
        own = np.clip(logit, -8, 8) / 4
        features = [image, mean(image, 3), mean(image, 5), mean(image, 9), own, mean(own, 5)]
        for unit in range(head.outer.shape[1]):
            weights, bias = head.inner[k, unit].tolist(), float(head.inner_bias[k, unit])
            hidden = np.maximum(sum(w * f for w, f in zip(weights, features, strict=True)) + bias, 0)
            result[k] += float(head.outer[k, unit]) * hidden
        result[k] += float(head.outer_bias[k])
    return result


def test_it_is_the_naive_loop() -> None:
    head, (image, logits) = drawn_head(3, 1), volumes(3)
    found = head(image, logits)
    for sample in range(2):
        expected = naive(head, image[sample, 0].numpy(), logits[sample].numpy())
        np.testing.assert_allclose(found[sample].numpy(), expected, atol=1e-4)


def test_it_begins_at_nothing() -> None:
    image, logits = volumes(2)
    assert torch.equal(VoxelHead.begin(2)(image, logits), logits)


def test_chosen_classes_are_answered_as_before() -> None:
    head, (image, logits) = drawn_head(3, 1), volumes(3)
    rows = [2, 0]
    torch.testing.assert_close(head.select(rows)(image, logits[:, rows]), head(image, logits)[:, rows])


def test_mixing_is_the_mean_of_what_heads_add() -> None:
    first, second, (image, logits) = drawn_head(2, 1), drawn_head(2, 2), volumes(3)
    mixed = mix([[(first, 0, 0.25), (second, 1, 0.75)], [(second, 0, 1.0)], [(None, 0, 1.0)]])
    assert mixed is not None and mixed.inner.shape == (3, 2 * HIDDEN, FEATURES)

    def added(head: VoxelHead, row: int, logit: Tensor) -> Tensor:
        return head.select([row])(image, logit[:, None])[:, 0] - logit

    found = mixed(image, logits) - logits
    half = 0.25 * added(first, 0, logits[:, 0]) + 0.75 * added(second, 1, logits[:, 0])
    torch.testing.assert_close(found[:, 0], half, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 1], added(second, 0, logits[:, 1]), atol=1e-4, rtol=1e-4)
    assert torch.equal(found[:, 2], torch.zeros_like(found[:, 2]))
    assert mix([[(None, 0, 1.0)], [(None, 0, 0.5), (None, 1, 0.5)]]) is None


def constant_head(*values: float) -> VoxelHead:
    """Adds one value a class, everywhere."""
    classes = len(values)
    return replace(VoxelHead.begin(classes), outer_bias=torch.tensor(values))


def test_tasks_that_are_chosen_from_joined_or_averaged_keep_their_heads() -> None:
    task = make_task([1.0, 2.0], ("a", "b"), head=constant_head(5.0, 7.0))
    assert task.select(["b"]).head is not None
    chosen = task.select(["b"]).head
    assert chosen is not None and chosen.outer_bias.tolist() == [7.0]
    plain = make_task([3.0], ("c",), class_values=(3,))
    for joined in (merge([task, plain]), unite([task, plain])[0]):
        assert joined.head is not None
        assert dict(zip(joined.class_names, joined.head.outer_bias.tolist(), strict=True)) == {
            "a": 5.0,
            "b": 7.0,
            "c": 0.0,
        }
    again = make_task([1.5], ("a",), references=3, class_references=(3,), head=constant_head(1.0))
    merged = merge([task, again]).head
    assert merged is not None and merged.outer_bias.tolist() == [(5.0 + 3 * 1.0) / 4, 7.0]
    averaged = ensemble([task, again]).head
    assert averaged is not None and averaged.outer_bias.tolist() == [3.0, 7.0]
    assert merge([make_task([1.0], ("a",)), plain]).head is None
    assert wide_task(replace(task, wide_tokens=task.tokens), (20, 20, 20)).head is None


def test_a_mask_is_what_logits_and_head_say() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 18, 40)).astype(np.float32)
    task = make_task([0.0, 1.0], patch_size=(16, 16, 16))
    plain = segment_volume(GreyModel(), image, task)
    zero = segment_volume(GreyModel(), image, replace(task, head=VoxelHead.begin(2)))
    assert np.array_equal(plain, zero)
    raised = segment_volume(GreyModel(), image, replace(task, head=constant_head(-1e4, 1e4)))
    assert raised[0].max() == 0 and raised[1].min() == 1


def test_files_hold_the_head(tmp_path: Path) -> None:
    task = make_task([1.0, 2.0], ("a", "b"), head=drawn_head(2, 1))
    plain = replace(task, head=None)
    for name in ("x.task", "y.task"):
        save_task(tmp_path / name, task)
    save_task(tmp_path / "plain.task", plain)
    assert (tmp_path / "x.task").read_bytes() == (tmp_path / "y.task").read_bytes()
    found = load_task(tmp_path / "x.task").head
    assert found is not None and task.head is not None
    assert all(torch.equal(a, b) for a, b in zip(found.parts, task.head.parts, strict=True))
    assert load_task(tmp_path / "plain.task").head is None
    assert digest(task) != digest(plain) and digest(task) == digest(load_task(tmp_path / "x.task"))
    assert (describe(task)["refined"], describe(plain)["refined"]) == (True, False)
    assert "head" not in describe(task)


def refined(references: list[object], **changes: object) -> tuple[object, TaskEmbedding, TaskEmbedding]:
    loaded = tiny_model()
    tasks = [embed(loaded, reference, PLAN).task for reference in references]  # type: ignore[arg-type]
    settings = TuningSettings(steps=12, learning_rate=0.05, check_every=4, judges=2)
    tuned = tune(loaded, references, tasks, settings=settings)  # type: ignore[arg-type]
    both = tune(loaded, references, tasks, settings=replace(settings, refine=True, **changes))  # type: ignore[arg-type]
    return loaded, tuned, both


def test_refining_learns_more_than_tuning_and_again_the_same() -> None:
    references: list[object] = [blob_reference(seed) for seed in (1, 2)]
    _, tuned, both = refined(references)
    assert (tuned.made_by, both.made_by) == ("tuning", "refining")
    assert tuned.head is None and both.head is not None and both.head.outer.shape == (len(CLASSES), HIDDEN)
    assert both.tuned[0].loss < tuned.tuned[0].loss - 0.01, "grey values alone tell these blobs"
    assert not any(part.requires_grad for part in both.head.parts)
    again = refined(references)[2]
    assert again.head is not None
    assert all(torch.equal(a, b) for a, b in zip(both.head.parts, again.head.parts, strict=True))
    slow = refined(references, head_rate=1e-9)[2]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(slow.tokens, tuned.tokens, strict=True)), (
        "a head that stands still leaves tuning as it is"
    )


def test_steps_have_a_default_each_and_rates_are_checked() -> None:
    assert (TuningSettings().most_steps, TuningSettings(refine=True).most_steps) == (60, 120)
    assert TuningSettings(refine=True, steps=7).most_steps == 7
    with pytest.raises(TaskError, match=r"learning rates above 0; got .* and 0.03, 0\."):
        TuningSettings(refine=True, head_rate=0.0)
