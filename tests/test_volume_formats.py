"""Other formats and odd headers: DICOM series, units, shapes; SimpleITK writes what is read here.

Arrays are [D,H,W] = (z,y,x); affines map (x,y,z) to RAS+ mm.
"""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nifti_files import sentence
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, RLELossless
from scans import affine_of, save

from preprocessing.errors import RawDataError
from preprocessing.formats.itk_files import data_files
from preprocessing.runtime.files import file_digest
from preprocessing.sources.source import FileSource
from preprocessing.volume import (
    Volume,
    grid_of,
    is_image_path,
    read_labels,
    read_volume,
    same_grid,
    write_volume,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = affine_of("PSR", (3.0, 1.5, 0.8), degrees=17)
SHEARED = np.array([[-1.1, 0.2, 0.0, 30], [0.1, 1.3, -0.4, -7], [0.0, 0.3, 2.5, 11.5], [0, 0, 0, 1]])
AXIAL = np.diag([-0.5, -0.8, 2.5, 1.0])


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(-100, 200, shape).astype(np.int16)


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """The same scan as SimpleITK holds it (LPS), for an affine without shear."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_dicom(folder: Path, image: sitk.Image, uid: str = "1.2.3", tilt_mm: float = 0.0) -> list[Path]:
    """One file a slice, in HU by an intercept of -1024; `tilt_mm` shifts each slice against the last along x."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    across, down, _ = np.array(image.GetDirection()).reshape(3, 3).T
    paths = []
    for k in range(image.GetSize()[2]):
        piece = image[:, :, k : k + 1]
        place = np.array(image.TransformIndexToPhysicalPoint((0, 0, k))) + k * tilt_mm * across
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": "\\".join(f"{value:.8f}" for value in (*across, *down)),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        paths.append(folder / f"{uid}_{99 - k}.dcm")  # only the positions tell the order
        writer.SetFileName(str(paths[-1]))
        writer.Execute(piece)
    return paths


# DICOM series


@pytest.mark.parametrize("order", ["LPS", "PSR"])
def test_an_oblique_series_agrees_with_nifti(tmp_path: Path, order: str) -> None:
    affine = affine_of(order, (3.0, 1.5, 0.8), degrees=11)
    if np.linalg.det((LPS @ affine)[:3, :3]) < 0:  # DICOM's slice normal is a cross product
        affine[:3, 2] *= -1
    array = numbers(4, 5, 6)
    write_dicom(tmp_path / "series", itk_image(array, affine))
    scan = read_volume(tmp_path / "series")
    by_nifti = read_volume(save(tmp_path / "a.nii.gz", array, affine))
    assert np.array_equal(scan.array, by_nifti.array), "values in HU"
    assert np.allclose(scan.affine, by_nifti.affine, atol=1e-4)
    assert np.array_equal(read_labels(tmp_path / "series").array, array)


@pytest.mark.parametrize("slopes", [(1, 0.37, 0.5), (0.002, 1, 1), (1, 20, 20)])
def test_each_slice_has_a_slope_of_its_own(tmp_path: Path, slopes: tuple[float, ...]) -> None:
    """As in PET: the first slice's type (whole numbers for a slope of 1) must not be that of all."""
    stored = np.random.default_rng(0).integers(0, 3000, (3, 5, 6)).astype(np.int16)
    files = write_dicom(tmp_path / "series", itk_image(stored, AXIAL))
    for path, slope, array in zip(files, slopes, stored, strict=True):
        part = pydicom.dcmread(path)
        part.RescaleSlope, part.RescaleIntercept = str(slope), "0"
        part.PixelData = array.tobytes()
        part.save_as(path)
    expected = np.stack(
        [slope * array.astype(np.float64) for slope, array in zip(slopes, stored, strict=True)]
    )
    np.testing.assert_allclose(read_volume(tmp_path / "series").array, expected, rtol=1e-6)


def test_a_tilted_gantry_is_a_sheared_affine(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", itk_image(numbers(4, 5, 6), AXIAL), tilt_mm=0.7)
    expected = AXIAL.copy()
    expected[:3, 2] = (-0.7, 0, 2.5)  # the first axis of LPS points to the left
    assert np.allclose(read_volume(tmp_path / "series").affine, expected, atol=1e-4)


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_a_series_that_lacks_a_slice_is_refused(
    tmp_path: Path, gone: int, capfd: pytest.CaptureFixture[str]
) -> None:
    files = write_dicom(tmp_path / "series", itk_image(numbers(6, 5, 4), AXIAL))
    files[gone].unlink()
    folder = tmp_path / "series"
    assert sentence(folder) == (
        f"Slices of a DICOM series lie evenly, but those of {folder} lie 2.50 to 5.00 mm apart: "
        "export the whole series again."
    )
    assert capfd.readouterr().err == "", "ITK's own warning is printed too"


BROKEN = {
    "cut off": lambda content: content[:-500],
    "header alone": lambda content: content[:400],
    "empty": lambda content: b"",
    "another thing": lambda content: b"<html>not found</html>",
}


@pytest.mark.parametrize("which", [2, 5])  # the last one leaves even steps behind
@pytest.mark.parametrize("how", BROKEN)
def test_a_slice_that_cannot_be_read_is_named(tmp_path: Path, how: str, which: int) -> None:
    files = write_dicom(tmp_path / "series", itk_image(numbers(6, 50, 40), AXIAL))
    files[which].write_bytes(BROKEN[how](files[which].read_bytes()))
    assert sentence(tmp_path / "series") == (
        f"{files[which]} cannot be read, although it lies among the slices of a series: copy it again, or take it "
        "away if it is none."
    )


def test_a_slice_whose_voxels_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    files = write_dicom(tmp_path / "series", itk_image(numbers(6, 50, 40), AXIAL))
    for path in files:
        packed = pydicom.dcmread(path)
        packed.compress(RLELossless)
        packed.save_as(path)
    assert read_volume(tmp_path / "series").shape == (6, 50, 40)
    files[2].write_bytes(files[2].read_bytes()[:-3000] + bytes(3000))
    assert re.fullmatch(
        rf"{re.escape(str(files[2]))} cannot be read \(.*\): the file is damaged, copy it again\.",
        sentence(tmp_path / "series"),
    )


def test_what_may_lie_beside_the_slices(tmp_path: Path) -> None:
    """A report in DICOM, the folder's register, notes, hidden files: none of them is a slice."""
    folder = tmp_path / "series"
    write_dicom(folder, itk_image(numbers(6, 50, 40), AXIAL))
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = "1.2.7"
    report.Modality, report.SeriesInstanceUID, report.StudyInstanceUID = "SR", "1.2.9", "1.2"
    pydicom.dcmwrite(folder / "report.dcm", report, enforce_file_format=True)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "notes.txt").write_text("arms up")
    (folder / "._1.2.3_99.dcm").write_bytes(b"shadow")
    assert read_volume(folder).shape == (6, 50, 40)


def test_one_slice_is_a_scan(tmp_path: Path) -> None:
    array = numbers(1, 3, 4)
    write_dicom(tmp_path / "one", itk_image(array, AXIAL))
    scan = read_volume(tmp_path / "one")
    assert np.array_equal(scan.array, array)
    assert np.allclose(scan.affine[:3, [0, 1, 3]], AXIAL[:3, [0, 1, 3]], atol=1e-4)


def test_a_folder_with_no_series_or_two_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert sentence(tmp_path / "none").startswith("A DICOM folder holds one series, but ")
    assert "holds none: give each its own folder" in sentence(tmp_path / "none")
    assert capfd.readouterr().err == "", "ITK's own warning is printed too"
    for uid in ("1.2.3.4", "1.2.3.5"):
        write_dicom(tmp_path / "two", itk_image(numbers(2, 3, 4), AXIAL), uid)
    assert "holds 2: give each its own folder" in sentence(tmp_path / "two")


# ITK's own formats


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("order", ["RAS", "LPS", "PSR", "SAL"])
def test_itk_formats_agree_with_nifti_in_any_orientation(tmp_path: Path, ending: str, order: str) -> None:
    affine = affine_of(order, (3.0, 1.5, 0.8), degrees=-23)
    array = numbers(3, 4, 5)
    sitk.WriteImage(itk_image(array, affine), str(tmp_path / f"a{ending}"))
    scan = read_volume(tmp_path / f"a{ending}")
    assert np.array_equal(scan.array, array) and scan.array.dtype == np.float32 and scan.header is None
    assert np.allclose(scan.affine, read_volume(save(tmp_path / "a.nii", array, affine)).affine, atol=1e-5)
    assert np.array_equal(read_labels(tmp_path / f"a{ending}").array, array)


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    array = numbers(3, 4, 5)
    sitk.WriteImage(sitk.JoinSeries([itk_image(array, OBLIQUE)]), str(tmp_path / "a.mha"))
    scan = read_volume(tmp_path / "a.mha")
    assert np.array_equal(scan.array, array)
    assert np.allclose(scan.affine, OBLIQUE, atol=1e-5)


# Headers of NIfTI


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1.0), ("unknown", 1.0), ("meter", 1000.0), ("micron", 0.001)]
)
@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_lengths_are_mm_whatever_the_unit_as_in_simpleitk(
    tmp_path: Path, unit: str, factor: float, codes: tuple[int, int]
) -> None:
    in_unit = OBLIQUE.copy()
    in_unit[:3] /= factor
    image = nib.Nifti1Image(numbers(4, 3, 2), in_unit)
    image.set_sform(in_unit, codes[0])
    image.set_qform(in_unit, codes[1])
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_volume(tmp_path / "a.nii.gz")
    assert np.allclose(scan.affine, OBLIQUE, atol=1e-4)
    spacing = sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSpacing()
    assert scan.spacing_mm[::-1] == pytest.approx(spacing, rel=1e-4)
    write_volume(tmp_path / "b.nii.gz", scan)
    assert np.allclose(read_volume(tmp_path / "b.nii.gz").affine, OBLIQUE, atol=1e-4)
    units = nib.load(tmp_path / "b.nii.gz").header.get_xyzt_units()
    assert units == ("unknown" if unit == "unknown" else "mm", "sec")


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_without_a_header_both_forms_place_the_scan(tmp_path: Path, affine: np.ndarray) -> None:
    """Some viewers read the qform alone; it can hold all but the shear."""
    write_volume(tmp_path / "a.nii.gz", Volume(numbers(2, 3, 4), affine))
    header = nib.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] > 0 and header["qform_code"] > 0
    assert np.allclose(header.get_sform(), affine, atol=1e-5)
    qform = header.get_qform()
    assert np.allclose(
        np.linalg.norm(qform[:3, :3], axis=0), np.linalg.norm(affine[:3, :3], axis=0), atol=1e-4
    )
    assert np.allclose(qform[:3, 3], affine[:3, 3], atol=1e-4)
    if affine is OBLIQUE:
        assert np.allclose(qform, affine, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "content", "told"),
    [
        (42, (-3).to_bytes(2, "little", signed=True), "has shape (-3, 3, 2)"),
        (42, bytes(2), "has shape (0, 3, 2)"),
        (70, (99).to_bytes(2, "little"), "data code 99 not recognized"),
        (344, b"xyz\0", "cannot be read ("),
    ],
    ids=["negative", "empty", "type", "magic"],
)
def test_a_header_with_nonsense_is_one_sentence_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int, content: bytes, told: str
) -> None:
    whole = bytearray(nib.Nifti1Image(numbers(4, 3, 2), OBLIQUE).to_bytes())
    whole[place : place + len(content)] = content
    (tmp_path / "a.nii").write_bytes(whole)
    assert told in sentence(tmp_path / "a.nii")
    assert not caplog.records, "nibabel speaks too"


def test_a_file_still_being_written_is_no_image() -> None:
    assert not is_image_path(Path("out") / ".x.nii.gz.part.nii.gz")


# Channels


def several(tmp_path: Path) -> tuple[np.ndarray, dict[str, Path]]:
    """Three channels [3,D,H,W], and files that hold them in every way there is."""
    array = np.stack([numbers(3, 4, 5) + 100 * c for c in range(3)]).astype(np.int16)
    files = {
        name: tmp_path / name for name in ("4d.nii.gz", "vector.nii", "vector.nrrd", "4d.mha", "4d.nrrd")
    }
    nib.save(nib.Nifti1Image(array.transpose(3, 2, 1, 0), OBLIQUE), files["4d.nii.gz"])
    nib.save(nib.Nifti1Image(array.transpose(3, 2, 1, 0)[:, :, :, None], OBLIQUE), files["vector.nii"])
    images = [itk_image(channel, OBLIQUE) for channel in array]
    sitk.WriteImage(sitk.Compose(images), str(files["vector.nrrd"]))
    for name in ("4d.mha", "4d.nrrd"):
        sitk.WriteImage(sitk.JoinSeries(images), str(files[name]))
    return array, files


def test_a_channel_is_read_by_its_number(tmp_path: Path) -> None:
    array, files = several(tmp_path)
    for path in files.values():
        for number in range(3):
            scan = read_volume(path, number)
            assert np.array_equal(scan.array, array[number]), path.name
            assert np.allclose(scan.affine, OBLIQUE, atol=1e-5)
        with pytest.raises(RawDataError, match=r"has 3 channels, 0 to 2, but channel 3 was asked for"):
            read_volume(path, 3)
        with pytest.raises(RawDataError, match=r"has 3 and none was named: choose one of 0 to 2"):
            read_volume(path)


def test_the_only_channel_is_number_0(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", itk_image(numbers(4, 5, 6), AXIAL))
    save(tmp_path / "a.nii.gz", numbers(4, 5, 6), AXIAL)
    for name in ("series", "a.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name, 0).array, numbers(4, 5, 6))
        with pytest.raises(RawDataError, match=rf"{name} has one channel, 0, but channel 1 was asked for"):
            read_volume(tmp_path / name, 1)


@pytest.mark.parametrize(("kind", "told"), [("mha", b"DimSize = "), ("nrrd", b"sizes: ")])
def test_a_header_that_asks_for_more_memory_than_there_is_does_not_make_a_file_damaged(
    kind: str, told: bytes, tmp_path: Path
) -> None:
    """116 TiB, which no machine gives."""
    path = tmp_path / f"huge.{kind}"
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkInt16), str(path))
    content = path.read_bytes()
    assert content.count(told + b"4 4 4") == 1
    path.write_bytes(content.replace(told + b"4 4 4", told + b"40000 40000 40000"))
    with pytest.raises(
        RawDataError, match=rf"huge\.{kind} needs more memory than is free: make some free or"
    ):
        read_volume(path)


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_the_data_beside_a_header_belongs_to_a_sources_contents(ending: str, tmp_path: Path) -> None:
    """A mask that is corrected there is another mask; files that hold their voxels themselves stand alone."""
    path = tmp_path / f"mask.{ending}"
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkUInt8), str(path))
    header, data = FileSource(path).contents
    assert header == path and {header, data} == set(tmp_path.iterdir())
    before = file_digest(FileSource(path).contents)
    data.write_bytes(data.read_bytes()[:-1] + b"\1")
    assert file_digest(FileSource(path).contents) != before
    alone = tmp_path / "mask.mha"
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkUInt8), str(alone))
    inside = tmp_path / "inside.mhd"
    inside.write_bytes(alone.read_bytes())  # ElementDataFile = LOCAL
    assert data_files(alone) == data_files(inside) == data_files(tmp_path / "gone.mhd") == []
    listed = tmp_path / "listed.mhd"
    listed.write_text("NDims = 3\nElementDataFile = LIST\na.raw\nb.raw\n", encoding="utf-8")
    assert data_files(listed) == [tmp_path / "a.raw", tmp_path / "b.raw"]


def test_a_file_that_ends_too_early_is_not_called_missing(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(numbers(4, 5, 6), AXIAL), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes()[:-50])
    assert "a.mha cannot be read (it ends too early, or its header says" in sentence(tmp_path / "a.mha")
    sitk.WriteImage(itk_image(numbers(4, 5, 6), AXIAL), str(tmp_path / "b.mhd"))
    (tmp_path / "b.raw").unlink()
    assert "b.mhd cannot be read (b.raw: No such file or directory)" in sentence(tmp_path / "b.mhd")


def test_headers_alone_tell_the_grid(tmp_path: Path) -> None:
    array = numbers(4, 5, 6)
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(itk_image(array, OBLIQUE), str(tmp_path / name))
    write_volume(tmp_path / "a.nii.gz", Volume(array, OBLIQUE))
    for name in ("a.mha", "a.nrrd", "a.nii.gz"):
        shape, affine = grid_of(tmp_path / name)
        assert shape == (4, 5, 6) and np.allclose(affine, OBLIQUE, atol=1e-4), name
    lost = np.diag([0.0, 0.0, 0.0, 1.0])
    assert same_grid(((4, 5, 6), OBLIQUE), ((4, 5, 6), lost)) and not same_grid(
        ((4, 5, 6), lost), ((4, 5, 7), lost)
    )
