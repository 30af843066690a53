"""References are embedded once by content, and a vector of a whole image is the mean of the encoder's features."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from blobs import PLAN, blob_reference, draw_blobs
from stub_model import tiny_model

from iris_pipeline.inference.pool import EmbeddingCache, embed, image_vector, restrict
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import one_shot


def test_an_embedded_reference_is_its_one_shot_task() -> None:
    loaded, reference = tiny_model(), blob_reference(1)
    embedded = embed(loaded, reference, PLAN)
    alone = one_shot(loaded.model, reference, PLAN, model_hash=loaded.model_hash)
    assert (embedded.id, embedded.subject, embedded.image_vector) == ("r1", "person 1", None)
    assert all(torch.equal(a, b) for a, b in zip(embedded.task.tokens, alone.tokens, strict=True))
    assert embedded.task.reference_hashes == ("hash1",)


def test_equal_content_is_encoded_once_and_other_content_anew() -> None:
    loaded, cache, reference = tiny_model(), EmbeddingCache(), blob_reference(1)
    encoded = loaded.model.encoded
    first = embed(loaded, reference, PLAN, cache)
    assert len(encoded) == 1
    copy = replace(reference, id="a copy", subject="x", image=reference.image.copy())
    again = embed(loaded, copy, PLAN, cache)
    assert len(encoded) == 1 and again.id == "a copy" and again.task.tokens[0].equal(first.task.tokens[0])
    embed(loaded, reference, PLAN.model_copy(update={"reasons": ("said otherwise",), "dataset": "x"}), cache)
    assert len(encoded) == 1, "what a plan is called does not matter"
    changes = [
        (replace(reference, image=reference.image + 1), PLAN, loaded),
        (replace(reference, labels=np.roll(reference.labels, 1, 0)), PLAN, loaded),
        (replace(reference, classes={"ball": 4, "disc": 1}), PLAN, loaded),
        (replace(reference, image_hash="another"), PLAN, loaded),
        (reference, PLAN.model_copy(update={"spacing_mm": (1.0, 1.0, 2.0)}), loaded),
        (reference, PLAN.model_copy(update={"patch_size": (32, 32, 48)}), loaded),
    ]
    for number, (changed, plan, model) in enumerate(changes, 2):
        embed(model, changed, plan, cache)
        assert len(encoded) == number
    other = tiny_model(seed=1)
    embed(other, reference, PLAN, cache)
    assert len(other.model.encoded) == 1, "another model's tokens are no use"


def test_what_was_encoded_in_bfloat16_is_not_taken_for_float32() -> None:
    loaded, cache, reference = tiny_model(), EmbeddingCache(), blob_reference(1)
    whole = embed(loaded, reference, PLAN, cache, with_image=True)
    half = embed(loaded, reference, PLAN, cache, with_image=True, options=InferenceOptions(autocast=True))
    assert len(loaded.model.encoded) == 4 and not torch.equal(half.task.tokens[0], whole.task.tokens[0])
    assert whole.image_vector is not None and half.image_vector is not None
    assert not torch.equal(half.image_vector, whole.image_vector)
    again = embed(loaded, reference, PLAN, cache, with_image=True)
    assert len(loaded.model.encoded) == 4 and torch.equal(again.task.tokens[0], whole.task.tokens[0])


def test_an_image_vector_is_made_once_whatever_the_labels() -> None:
    loaded, cache, reference = tiny_model(), EmbeddingCache(), blob_reference(1)
    first = embed(loaded, reference, PLAN, cache, with_image=True)
    assert len(loaded.model.encoded) == 2
    relabelled = replace(reference, labels=np.roll(reference.labels, 2, 1))
    again = embed(loaded, relabelled, PLAN, cache, with_image=True)
    assert len(loaded.model.encoded) == 3, "the other mask alone is encoded"
    assert first.image_vector is not None and again.image_vector is first.image_vector


@pytest.mark.parametrize(
    ("shape", "starts"),
    [((32, 32, 32), [(0, 0, 0)]), ((40, 32, 20), [(0, 0, -6), (8, 0, -6)])],
)
def test_the_image_vector_by_hand(shape: tuple[int, int, int], starts: list[tuple[int, int, int]]) -> None:
    loaded, image = tiny_model(), draw_blobs(3, shape)[0]
    padded = np.pad(image, ((0, 0), (0, 0), (6, 6)), constant_values=image.min()) if shape[2] < 32 else image
    sums: list[list[torch.Tensor]] = [[], []]
    for z, y, x in starts:
        x = max(x, 0)  # the volume lies in the middle of its padding
        window = torch.from_numpy(padded[z : z + 32, y : y + 32, x : x + 32].copy())[None, None]
        with torch.no_grad():
            features = loaded.model.encode_image(window)
        for level, stage in enumerate((4, 3)):
            grid = features[stage][0]
            cells = [grid[:, i, j, k] for i, j, k in product(*(range(n) for n in grid.shape[1:]))]
            sums[level].append(torch.stack(cells).mean(0))
    means = [torch.stack(level).mean(0) for level in sums]
    expected = torch.cat([mean / mean.norm() for mean in means]) / 2**0.5
    found = image_vector(loaded, image, PLAN.patch_size)
    assert float(found.norm()) == pytest.approx(1.0)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_reference_is_restricted_to_the_classes_taken_from_it() -> None:
    embedded = embed(tiny_model(), blob_reference(1), PLAN)
    disc = restrict(embedded, ("kite", "disc"))
    assert disc is not None and disc.task.classes == {"disc": 4}
    assert torch.equal(disc.task.tokens[0][0, 0], embedded.task.tokens[0][0, 1])
    assert restrict(embedded, ("kite",)) is None
