"""Volume = array + affine, and the one seam to file formats.

Arrays are [D,H,W] = (z,y,x): `array[k, j, i]` is the voxel (i, j, k) of the file. `affine` is 4x4, nibabel's
convention: it maps the voxel index (i, j, k, 1) to mm in the RAS+ world. `spacing_mm` is (z,y,x) like the array.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

# Files with cosines that are not quite orthonormal (M&Ms, TotalSegmentator) are read, not refused; ITK reads it once.
os.environ.setdefault("ITK_NIFTI_SFORM_PERMISSIVE", "1")
import SimpleITK as sitk

from preprocessing.errors import RawDataError

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """array [D,H,W]; affine (4,4) to RAS+ mm; header: the NIfTI header the file came with, if it was one."""

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.array.shape
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel, (z,y,x): the norms of the affine's columns."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x


def is_image_path(path: Path) -> bool:
    """Whether the name is of a format that can be read; macOS' `._` shadows are not."""
    return not path.name.startswith("._") and path.name.lower().endswith(NIFTI + ITK)


def case_id_of(path: Path) -> str:
    """File name without its ending and without nnU-Net's channel suffix `_0000`."""
    name = path.name
    for ending in NIFTI + ITK:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return name.removesuffix("_0000")


def read_volume(path: Path) -> Volume:
    """A scan as float32: NIfTI, mha, mhd, nrrd, or a folder with one DICOM series. RawDataError in one sentence."""
    array, affine, header = _read(Path(path))
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine, header)


def read_labels(path: Path) -> Volume:
    """A label map in the smallest unsigned integer type (int16 where negative); RawDataError for fractions."""
    array, affine, header = _read(Path(path))
    if not np.issubdtype(array.dtype, np.integer):
        rounded = np.rint(array)
        if not np.isfinite(array).all() or np.abs(array - rounded).max(initial=0) > 1e-3:
            raise RawDataError(
                f"A label map holds whole numbers, but {path} holds fractions: export it as integers."
            )
        array = rounded.astype(np.int64)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    kind = np.int16 if low < 0 else np.uint8 if high < 256 else np.uint16 if high < 65536 else np.int64
    return Volume(np.ascontiguousarray(array, dtype=kind), affine, header)


def write_volume(path: Path, volume: Volume) -> None:
    """NIfTI (.nii.gz or .nii) in the array's type; codes of qform and sform and units as in `volume.header`."""
    if not str(path).endswith(NIFTI):
        raise RawDataError(f"Volumes are written as .nii.gz or .nii, not as {path}: change the name.")
    image = nib.Nifti1Image(volume.array.transpose(2, 1, 0), volume.affine)
    image.header.set_data_dtype(volume.array.dtype)
    image.header.set_xyzt_units("mm")
    if volume.header is not None:
        qform, qcode = volume.header.get_qform(coded=True)
        _, scode = volume.header.get_sform(coded=True)
        image.set_sform(volume.affine, int(scode))
        image.set_qform(qform if qcode else volume.affine, int(qcode))
        image.header["xyzt_units"] = volume.header["xyzt_units"]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    temporary = path.with_name(f".{path.name}.part{ending}")
    nib.save(image, temporary)
    os.replace(temporary, path)


def orientation_conflict(path: Path) -> str | None:
    """A sentence where a NIfTI's qform and sform place a corner more than half a voxel apart (BTCV); else None."""
    if not str(path).endswith(NIFTI):
        return None
    header = nib.load(path).header
    (qform, qcode), (sform, scode) = header.get_qform(coded=True), header.get_sform(coded=True)
    if not qcode or not scode:
        return None
    corners = _corners(header.get_data_shape()[:3])
    apart = np.linalg.norm((corners @ (qform - sform).T)[:, :3], axis=1).max()
    if apart <= 0.5 * min(header.get_zooms()[:3]):
        return None
    return f"qform and sform disagree by {apart:.1f} mm at a corner; the sform is used"


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    x, y, z = (n - 1 for n in shape)
    return np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=float)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header | None]:
    if not path.exists():
        raise RawDataError(f"{path} does not exist: check the name.")
    if path.is_dir():
        return (*_from_itk(path, _dicom_series(path)), None)
    if path.name.lower().endswith(NIFTI):
        return _read_nifti(path)
    if path.name.lower().endswith(ITK):
        return (*_from_itk(path, [str(path)]), None)
    raise RawDataError(
        f"{path} is of no format that can be read: give {', '.join(NIFTI + ITK)} or a DICOM folder."
    )


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError, HeaderDataError, zlib.error) as error:
        raise RawDataError(f"{path} cannot be read ({error}): the file is damaged, copy it again.") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise RawDataError(
            f"A scan has three axes, but {path} has shape {data.shape}: extract one frame or channel."
        )
    affine = np.asarray(image.affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise RawDataError(f"The affine of {path} is singular, so its voxels have no place: mend the header.")
    return data.transpose(2, 1, 0), affine, image.header


def _dicom_series(folder: Path) -> list[str]:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{len(series)} series" if series else "no DICOM series"
        raise RawDataError(
            f"A DICOM folder must hold exactly one series, but {folder} holds {found}: give one a folder."
        )
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))


def _from_itk(path: Path, files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = sitk.ReadImage(files[0] if len(files) == 1 else files)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RawDataError(
            f"{path} cannot be read ({reason}): the file is damaged, copy it again."
        ) from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise RawDataError(
            f"A scan has three axes and one channel, but {path} has size {image.GetSize()} and "
            f"{image.GetNumberOfComponentsPerPixel()} channels: extract one."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), LPS_TO_RAS @ affine
