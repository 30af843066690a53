"""Writing: against nibabel and SimpleITK, the header to the bit; forms that disagree. Arrays are (z,y,x)."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nifti_files import SHAPE, affine_of, grey, sentence

from preprocessing import volume as module
from preprocessing.errors import RawDataError
from preprocessing.runtime import files
from preprocessing.volume import (
    Volume,
    is_image_path,
    orientation_conflict,
    read_volume,
    write_volume,
)

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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_two_processes_may_write_the_same_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The other one writes the whole of its file between our writing and our renaming."""
    path, real, met = tmp_path / f"a{ending}", module.nib.save, []

    def meanwhile(image: nib.Nifti1Image, name: Path) -> None:
        real(image, name)
        if not met:
            met.append(Path(name))
            with monkeypatch.context() as other:
                other.setattr(files.os, "getpid", lambda: 7)
                write_volume(path, Volume(grey() + 1, affine_of()))
            assert np.array_equal(read_volume(path).array, grey() + 1)

    monkeypatch.setattr(module.nib, "save", meanwhile)
    write_volume(path, Volume(grey(), affine_of()))
    assert np.array_equal(read_volume(path).array, grey())
    assert list(tmp_path.iterdir()) == [path]
    assert not is_image_path(met[0]), "what is being written is never taken for a scan"


# Forms that disagree


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


def test_scaled_numbers_are_stored_as_they_are_and_read_as_multiples(tmp_path: Path) -> None:
    array = np.array([0, 51, 128, 255], np.uint8).reshape(1, 2, 2)
    write_volume(tmp_path / "a.nii.gz", Volume(array, np.eye(4)), scale=1 / 255)
    stored = nib.load(tmp_path / "a.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    assert stored.dataobj.get_unscaled().ravel(order="F").tolist() == [0, 51, 128, 255]
    assert read_volume(tmp_path / "a.nii.gz").array.ravel() == pytest.approx([0, 0.2, 128 / 255, 1], abs=1e-6)
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
    assert by_itk.ravel() == pytest.approx([0, 0.2, 128 / 255, 1], abs=1e-6)
