"""The unified store: what is written is read back, box by box, and a half-written folder is never taken for a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
from conftest import TinyRaw

from preprocessing.case import preprocess_case
from preprocessing.errors import StoreError
from preprocessing.findings import image_hash
from preprocessing.store import (
    Store,
    describe_labels,
    image_path,
    labels_path,
    open_stores,
    record_path,
    valid_record,
    write_case,
)
from preprocessing.volume import read_labels, read_volume


def test_the_arrays_are_those_of_preprocess_case(tiny_store: Store, tiny_raw: TinyRaw) -> None:
    plan = tiny_store.plan
    for case_id in ("s1_a", "s2_b"):
        prepared = preprocess_case(
            read_volume(tiny_raw.dataset / "imagesTr" / f"{case_id}.nii.gz"),
            plan.spacing_mm,
            plan.normalisation,
            labels=read_labels(tiny_raw.dataset / "labelsTr" / f"{case_id}.nii.gz"),
        )
        image, labels = tiny_store.image(case_id), tiny_store.labels(case_id)
        assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
        assert image.shape == labels.shape == tiny_store.entry(case_id).shape == (40, 40, 40)
        np.testing.assert_array_equal(image, prepared.image.astype(np.float16).astype(np.float32))
        assert prepared.labels is not None
        np.testing.assert_array_equal(labels, prepared.labels)


def test_a_box_is_a_part_of_the_whole(tiny_store: Store) -> None:
    box = ((3, 20), (0, 40), (38, 40))
    part = (slice(3, 20), slice(0, 40), slice(38, 40))
    np.testing.assert_array_equal(tiny_store.image("s3_a", box), tiny_store.image("s3_a")[part])
    np.testing.assert_array_equal(tiny_store.labels("s3_a", box), tiny_store.labels("s3_a")[part])


@pytest.mark.parametrize(
    "box",
    [
        ((0, 41), (0, 4), (0, 4)),
        ((-1, 4), (0, 4), (0, 4)),
        ((4, 4), (0, 4), (0, 4)),
        ((5, 4), (0, 4), (0, 4)),
    ],
)
def test_a_box_that_leaves_the_volume_or_is_empty_is_refused(tiny_store: Store, box: tuple) -> None:
    with pytest.raises(StoreError, match=r"is empty or leaves case 's3_a' of shape \(40, 40, 40\)"):
        tiny_store.image("s3_a", box)


def test_the_entries_describe_the_stored_labels(tiny_store: Store) -> None:
    for entry in tiny_store.manifest.cases:
        labels = tiny_store.labels(entry.id)
        voxel_ml = np.prod(entry.spacing_mm) / 1000
        present = {name for name, value in tiny_store.manifest.classes.items() if (labels == value).any()}
        assert set(entry.classes) == present
        for name, described in entry.classes.items():
            where = np.argwhere(labels == tiny_store.manifest.classes[name])
            assert described.voxels == len(where)
            assert described.ml == pytest.approx(len(where) * voxel_ml, abs=1e-4)
            low, high = where.min(axis=0), where.max(axis=0) + 1
            assert described.bbox == tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))
    assert "core" not in tiny_store.entry("s4_a").classes


def test_describe_labels_by_hand() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 2:4, 3:6] = 7
    labels[3, 0, 0] = 7
    described = describe_labels(labels, 0.006, {"a": 7, "b": 1})
    assert set(described) == {"a"}
    assert described["a"].voxels == 7
    assert described["a"].ml == pytest.approx(7 * 6 / 1000)
    assert described["a"].bbox == ((1, 4), (0, 4), (0, 6))


def test_left_and_right_are_where_ras_says(tiny_store: Store) -> None:
    """x grows to the right; the class names of the generated scans are those of the person's own sides."""
    for entry in tiny_store.manifest.cases:
        labels = tiny_store.labels(entry.id)
        left, right = (np.argwhere(labels == value)[:, 2].mean() for value in (1, 2))
        assert left < 18 and right > 22


def test_chunks_lie_near_the_patch_and_types_are_small(tiny_store: Store) -> None:
    image = blosc2.open(str(image_path(tiny_store.folder, "s1_a")), mode="r")
    labels = blosc2.open(str(labels_path(tiny_store.folder, "s1_a")), mode="r")
    assert (image.chunks, image.dtype, labels.dtype) == ((32, 32, 32), np.float16, np.uint8)


def test_the_same_case_gives_the_same_bytes_and_the_record_notices_changes(
    tiny_store: Store, tmp_path: Path
) -> None:
    entry, plan = tiny_store.entry("s1_a"), tiny_store.plan
    arrays = tiny_store.image("s1_a"), tiny_store.labels("s1_a")
    for folder in ("a", "b"):
        write_case(tmp_path / folder, entry, *arrays, plan, "digest")
    for name in ("s1_a.b2nd", "s1_a.seg.b2nd", "s1_a.json"):
        same = [(tmp_path / folder / "cases" / name).read_bytes() for folder in ("a", "b")]
        assert same[0] == same[1]
    folder = tmp_path / "a"
    assert Store(folder, tiny_store.manifest).source_digest("s1_a") == "digest"
    assert valid_record(folder, "s1_a", plan, "digest") is not None
    assert valid_record(folder, "s1_a", plan, "other raw file") is None
    assert (
        valid_record(folder, "s1_a", plan.model_copy(update={"spacing_mm": (2.0, 2.0, 2.0)}), "digest")
        is None
    )
    assert valid_record(folder, "s2_a", plan, "digest") is None
    with labels_path(folder, "s1_a").open("r+b") as stream:
        stream.truncate(50)
    assert valid_record(folder, "s1_a", plan, "digest") is None
    record_path(tmp_path / "b", "s1_a").write_text('{"schema', encoding="utf-8")
    assert valid_record(tmp_path / "b", "s1_a", plan, "digest") is None
    assert Store(tmp_path / "b", tiny_store.manifest).source_digest("s1_a") == ""


def test_an_unfinished_folder_is_no_store(tiny_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_store.folder, folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"is no finished store .* run iris_plan_and_preprocess -d tiny"):
        Store.open(folder)


def test_another_schema_version_and_a_broken_manifest_are_refused(tiny_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    content = json.loads((tiny_store.folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(content | {"schema_version": 0}), encoding="utf-8")
    with pytest.raises(
        StoreError, match="has schema version 0, this version reads 1: run iris_plan_and_preprocess"
    ):
        Store.open(folder)
    (folder / "manifest.json").write_text(json.dumps(content | {"extra": 1}), encoding="utf-8")
    with pytest.raises(StoreError, match=r"is not valid at 'extra'"):
        Store.open(folder)


def test_an_unknown_case_and_a_damaged_file_are_named(tiny_store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Store tiny has no case 's9': it holds 5 others"):
        tiny_store.image("s9")
    shutil.copytree(tiny_store.folder, tmp_path / "tiny")
    store = Store.open(tmp_path / "tiny")
    image_path(store.folder, "s1_a").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"s1_a\.b2nd cannot be read .* delete it and run"):
        store.image("s1_a")


def test_stores_are_opened_by_name(tiny_store: Store, tmp_path: Path) -> None:
    root = tiny_store.folder.parent
    assert list(open_stores(root)) == list(open_stores(root, ["tiny"])) == ["tiny"]
    assert list(open_stores(str(root), "tiny")) == ["tiny"], "one name is no list of letters"
    assert Store.open(str(root / "tiny")).manifest == open_stores(root)["tiny"].manifest
    with pytest.raises(
        StoreError, match=r"none holds no finished store: run iris_plan_and_preprocess -d tiny first"
    ):
        open_stores(tmp_path / "none", ["tiny"])
    with pytest.raises(StoreError, match=r"Unknown dataset 'tinny': known are tiny; did you mean 'tiny'\?"):
        open_stores(root, ["tinny"])
    with pytest.raises(StoreError, match="holds no finished store: run iris_plan_and_preprocess"):
        open_stores(tmp_path)


def test_a_store_tells_what_its_cases_were_made_from(
    tiny_store: Store, tiny_raw: TinyRaw, tmp_path: Path
) -> None:
    scan = read_volume(tiny_raw.dataset / "imagesTr" / "s2_b.nii.gz")
    assert tiny_store.content("s2_b") == image_hash(scan) and tiny_store.content("nobody") == ""
    assert tiny_store.source_digest("s2_b") not in ("", tiny_store.source_digest("s2_a"))
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_store.folder, folder)
    kept = (folder / "fingerprint.json").read_text(encoding="utf-8")
    record = json.loads(record_path(folder, "s2_b").read_text(encoding="utf-8"))
    assert (
        Store.open(folder).source_digest("s2_b")
        == record["source_digest"]
        == tiny_store.source_digest("s2_b")
    )
    others = json.loads(kept)
    for case in others["cases"]:
        case["digest"] = "0" * 16 if case["id"] == "s2_b" else case["digest"]
    # measured anew since, so that it may tell of another scan than the stored one; of another version; gone
    for text in (json.dumps(others), kept.replace('"schema_version": 2', '"schema_version": 1'), None):
        if text is None:
            (folder / "fingerprint.json").unlink()
        else:
            (folder / "fingerprint.json").write_text(text, encoding="utf-8")
        store = Store.open(folder)
        assert store.content("s2_b") == ""
        assert (store.content("s2_a") != "") == (text == json.dumps(others))
    record_path(folder, "s2_b").unlink()
    assert Store.open(folder).source_digest("s2_b") == ""
