"""Arrays in, masks out: the same as through files, in any orientation, and refused in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, draw_blobs
from scans import save
from stub_model import HASH, GreyModel, loaded_with, tiny_model

from iris_pipeline.api import LabelledScan, Scan, TuningSettings, encode, segment, strategy_of
from iris_pipeline.pool import EmbeddingCache
from iris_pipeline.predict import InferenceOptions
from iris_pipeline.query_tasks import encode_files
from iris_pipeline.references import find_references
from iris_pipeline.showing import AS_PLANNED
from preprocessing.errors import RawDataError, ReferenceCaseError

SPACING = (1.0, 1.0, 1.0)
OPTIONS = InferenceOptions(overlap=0.0)


def labelled(seed: int, **changes: Any) -> LabelledScan:
    image, labels = draw_blobs(seed)
    return LabelledScan(image, labels, **({"spacing_mm": SPACING} | changes))


def test_arrays_and_files_give_equal_tasks(tmp_path: Path) -> None:
    loaded = tiny_model()
    loaded.plans = {"blobs": PLAN}
    scans = [labelled(seed, spacing_mm=(2.0, 1.0, 1.5)) for seed in (1, 2)]
    for seed, scan in zip((1, 2), scans, strict=True):
        affine = np.diag([1.5, 1.0, 2.0, 1.0])
        save(tmp_path / "images" / f"case{seed}.nii.gz", scan.image, affine)
        save(tmp_path / "labels" / f"case{seed}.nii.gz", scan.labels, affine)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    by_files = encode_files(loaded, find_references(tmp_path), showing=AS_PLANNED)
    by_arrays = encode(loaded, scans, CLASSES, pose="upright", scale=1)
    assert by_arrays.classes == by_files.classes and by_arrays.spacing_mm == by_files.spacing_mm
    assert sorted(by_arrays.reference_hashes) == sorted(by_files.reference_hashes)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(by_arrays.tokens, by_files.tokens, strict=True)
    )


def test_a_scan_is_segmented_on_its_own_grid() -> None:
    loaded = loaded_with(GreyModel(width=0.7), plans={"blobs": PLAN})
    task = encode(loaded, [labelled(1), labelled(2)], CLASSES, pose="upright", scale=1)
    image, truth = draw_blobs(5)
    mask = segment(loaded, task, Scan(image, SPACING), OPTIONS)
    assert mask.dtype == np.uint8 and mask.shape == image.shape
    # the disc is darker than the 2nd percentile, where a scan is clipped: by grey values alone it is lost
    both = ((mask == 1) & (truth == 1)).sum()
    assert 2 * both / ((mask == 1).sum() + (truth == 1).sum()) > 0.9
    # the same scan lying otherwise in its array gives the same mask, lying so too
    flipped = np.ascontiguousarray(image.transpose(2, 0, 1)[:, ::-1])
    affine = np.zeros((4, 4))
    affine[2, 1], affine[1, 0], affine[0, 2], affine[3, 3] = -1, 1, 1, 1  # (x,y,z) of the array -> y, -z, x
    turned = segment(loaded, task, Scan(flipped, affine=affine), OPTIONS)
    assert np.array_equal(turned, mask.transpose(2, 0, 1)[:, ::-1])


def test_any_strategy_on_arrays_and_a_cache_over_calls() -> None:
    loaded, cache = tiny_model(), EmbeddingCache()
    loaded.plans = {"blobs": PLAN}
    references = [labelled(seed) for seed in (1, 2)]
    tuning = TuningSettings(steps=1, check_every=1, judges=1)
    query = Scan(draw_blobs(5)[0], SPACING)
    for strategy in ("one-shot", "ensemble", "object-retrieval", "image-retrieval", "tuning"):
        task_of = strategy_of(
            loaded,
            references,
            CLASSES,
            strategy,
            cache=cache,
            options=OPTIONS,
            pose="upright",
            scale=1,
            tuning=tuning,
        )
        assert task_of(query.volume).made_by == strategy
        assert segment(loaded, task_of, query, OPTIONS).shape == query.image.shape
    assert len(cache.tasks) == 2, "each reference is encoded once, whatever the strategy"
    assert (
        encode(
            loaded, references, CLASSES, pose="upright", scale=1, strategy="one-shot", cache=cache
        ).references
        == 1
    )
    assert len(cache.tasks) == 2


def test_another_tasks_grid_can_be_taken() -> None:
    loaded = loaded_with(GreyModel(), plans={"blobs": PLAN}, model_hash=HASH)
    first = encode(loaded, [labelled(1)], {"ball": 1, "rest": 4}, pose="upright", scale=1)
    coarse = labelled(2, spacing_mm=(3.0, 3.0, 3.0))
    assert (
        encode(loaded, [coarse], {"ball": 1, "rest": 4}, pose="upright", scale=1).spacing_mm
        != first.spacing_mm
    )
    like = encode(loaded, [coarse], {"ball": 1, "rest": 4}, pose="upright", scale=1, like=first)
    assert (like.spacing_mm, like.patch_size) == (first.spacing_mm, first.patch_size)


def test_what_cannot_be_used_is_one_sentence() -> None:
    loaded = loaded_with(GreyModel(), plans={"blobs": PLAN})
    image, labels = draw_blobs(1)
    with pytest.raises(ReferenceCaseError, match="at least one labelled reference; got none"):
        encode(loaded, [], CLASSES, pose="upright", scale=1)
    with pytest.raises(ReferenceCaseError, match="at least one class, as in .* got none"):
        encode(loaded, [labelled(1)], {})
    with pytest.raises(RawDataError, match=r"three lengths above 0 \(z,y,x\); got \(1.0, 0.0, 1.0\)"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1),
            Scan(image, (1.0, 0.0, 1.0)),
        )
    with pytest.raises(RawDataError, match=r"three lengths above 0 \(z,y,x\); got \(1.0, 1.0\)"):
        segment(
            loaded, encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1), Scan(image, (1.0, 1.0))
        )  # type: ignore[arg-type]
    with pytest.raises(RawDataError, match=r"An affine is 4 x 4, .* got shape \[3, 3\]"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1),
            Scan(image, affine=np.eye(3)),
        )
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(RawDataError, match=r"a place of its own; got \[\[1.0, .* 0.0\]\], which does not"):
        segment(
            loaded, encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1), Scan(image, affine=flat)
        )
    for values, modality in (({"ball": 0}, "MR"), ({"ball": 256}, "MR"), (CLASSES, "MRI")):
        told = re.escape(f"in 1..255; got modality '{modality}' and classes {values}: correct them.")
        with pytest.raises(ReferenceCaseError, match=told):
            encode(loaded, [labelled(1)], values, modality=modality, pose="upright", scale=1)  # type: ignore[arg-type]
    with pytest.raises(RawDataError, match=r"either spacing_mm .* got shape \[32, 32\], spacing \(1.0, "):
        encode(loaded, [LabelledScan(image[0], labels[0], SPACING)], CLASSES, pose="upright", scale=1)
    with pytest.raises(RawDataError, match=r"got shape \[32, 32, 32\], spacing None, no affine"):
        segment(loaded, encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1), Scan(image))
    with pytest.raises(ReferenceCaseError, match="Reference '1' cannot be used: .* must have the same grid"):
        encode(loaded, [LabelledScan(image, labels[1:], SPACING)], CLASSES, pose="upright", scale=1)
    with pytest.raises(
        ReferenceCaseError, match=r"label map of reference 1 holds unknown label values \(4\)"
    ):
        encode(loaded, [labelled(1)], {"ball": 1}, pose="upright", scale=1)
    with pytest.raises(ReferenceCaseError, match="never its own query"):
        segment(loaded, encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1), Scan(image, SPACING))
