"""What is put into a folder and cannot be taken: nothing vanishes, and nothing costs the other scans."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scans import save
from test_inputs import dicom_of_kind, touch, write_dicom

from iris_pipeline.scans.inbox import look
from iris_pipeline.scans.inputs import InputCase, find_inputs
from preprocessing.errors import RawDataError
from preprocessing.formats.itk_files import data_files
from preprocessing.sources.source import FileSource
from preprocessing.volume import read_volume

SLICES = np.zeros((3, 4, 5))


def why(case: InputCase) -> str:
    """The sentence that reading it raises."""
    assert case.image is not None
    with pytest.raises(RawDataError) as caught:
        case.image.read_image()
    return str(caught.value)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Paths in it cannot be opened or listed, as it is for users who are not root."""
    paths: set[Path] = set()
    really_open, really_list = Path.open, Path.iterdir

    def guard(path: Path) -> None:
        if path in paths:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def guarded_open(path: Path, *args: object, **named: object) -> object:
        guard(path)
        return really_open(path, *args, **named)  # type: ignore[call-overload]

    def guarded_list(path: Path) -> object:
        guard(path)
        return really_list(path)

    monkeypatch.setattr(Path, "open", guarded_open)
    monkeypatch.setattr(Path, "iterdir", guarded_list)
    return paths


def test_a_stray_file_that_cannot_be_read_is_a_note(tmp_path: Path, locked: set[Path]) -> None:
    touch(tmp_path, "a.nii.gz", "listing.txt")
    locked.add(tmp_path / "listing.txt")
    cases, notes = find_inputs(tmp_path)
    assert cases == [InputCase("a", FileSource(tmp_path / "a.nii.gz"))]
    assert notes == [f"{tmp_path / 'listing.txt'} left out: it cannot be read (Permission denied)."]


def test_slices_and_folders_that_cannot_be_read_refuse_their_series_alone(
    tmp_path: Path, locked: set[Path]
) -> None:
    for name in ("p1", "p2", "p3", "p4"):
        write_dicom(tmp_path / name, SLICES)
    locked |= {tmp_path / "p2" / "000.dcm", tmp_path / "p4", *(tmp_path / "p3").glob("*")}
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["p1", "p2", "p3", "p4"] and notes == []
    assert cases[0].image is not None and cases[0].image.read_image().shape == (3, 4, 5)
    assert cases[1].image == FileSource(tmp_path / "p2"), "reading it names the slice"
    assert (
        why(cases[2])
        == f"{tmp_path / 'p3' / '000.dcm'} cannot be read (Permission denied): mend that, or take it away."
    )
    assert (
        why(cases[3]) == f"{tmp_path / 'p4'} cannot be read (Permission denied): mend that, or take it away."
    )


def test_a_series_given_by_its_folder_whose_slices_cannot_be_read(tmp_path: Path, locked: set[Path]) -> None:
    write_dicom(tmp_path / "p1", SLICES)
    locked |= set((tmp_path / "p1").glob("*"))
    (case,), _ = find_inputs(tmp_path / "p1")
    assert case.id == "p1" and "000.dcm cannot be read (Permission denied)" in why(case)


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b_0000.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to("gone.nii.gz")
    (tmp_path / "p1").symlink_to("/nowhere/p1")
    (tmp_path / "p2").symlink_to("p2")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "b", "c", "p1", "p2"] and notes == []
    assert why(cases[2]).endswith(
        "c.nii.gz is a link to gone.nii.gz, which does not exist: mend that, or take it away."
    )
    assert "p1 is a link to /nowhere/p1, which does not exist" in why(cases[3])
    assert "p2 cannot be read (Too many levels of symbolic links)" in why(cases[4])


def test_a_slice_that_is_a_link_to_nowhere_refuses_its_series(tmp_path: Path) -> None:
    write_dicom(tmp_path / "p1", SLICES)
    (tmp_path / "p1" / "003.dcm").symlink_to("/nowhere/003.dcm")
    (case,), _ = find_inputs(tmp_path)
    assert "003.dcm cannot be read, although it lies among the slices" in why(case)


def test_what_is_called_like_a_file_and_is_none_is_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "p4.nii.gz").mkdir()
    os.mkfifo(tmp_path / "f.nii.gz")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a"]
    assert notes == [
        f"{tmp_path / 'f.nii.gz'} left out: it is no file that can be read again (a pipe, a device).",
        f"{tmp_path / 'p4.nii.gz'} left out: it is a folder, although it is called like a file.",
    ]


def test_links_to_series_are_followed_and_never_round(tmp_path: Path) -> None:
    inbox = tmp_path / "in"
    write_dicom(inbox / "p2", SLICES)
    write_dicom(tmp_path / "archive" / "p1" / "ct", SLICES)
    (inbox / "p1").symlink_to(tmp_path / "archive" / "p1")
    (tmp_path / "archive" / "p1" / "all").symlink_to(tmp_path)
    (inbox / "a_copy").symlink_to("p2")
    cases, notes = find_inputs(inbox)
    assert [(case.id, str(case.image)) for case in cases] == [
        ("p1", str(inbox / "p1" / "ct")),
        ("p2", str(inbox / "p2")),
    ], "what lies there itself comes before links to it, so that its name stays"
    assert notes == [
        f"{inbox / 'a_copy'} left out: it is a link to {inbox / 'p2'}, which is looked through already.",
        f"{inbox / 'p1' / 'all'} left out: it is a link to {tmp_path}, which is looked through already.",
    ]


def test_files_in_subfolders_are_left_out_aloud_but_not_results(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    touch(tmp_path / "more", "b.nii.gz", "c.nii.gz", "d.mha", "e.mha")
    touch(tmp_path / "masks", "a.nii.gz", "predict.json")
    touch(tmp_path / "masks" / "per_class", "liver.nii.gz")
    touch(tmp_path / "lost+found", "x.nii.gz")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a"]
    assert notes == [
        f"b.nii.gz, c.nii.gz, d.mha, ... left out: they lie in {tmp_path / 'more'}, and below the folder given only "
        "DICOM series are looked for; give that folder, or move the files up."
    ]
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(RawDataError, match=r"holds no scan: put NIfTI.*Note: b\.nii\.gz, c\.nii\.gz, d\.mha"):
        find_inputs(tmp_path)


def test_files_of_no_format_that_is_read_are_counted_and_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.nii.gz",
        "b.mgz",
        "c.hdr",
        "c.img",
        "d.nii.bz2",
        "._d.nii",
        "Listing.TXT",
        "dataset.json",
        "README",
    )
    touch(tmp_path, "x.task", "report.csv", "view.png")
    (tmp_path / "e.mhd").write_text("ElementDataFile = e.bin\n")
    touch(tmp_path, "e.bin", "f.raw")  # voxels of a header, by its name or by a pattern
    touch(tmp_path / "p1", "IM1", "IM2", "notes.txt")  # of old scanners, without a preamble
    touch(tmp_path / "p2", "1.dcm.gz")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "e"]
    end = "; convert or unpack what is a scan."
    assert notes == [
        f"4 files in {tmp_path} left out, of no format that is read: b.mgz, c.hdr, c.img, ...{end}",
        f"2 files in {tmp_path / 'p1'} left out, of no format that is read: IM1, IM2{end}",
        f"1 file in {tmp_path / 'p2'} left out, of no format that is read: 1.dcm.gz{end}",
    ]
    with pytest.raises(
        RawDataError, match=r"holds no scan: put NIfTI.* Note: 1 file in .*p2 left out.*: 1\.dcm\.gz; "
    ):
        find_inputs(tmp_path / "p2")


def test_strange_files_among_slices_are_named_and_slices_are_not(tmp_path: Path) -> None:
    """What is called like a slice is read, or refused, with its series."""
    write_dicom(tmp_path / "p1", SLICES)
    touch(tmp_path / "p1", "0", "IM7", "old.mgz", "slices.zip")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["p1"]
    assert notes == [
        f"2 files in {tmp_path / 'p1'} left out, of no format that is read: old.mgz, slices.zip; convert or unpack "
        "what is a scan."
    ]


def test_folders_without_a_scan_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    write_dicom(tmp_path / "p1" / "ct", SLICES)
    touch(tmp_path / "p1" / "VIEWER", "run.exe")  # as on a disc
    touch(tmp_path / "p1" / "later", ".hidden")
    (tmp_path / "p2" / "ct").mkdir(parents=True)
    touch(tmp_path / "p3", "report.pdf")
    touch(tmp_path / "out", "predict.json")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "p1"]
    assert notes == [
        f"{tmp_path / 'p1' / 'later'} left out: it is empty.",
        f"{tmp_path / 'p2' / 'ct'} left out: it is empty.",
        f"{tmp_path / 'p3'} left out: it holds no scan.",
    ]


def test_a_folder_of_results_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path / "masks", "a.nii.gz", "predict.json")
    with pytest.raises(RawDataError) as caught:
        find_inputs(tmp_path / "masks")
    assert str(caught.value) == (
        f"An input is a scan or a folder of scans, but {tmp_path / 'masks'} is a folder of results (predict.json is in "
        "it), and masks are no scans: give the folder that they were made from."
    )


def test_series_below_a_series_are_left_out_aloud(tmp_path: Path) -> None:
    write_dicom(tmp_path / "night", SLICES)
    write_dicom(tmp_path / "night" / "p1", SLICES)
    cases, notes = find_inputs(tmp_path / "night")
    assert [case.id for case in cases] == ["night"]
    assert notes == [
        f"p1 left out: below {tmp_path / 'night'}, which is a DICOM series itself; give each series by its folder."
    ]


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    dicom_of_kind(tmp_path / "p\udcfc" / "IM1", "1.2.840.10008.5.1.4.1.1.2")
    (tmp_path / "lat\udcfc1.nii.gz").write_bytes(b"")
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["a", "lat\\xfc1", "p\\xfc"] and notes == []
    assert why(cases[1]) == f"The name of {tmp_path}/lat\\xfc1.nii.gz is no UTF-8: rename it, then run again."
    (case,), _ = find_inputs(tmp_path / "lat\udcfc1.nii.gz")
    assert case.id == "lat\\xfc1" and "is no UTF-8" in why(case)


def test_other_libraries_are_not_ended_by_a_folder_that_is_no_text(tmp_path: Path) -> None:
    """SimpleITK ends the process on such a name."""
    folder = tmp_path / "\udcfc"
    write_dicom(tmp_path / "p1", SLICES)
    (tmp_path / "p1").rename(folder)
    sitk.WriteImage(sitk.GetImageFromArray(SLICES), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").rename(folder / "a.mha")
    for path in (folder, folder / "a.mha"):
        with pytest.raises(RawDataError, match=r"its name is no UTF-8; rename it\.$"):
            read_volume(path)


def test_umlauts_where_the_locale_has_none(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "Müller.nii.gz")
    code = (
        "import sys; from pathlib import Path; from iris_pipeline.scans.inputs import find_inputs\n"
        "for case in find_inputs(Path(sys.argv[1]))[0]: print(ascii(case.id))\n"
        "try: find_inputs(Path(sys.argv[1]))[0][0].image.read_image()\n"
        "except Exception as error: print(ascii(str(error)))\n"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | plain, capture_output=True, check=True
    ).stdout.decode("ascii")
    assert told.splitlines()[:2] == ["'M\\xfcller'", "'a'"]
    assert "has letters that this locale lacks: set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in told


def write_grids(folder: Path, ending: str, *sizes: int) -> None:
    for number, size in enumerate(sizes):
        path = folder / f"scan_{number:04d}{ending}"
        if ending == ".mha":
            folder.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros((size, 5, 6), np.int16)), str(path))
        else:
            save(path, np.zeros((size, 5, 6), np.float32), np.eye(4))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_files_of_several_grids_are_scans_and_no_channels(tmp_path: Path, ending: str) -> None:
    write_grids(tmp_path, ending, 4, 4, 5)
    cases, notes = find_inputs(tmp_path)
    assert [case.id for case in cases] == ["scan_0000", "scan_0001", "scan_0002"]
    assert notes == [
        f"scan_0000{ending} to scan_0002{ending} are 3 scans, not channels of one: their grids differ (scan_0000 alone "
        "is scan)."
    ]
    (case,), _ = find_inputs(tmp_path, "2")
    assert case.id == "scan", "who names a channel says that they are channels"
    (tmp_path / f"scan_0002{ending}").unlink()
    (case,), notes = find_inputs(tmp_path)
    assert case.id == "scan" and len(notes) == 1 and "the model reads one channel" in notes[0]


def test_a_place_of_its_own_is_a_grid_of_its_own(tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.6
    for number, affine in enumerate((np.eye(4), moved)):
        save(tmp_path / f"scan_{number:04d}.nii.gz", np.zeros((4, 5, 6), np.float32), affine)
    assert [case.id for case in find_inputs(tmp_path)[0]] == ["scan_0000", "scan_0001"]
    moved[0, 3] = 0.4  # less than half a voxel, as after a registration
    save(tmp_path / "scan_0001.nii.gz", np.zeros((4, 5, 6), np.float32), moved)
    assert [case.id for case in find_inputs(tmp_path)[0]] == ["scan"]


def test_each_header_is_read_once_however_many_files_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mhd").write_text(f"ElementDataFile = {name}.bin\n")
    touch(tmp_path, "a.bin", "b.bin", "c.bin", "d.bin", "e.bin")
    read: list[str] = []

    def noted(header: Path) -> list[Path]:
        read.append(header.name)
        if header.name == "b.mhd":
            raise PermissionError("not for you")
        return data_files(header)

    monkeypatch.setattr("iris_pipeline.scans.inbox.data_files", noted)
    (note,) = look(tmp_path).notes
    assert note.startswith(f"3 files in {tmp_path} left out, of no format that is read: b.bin, d.bin, e.bin;")
    assert read == ["a.mhd", "b.mhd", "c.mhd"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.mhd").write_text("ElementDataFile = a.raw\n")
    touch(tmp_path / "more", "a.raw")
    assert not look(tmp_path / "more").notes and len(read) == 3, "where nothing is strange no header is read"
