"""Pairs in folders as people keep them: which patterns are found, and the cases that they list again."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.adding import discover
from preprocessing.adding.discover import Found, discover_pairs
from preprocessing.errors import RawDataError
from preprocessing.sources.scan_paths import holds_dicom, scan_paths

E = ".nii.gz"
P = range(1, 6)
# arrangement -> (files, image pattern, label pattern, pairs, classes)
TREES: dict[str, tuple[list[str], str, str, int, tuple[str, ...]]] = {
    "two folders": (
        [f"{folder}/c{i}{E}" for i in P for folder in ("images", "labels")],
        *(f"images/{{case}}{E}", f"labels/{{case}}{E}", 5, ()),
    ),
    "a suffix in the second folder": (
        [f"images/c{i}{E}" for i in P] + [f"masks/c{i}_mask{E}" for i in P],
        *(f"images/{{case}}{E}", f"masks/{{case}}_mask{E}", 5, ()),
    ),
    "nnU-Net": (
        [f"imagesTr/c{i}_0000{E}" for i in P] + [f"labelsTr/c{i}{E}" for i in P] + [f"imagesTs/t_0000{E}"],
        *(f"imagesTr/{{case}}_0000{E}", f"labelsTr/{{case}}{E}", 5, ()),
    ),
    "frames keep their names": (
        [f"{folder}/p{i}_frame{j}{E}" for i in P for j in (1, 12) for folder in ("imagesTr", "labelsTr")],
        *(f"imagesTr/{{case}}{E}", f"labelsTr/{{case}}{E}", 10, ()),
    ),
    "flat": ([f"c{i}{s}{E}" for i in P for s in ("", "_seg")], f"{{case}}{E}", f"{{case}}_seg{E}", 5, ()),
    "flat, by a hyphen": (
        [f"c{i}{s}{E}" for i in P for s in ("", "-label")],
        *(f"{{case}}{E}", f"{{case}}-label{E}", 5, ()),
    ),
    "flat, two words": (
        [f"c{i}{s}{E}" for i in P for s in ("_ct", "_label_map")],
        *(f"{{case}}_ct{E}", f"{{case}}_label_map{E}", 5, ()),
    ),
    "words before, in batches": (
        [f"Batch {1 + (i > 6)}/{word}-{i}.nii" for i in range(12) for word in ("volume", "segmentation")],
        *("*/volume-{case}.nii", "*/segmentation-{case}.nii", 12, ()),
    ),
    "words without a joint": (
        [f"Training/{word}/{word}{i:04}{E}" for i in P for word in ("img", "label")],
        *(f"Training/img/img{{case}}{E}", f"Training/label/label{{case}}{E}", 5, ()),
    ),
    "a folder a case": (
        [f"data/case_{i}/{word}{E}" for i in P for word in ("imaging", "segmentation")],
        *(f"data/{{case}}/imaging{E}", f"data/{{case}}/segmentation{E}", 5, ()),
    ),
    "numbered folders": (
        [f"{i}/{word}{E}" for i in P for word in ("T1", "mask1")],
        *(f"{{case}}/T1{E}", f"{{case}}/mask1{E}", 5, ()),
    ),
    "TotalSegmentator": (
        [f"s{i}/ct{E}" for i in P]
        + [f"s{i}/segmentations/{o}{E}" for i in P for o in ("liver", "kidney_left")],
        *(f"{{case}}/ct{E}", f"{{case}}/segmentations/{{class}}{E}", 5, ("kidney_left", "liver")),
    ),
    "vertebrae are no sequences": (
        [f"p{i}/ct{E}" for i in P] + [f"p{i}/segmentations/{o}{E}" for i in P for o in ("C7", "T1", "T2")],
        *(f"{{case}}/ct{E}", f"{{case}}/segmentations/{{class}}{E}", 5, ("C7", "T1", "T2")),
    ),
    "masks by numbers and odd names": (
        [f"p{i}/ct{E}" for i in P]
        + [f"p{i}/masks/{o}{E}" for i in P for o in ("1", "12", "ROI1", "TS", "phase", "mask")],
        *(f"{{case}}/ct{E}", f"{{case}}/masks/{{class}}{E}", 5, ("1", "12", "ROI1", "TS", "phase")),
    ),
    "a folder a class, called as sequences are": (
        [f"scans/p{i}{E}" for i in P] + [f"masks/{o}/p{i}{E}" for i in P for o in ("T1", "T2")],
        *(f"scans/{{case}}{E}", f"masks/{{class}}/{{case}}{E}", 5, ("T1", "T2")),
    ),
    "masks beside the image": (
        [f"P{i}/{word}{E}" for i in P for word in ("image", "liver", "spleen")],
        *(f"{{case}}/image{E}", f"{{case}}/{{class}}{E}", 5, ("liver", "spleen")),
    ),
    "one mask beside the image": (
        [f"P{i}/{word}{E}" for i in P for word in ("image", "tumour")],
        *(f"{{case}}/image{E}", f"{{case}}/tumour{E}", 5, ()),
    ),
    "classes in flat names": (
        [f"P{i}{word}{E}" for i in P for word in ("", "_liver", "_left_lung")],
        *(f"{{case}}{E}", f"{{case}}_{{class}}{E}", 5, ("left_lung", "liver")),
    ),
    "classes between words": (
        [f"images/P{i}{E}" for i in P]
        + [f"masks/P{i}_{o}_mask{E}" for i in P for o in ("liver", "left_lung")],
        *(f"images/{{case}}{E}", f"masks/{{case}}_{{class}}_mask{E}", 5, ("left_lung", "liver")),
    ),
    "a folder a class": (
        [f"{word}/P{i}{E}" for i in P for word in ("ct", "liver", "spleen")],
        *(f"ct/{{case}}{E}", f"{{class}}/{{case}}{E}", 5, ("liver", "spleen")),
    ),
    "a folder a visit": (
        [f"P{i}/v{j}/{word}{E}" for i in P for j in (1, 2) for word in ("ct", "seg")],
        *(f"{{subject}}/{{visit}}/ct{E}", f"{{subject}}/{{visit}}/seg{E}", 10, ()),
    ),
    "several scans in a person's folder": (
        [f"P{i}/scan{j}{word}{E}" for i in P for j in (1, 2) for word in ("", "_seg")],
        *(f"{{subject}}/{{case}}{E}", f"{{subject}}/{{case}}_seg{E}", 10, ()),
    ),
    "BIDS": (
        [
            f"sub-{i}/ses-{j}/anat/sub-{i}_ses-{j}_{word}{E}"
            for i in P
            for j in (1, 2)
            for word in ("T1w", "label-lesion_mask")
        ],
        f"{{subject}}/{{visit}}/anat/{{subject}}_{{visit}}_T1w{E}",
        f"{{subject}}/{{visit}}/anat/{{subject}}_{{visit}}_label-lesion_mask{E}",
        10,
        (),
    ),
    "parts of a split": (
        [
            f"{folder}/{part}/{part[0]}{i}{E}"
            for part in ("train", "val")
            for i in P
            for folder in ("images", "labels")
        ],
        *(f"images/*/{{case}}{E}", f"labels/*/{{case}}{E}", 10, ()),
    ),
    "parts of a split in the folders' names": (
        [
            f"{word}{part}/c{i}{j}{E}"
            for i, part in enumerate(("Tr", "Va"))
            for j in P
            for word in ("images", "labels")
        ]
        + [f"imagesTs/t{i}{E}" for i in P],
        *(f"images{{part}}/{{case}}{E}", f"labels{{part}}/{{case}}{E}", 10, ()),
    ),
    "parts of a split before the folders' names": (
        [
            f"{part}_{word}/{part}{i}{E}"
            for part in ("train", "test")
            for i in P
            for word in ("images", "masks")
        ],
        *(f"{{part}}_images/{{case}}{E}", f"{{part}}_masks/{{case}}{E}", 10, ()),
    ),
    "cases are counted anew in each part": (
        [f"{part}/{word}/x{i}{E}" for part in ("train", "val") for i in P for word in ("images", "labels")],
        *(f"{{part}}/images/{{case}}{E}", f"{{part}}/labels/{{case}}{E}", 10, ()),
    ),
    "a folder a case in each part": (
        [f"{part}/{part[0]}{i}/{word}{E}" for part in ("train", "val") for i in P for word in ("ct", "seg")],
        *(f"{{part}}/{{case}}/ct{E}", f"{{part}}/{{case}}/seg{E}", 10, ()),
    ),
    "a part without masks": (
        [
            f"{word}/{part}/{part}{i}{E}"
            for part in ("train", "val")
            for i in P
            for word in ("images", "labels")
        ]
        + [f"images/test/t{i}{E}" for i in P],
        *(f"images/{{part}}/{{case}}{E}", f"labels/{{part}}/{{case}}{E}", 10, ()),
    ),
    "people called like parts": (
        [f"TS_{i}/v{j}/{word}{E}" for i in P for j in (1, 2) for word in ("ct", "seg")],
        *(f"{{subject}}/{{visit}}/ct{E}", f"{{subject}}/{{visit}}/seg{E}", 10, ()),
    ),
    "DICOM series": (
        [f"P{i}/DICOM/IM{j}.dcm" for i in P for j in (1, 2)] + [f"P{i}/mask{E}" for i in P],
        *("{case}/DICOM", f"{{case}}/mask{E}", 5, ()),
    ),
    "two raters in flat names": (
        [f"c{i}{word}{E}" for i in P for word in ("", "_rater1", "_rater2")],
        *(f"{{case}}{E}", f"{{case}}_rater1{E}", 5, ()),
    ),
    "one pair": (["case1.nii.gz", "case1_seg.nii.gz"], f"{{case}}{E}", f"{{case}}_seg{E}", 1, ()),
}


def write(folder: Path, files: list[str]) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    return folder


@pytest.mark.parametrize("name", TREES)
def test_patterns_are_found(name: str, tmp_path: Path) -> None:
    files, images, labels, cases, classes = TREES[name]
    found = discover_pairs(write(tmp_path, [*files, "images/._c1.nii.gz", "__MACOSX/c1.nii.gz", "notes.txt"]))
    assert (found.images, found.labels) == ((images,), (labels,))
    assert (found.cases, found.classes) == (cases, classes)


def test_several_endings_are_several_patterns(tmp_path: Path) -> None:
    write(tmp_path, ["images/a.mha", "images/b.nii.gz", "labels/a.nrrd", "labels/b.nii.gz"])
    found = discover_pairs(tmp_path)
    assert found.images == ("images/{case}.mha", "images/{case}.nii.gz")
    assert found.labels == ("labels/{case}.nii.gz", "labels/{case}.nrrd")


def test_a_copy_of_another_format_is_no_other_case(tmp_path: Path) -> None:
    write(tmp_path, [f"images/{case}{E}" for case in "abc"] + [f"labels/{case}{E}" for case in "abc"])
    write(tmp_path, ["images/b.nii", "labels/c.mha"])
    found = discover_pairs(tmp_path)
    assert found.images == ("images/{case}.nii", f"images/{{case}}{E}")
    assert found.labels == ("labels/{case}.mha", f"labels/{{case}}{E}")
    assert (found.cases, found.images_alone, found.labels_alone) == (3, 0, 0)


def test_which_parts_and_whether_ids_restart(tmp_path: Path) -> None:
    write(
        tmp_path / "restart",
        [f"{p}/{w}/x{i}{E}" for p in ("train", "val") for i in P for w in ("images", "labels")],
    )
    write(
        tmp_path / "on", [f"{w}{p}/{p}{i}{E}" for p in ("Tr", "Va") for i in P for w in ("images", "labels")]
    )
    write(tmp_path / "on", [f"imagesTs/t{i}{E}" for i in P])
    restart, on = discover_pairs(tmp_path / "restart"), discover_pairs(tmp_path / "on")
    assert (restart.parts, restart.ids_restart) == (("train", "val"), True)
    assert (on.parts, on.ids_restart, on.images_alone) == (("Tr", "Va"), False, 0)


def test_other_images_of_the_same_masks_are_told(tmp_path: Path) -> None:
    write(tmp_path, [f"B{i}/B{i}_{word}{E}" for i in P for word in ("t1", "t2", "flair", "seg")])
    found = discover_pairs(tmp_path)
    assert found == Found(
        images=(f"{{case}}/{{case}}_t1{E}",),
        labels=(f"{{case}}/{{case}}_seg{E}",),
        cases=5,
        others=(f"{{case}}/{{case}}_flair{E}", f"{{case}}/{{case}}_t2{E}"),
    )


def test_other_masks_of_the_same_images_are_told(tmp_path: Path) -> None:
    write(tmp_path, [f"{folder}/c{i}{E}" for i in P for folder in ("images", "labels")])
    write(tmp_path, [f"labels_old/c{i}{E}" for i in range(1, 4)])
    assert discover_pairs(tmp_path).rivals == (f"labels_old/{{case}}{E}",), "three of five cases have both"
    (tmp_path / "labels_old" / f"c1{E}").unlink()
    assert discover_pairs(tmp_path).rivals == (), "two of five are told as files that fit no pattern"


def test_what_lacks_its_other_half_is_counted(tmp_path: Path) -> None:
    write(tmp_path, [f"{folder}/c{i}{E}" for i in P for folder in ("images", "labels")])
    (tmp_path / "images" / f"c1{E}").unlink()
    (tmp_path / "labels" / f"c2{E}").unlink()
    (tmp_path / "labels" / f"c3{E}").unlink()
    found = discover_pairs(tmp_path)
    assert (found.cases, found.images_alone, found.labels_alone) == (2, 2, 1)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "far", [f"c{i}{s}{E}" for i in P for s in ("", "_seg")])
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "far")
    assert len(scan_paths(tmp_path / "near")) == 10


def test_dicom_is_known_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    slices = b"\0" * 128 + b"DICM\x02\0\x02\0UI\x1a\x001.2.840.10008.5.1.4.1.1.2\0"
    contours = slices.replace(b"1.1.2\0", b"1.1.481.3").replace(b"\x1a", b"\x1e")
    for file in ("P1/CT/IM0001", "P2/CT/1.2.840.7", "P2/DICOMDIR", "top", ".git/IM1"):
        write(tmp_path, [file])
        (tmp_path / file).write_bytes(slices)
    write(tmp_path, ["P3/CT/a.dcm", "P4/notes/readme", f"P4/mask{E}", "P5/CT/.IM1", "P5[a]/x.dcm"])
    write(tmp_path, ["P4/RT/IM1"])
    (tmp_path / "P4" / "RT" / "IM1").write_bytes(contours)
    (tmp_path / "P4" / "notes" / "readme").write_bytes(b"\0" * 129 + b"DICM")
    assert scan_paths(tmp_path) == ["P1/CT/", "P2/CT/", "P3/CT/", f"P4/mask{E}"]
    assert holds_dicom(tmp_path) and not holds_dicom(tmp_path / "P2"), "a DICOMDIR is no slice"


def test_of_very_many_files_whole_cases_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organs = ("liver", "spleen", "kidney_left")
    write(tmp_path, [f"s{i:03}/ct{E}" for i in range(40)])
    write(tmp_path, [f"s{i:03}/segmentations/{organ}{E}" for i in range(40) for organ in organs])
    monkeypatch.setattr(discover, "ENOUGH_PATHS", 50)
    found = discover_pairs(tmp_path)
    assert (found.images, found.labels) == ((f"{{case}}/ct{E}",), (f"{{case}}/segmentations/{{class}}{E}",))
    assert found.cases == 12, "twelve whole cases are 48 files"


def test_more_organs_than_patients(tmp_path: Path) -> None:
    organs = [f"rib_{side}_{i}" for side in ("left", "right") for i in range(1, 25)]
    write(tmp_path, [f"s{i:03}/ct{E}" for i in range(5)])
    write(tmp_path, [f"s{i:03}/segmentations/{organ}{E}" for i in range(5) for organ in organs])
    found = discover_pairs(tmp_path)
    assert (found.labels, found.cases) == ((f"{{case}}/segmentations/{{class}}{E}",), 5)
    assert found.classes == tuple(sorted(organs))


def test_nothing_to_pair(tmp_path: Path) -> None:
    with pytest.raises(RawDataError, match="holds no scan: give a folder of NIfTI"):
        discover_pairs(tmp_path)
    write(tmp_path, ["a.nii.gz", "b.nii.gz"])
    with pytest.raises(
        RawDataError, match=r"pairs up with a mask by its name \(there are a\.nii\.gz, b\.nii\.gz\)"
    ):
        discover_pairs(tmp_path)
