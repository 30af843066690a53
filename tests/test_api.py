"""Arrays in, masks out: the same as through files, in any orientation, and refused in one sentence."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import CLASSES, PLAN, draw_blobs
from scans import affine_of, paint, save
from stub_model import HASH, GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline.api import (
    LabelledScan,
    RetrievalSettings,
    Scan,
    TuningSettings,
    bank,
    encode,
    segment,
    segment_all,
    strategy_of,
)
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.query_tasks import encode_files
from iris_pipeline.scans.references import find_references
from iris_pipeline.search.showing import AS_PLANNED
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError, TaskError
from preprocessing.normalise import Normalisation, normalise

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
    by_arrays = encode(loaded, scans, CLASSES, pose="upright", scale=1, grey=0)
    assert by_arrays.classes == by_files.classes and by_arrays.spacing_mm == by_files.spacing_mm
    assert sorted(by_arrays.reference_hashes) == sorted(by_files.reference_hashes)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(by_arrays.tokens, by_files.tokens, strict=True)
    )


def test_grey_values_count_as_much_as_the_caller_says() -> None:
    loaded = loaded_with(GreyModel(width=0.7), plans={"blobs": PLAN})
    scans, query = [labelled(1), labelled(2)], Scan(draw_blobs(5)[0], SPACING)
    plain: dict[str, Any] = {"pose": "upright", "scale": 1}
    for task in (
        encode(loaded, scans, CLASSES, grey=2, **plain),
        strategy_of(loaded, scans, CLASSES, "ensemble", grey="2", **plain)(query.volume),
    ):
        assert task.grey is not None and task.grey.weights.tolist() == [2.0, 2.0]
    assert encode(loaded, scans, CLASSES, grey=0, **plain).grey is None
    with pytest.raises(PredictionError, match="The weight of grey values is auto, or 0 .* got 'heavy'"):
        encode(loaded, scans, CLASSES, grey="heavy", **plain)


def test_a_scan_is_segmented_on_its_own_grid() -> None:
    loaded = loaded_with(GreyModel(width=0.7), plans={"blobs": PLAN})
    task = encode(loaded, [labelled(1), labelled(2)], CLASSES, pose="upright", scale=1, grey=0)
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
            grey=0,
            tuning=tuning,
        )
        assert task_of(query.volume).made_by == strategy
        assert segment(loaded, task_of, query, OPTIONS).shape == query.image.shape
    assert len(cache.tasks) == 2, "each reference is encoded once, whatever the strategy"
    assert (
        encode(
            loaded, references, CLASSES, pose="upright", scale=1, grey=0, strategy="one-shot", cache=cache
        ).references
        == 1
    )
    assert len(cache.tasks) == 2


@pytest.mark.parametrize("strategy", ["tuning", "refining"])
def test_the_settings_of_tuning_are_the_callers(strategy: str) -> None:
    loaded = tiny_model()
    loaded.plans = {"blobs": PLAN}
    tuning = TuningSettings(steps=1, check_every=1, judges=1, learning_rate=0.07, seed=3)
    more: dict[str, Any] = {"options": OPTIONS, "pose": "upright", "scale": 1, "grey": 0, "tuning": tuning}
    references = [labelled(seed) for seed in (1, 2)]
    task = encode(loaded, references, CLASSES, strategy=strategy, **more)
    each = strategy_of(loaded, references, CLASSES, strategy, **more)(Scan(draw_blobs(5)[0], SPACING).volume)
    for made in (task, each):
        assert made.made_by == strategy
        assert [(record.learning_rate, record.seed) for record in made.tuned] == [(0.07, 3)]


def test_retrieval_takes_as_many_references_as_the_caller_says() -> None:
    loaded = tiny_model()
    loaded.plans = {"blobs": PLAN}
    loaded.model.decoder.classifier[-1].bias.data[-1] = (
        2.0  # marks everything, as the first class: a rough mask
    )
    references, query = [labelled(seed) for seed in (1, 2, 3)], Scan(draw_blobs(5)[0], SPACING).volume
    for top in (1, 3):
        task_of = strategy_of(
            loaded,
            references,
            CLASSES,
            "object-retrieval",
            options=OPTIONS,
            pose="upright",
            scale=1,
            grey=0,
            retrieval=RetrievalSettings(top=top),
        )
        made = task_of(query)
        assert made.references == top


def two_blocks() -> tuple[Scan, np.ndarray, list[float]]:
    """A scan that lies P,S,R in its array, the labels of its two blocks, and their grey values as the model sees."""
    image, labels = paint((24, 40, 34), {1: np.s_[4:14, 6:18, 8:22], 2: np.s_[12:20, 24:36, 12:30]})
    scores = normalise(image, Normalisation.for_modality("MR"))
    greys = [float(scores[labels == value].mean()) for value in (1, 2)]
    return Scan(image, affine=affine_of("PSR", SPACING)), labels, greys


def test_masks_and_probabilities_of_several_tasks_lie_on_the_scans_own_grid() -> None:
    scan, labels, (ball, doll) = two_blocks()
    loaded = loaded_with(GreyModel(width=0.05))
    # "near" looks for a grey 0.025 off the ball's: 40 (0.05 - 0.025) = 1 where the ball itself gets 40 x 0.05 = 2
    tasks = [
        make_task([ball, ball + 0.025], ("ball", "near"), class_values=(1, 3)),
        make_task([doll], ("doll",), class_values=(7,), patch_size=(16, 16, 32)),
    ]
    found = segment_all(loaded, tasks, scan, OPTIONS, masks=True, probabilities=True)
    assert found.classes == {"ball": 1, "near": 3, "doll": 7}
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels, np.array([0, 1, 7])[labels]), "the likelier of two that overlap"
    assert list(found.masks) == list(found.probabilities) == ["ball", "near", "doll"]
    # the sigmoids of 2, 1 and 2 are 0.8808, 0.7311 and 0.8808: 224.6, 186.4 and 224.6 of 255
    for (name, steps), value in zip({"ball": 225, "near": 186, "doll": 225}.items(), (1, 1, 2), strict=True):
        assert found.masks[name].dtype == bool and found.probabilities[name].dtype == np.float32
        assert np.array_equal(found.masks[name], labels == value)
        assert found.probabilities[name][labels == value] == pytest.approx(steps / 255)
        assert found.probabilities[name][labels != value].max() == 0
    with pytest.raises(KeyError, match="nobody"):
        found.masks["nobody"]
    assert found.masks["ball"] is not found.masks["ball"], "unpacked when asked for: not all classes at once"
    assert np.array_equal(segment(loaded, tasks, scan, OPTIONS), found.labels)
    plain = segment_all(loaded, tasks, scan, OPTIONS)
    assert np.array_equal(plain.labels, found.labels) and plain.masks == plain.probabilities == {}
    only = segment_all(loaded, tasks[1], scan, OPTIONS, masks=True)
    assert list(only.masks) == ["doll"] and only.probabilities == {} and only.classes == {"doll": 7}


def test_several_tasks_are_united_as_iris_predict_does() -> None:
    scan, labels, (ball, doll) = two_blocks()
    model = GreyModel(width=0.05)
    loaded = loaded_with(model)
    both = [make_task([doll], ("doll",)), make_task([ball], ("ball",))]  # each has the value 1
    found = segment_all(loaded, both, scan, OPTIONS)
    assert found.classes == {"doll": 1, "ball": 2}
    assert np.array_equal(found.labels, np.array([0, 2, 1])[labels])
    windows = len(model.images)
    segment(loaded, both[0], scan, OPTIONS)
    assert len(model.images) == 2 * windows, "two tasks on one grid cost the windows of one"
    # what makes a task for each query may stand among them
    mixed = segment_all(loaded, [lambda _: both[0], both[1]], scan, OPTIONS)
    assert np.array_equal(mixed.labels, found.labels) and mixed.classes == found.classes
    with pytest.raises(TaskError, match="at least one task; got none"):
        segment(loaded, [], scan)
    other = make_task([ball], ("doll",), patch_size=(16, 16, 32))
    with pytest.raises(TaskError, match="classes of different names; doll came twice"):
        segment(loaded, [both[0], other], scan)
    with pytest.raises(TaskError, match="serves only the model that encoded it"):
        segment(loaded, [both[0], make_task([ball], ("ball",), model_hash="f" * 16)], scan)


def test_the_memory_of_a_model_is_a_task() -> None:
    scan, labels, (ball, doll) = two_blocks()
    memory = MemoryBank(0.9)
    for name, grey in (("ball", ball), ("disc", doll)):
        memory.update(f"blobs/{name}", (torch.tensor([[grey]]),))
    specs = {"blobs": {"classes": CLASSES}}
    loaded = loaded_with(GreyModel(width=0.05), bank=memory, plans={"blobs": PLAN}, specs=specs)
    found = segment(loaded, bank(loaded, "blobs"), scan, OPTIONS)
    assert np.array_equal(found, np.array([0, 1, 4])[labels])
    with pytest.raises(PredictionError, match="how often a scan is looked at, is 1 or 2; got 3"):
        bank(loaded, "blobs", looks=3)


def test_grey_values_of_another_modality_are_warned_of_where_the_call_stands() -> None:
    scan, _, (ball, _) = two_blocks()
    in_hu = replace(scan, image=scan.image - 900.0)
    loaded, task = loaded_with(GreyModel(width=0.05)), make_task([ball], ("ball",))
    for call in (segment, segment_all):
        with pytest.warns(
            UserWarning, match=r"The scan: the task is of MR, but values down to -9\d\d"
        ) as told:
            call(loaded, task, in_hu, OPTIONS)
        assert [each.filename for each in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment(loaded, task, scan, OPTIONS)


def test_scans_that_iris_predict_refuses_are_refused() -> None:
    loaded, task = loaded_with(GreyModel()), make_task([0.0])
    image = draw_blobs(1)[0]
    hole = image.copy()
    hole[3, 4, 5] = np.nan
    flat = np.full((4, 5, 6), 7.0)
    refused = [
        (Scan(flat, SPACING), "^The scan holds the grey value 7 in every voxel, so it shows nothing"),
        (Scan(hole, SPACING), "^The scan holds values that are not finite .1 of 32768 voxels.: only finite"),
        (
            Scan(image, (0.001,) * 3),
            "1 to 3000 mm, but the scan is 0.032 x 0.032 x 0.032 mm .*; mend the header",
        ),
        (Scan(image, (100.0,) * 3), "1 to 3000 mm, but the scan is 3.2e.03 x 3.2e.03 x 3.2e.03 mm"),
        (
            Scan(image.astype(np.complex64), SPACING),
            "^A voxel holds one real number, but the array given holds complex64: give one channel",
        ),
        (Scan(image[:0], SPACING), r"array \[D,H,W\] of voxels .* got shape \[0, 32, 32\]"),
    ]
    asked: list[Any] = []
    for scan, told in refused:
        for given in (task, [task], lambda image: asked.append(image) or task):
            with pytest.raises(RawDataError, match=told):
                segment(loaded, given, scan)
    assert not asked and not loaded.model.images, "nothing is computed for them"


def test_a_strategy_that_makes_no_single_task_is_named_where_it_is() -> None:
    for strategy in ("object-retrieval", "image-retrieval", "bank", "luck"):
        told = (
            "encode makes one task for all queries, by one-shot, ensemble, tuning, refining, best; got "
            f"'{strategy}': ask strategy_of for image-retrieval and object-retrieval, which make one for "
            "each query, and bank for"
        )
        with pytest.raises(PredictionError, match=re.escape(told)):
            encode(loaded_with(GreyModel()), [labelled(1)], CLASSES, strategy=strategy)


def test_another_tasks_grid_can_be_taken() -> None:
    loaded = loaded_with(GreyModel(), plans={"blobs": PLAN}, model_hash=HASH)
    first = encode(loaded, [labelled(1)], {"ball": 1, "rest": 4}, pose="upright", scale=1, grey=0)
    coarse = labelled(2, spacing_mm=(3.0, 3.0, 3.0))
    assert (
        encode(loaded, [coarse], {"ball": 1, "rest": 4}, pose="upright", scale=1, grey=0).spacing_mm
        != first.spacing_mm
    )
    like = encode(loaded, [coarse], {"ball": 1, "rest": 4}, pose="upright", scale=1, grey=0, like=first)
    assert (like.spacing_mm, like.patch_size) == (first.spacing_mm, first.patch_size)


def test_what_cannot_be_used_is_one_sentence() -> None:
    loaded = loaded_with(GreyModel(), plans={"blobs": PLAN})
    image, labels = draw_blobs(1)
    with pytest.raises(ReferenceCaseError, match="at least one labelled reference; got none"):
        encode(loaded, [], CLASSES, pose="upright", scale=1, grey=0)
    with pytest.raises(ReferenceCaseError, match="at least one class, as in .* got none"):
        encode(loaded, [labelled(1)], {})
    with pytest.raises(RawDataError, match=r"three lengths above 0 \(z,y,x\); got \(1.0, 0.0, 1.0\)"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0),
            Scan(image, (1.0, 0.0, 1.0)),
        )
    with pytest.raises(RawDataError, match=r"three lengths above 0 \(z,y,x\); got \(1.0, 1.0\)"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0),
            Scan(image, (1.0, 1.0)),
        )  # type: ignore[arg-type]
    with pytest.raises(RawDataError, match=r"An affine is 4 x 4, .* got shape \[3, 3\]"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0),
            Scan(image, affine=np.eye(3)),
        )
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(RawDataError, match=r"a place of its own; got \[\[1.0, .* 0.0\]\], which does not"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0),
            Scan(image, affine=flat),
        )
    for values, modality in (({"ball": 0}, "MR"), ({"ball": 256}, "MR"), (CLASSES, "MRI")):
        told = re.escape(f"in 1..255; got modality '{modality}' and classes {values}: correct them.")
        with pytest.raises(ReferenceCaseError, match=told):
            encode(loaded, [labelled(1)], values, modality=modality, pose="upright", scale=1, grey=0)  # type: ignore[arg-type]
    with pytest.raises(RawDataError, match=r"either spacing_mm .* got shape \[32, 32\], spacing \(1.0, "):
        encode(loaded, [LabelledScan(image[0], labels[0], SPACING)], CLASSES, pose="upright", scale=1, grey=0)
    with pytest.raises(RawDataError, match=r"got shape \[32, 32, 32\], spacing None, no affine"):
        segment(loaded, encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0), Scan(image))
    with pytest.raises(ReferenceCaseError, match="Reference '1' cannot be used: .* must have the same grid"):
        encode(loaded, [LabelledScan(image, labels[1:], SPACING)], CLASSES, pose="upright", scale=1, grey=0)
    with pytest.raises(
        ReferenceCaseError, match=r"label map of reference 1 holds unknown label values \(4\)"
    ):
        encode(loaded, [labelled(1)], {"ball": 1}, pose="upright", scale=1, grey=0)
    with pytest.raises(ReferenceCaseError, match="never its own query"):
        segment(
            loaded,
            encode(loaded, [labelled(1)], CLASSES, pose="upright", scale=1, grey=0),
            Scan(image, SPACING),
        )


def test_what_is_no_scan_and_no_spacing_is_told() -> None:
    loaded, task, image = loaded_with(GreyModel()), make_task([0.0]), draw_blobs(1)[0]
    for spacing in (1.0, "1 mm", ("1", "1", "1"), (1.0, None, 1.0), (1.0, (2.0, 3.0), 1.0)):
        with pytest.raises(RawDataError) as caught:
            segment(loaded, task, Scan(image, spacing))  # type: ignore[arg-type]
        assert str(caught.value) == f"spacing_mm is three lengths above 0 (z,y,x); got {spacing!r}."
    for whole in ((1, 2, 3), [1.0, 2.0, 3.0], np.array([1, 2, 3], np.float32)):
        assert Scan(image, whole).volume.spacing_mm == (1.0, 2.0, 3.0)  # type: ignore[arg-type]
    with pytest.raises(RawDataError, match=r"^An affine is 4 x 4, .* got shape \[0\]"):
        segment(loaded, task, Scan(image, affine=[["x"] * 4] * 4))  # type: ignore[arg-type]
    for call in (segment, segment_all):
        with pytest.raises(RawDataError) as caught:
            call(loaded, task, image)  # type: ignore[operator]
        assert str(caught.value) == (
            "A scan is an array and where it lies; got ndarray alone: wrap it, Scan(array, spacing_mm=(z, y, x)) or "
            "Scan(array, affine=affine)."
        )


def test_class_values_are_whole_numbers_and_messages_speak_of_classes() -> None:
    loaded = loaded_with(GreyModel(), plans={"blobs": PLAN})
    for value in ("1", 1.5, True, None):
        told = re.escape(
            f"a whole number, its value in the labels, as in {{\"liver\": 1}}; got {{'ball': {value!r}}}: "
        )
        with pytest.raises(ReferenceCaseError, match=told + re.escape(f"{value!r} is none.")):
            encode(loaded, [labelled(1)], {"ball": value})  # type: ignore[dict-item]
    with pytest.raises(
        ReferenceCaseError,
        match=r"of reference 1 holds unknown label values \(4\): .*; correct the labels or name "
        r"their values \(1 to 255\) in `classes`\.$",
    ):
        encode(loaded, [labelled(1)], {"ball": 1}, pose="upright", scale=1, grey=0)
