"""Segmentations of 3D Slicer's as labels of a dataset and as references: the names of their segments tell.

Arrays are [D,H,W] = (z,y,x).
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from segmentations import (
    AFFINE,
    CLASSES,
    PART,
    SHAPE,
    SPEC,
    START,
    cropped,
    older,
    one_layer,
    painted,
    plain,
    save_segmentation,
    scan,
)

from iris_pipeline.scans.inputs import find_inputs
from iris_pipeline.scans.references import find_references, reference_pair, reference_spec
from preprocessing.adapters import Case, find_cases
from preprocessing.case import preprocess_case
from preprocessing.errors import LabelValueError, ReferenceCaseError
from preprocessing.fingerprint import CasePrint, case_digest, measure_case
from preprocessing.formats.slicer import Segmentation
from preprocessing.normalise import Normalisation
from preprocessing.sources.mending import SegmentsByName, ValuesMapped, by_segment_names
from preprocessing.sources.source import FileSource
from preprocessing.spec import DatasetSpec, parse_spec

# Values by the names of segments


def test_values_become_the_classes_by_name(tmp_path: Path) -> None:
    path = one_layer(tmp_path / "a.seg.nrrd", liver=2, kidney=1, names=("LIVER", " Kidney "))
    source = by_segment_names(FileSource(path), CLASSES)
    read = source.read_labels()
    assert np.array_equal(read.array, painted(1, 2)[PART]) and read.partial
    assert read.repairs == (
        "label values by the names of the segments (Kidney is 2, not 1, LIVER is 1, not 2)",
    )
    same = by_segment_names(FileSource(one_layer(tmp_path / "b.seg.nrrd")), CLASSES).read_labels()
    assert np.array_equal(same.array, painted(1, 2)[PART]) and (same.repairs, same.doubts) == ((), ())
    assert SegmentsByName(source, tuple(CLASSES.items())).read_labels().repairs == read.repairs, (
        "once is enough"
    )


def test_shared_values_are_told_apart_by_their_names(tmp_path: Path) -> None:
    source = by_segment_names(FileSource(older(tmp_path / "a.seg.nrrd")), {"kidney": 7, "liver": 9})
    read = source.read_labels()
    assert np.array_equal(read.array, painted(9, 7)[PART])
    assert read.repairs == ("the segments share label values; their names tell which classes they are",)
    unknown = by_segment_names(FileSource(tmp_path / "a.seg.nrrd"), {"liver": 1})
    with pytest.raises(
        LabelValueError, match=r"\(liver, kidney\) share label values, so they need the names"
    ):
        unknown.read_labels()


def test_a_segment_that_is_no_class_leaves_the_values_where_none_contradicts(tmp_path: Path) -> None:
    path = FileSource(one_layer(tmp_path / "a.seg.nrrd", names=("liver", "left one")))
    read = by_segment_names(path, CLASSES).read_labels()
    assert np.array_equal(read.array, painted(1, 2)[PART]) and read.repairs == ()
    assert read.doubts == (
        "not all segments are named as the classes ('left one'), so their values are used as they are",
    )
    with pytest.raises(
        LabelValueError,
        match=r"names of the classes \(2 liver, 1 kidney\), but \S+a\.seg\.nrrd has 'left one' beside 'liver' with "
        "the value 1: rename or remove what is no class",
    ):
        by_segment_names(path, {"liver": 2, "kidney": 1}).read_labels()


def test_an_empty_segment_has_no_say(tmp_path: Path) -> None:
    """Slicer's users leave them behind."""
    segments = [("scratch", 1), ("liver", 2), ("kidney", 3)]
    path = save_segmentation(tmp_path / "a.seg.nrrd", painted(2, 3)[PART], cropped(AFFINE, START), segments)
    read = by_segment_names(FileSource(path), CLASSES).read_labels()
    assert np.array_equal(read.array, painted(1, 2)[PART]) and read.doubts == ()
    assert reference_pair(scan(tmp_path / "a.nrrd"), path).classes == {"liver": 1, "kidney": 2}


def test_letter_case_counts_where_it_alone_tells_classes_apart(tmp_path: Path) -> None:
    path = one_layer(tmp_path / "a.seg.nrrd", names=("ca", "CA"))
    read = by_segment_names(FileSource(path), {"CA": 4, "ca": 5}).read_labels()
    assert np.array_equal(read.array, painted(5, 4)[PART])


def test_other_files_are_left_alone_and_the_classes_count_for_the_digest(tmp_path: Path) -> None:
    plain(tmp_path / "a.nii.gz", painted(1, 2))
    assert by_segment_names(FileSource(tmp_path / "a.nii.gz"), CLASSES) == FileSource(tmp_path / "a.nii.gz")
    image, labels = FileSource(scan(tmp_path / "a.nrrd")), FileSource(one_layer(tmp_path / "a.seg.nrrd"))
    sources = [labels, by_segment_names(labels, CLASSES), by_segment_names(labels, {"liver": 2, "kidney": 1})]
    assert len({case_digest(Case("a", "a", image, each, "MR")) for each in sources}) == 3
    assert pickle.loads(pickle.dumps(sources)) == sources and str(sources[1]) == str(labels.path)


def test_values_that_a_specification_maps_are_those_of_the_file(tmp_path: Path) -> None:
    one_layer(tmp_path / "a.seg.nrrd", liver=2, kidney=1)
    scan(tmp_path / "a.nrrd")
    spec = parse_spec(SPEC + "quirks: {values: {1: 2, 2: 1}}\n", "made.yaml")
    labels = find_cases(tmp_path, spec)[0].labels
    assert isinstance(labels, ValuesMapped)
    read = labels.read_labels()
    assert np.array_equal(read.array, painted(1, 2)[PART]) and read.segments == Segmentation()


# Labels of a dataset


def measured(folder: Path, spec: DatasetSpec) -> dict[str, CasePrint]:
    return {case.id: measure_case(case, spec) for case in find_cases(folder, spec)}


@pytest.mark.parametrize("layout", ["files", "msd"])
def test_labels_of_a_dataset(tmp_path: Path, layout: str) -> None:
    """Values exchanged in the second case, shared in the third, a class that nobody named in the fourth."""
    images, labels = (
        (tmp_path, tmp_path) if layout == "files" else (tmp_path / "imagesTr", tmp_path / "labelsTr")
    )
    for name in "abcd":
        images.mkdir(exist_ok=True)
        scan(images / f"{name}.nrrd")
    one_layer(labels / "a.seg.nrrd")
    one_layer(labels / "b.seg.nrrd", liver=2, kidney=1)
    older(labels / "c.seg.nrrd")
    one_layer(labels / "d.seg.nrrd", liver=2, kidney=3, names=("liver", "spleen"))
    if layout == "msd":
        one_layer(images / "a.seg.nrrd")  # saved beside the scan, too: no second image of the case
    text = SPEC if layout == "files" else re.sub("(layout|files): .*\n", "", SPEC)
    found = measured(tmp_path, parse_spec(text, "made.yaml"))
    assert list(found) == ["a", "b", "c", "d"]
    for name in "abc":
        assert {each: one.voxels for each, one in found[name].classes.items()} == {"liver": 40, "kidney": 18}
        assert found[name].verdict == "repaired" and found[name].shape == SHAPE
    laid = "the segmentation covers 4 x 8 x 9 voxels (z,y,x) and is laid on the image's grid"
    assert found["a"].why == laid
    assert (
        found["b"].why
        == f"label values by the names of the segments (kidney is 2, not 1, liver is 1, not 2); {laid}"
    )
    assert found["d"].verdict == "refused" and "'spleen' beside 'liver' with the value 2" in found["d"].why


# References


def two(folder: Path) -> Path:
    """References whose values are exchanged, in the order in which somebody made the segments."""
    for name in ("one", "two"):
        (folder / "images").mkdir(exist_ok=True)
        scan(folder / "images" / f"{name}.nrrd")
    one_layer(folder / "labels" / "one.seg.nrrd", liver=2, kidney=1)
    one_layer(folder / "labels" / "two.seg.nrrd", liver=1, kidney=2, names=("Liver", "kidney"))
    return folder


def prepared(case: Case) -> np.ndarray:
    assert case.labels is not None
    made = preprocess_case(
        case.image.read_image(), (2.0, 1.0, 1.0), Normalisation(modality="MR"), case.labels.read_labels()
    )
    assert made.labels is not None
    return made.labels


def test_references_name_their_classes_and_agree(tmp_path: Path) -> None:
    files = find_references(two(tmp_path))
    assert [case.id for case in files.cases] == ["one", "two"] and files.unpaired == ()
    assert files.classes == {"kidney": 1, "liver": 2}
    upright = painted(2, 1)[:, ::-1, ::-1]  # from L, P, S to RAS+
    assert all(np.array_equal(prepared(case), upright) for case in files.cases)
    _, prints = reference_spec(files)
    assert [{name: each.voxels for name, each in p.classes.items()} for p in prints] == [
        {"kidney": 18, "liver": 40}
    ] * 2


def test_a_classes_json_goes_before_the_names_order(tmp_path: Path) -> None:
    (two(tmp_path) / "classes.json").write_text(json.dumps({"liver": 5, "kidney": 3, "spleen": 9}))
    files = find_references(tmp_path)
    assert files.classes == {"liver": 5, "kidney": 3, "spleen": 9}
    assert np.array_equal(prepared(files.cases[0]), painted(5, 3)[:, ::-1, ::-1])


def test_one_pair_and_shared_values(tmp_path: Path) -> None:
    files = reference_pair(scan(tmp_path / "a.nrrd"), older(tmp_path / "a.seg.nrrd"))
    assert files.classes == {"liver": 1, "kidney": 2} and files.cases[0].id == "a"
    assert np.array_equal(prepared(files.cases[0]), painted(1, 2)[:, ::-1, ::-1])


def test_the_union_of_names_where_files_show_different_classes(tmp_path: Path) -> None:
    two(tmp_path)
    scan(tmp_path / "images" / "three.nrrd")
    save_segmentation(
        tmp_path / "labels" / "three.seg.nrrd", painted(1, 0)[PART], cropped(AFFINE, START), [("spleen", 1)]
    )
    files = find_references(tmp_path)
    assert files.classes == {"kidney": 1, "liver": 2, "spleen": 3}
    by_id = {case.id: prepared(case) for case in files.cases}
    assert np.array_equal(by_id["three"], painted(3, 0)[:, ::-1, ::-1])
    assert np.array_equal(by_id["two"], painted(2, 1)[:, ::-1, ::-1])


def test_named_and_nameless_files_go_together_where_values_agree(tmp_path: Path) -> None:
    two(tmp_path)
    plain(tmp_path / "labels" / "three.nii.gz", painted(1, 2))
    scan(tmp_path / "images" / "three.nrrd")
    said = (
        r"and without \(three\.nii\.gz\) go together .*, but 'Liver' is 2 in one\.seg\.nrrd and 1 in "
        r"two\.seg\.nrrd: name the values of the others in a classes\.json"
    )
    with pytest.raises(ReferenceCaseError, match=said):
        find_references(tmp_path)
    one_layer(tmp_path / "labels" / "one.seg.nrrd")
    files = find_references(tmp_path)
    assert files.classes == {"label_1": 1, "label_2": 2}
    assert all(np.array_equal(prepared(case), painted(1, 2)[:, ::-1, ::-1]) for case in files.cases)
    one_layer(tmp_path / "labels" / "one.seg.nrrd", names=("liver", "spleen"))
    with pytest.raises(
        ReferenceCaseError, match="but 2 is 'spleen' in one.seg.nrrd and 'kidney' in two.seg.nrrd"
    ):
        find_references(tmp_path)
    older(tmp_path / "labels" / "one.seg.nrrd")
    with pytest.raises(ReferenceCaseError, match="but segments of one.seg.nrrd share values"):
        find_references(tmp_path)


def test_empty_and_damaged_files_have_no_say_in_the_names(tmp_path: Path) -> None:
    two(tmp_path)
    for name in ("empty", "nothing", "broken"):
        scan(tmp_path / "images" / f"{name}.nrrd")
    save_segmentation(tmp_path / "labels" / "empty.seg.nrrd", np.zeros((1, 1, 1), np.uint8), np.eye(4))
    plain(tmp_path / "labels" / "nothing.nii.gz", painted(0, 0))
    (tmp_path / "labels" / "broken.seg.nrrd").write_bytes(b"NRRD0004\n\n")
    assert find_references(tmp_path).classes == {"kidney": 1, "liver": 2}
    for name in ("one", "two"):
        (tmp_path / "labels" / f"{name}.seg.nrrd").unlink()
    (tmp_path / "labels" / "broken.seg.nrrd").unlink()
    with pytest.raises(ReferenceCaseError, match="all the given label files are empty: give others"):
        find_references(tmp_path)


def test_a_segmentation_beside_the_scans_is_no_scan(tmp_path: Path) -> None:
    two(tmp_path)
    one_layer(tmp_path / "images" / "one.seg.nrrd")
    assert [case.image.name for case in find_references(tmp_path).cases] == ["one.nrrd", "two.nrrd"]
    found, notes = find_inputs(tmp_path / "images")
    assert [(case.id, case.image and case.image.name) for case in found] == [
        ("one", "one.nrrd"),
        ("two", "two.nrrd"),
    ]
    assert notes == ["one.seg.nrrd left out: it is a segmentation of 3D Slicer's, not a scan."]
