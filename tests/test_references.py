"""Labelled cases that define a task: found, named, planned, drawn, encoded; and refused where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scans import ORDERS, affine_of, paint, save, volume
from stub_model import HASH, GreyModel, loaded_with

from iris_pipeline.prediction.query_tasks import encode_files
from iris_pipeline.scans.references import (
    Candidate,
    Draw,
    ReferenceFiles,
    draw_references,
    embed_draws,
    find_references,
    made_up_spec,
    plan_references,
    prepare_reference,
    reference_pair,
    reference_spec,
    stored_reference,
)
from iris_pipeline.scans.screening import screen_references
from iris_pipeline.search.showing import AS_PLANNED
from preprocessing.errors import LabelValueError, RawDataError, ReferenceCaseError
from preprocessing.findings import image_hash
from preprocessing.fingerprint import measure_case
from preprocessing.normalise import Normalisation, normalise
from preprocessing.orientation import Reorientation
from preprocessing.plan import Plan
from preprocessing.sources.class_names import read_class_names
from preprocessing.sources.source import FileSource
from preprocessing.store import Store

BLOCKS = {2: np.s_[2:6, 6:18, 8:22], 7: np.s_[2:10, 24:36, 12:30]}
IMAGE, LABELS = paint((12, 40, 34), BLOCKS)
AFFINE = affine_of("RAS", (2.0, 1.0, 1.0))


def plan_of(policy: str = "fit", patch: tuple[int, int, int] = (32, 32, 32), **changes: Any) -> Plan:
    values = {
        "dataset": "known",
        "modality": "MR",
        "policy": policy,
        "spacing_mm": (1.0, 1.0, 1.0),
        "patch_size": patch,
        "normalisation": Normalisation.for_modality("MR"),
        "intensity_offset": 0.0,
        "reasons": (),
    }
    return Plan(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two references in the plain layout, the second without the class 7."""
    for name, labels in (("one", LABELS), ("two", np.where(LABELS == 2, 2, 0).astype(np.uint8))):
        save(tmp_path / "images" / f"{name}.nii.gz", IMAGE, AFFINE)
        save(tmp_path / "labels" / f"{name}.nii.gz", labels, AFFINE)
    return tmp_path


def test_a_folder_is_paired_by_case_id(folder: Path) -> None:
    save(folder / "images" / "three.nii.gz", IMAGE, AFFINE)
    (folder / "images" / "one.nii.gz").rename(folder / "images" / "one_0000.nii.gz")
    files = find_references(folder)
    assert [(c.id, c.image.name, c.labels and c.labels.name) for c in files.cases] == [
        ("one", "one_0000.nii.gz", "one.nii.gz"),
        ("two", "two.nii.gz", "two.nii.gz"),
    ]
    assert files.classes == {"label_2": 2, "label_7": 7}
    assert files.unpaired == ("three",)


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_references_may_be_numbered_from_0000_on(folder: Path, suffix: str) -> None:
    for number, name in enumerate(("one", "two")):
        (folder / "images" / f"{name}.nii.gz").rename(folder / "images" / f"case_{number:04d}{suffix}.nii.gz")
        (folder / "labels" / f"{name}.nii.gz").rename(folder / "labels" / f"case_{number:04d}.nii.gz")
    files = find_references(folder)
    assert [case.id for case in files.cases] == ["case_0000", "case_0001"] and files.unpaired == ()


def test_the_decathlons_folders_are_known_too(folder: Path) -> None:
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "2": "ball", "7": "doll"}})
    )
    assert find_references(folder).classes == {"ball": 2, "doll": 7}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.json", {"ball": 2, "doll": 7}),
        ("classes.json", {"background": 0, "ball": 2, "doll": 7}),
        ("dataset.json", {"labels": {"background": 0, "ball": 2, "doll": 7}, "numTraining": 2}),
        ("dataset.json", {"labels": {"0": "background", "2": "ball", "7": "doll"}}),
    ],
)
def test_class_names_of_both_json_forms(tmp_path: Path, name: str, content: dict) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert read_class_names(tmp_path) == {"ball": 2, "doll": 7}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        "{}",
        '{"a": 1, "b": 1}',
        '{"a": 256}',
        '{"a": [1, 2]}',
        '{"a": 1.5}',
        '{"x": "liver"}',
        '{"a": -1}',
    ],
)
def test_class_names_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(RawDataError, match=r"classes\.json should name the classes as \{\"liver\": 1\}"):
        read_class_names(tmp_path)


def test_classes_json_goes_before_dataset_json(tmp_path: Path) -> None:
    assert read_class_names(tmp_path) is None
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "a"}}')
    (tmp_path / "classes.json").write_text('{"b": 1}')
    assert read_class_names(tmp_path) == {"b": 1}


def test_one_image_and_one_label_file(folder: Path) -> None:
    image, labels = folder / "images" / "one.nii.gz", folder / "labels" / "two.nii.gz"
    files = reference_pair(image, labels)
    assert (files.cases[0].id, files.cases[0].image, files.cases[0].labels) == (
        "one",
        FileSource(image),
        FileSource(labels),
    )
    assert files.classes == {"label_2": 2}
    (folder / "classes.json").write_text('{"ball": 2}')
    assert reference_pair(image, labels).classes == {"ball": 2}


def test_folders_that_hold_no_references(tmp_path: Path) -> None:
    with pytest.raises(
        ReferenceCaseError, match=r"a folder with images/ and labels/ .*nowhere does not exist"
    ):
        find_references(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(ReferenceCaseError, match=r"none pair up \(both are empty\)"):
        find_references(tmp_path)
    save(tmp_path / "images" / "a.nii.gz", IMAGE, AFFINE)
    save(tmp_path / "labels" / "b.nii.gz", LABELS, AFFINE)
    with pytest.raises(ReferenceCaseError, match=r"none pair up \(a, b\)"):
        find_references(tmp_path)


def test_values_are_named_by_the_label_files_that_can_be_used(folder: Path) -> None:
    save(folder / "images" / "three.nii.gz", IMAGE, AFFINE)
    save(folder / "labels" / "three.nii.gz", LABELS.astype(np.int16) * 100, AFFINE)
    (folder / "labels" / "one.nii.gz").write_bytes(b"no scan")
    files = find_references(folder)
    assert files.classes == {"label_2": 2} and [case.id for case in files.cases] == ["one", "three", "two"]
    usable, refused = screen_references(files)
    assert [case.id for case in usable.cases] == ["two"] and list(refused) == ["one", "three"]
    assert "one.nii.gz cannot be read" in refused["one"]
    assert "the classes of the references are 0 (background), 2 (label_2); correct the la" in refused["three"]
    assert "specification" not in refused["three"], "nobody wrote one for these"
    save(folder / "labels" / "one.nii.gz", LABELS * 0, AFFINE)
    (empty, *_) = find_references(folder).cases
    told = measure_case(empty, made_up_spec(files.classes, "MR"), reference=True).why
    assert told == "no class of the references has a voxel"
    (folder / "labels" / "two.nii.gz").write_bytes(b"no scan")
    (folder / "labels" / "three.nii.gz").write_bytes(b"no scan")
    with pytest.raises(RawDataError, match=r"labels/three\.nii\.gz cannot be read"):
        find_references(folder)


def test_a_reference_that_shows_no_class_is_left_out_aloud(folder: Path) -> None:
    save(folder / "labels" / "one.nii.gz", LABELS * 0, AFFINE)
    (folder / "classes.json").write_text('{"ball": 2, "doll": 7}')
    usable, refused = screen_references(find_references(folder))
    assert [case.id for case in usable.cases] == ["two"]
    assert refused == {
        "one": f"A reference shows a class, but {folder / 'labels' / 'one.nii.gz'} has no voxel of ball, doll: correct "
        "the label file, or take the reference away."
    }


def test_a_channel_of_the_references_by_its_name(folder: Path) -> None:
    (folder / "images" / "one.nii.gz").rename(folder / "images" / "one_0001.nii.gz")
    save(folder / "images" / "one_0000.nii.gz", IMAGE * 0, AFFINE)
    (folder / "images" / "two.nii.gz").unlink()
    both = nib.Nifti1Image(np.stack([IMAGE * 0, IMAGE], -1).transpose(2, 1, 0, 3), AFFINE)
    nib.save(both, folder / "images" / "two.nii.gz")
    names = {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"ball": 2, "doll": 7}}
    (folder / "dataset.json").write_text(json.dumps(names))
    files = find_references(folder, "t1")
    assert [case.id for case in files.cases] == ["one", "two"] and files.unpaired == ()
    for case in files.cases:
        assert np.array_equal(case.image.read_image().array, IMAGE)
    pair = reference_pair(folder / "images" / "two.nii.gz", folder / "labels" / "two.nii.gz", "T1")
    assert np.array_equal(pair.cases[0].image.read_image().array, IMAGE)
    with pytest.raises(RawDataError, match="names the channels flair, t1; got 'T2'"):
        find_references(folder, "T2")


def test_label_values_that_cannot_be(tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", IMAGE, AFFINE)
    labels = save(tmp_path / "labels.nii.gz", LABELS.astype(np.int16) * 100, AFFINE)
    with pytest.raises(LabelValueError, match=r"0 \(background\) to 255; .*labels\.nii\.gz holds \[700\]"):
        reference_pair(image, labels)
    save(labels, np.zeros_like(LABELS), AFFINE)
    with pytest.raises(
        ReferenceCaseError, match="at least one class, but all the given label files are empty: give others"
    ):
        reference_pair(image, labels)


@pytest.mark.parametrize("order", [name for name in ORDERS if name != "RAS"])
def test_the_hash_is_of_the_voxels_in_ras_order(order: str) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    original = volume(array, affine_of("RAS", (2.0, 1.0, 1.0)))
    turned_affine = affine_of(order, (2.0, 1.0, 1.0))
    turned = volume(Reorientation.to_ras(turned_affine).undo(array), turned_affine)
    assert turned.array.shape != array.shape or not np.array_equal(turned.array, array)
    assert image_hash(turned) == image_hash(original)
    assert image_hash(volume(array.astype(np.float64), original.affine)) == image_hash(original)
    assert image_hash(volume(array + 1, original.affine)) != image_hash(original)
    assert image_hash(volume(array.reshape(5, 4, 6), original.affine)) != image_hash(original)


def test_the_modality_is_guessed_from_the_grey_values(folder: Path) -> None:
    files = find_references(folder)
    assert reference_spec(files)[0].modality == "MR"
    assert reference_spec(files, "PET")[0].modality == "PET"
    save(folder / "images" / "two.nii.gz", IMAGE - 1000, AFFINE)
    assert reference_spec(files)[0].modality == "CT", "one of them is enough"
    assert reference_spec(files, intensity_offset=1000.0)[0].modality == "MR"


def test_a_reference_that_cannot_be_used_is_named(folder: Path) -> None:
    files = find_references(folder)
    save(folder / "labels" / "two.nii.gz", LABELS[:-1], AFFINE)
    with pytest.raises(ReferenceCaseError, match=r"Reference 'two' cannot be used: .*same grid"):
        reference_spec(files)
    save(folder / "labels" / "two.nii.gz", LABELS + 1, AFFINE)
    says = (
        r"Reference 'two' cannot be used: \S+two\.nii\.gz holds unknown label values \(1, 3, 8\): the classes of the "
        r"references are 0 \(background\), 2 \(label_2\), 7 \(label_7\); correct the label file or name its values "
        r"\(1 to 255\) in their classes\.json\.$"
    )
    with pytest.raises(ReferenceCaseError, match=says):
        reference_spec(files)
    (folder / "images" / "one.nii.gz").unlink()
    with pytest.raises(ReferenceCaseError, match=r"Reference 'one' cannot be used: .*does not exist"):
        reference_spec(files)


def test_the_plan_follows_the_models_policy_and_crop(folder: Path) -> None:
    spec, prints = reference_spec(find_references(folder))
    plans = {
        "a": plan_of(patch=(32, 16, 48)),
        "b": plan_of(patch=(16, 48, 32)),
        "c": plan_of("paper", (16, 16, 16)),
    }
    plan = plan_references(loaded_with(GreyModel(), plans=plans), spec, prints)
    # crop 32, 48, 48; the largest extents: label_2 14 mm of x (48), label_7 16 mm of z (32), 18 mm of x (48)
    assert plan.policy == "fit"
    wanted = np.median([14 / (48 * 52 / 64), 16 / (32 * 52 / 64)])
    assert plan.spacing_mm == pytest.approx((max(1.0, wanted),) * 3)
    assert plan.patch_size == (32, 48, 48)
    assert (plan.modality, plan.intensity_offset) == ("MR", 0.0)
    paper = plan_references(loaded_with(GreyModel(), plans={"c": plans["c"]}), spec, prints)
    assert paper.policy == "paper" and paper.patch_size == (16, 32, 16), "16 x 16 x 16 the network refuses"


def test_a_prepared_reference_is_what_a_query_would_be(folder: Path) -> None:
    case = find_references(folder).cases[0]
    plan = plan_of(spacing_mm=(2.0, 1.0, 1.0), intensity_offset=5.0)
    reference = prepare_reference(case, plan, {"ball": 2})
    assert np.allclose(reference.image, normalise(IMAGE + 5, plan.normalisation), atol=1e-6)
    assert np.array_equal(reference.labels, LABELS)
    assert reference.image_hash == image_hash(volume(IMAGE, AFFINE))


def test_references_without_names_become_an_ensemble(folder: Path) -> None:
    save(folder / "images" / "two.nii.gz", np.where(LABELS == 2, 50, IMAGE).astype(np.float32), AFFINE)
    files = find_references(folder)
    loaded = loaded_with(GreyModel(), plans={"known": plan_of()})
    task = encode_files(loaded, files, showing=AS_PLANNED)
    assert (task.made_by, task.references, task.classes) == ("ensemble", 2, {"label_2": 2, "label_7": 7})
    assert len(set(task.reference_hashes)) == 2
    single = {
        name: encode_files(loaded, ReferenceFiles((case,), files.classes), showing=AS_PLANNED)
        for name, case in zip("ab", files.cases, strict=True)
    }
    assert [t.made_by for t in single.values()] == ["one-shot", "one-shot"]
    a, b = (t.tokens[0][0, :, 0, 0].tolist() for t in single.values())
    assert single["b"].class_names == ("label_2",)
    # the plan of the two together is the plan of each alone here, so the ensemble is the mean per class
    assert task.tokens[0][0, :, 0, 0].tolist() == pytest.approx([(a[0] + b[0]) / 2, a[1]])


def test_one_shot_among_several_takes_the_fullest_by_seed(folder: Path) -> None:
    loaded = loaded_with(GreyModel(), plans={"known": plan_of()})
    for seed in range(4):
        task = encode_files(
            loaded, find_references(folder), strategy="one-shot", seed=seed, showing=AS_PLANNED
        )
        assert (task.references, task.made_by) == (1, "one-shot") and len(task.class_names) == 2


CANDIDATES = [
    Candidate("a1", "a", frozenset({"x", "y"})),
    Candidate("a2", "a", frozenset({"x"})),
    Candidate("b", "b", frozenset({"x", "y"})),
    Candidate("c", "c", frozenset({"x"})),
    Candidate("d", "d", frozenset({"z"})),
    Candidate("e", "e", frozenset()),
]


def test_one_reference_is_drawn_by_seed_and_missing_classes_from_others() -> None:
    drawn = [draw_references(CANDIDATES, ["x", "y", "z"], 1, seed) for seed in range(30)]
    assert {d[0].id for d in drawn} == {"a1", "b"}, "only the fullest come first, each of them for some seed"
    assert all(d[0].classes == ("x", "y") and d[1:] == [Draw("d", ("z",))] for d in drawn)
    assert draw_references(CANDIDATES, ["y", "x"], 1, 0)[0].classes == ("y", "x")
    assert drawn[3] == draw_references(reversed(CANDIDATES), ["x", "y", "z"], 1, 3), (
        "the order given does not matter"
    )


def test_references_are_of_other_subjects() -> None:
    for seed in range(20):
        ids = {d.id for d in draw_references(CANDIDATES, ["x", "y", "z"], 2, seed, not_subjects=["a"])}
        assert ids == {"b", "c", "d"} or ids == {"b", "d"}
    with pytest.raises(
        ReferenceCaseError, match="A reference is a labelled case of another subject than the query's"
    ):
        draw_references(CANDIDATES, ["y"], 1, 0, not_subjects=["a", "b"])
    with pytest.raises(ReferenceCaseError, match="must be 1 or more; got 0"):
        draw_references(CANDIDATES, ["y"], 0, 0)


def test_queries_share_references_where_their_subjects_allow_it() -> None:
    for seed in range(10):
        first = draw_references(CANDIDATES, ["x"], 1, seed)[0].id
        shared = [
            draw_references(CANDIDATES, ["x"], 1, seed, not_subjects=[other])[0].id
            for other in "abcd"
            if other != first[0]
        ]
        assert set(shared) == {first}


def test_several_references_are_different_ones() -> None:
    drawn = draw_references(CANDIDATES, ["x"], 3, 5)
    assert len({d.id for d in drawn}) == 3 and all(d.classes == ("x",) for d in drawn)
    assert len(draw_references(CANDIDATES, ["x"], 99, 5)) == 4


def test_a_stored_reference(tiny_store: Store, tiny_raw: Any) -> None:
    raw = tiny_raw.dataset / "imagesTr" / "s2_b.nii.gz"
    reference = stored_reference(tiny_store, "s2_b", FileSource(raw))
    assert reference.subject == "s2" and reference.classes == {"left": 1, "right": 2, "core": 5}
    assert np.array_equal(reference.image, tiny_store.image("s2_b"))
    assert np.array_equal(reference.labels, tiny_store.labels("s2_b"))
    content = image_hash(FileSource(raw).read_image())
    assert reference.image_hash == stored_reference(tiny_store, "s2_b").image_hash == content


def test_a_reference_too_small_for_the_grid_is_refused(folder: Path) -> None:
    labels = np.zeros_like(LABELS)
    labels[5, 20, 17] = 2
    for name in ("one", "two"):
        save(folder / "labels" / f"{name}.nii.gz", labels, AFFINE)
    plan = plan_of(spacing_mm=(8.0, 8.0, 8.0))
    files = find_references(folder)
    with pytest.raises(
        ReferenceCaseError, match=r"at least one of label_2; the mask of 'one' is empty at 8 x 8 x 8 mm"
    ):
        embed_draws(
            loaded_with(GreyModel(), model_hash=HASH),
            [Draw("one", ("label_2",))],
            lambda _: prepare_reference(files.cases[0], plan, files.classes),
            plan,
        )
