"""Files: values, geometry and headers against nibabel and SimpleITK; every damage is one sentence."""

from __future__ import annotations

import doctest
import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from preprocessing import volume as module
from preprocessing.errors import RawDataError
from preprocessing.volume import (
    Volume,
    case_id_of,
    corner_shift,
    is_image_path,
    orientation_conflict,
    read_labels,
    read_volume,
    write_volume,
)

TURN = Rotation.from_rotvec([0.2, -0.1, 0.35]).as_matrix()
SHAPE = (4, 5, 6)  # (z,y,x)


def affine_of(spacing_xyz: tuple[float, ...] = (0.75, 1.25, 3.0), turn: np.ndarray = TURN) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, 1, 1]) * np.array(spacing_xyz)
    affine[:3, 3] = (-12.5, 40.25, 7.0)
    return affine


def grey(kind: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1200, SHAPE).astype(kind)


def save(path: Path, array_zyx: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array_zyx.T, affine_of() if affine is None else affine, dtype=array_zyx.dtype)
    nib.save(image, path)
    return path


def sentence(path: Path, read: Callable[[Path], object] = read_volume) -> str:
    """What reading says; it must be one sentence on one line that names the file."""
    with pytest.raises(RawDataError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    return text


# Reading


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_a_scan_is_float32_zyx_with_nibabels_affine(tmp_path: Path, ending: str, kind: type) -> None:
    array = grey(kind)
    scan = read_volume(save(tmp_path / f"scan{ending}", array))
    assert scan.array.dtype == np.float32 and scan.array.flags.c_contiguous and scan.array.flags.writeable
    assert np.array_equal(scan.array, array)
    assert np.allclose(scan.affine, affine_of(), atol=1e-5)
    assert scan.shape == SHAPE
    assert scan.spacing_mm == pytest.approx((3.0, 1.25, 0.75))
    assert scan.header is not None


def test_voxel_ijk_of_the_file_is_kji_of_the_array(tmp_path: Path) -> None:
    array_xyz = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array_xyz, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii")
    scan = read_volume(tmp_path / "a.nii")
    assert scan.array[3, 2, 1] == array_xyz[1, 2, 3] == 23
    assert scan.shape == (4, 3, 2) and scan.spacing_mm == (3, 2, 1)


def test_slope_and_intercept_of_the_header_are_used(tmp_path: Path) -> None:
    raw = bytearray(nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4)).to_bytes())
    raw[112:120] = np.array([0.5, -1024], np.float32).tobytes()  # scl_slope, scl_inter
    raw[352:368] = np.arange(8, dtype=np.int16).tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert read_volume(tmp_path / "a.nii").array.ravel().tolist() == [-1024 + 0.5 * k for k in range(8)]


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    array = grey()
    nib.save(nib.Nifti1Image(array.T[..., None, None], affine_of()), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, array)


def test_nifti2_big_endian_and_wrongly_named_files_are_read(tmp_path: Path) -> None:
    array = grey()
    nib.save(nib.Nifti2Image(array.T, affine_of()), tmp_path / "two.nii.gz")
    big = nib.Nifti1Image(array.T, affine_of(), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    (tmp_path / "unpacked.nii.gz").write_bytes((tmp_path / "big.nii").read_bytes())
    (tmp_path / "packed.nii").write_bytes((tmp_path / "two.nii.gz").read_bytes())
    for path in tmp_path.iterdir():
        scan = read_volume(path)
        assert np.array_equal(scan.array, array) and np.allclose(scan.affine, affine_of(), atol=1e-5), (
            path.name
        )


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", grey(np.float32))
    scan = read_volume(path)
    with path.open("r+b") as stream:
        stream.seek(352)
        stream.write(b"\xff" * 64)
    assert np.array_equal(scan.array, grey())


def test_cosines_that_are_not_quite_orthonormal_are_read(tmp_path: Path) -> None:
    affine = affine_of()
    affine[:3, 0] += (0.0, 0.02, 0.01)
    scan = read_volume(save(tmp_path / "a.nii.gz", grey(), affine))
    assert np.allclose(scan.affine, affine, atol=1e-5)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_itk_formats_lie_where_the_nifti_of_the_same_scan_lies(tmp_path: Path, ending: str) -> None:
    save(tmp_path / "a.nii.gz", grey())
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    scan = read_volume(tmp_path / f"a{ending}")
    assert np.array_equal(scan.array, grey()) and scan.array.dtype == np.float32
    assert np.allclose(scan.affine, affine_of(), atol=1e-4)
    assert scan.header is None


def test_a_fourth_axis_of_length_one_is_dropped_from_mha_too(tmp_path: Path) -> None:
    image = sitk.JoinSeries(sitk.GetImageFromArray(grey()))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    assert np.array_equal(read_volume(tmp_path / "a.mha").array, grey())


def write_dicom(folder: Path, array: np.ndarray, uid: str) -> None:
    """An axial series, slices 2.5 mm apart along a turned normal, in files whose names run backwards."""
    folder.mkdir(exist_ok=True)
    cosines = TURN @ np.eye(3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing((0.5, 0.8, 2.5))
        place = np.array([10.0, -20.0, 30.0]) + 2.5 * k * cosines[:, 2]
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|000e": uid,
            "0020|000d": "1.2.3",
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.8f}" for v in place),
            "0020|0037": "\\".join(f"{v:.8f}" for v in [*cosines[:, 0], *cosines[:, 1]]),
            "0028|1053": "1",
            "0028|1052": "0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{99 - k}.dcm"))
        writer.Execute(image)


def test_a_dicom_folder_is_sorted_by_place(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", grey(), "1.2.3.4")
    scan = read_volume(tmp_path / "series")
    assert np.array_equal(scan.array, grey())
    expected = np.eye(4)
    expected[:3, :3] = TURN * np.array([0.5, 0.8, 2.5])
    expected[:3, 3] = (10, -20, 30)
    assert np.allclose(scan.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-4)
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.5), abs=1e-4)


def test_folders_without_or_with_two_series_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    assert "holds one series" in sentence(tmp_path / "none") and "holds none" in sentence(tmp_path / "none")
    assert capfd.readouterr().err == "", "ITK's own warning is printed too"
    for uid in ("1.2.3.4", "1.2.3.5"):
        write_dicom(tmp_path / "two", grey(), uid)
    assert "holds 2: give each its own folder" in sentence(tmp_path / "two")


# Labels


@pytest.mark.parametrize(
    ("values", "stored", "kind"),
    [
        ([0, 1, 255], np.int16, np.uint8),
        ([0, 1, 256], np.int32, np.uint16),
        ([0, 70_000], np.int32, np.uint32),
        ([0.0, 3.0, 7.0], np.float32, np.uint8),
        ([0.0, 2.9999, 7.0001], np.float64, np.uint8),
        ([-1, 0, 5], np.int16, np.int16),
        ([-1.0, 200.0], np.float64, np.int16),
        ([-1, 40_000], np.int32, np.int32),
        ([0, 0], np.uint8, np.uint8),
    ],
)
def test_labels_come_in_the_smallest_type(
    tmp_path: Path, values: list[float], stored: type, kind: type
) -> None:
    array = np.array(values, dtype=stored).reshape(1, 1, -1)
    labels = read_labels(save(tmp_path / "a.nii.gz", array))
    assert labels.array.dtype == kind
    assert labels.array.ravel().tolist() == [round(value) for value in values]


@pytest.mark.parametrize("value", [0.5, 1.01, np.nan, np.inf])
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path, value: float) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    path = save(tmp_path / "a.nii.gz", array)
    text = sentence(path, read_labels)
    assert text == f"Label maps hold whole numbers, but {path} holds others: export it as integers."


# Damage


def packed(path: Path) -> bytearray:
    return bytearray(
        save(path, np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)).read_bytes()
    )


def test_a_missing_file_and_an_unknown_ending(tmp_path: Path) -> None:
    assert sentence(tmp_path / "a.nii.gz") == f"{tmp_path / 'a.nii.gz'} does not exist: check the name."
    (tmp_path / "a.png").write_bytes(b"x")
    assert sentence(tmp_path / "a.png").startswith(
        f"{tmp_path / 'a.png'} is in no known format: give .nii.gz, "
    )


def test_corrupt_bytes_anywhere_in_a_gzip_are_noticed(tmp_path: Path) -> None:
    """Also where they still unpack to something: only the checksum at the end tells."""
    path = tmp_path / "a.nii.gz"
    whole = packed(path)
    assert read_volume(path).shape == (20, 20, 20)
    for place in (15, len(whole) // 3, len(whole) // 2, len(whole) - 200, len(whole) - 6, len(whole) - 2):
        broken = whole.copy()
        broken[place] ^= 0x10
        path.write_bytes(broken)
        assert sentence(path).endswith("the file is damaged, copy it again.")


def test_a_stored_gzip_block_with_a_changed_voxel_is_noticed(tmp_path: Path) -> None:
    """Level 0 keeps the bytes as they are: every change unpacks without complaint."""
    plain = save(tmp_path / "a.nii", grey()).read_bytes()
    stored = bytearray(gzip.compress(plain, compresslevel=0))
    stored[400] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(stored)
    assert "CRC" in sentence(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.5, 0.999])
def test_truncated_files(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a{ending}"
    whole = packed(path)
    path.write_bytes(whole[: int(len(whole) * share)])
    for read in (read_volume, read_labels):
        assert sentence(path, read).endswith("the file is damaged, copy it again.")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_a_file_that_is_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404 not found</html>" * 40)
    assert "cannot be read (" in sentence(tmp_path / name)


def test_a_truncated_mha(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(grey()), str(tmp_path / "a.mha"))
    whole = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(whole[:-100])
    assert "cannot be read (" in sentence(tmp_path / "a.mha")


def test_a_directory_that_may_not_be_read_as_file(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    assert "A DICOM folder holds one series" in sentence(tmp_path / "a.nii.gz")


def test_images_that_are_not_one_3d_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    text = sentence(tmp_path / "4d.nii.gz")
    assert text.startswith("A scan has three axes, but") and "has shape (3, 4, 5, 2) (x,y,z,...)" in text
    nib.save(nib.Nifti1Image(np.zeros((3, 4), np.int16), np.eye(4)), tmp_path / "2d.nii.gz")
    assert "has shape (3, 4) (x,y,z,...)" in sentence(tmp_path / "2d.nii.gz")
    colour = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "rgb.nii")
    assert "A voxel holds one real number, but" in sentence(tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    assert "holds complex64: extract one channel" in sentence(tmp_path / "complex.nii")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((5, 4, 3, 2)), isVector=True), str(tmp_path / "vector.mha")
    )
    assert "has shape (3, 4, 5) (x,y,z,...) and 2 channels" in sentence(tmp_path / "vector.mha")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(grey())] * 2), str(tmp_path / "4d.mha"))
    assert "has shape (6, 5, 4, 2) (x,y,z,...) and 1 channel:" in sentence(tmp_path / "4d.mha")


def test_a_singular_affine(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, 2] = affine[:3, 1]
    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    header.set_sform(affine, 1)
    raw = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())
    raw[280:328] = header.binaryblock[280:328]  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert "has a singular affine" in sentence(tmp_path / "a.nii")


# Writing


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, bool])
def test_written_volumes_are_read_back_by_nibabel_and_simpleitk(
    tmp_path: Path, ending: str, kind: type
) -> None:
    array = grey() % 2 == 1 if kind is bool else (grey() % 250).astype(kind)
    path = tmp_path / "new" / f"a{ending}"
    write_volume(path, Volume(array, affine_of()))
    stored = nib.load(path)
    assert stored.get_data_dtype() == (np.uint8 if kind is bool else kind)
    assert np.array_equal(np.asarray(stored.dataobj).T, array)
    assert np.allclose(stored.affine, affine_of(), atol=1e-5)
    assert stored.header.get_xyzt_units()[0] == "mm"
    image = sitk.ReadImage(str(path))
    expected = np.diag([-1, -1, 1]) @ affine_of()[:3, :3] / np.array([0.75, 1.25, 3.0])
    assert np.allclose(np.array(image.GetDirection()).reshape(3, 3), expected, atol=1e-5)
    assert np.allclose(image.GetSpacing(), (0.75, 1.25, 3.0), atol=1e-5)
    assert np.allclose(image.GetOrigin(), (12.5, -40.25, 7.0), atol=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, Volume(grey(), affine_of()))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


GEOMETRY = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)
GEOMETRY += ("srow_x", "srow_y", "srow_z", "xyzt_units", "pixdim")  # type: ignore[assignment]


@pytest.mark.parametrize(("sform", "qform"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (4, 3)])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("flavour", ["<", ">", "2"])
def test_the_headers_geometry_is_kept_to_the_bit(
    tmp_path: Path, sform: int, qform: int, apart: bool, flavour: str
) -> None:
    kind = nib.Nifti2Image if flavour == "2" else nib.Nifti1Image
    header = kind.header_class(endianness="<" if flavour == "2" else flavour)
    image = kind(grey().T, None, header)
    image.header.set_xyzt_units("mm", "sec")
    other = affine_of(turn=np.eye(3)) if apart else affine_of()
    image.set_sform(affine_of(), sform)
    image.set_qform(other, qform)
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_volume(tmp_path / "scan.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", Volume(np.ones(SHAPE, np.uint8), scan.affine, scan.header))
    before, after = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    for field in GEOMETRY:
        stop = 4 if field == "pixdim" else None
        kept, given = np.atleast_1d(after.header[field])[:stop], np.atleast_1d(before.header[field])[:stop]
        assert np.array_equal(kept, given), field
    assert np.array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.uint8 and np.asarray(after.dataobj).all()
    assert after.header.get_slope_inter() == (None, None)


@pytest.mark.parametrize(("sform", "qform"), [(0, 0), (1, 0), (0, 1), (2, 3)])
def test_an_affine_that_is_not_the_headers_wins(tmp_path: Path, sform: int, qform: int) -> None:
    image = nib.Nifti1Image(grey().T, None)
    image.set_sform(affine_of(), sform)
    image.set_qform(affine_of(), qform)
    moved = affine_of((1.5, 1.5, 1.5))
    write_volume(tmp_path / "a.nii.gz", Volume(np.ones((2, 3, 4), np.uint8), moved, image.header))
    stored = nib.load(tmp_path / "a.nii.gz")
    assert np.allclose(stored.affine, moved, atol=1e-5)
    assert stored.header["sform_code"] == (sform or 1) and stored.header["qform_code"] == qform
    if qform:
        assert np.allclose(stored.get_qform(), moved, atol=1e-4)


def test_other_endings_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RawDataError, match=r"written as \.nii\.gz or \.nii, but .*a\.mha was asked for: rename it\."
    ):
        write_volume(tmp_path / "a.mha", Volume(grey(), affine_of()))
    with pytest.raises(
        RawDataError, match=r"NIfTI has no type float16 \(for .*a\.nii\): convert the array first\."
    ):
        write_volume(tmp_path / "a.nii", Volume(grey(np.float16), affine_of()))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(grey(), affine_of()))
    before = path.read_bytes()

    def half(image: nib.Nifti1Image, name: Path) -> None:
        Path(name).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(module.nib, "save", half)
    with pytest.raises(OSError, match="no space left"):
        write_volume(path, Volume(grey() + 1, affine_of()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Geometry that disagrees with itself; names


def with_forms(path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int] = (1, 1)) -> Path:
    image = nib.Nifti1Image(grey().T, None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def test_qform_and_sform_half_a_voxel_apart(tmp_path: Path) -> None:
    here = affine_of(turn=np.eye(3))

    def moved(x: float, z: float) -> np.ndarray:
        there = here.copy()
        there[:3, 3] += (x, 0, z)
        return there

    path = tmp_path / "a.nii.gz"
    assert orientation_conflict(with_forms(path, here, here)) is None
    assert orientation_conflict(with_forms(path, here, moved(0.36, 0))) is None  # of 0.75 mm
    assert orientation_conflict(with_forms(path, here, moved(0, 1.4))) is None  # of 3 mm
    assert orientation_conflict(with_forms(path, here, moved(0.39, 0))) == (
        "qform and sform lie 0.4 mm apart at a corner; the sform is used"
    )
    assert orientation_conflict(with_forms(path, here, moved(3, 4))) == (
        "qform and sform lie 5.0 mm apart at a corner; the sform is used"
    )
    assert np.allclose(read_volume(path).affine, here)
    for codes in ((1, 0), (0, 1), (0, 0)):
        assert orientation_conflict(with_forms(path, here, moved(30, 0), codes)) is None
    # a turn moves the far corners most: x spans 5 * 0.75 mm, y 4 * 1.25 mm
    flipped = here @ np.diag([-1, -1, 1, 1])
    assert f"{2 * np.hypot(3.75, 5):.1f} mm" in (orientation_conflict(with_forms(path, here, flipped)) or "")


def test_a_qform_that_is_none_is_told(tmp_path: Path) -> None:
    raw = bytearray(with_forms(tmp_path / "a.nii", affine_of(), affine_of()).read_bytes())
    raw[256:268] = np.array([0.9, 0.9, 0.9], np.float32).tobytes()  # quaternion longer than 1
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert orientation_conflict(tmp_path / "a.nii") == "the qform is not valid; the sform is used"
    assert np.allclose(read_volume(tmp_path / "a.nii").affine, affine_of(), atol=1e-5)


def test_only_nifti_has_two_forms(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(grey()), str(tmp_path / "a.mha"))
    assert orientation_conflict(tmp_path / "a.mha") is None
    assert orientation_conflict(tmp_path) is None
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8b broken")
    assert "the file is damaged" in sentence(tmp_path / "a.nii.gz", orientation_conflict)
    assert "cannot be opened (No such file" in sentence(tmp_path / "b.nii.gz", orientation_conflict)


def test_corner_shift_by_hand() -> None:
    affine, other = np.diag([1.0, 2.0, 10.0, 1.0]), np.diag([1.0, 2.0, 10.0, 1.0])
    other[:3, 3] = (0.3, 0.4, 1.2)
    assert corner_shift((5, 6, 7), affine, other) == pytest.approx((0.3, 1.3))
    other = np.diag([1.1, 2.0, 10.0, 1.0])  # the far end of 7 voxels along x moves by 6 * 0.1 mm
    assert corner_shift((5, 6, 7), affine, other) == pytest.approx((0.6, 0.6))


@pytest.mark.parametrize(
    ("name", "case", "is_image"),
    [
        ("liver_004.nii.gz", "liver_004", True),
        ("liver_004_0000.nii.gz", "liver_004", True),
        ("a.b.nii", "a.b", True),
        ("Scan.NII.GZ", "Scan", True),
        ("x_0000.mha", "x", True),
        ("x.nrrd", "x", True),
        ("x.mhd", "x", True),
        ("._liver.nii.gz", "._liver", False),
        ("notes.txt", "notes.txt", False),
        ("patient_7", "patient_7", False),
        ("x_0001.nii.gz", "x_0001", True),
    ],
)
def test_names(name: str, case: str, is_image: bool) -> None:
    assert case_id_of(Path("some/folder") / name) == case
    assert is_image_path(Path("some/folder") / name) is is_image


def test_the_legend_of_the_module_is_true() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3 and result.failed == 0
