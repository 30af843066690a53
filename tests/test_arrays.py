"""What callers from Python hand over by mistake is refused in a sentence that says what to hand over instead."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from blobs import CLASSES, PLAN, draw_blobs
from stub_model import GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline.api import (
    InferenceOptions,
    LabelledScan,
    RetrievalSettings,
    Scan,
    TuningSettings,
    encode,
    load_model,
    segment,
    segment_all,
    strategy_of,
)
from iris_pipeline.prediction.arrays import reference_files, settle_options
from preprocessing.errors import (
    IrisError,
    ModelError,
    PredictionError,
    RawDataError,
    ReferenceCaseError,
    TaskError,
)

SPACING = (1.0, 1.0, 1.0)
PLAIN: dict[str, Any] = {"pose": "upright", "scale": 1, "grey": 0, "looks": 1, "tones": "never"}
IMAGE, LABELS = draw_blobs(1)


def grey_model() -> Any:
    return loaded_with(GreyModel(width=0.7), plans={"blobs": PLAN})


def labelled(seed: int, **changes: Any) -> LabelledScan:
    image, labels = draw_blobs(seed)
    return LabelledScan(image, labels, **({"spacing_mm": SPACING} | changes))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("a.nii.gz", "got the path 'a.nii.gz': `volume = read_volume(path)` of preprocessing.volume reads it"),
        (Path("a.mha"), "got the path 'a.mha'"),
        (sitk.GetImageFromArray(IMAGE), "got a SimpleITK image: give sitk.GetArrayFromImage(image) and its affine"),
        (nib.Nifti1Image(IMAGE.T, np.eye(4)), "got an image of nibabel's: give image.get_fdata().T and affine="),
        (IMAGE[None], "got shape [1, 32, 32, 32], spacing (1.0, 1.0, 1.0), no affine: give one channel, as array[0]."),
        (IMAGE[0], "got shape [32, 32], spacing (1.0, 1.0, 1.0), no affine: of a single slice give array[None]."),
        (None, "got shape []"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_voxels_is_told_how_to_become_one(image: Any, told: str) -> None:
    for made in (
        lambda: Scan(image, SPACING).volume,
        lambda: LabelledScan(IMAGE, image, SPACING).sources("1"),
    ):
        with pytest.raises(RawDataError, match=re.escape(told)):
            made()


def test_tensors_are_arrays_whatever_they_are_used_for() -> None:
    whole = np.rint(IMAGE * 8)  # few bits, which bfloat16 holds exactly
    for tensor in (
        torch.tensor(whole, requires_grad=True),
        torch.tensor(whole).bfloat16(),
        torch.tensor(whole).long(),
    ):
        volume = Scan(tensor, torch.tensor(SPACING)).volume  # type: ignore[arg-type]
        assert volume.array.dtype == np.float32 and np.array_equal(volume.array, whole)
        assert volume.spacing_mm == SPACING


def test_the_last_row_of_an_affine_is_0_0_0_1() -> None:
    affine = np.diag([-2.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    assert Scan(IMAGE, affine=affine.tolist()).volume.spacing_mm == (3.0, 1.0, 2.0)  # type: ignore[arg-type]
    with pytest.raises(
        RawDataError, match=r"last row of an affine is 0, 0, 0, 1 .*; got .*5.0, 6.0, 7.0, 1.0\]\]: transpose"
    ):
        segment(grey_model(), make_task([0.0]), Scan(IMAGE, affine=affine.T))


def test_an_affine_of_simpleitks_geometry_places_voxels_where_simpleitk_does() -> None:
    image = sitk.GetImageFromArray(IMAGE)
    image.SetSpacing((1.5, 1.0, 2.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0.0, -1.0, 0.0, 0.6, 0.0, -0.8, 0.8, 0.0, 0.6))
    # as in the docstring of Scan
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    volume = Scan(sitk.GetArrayFromImage(image), affine=affine).volume
    assert volume.spacing_mm == pytest.approx((2.0, 1.0, 1.5))
    x, y, z = image.TransformIndexToPhysicalPoint((3, 4, 5))
    assert volume.affine @ (3, 4, 5, 1) == pytest.approx([-x, -y, z, 1])


def test_references_and_classes_that_are_none_are_told() -> None:
    one = labelled(1)
    refused: list[tuple[Any, Any, str]] = [
        (one, CLASSES, "References are a list of LabelledScan; got one alone: give [reference]."),
        ([one, (IMAGE, LABELS)], CLASSES, "reference 2 is of type tuple: wrap its image and its labels."),
        ([Scan(IMAGE, SPACING)], CLASSES, "reference 1 is of type Scan: wrap"),
        (["a.nii.gz"], CLASSES, "reference 1 is 'a.nii.gz': wrap"),
        ([labelled(1, subject=3)], CLASSES, "of reference 1 it is 3: give \"3\"."),
        ([one], ["ball", "disc"], "as in {\"liver\": 1}; got ['ball', 'disc']."),
        ([one], "ball", "got 'ball'."),
        ([one], {1: 1}, "gives each name, a text, its value in the labels, as in {\"liver\": 1}; got {1: 1}."),
    ]  # fmt: skip
    for references, classes, told in refused:
        with pytest.raises(ReferenceCaseError, match=re.escape(told)):
            encode(grey_model(), references, classes, **PLAIN)
    files = reference_files(iter([one, labelled(2, subject="p")]), {"ball": np.int64(1)})  # type: ignore[arg-type]
    assert [case.subject for case in files.cases] == ["1", "p"] and files.classes == {"ball": 1}


def test_arguments_of_another_kind_are_told() -> None:
    loaded, task, scan = grey_model(), make_task([0.0]), Scan(draw_blobs(5)[0], SPACING)
    one = [labelled(1)]
    calls: list[tuple[Any, type[IrisError], str]] = [
        (lambda: encode("iris", one, CLASSES), ModelError, "got 'iris': give load_model('iris')."),
        (lambda: segment(loaded.model, task, scan), ModelError, "got of type GreyModel: give load_model()."),
        (lambda: encode(loaded, one, CLASSES, options={}), PredictionError, "`options` is InferenceOptions or None; "),
        (lambda: segment(loaded, task, scan, 0.5), PredictionError, "got of type float: make it one."),
        (lambda: encode(loaded, one, CLASSES, tuning={}), PredictionError, "`tuning` is TuningSettings or None; got"),
        (lambda: encode(loaded, one, CLASSES, like="a.task"), PredictionError, "`like` is TaskEmbedding or None; got "),
        (lambda: encode(loaded, one, CLASSES, seed=-1), PredictionError, "`seed` is a whole number, 0 or more; got -1"),
        (lambda: encode(loaded, one, CLASSES, pose=None), PredictionError, "S or I, A or P, R or L; got None."),
        (lambda: encode(loaded, one, CLASSES, seed=None), PredictionError, "0 or more; got None."),
        (
            lambda: strategy_of(loaded, one, CLASSES, "ensemble", retrieval=TuningSettings()),
            PredictionError,
            "`retrieval` is RetrievalSettings or None; got of type TuningSettings",
        ),
        (lambda: segment(loaded, "a.task", scan), TaskError, "got 'a.task': load_task('a.task')."),
        (lambda: segment(loaded, [Path("a.task")], scan), TaskError, "got 'a.task': load_task('a.task')."),
        (lambda: segment(loaded, None, scan), TaskError, "got of type NoneType: make one."),
        (lambda: segment(loaded, lambda _: None, scan), TaskError, "got of type NoneType: make one."),
    ]  # fmt: skip
    for call, kind, told in calls:
        with pytest.raises(kind, match=re.escape(told)):
            call()
    assert RetrievalSettings().top >= 1 and not loaded.model.images, "nothing is computed for them"


def test_model_and_options_are_of_one_device() -> None:
    loaded = tiny_model()
    assert settle_options(loaded, None).device == "cpu"
    loaded.model.to("meta")
    assert settle_options(loaded, None).device == "meta"
    with pytest.raises(
        ModelError, match=r"lies on meta, the options say cpu: give InferenceOptions\(device="
    ):
        segment(loaded, make_task([0.0]), Scan(IMAGE, SPACING), InferenceOptions())
    for name, told in (
        ("banana", "'cuda:1' or the like; got 'banana'"),
        ("cuda:99", "The device cuda:99 needs a GPU"),
    ):
        with pytest.raises(ModelError, match=told):
            segment(loaded, make_task([0.0]), Scan(IMAGE, SPACING), InferenceOptions(device=name))
        with pytest.raises(ModelError, match=told):
            load_model(device=name)


def test_a_class_that_no_reference_shows_is_warned_of() -> None:
    loaded, half = grey_model(), LabelledScan(IMAGE, np.where(LABELS == 4, 0, LABELS), SPACING)
    with pytest.warns(UserWarning, match=r"^No reference shows disc; the task is without\.$") as told:
        task = encode(loaded, [half], CLASSES, **PLAIN)
    assert task.classes == {"ball": 1} and [each.filename for each in told] == [__file__]
    with pytest.warns(UserWarning, match="No reference shows disc") as told:
        strategy_of(loaded, [half], CLASSES, "ensemble", **PLAIN)
    assert [each.filename for each in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(loaded, [half, labelled(2)], CLASSES, **PLAIN)


def test_what_was_found_can_be_sent_to_another_process() -> None:
    loaded = grey_model()
    task = encode(loaded, [labelled(1)], CLASSES, **PLAIN)
    turned = np.diag([-1.0, 1.0, -1.0, 1.0])
    scan = Scan(draw_blobs(5)[0], affine=turned)
    found = segment_all(loaded, task, scan, InferenceOptions(overlap=0.0), masks=True, probabilities=True)
    sent = pickle.loads(pickle.dumps(found))
    assert sent.classes == found.classes and np.array_equal(sent.labels, found.labels)
    for name in CLASSES:
        assert found.masks[name].any() and np.array_equal(sent.masks[name], found.masks[name])
        assert np.array_equal(sent.probabilities[name], found.probabilities[name])


def test_scans_can_be_looked_for_in_a_list() -> None:
    scans = [Scan(IMAGE, SPACING), Scan(IMAGE.copy(), SPACING)]
    assert scans.index(scans[1]) == 1 and len({*scans}) == 2 and labelled(1) not in [labelled(1)]
