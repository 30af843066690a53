"""Reading: values and places against nibabel; every damage is one sentence. Arrays are (z,y,x)."""

from __future__ import annotations

import doctest
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nifti_files import SHAPE, affine_of, grey, save, sentence

from preprocessing import volume as module
from preprocessing.volume import (
    case_id_of,
    corner_shift,
    is_image_path,
    read_labels,
    read_raw,
    read_volume,
    stem_of,
)

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


@pytest.mark.parametrize("frame", [None, 1])
def test_want_of_memory_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: int | None
) -> None:
    shape = (512, 256, 8) if frame is None else (512, 256, 8, 2)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), affine_of()), path)

    def short(*_: object) -> np.ndarray:
        raise MemoryError

    for method in ("__array__", "__getitem__"):
        monkeypatch.setattr(nib.arrayproxy.ArrayProxy, method, short)
    size = "2 MiB for the 512 x 256 x 8 voxels" if frame is None else "4 MiB for the 512 x 256 x 8 x 2 voxels"
    assert sentence(path, lambda each: read_raw(each, frame)) == (
        f"{path} needs more memory than is free ({size} that its header tells): make some free or give fewer "
        "--workers, then run again; if it should be smaller, copy it again."
    )


def test_a_directory_that_may_not_be_read_as_file(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    assert "A DICOM folder holds one series" in sentence(tmp_path / "a.nii.gz")


def test_images_that_are_not_one_3d_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    text = sentence(tmp_path / "4d.nii.gz")
    assert text.startswith("A scan has one channel, but ") and text.endswith(
        "4d.nii.gz has 2 and none was named: choose one of 0 to 1 (--channel, of references --reference-channel)."
    )
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2, 3), np.int16), np.eye(4)), tmp_path / "5d.nii.gz")
    text = sentence(tmp_path / "5d.nii.gz")
    assert text.startswith("A scan has three axes, but") and "has shape (3, 4, 5, 2, 3) (x,y,z,...)" in text
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
    assert "vector.mha has 2 and none was named: choose one of 0 to 1" in sentence(tmp_path / "vector.mha")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(grey())] * 2), str(tmp_path / "4d.mha"))
    assert "4d.mha has 2 and none was named: choose one of 0 to 1" in sentence(tmp_path / "4d.mha")


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


# Names and corners


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


def test_a_case_may_be_numbered_0000() -> None:
    """nnU-Net's channel suffix looks the same: what a file is paired with tells."""
    labels = [stem_of(Path(name)) for name in ("case_0000.nii.gz", "case_0001.nii.gz")]
    assert labels == ["case_0000", "case_0001"]
    assert [case_id_of(Path(f"{name}_0000.nii.gz"), labels) for name in labels] == labels
    assert [case_id_of(Path(f"{name}.nii.gz"), labels) for name in labels] == labels
    assert case_id_of(Path("case_0000.nii.gz"), ["case"]) == "case"


def test_the_legend_of_the_module_is_true() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3 and result.failed == 0
