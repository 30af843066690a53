"""What a path given by a user means."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from iris_pipeline.scans.inputs import InputCase, find_inputs
from preprocessing.errors import RawDataError
from preprocessing.sources.source import FileSource


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def write_dicom(folder: Path, array: np.ndarray) -> None:
    """A CT series, one slice a file."""
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing((0.5, 0.7, 2.0))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(array.shape[0]):
        piece = image[:, :, k]
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k)))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(k),
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(piece)


def test_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz")
    assert find_inputs(tmp_path / "a_0000.nii.gz") == (
        [InputCase("a", FileSource(tmp_path / "a_0000.nii.gz"))],
        [],
    )


def test_a_folder_of_any_formats_is_sorted_by_id(tmp_path: Path) -> None:
    touch(
        tmp_path, "c.nrrd", "b.mha", "a_0000.nii.gz", "d.nii", "._a.nii.gz", ".hidden.nii.gz", "dataset.json"
    )
    cases, notes = find_inputs(tmp_path)
    assert [(case.id, case.image.name if case.image else "") for case in cases] == [
        ("a", "a_0000.nii.gz"),
        ("b", "b.mha"),
        ("c", "c.nrrd"),
        ("d", "d.nii"),
    ]
    assert notes == []


def test_scans_that_are_numbered_are_no_channels(tmp_path: Path) -> None:
    names = [f"case_{number:04d}" for number in range(9)]
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    found, notes = find_inputs(tmp_path)
    assert [case.id for case in found] == names and notes == []
    (tmp_path / "case_0008.nii.gz").unlink()
    found, notes = find_inputs(tmp_path)
    assert [case.id for case in found] == ["case"] and len(notes) == 7, "as nnU-Net names eight channels"


def test_numbers_of_other_than_four_digits_name_no_channel(tmp_path: Path) -> None:
    names = ["a_0", "a_00000", "a_00001", "a_1"]
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    found, notes = find_inputs(tmp_path)
    assert [case.id for case in found] == names and notes == []
    (alone,), _ = find_inputs(tmp_path / "a_1.nii.gz", "1")
    assert alone.image == FileSource(tmp_path / "a_1.nii.gz", 1), "the second channel inside the file"


def test_further_channels_are_left_out_aloud(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0002.nii.gz", "scan_2001.nii.gz")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "b_0002", "scan_2001"], (
        "only beside a first channel is it a channel"
    )
    assert notes == [
        "a_0001.nii.gz left out: the model reads one channel, a_0000 (--channel 1 takes this one)."
    ]


@pytest.mark.parametrize("ending", [".nii.gz", ".NII.GZ", ".Nii", ".MHA"])
def test_channels_and_numbers_are_known_whatever_case_the_ending_has(tmp_path: Path, ending: str) -> None:
    first, second = (tmp_path / f"a_{number:04d}{ending}" for number in range(2))
    touch(tmp_path, first.name, second.name)
    cases, notes = find_inputs(tmp_path)
    assert cases == [InputCase("a", FileSource(first))]
    assert notes == [
        f"{second.name} left out: the model reads one channel, a_0000 (--channel 1 takes this one)."
    ]
    assert find_inputs(tmp_path, "1") == ([InputCase("a", FileSource(second))], [])
    assert find_inputs(second, "1") == ([InputCase("a", FileSource(second))], [])
    names = [f"case_{number:04d}" for number in range(9)]
    touch(tmp_path / "numbered", *(f"{name}{ending}" for name in names))
    assert [case.id for case in find_inputs(tmp_path / "numbered")[0]] == names


def test_a_segmentation_is_no_channel_of_its_scan(tmp_path: Path) -> None:
    names = [f"c_{number:04d}" for number in range(8)]
    touch(tmp_path, *(f"{name}.nrrd" for name in names), "c_0000.seg.nrrd")
    cases, notes = find_inputs(tmp_path)
    assert cases == [InputCase("c", FileSource(tmp_path / "c_0000.nrrd"))], (
        "eight channels, and not nine numbers"
    )
    assert notes[0] == "c_0000.seg.nrrd left out: it is a segmentation of 3D Slicer's, not a scan."
    (tmp_path / "c_0000.nrrd").unlink()
    assert [case.id for case in find_inputs(tmp_path)[0]] == names[1:], "the first channel is not there"


def test_two_files_of_one_case_refuse_this_case_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_0000.mha", "b.nii.gz")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "b"] and notes == []
    assert cases[1] == InputCase("b", FileSource(tmp_path / "b.nii.gz"))
    assert cases[0].image is not None
    assert cases[0].image.files == (tmp_path / "a.nii.gz", tmp_path / "a_0000.mha")
    with pytest.raises(
        RawDataError,
        match=rf"^Each case has one file; 'a' has a\.nii\.gz and a_0000\.mha in {tmp_path}: keep one of them\.$",
    ):
        cases[0].image.read_image()


def test_dicom_series(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 8))
    write_dicom(tmp_path / "patients" / "p2", array)
    write_dicom(tmp_path / "patients" / "p1", array)
    (tmp_path / "patients" / "notes").mkdir()
    (tmp_path / "patients" / "list.txt").write_text("p1 p2")
    assert find_inputs(tmp_path / "patients" / "p1")[0] == [
        InputCase("p1", FileSource(tmp_path / "patients" / "p1"))
    ]
    cases, _ = find_inputs(tmp_path / "patients")
    assert [case.id for case in cases] == ["p1", "p2"]
    assert cases[0].image is not None
    assert np.array_equal(cases[0].image.read_image().array, array)


def test_series_at_any_depth_stand_beside_files(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4))
    write_dicom(tmp_path / "p1" / "study" / "series", array)
    write_dicom(tmp_path / "p2" / "monday" / "ct", array)
    write_dicom(tmp_path / "p2" / "friday" / "ct", array)
    touch(tmp_path, "scan_0000.nii.gz")
    cases, _ = find_inputs(tmp_path)
    assert [(c.id, c.image.files[0].relative_to(tmp_path).as_posix() if c.image else "") for c in cases] == [
        ("p1", "p1/study/series"),
        ("p2_friday_ct", "p2/friday/ct"),
        ("p2_monday_ct", "p2/monday/ct"),
        ("scan", "scan_0000.nii.gz"),
    ]
    touch(tmp_path, "p1.mha")
    first, *others = find_inputs(tmp_path)[0]
    assert first.image is not None and len(others) == 3
    with pytest.raises(RawDataError, match=r"'p1' has p1\.mha and series in .*: keep one of them"):
        first.image.read_image()


def dicom_of_kind(path: Path, kind: str) -> None:
    """The head of a DICOM file that says what it is, and nothing else."""
    uid = kind.encode() + b"\0" * (len(kind) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes(128) + b"DICM\x02\x00\x02\x00UI" + len(uid).to_bytes(2, "little") + uid + bytes(500)
    )


def test_a_disc_of_an_archive_is_a_folder_of_series(tmp_path: Path) -> None:
    """Its DICOMDIR is DICOM too, and names the kinds of the slices that it lists."""
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 8))
    for disc in ("p1", "p2"):
        write_dicom(tmp_path / disc / "IMAGES" / "SER1", array)
        dicom_of_kind(tmp_path / disc / "DICOMDIR", "1.2.840.10008.1.3.10")
        with (tmp_path / disc / "DICOMDIR").open("ab") as stream:
            stream.write(b"1.2.840.10008.5.1.4.1.1.2")
    shutil.copy(tmp_path / "p2" / "DICOMDIR", tmp_path / "p2" / "INDEX")
    dicom_of_kind(tmp_path / "p2" / "REPORT", "1.2.840.10008.5.1.4.1.1.88.67")
    dicom_of_kind(tmp_path / "p2" / "IMAGES" / "contours.dcm", "1.2.840.10008.5.1.4.1.1.481.3")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["p1", "p2"] and notes == []
    for case in cases:
        assert case.image is not None
        assert np.array_equal(case.image.read_image().array, array)
    assert [case.id for case in find_inputs(tmp_path / "p1")[0]] == ["IMAGES"]
    shutil.rmtree(tmp_path / "p2" / "IMAGES" / "SER1")
    with pytest.raises(RawDataError, match=r"The folder .*p2 holds no scan: put NIfTI"):
        find_inputs(tmp_path / "p2")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", True),  # CT
        ("1.2.840.10008.5.1.4.1.1.4.1", True),  # enhanced MR
        ("1.2.840.10008.5.1.4.1.1.128", True),  # PET
        ("1.2.840.10008.5.1.4.1.1.7", True),  # secondary capture
        ("1.2.840.10008.5.1.4.1.1.12.1", True),  # angiography
        ("1.2.840.113619.4.27", True),  # a maker's own
        ("1.2.840.10008.5.1.4.1.1.104.1", False),  # PDF
        ("1.2.840.10008.5.1.4.1.1.11.1", False),  # presentation state
        ("1.2.840.10008.5.1.4.1.1.66", False),  # raw data
        ("1.2.840.10008.5.1.4.1.1.481.2", False),  # dose
        ("1.3.12.2.1107.5.9.1", False),  # Siemens, no image
    ],
)
def test_only_slices_make_a_series(tmp_path: Path, kind: str, expected: bool) -> None:
    dicom_of_kind(tmp_path / "in" / "p" / "IM1", kind)
    touch(tmp_path / "in", "a.nii.gz")
    assert [case.id for case in find_inputs(tmp_path / "in")[0]] == ["a", "p"][: 1 + expected]


def test_files_beside_slices_do_not_vanish(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4))
    write_dicom(tmp_path / "night", array)
    touch(tmp_path / "night", "a.nii.gz", "b_0000.mha")
    cases, notes = find_inputs(tmp_path / "night")
    assert [case.id for case in cases] == ["a", "b", "night"]
    assert notes == [
        f"{tmp_path / 'night'} holds DICOM slices beside files: they are one series, case night."
    ]
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["night"]
    assert notes == [
        f"a.nii.gz, b_0000.mha left out: in {tmp_path / 'night'}, among the slices of a series; give each by its name."
    ]


def test_a_second_series_renames_the_first_aloud(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p1" / "ct_a", np.zeros((2, 3, 4)))
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["p1"] and notes == []
    write_dicom(tmp_path / "p1" / "ct_b", np.zeros((2, 3, 4)))
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["p1_ct_a", "p1_ct_b"]
    assert notes == ["p1 holds 2 series, each a case of its own: p1_ct_a, p1_ct_b (one alone is p1)."]


def test_a_channel_by_number_or_name(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "c.nrrd")
    cases, notes = find_inputs(tmp_path, "1")
    assert cases == [
        InputCase("a", FileSource(tmp_path / "a_0001.nii.gz")),
        InputCase("c", FileSource(tmp_path / "c.nrrd", 1)),
    ]
    assert notes == ["b left out: it has no file b_0001."]
    with pytest.raises(RawDataError, match=r"there is no such file for 'T2' in "):
        find_inputs(tmp_path, "T2")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    assert find_inputs(tmp_path, "t2")[0] == cases
    with pytest.raises(RawDataError, match=r"dataset\.json names the channels t1, t2; got 'DWI'"):
        find_inputs(tmp_path, "DWI")
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR", "1": "T1w"}}')  # the Decathlon's
    (tmp_path / "imagesTs").mkdir()
    touch(tmp_path / "imagesTs", "x.nii.gz")
    assert find_inputs(tmp_path / "imagesTs", "T1w")[0][0].image == FileSource(
        tmp_path / "imagesTs" / "x.nii.gz", 1
    )
    # one file by its name: the suffix is the channel, or the channels are inside
    one = tmp_path / "a_0001.nii.gz"
    assert find_inputs(one, "1")[0] == [InputCase("a", FileSource(one))]
    assert find_inputs(tmp_path / "c.nrrd", "0")[0] == [InputCase("c", FileSource(tmp_path / "c.nrrd", 0))]


def test_nothing_to_segment(tmp_path: Path) -> None:
    with pytest.raises(
        RawDataError, match=r"The input .*nowhere does not exist; give a scan or a folder of scans"
    ):
        find_inputs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RawDataError, match=r"The folder .*empty holds no scan: put NIfTI"):
        find_inputs(tmp_path / "empty")
    touch(tmp_path, "photo.png")
    with pytest.raises(RawDataError, match=r"NIfTI, mha, mhd or nrrd file or a folder; .*photo\.png is none"):
        find_inputs(tmp_path / "photo.png")
