"""NIfTI files: voxels, affine and header of one image of a file, and where a file's header places its voxels.

Shapes are (z,y,x); arrays [D,H,W] = (z,y,x) in the file's own orientation; affines map the voxel index (x,y,z,1) to
RAS+ mm, whatever unit of length the file counts in. `preprocessing.volume` is the one that reads and writes with this.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import RawDataError
from preprocessing.formats.itk_files import choose_channel, damaged, too_large

# nibabel prints remarks on odd headers; what has to be said our one sentence says
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
GZIP_MAGIC = b"\x1f\x8b"
NIFTI2_HEADER_BYTES = 540
MM_OF_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's metre and micron; all other codes are taken for mm
PLACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
LENGTHS = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


def place(header: nib.Nifti1Header, affine: np.ndarray, known: nib.Nifti1Header | None) -> None:
    """Fill in the fields of `header` that say where the voxels lie."""
    if known is not None and np.allclose(known.get_best_affine(), affine, atol=1e-5):
        for field in PLACE:
            header[field] = known[field]
        header["pixdim"][:4] = known["pixdim"][:4]
        return
    codes = (int(known["sform_code"]), int(known["qform_code"])) if known is not None else (1, 1)
    header.set_sform(affine, codes[0] or 1)
    header.set_qform(affine, codes[1])
    header["xyzt_units"] = known["xyzt_units"] if known is not None else nib.nifti1.unit_codes["mm"]


def _opened(path: Path) -> IO[bytes]:
    """The bytes inside, whether or not they are compressed and whatever the name says of that."""
    try:
        with path.open("rb") as stream:
            compressed = stream.read(2) == GZIP_MAGIC
        return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise RawDataError(
            f"{path} cannot be opened ({error.strerror}): check name and permissions."
        ) from error


def unread(path: Path) -> nib.Nifti1Image:
    """The image of a file with its header, whose voxels are not read; RawDataError where that cannot be."""
    with _opened(path) as stream:
        return _image_in(path, stream)


def grid_of_nifti_file(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (z,y,x) and affine from the header alone; RawDataError where it cannot be read."""
    return grid_of_nifti(unread(path))


def grid_of_nifti(image: nib.Nifti1Image) -> tuple[tuple[int, ...], np.ndarray]:
    """The same of an image whose header is read."""
    return image.shape[2::-1], np.asarray(_in_mm(image.header).get_best_affine(), dtype=float)


def _image_in(path: Path, stream: IO[bytes]) -> nib.Nifti1Image:
    try:
        length = stream.read(4)
        stream.seek(0)
        big = NIFTI2_HEADER_BYTES in (int.from_bytes(length, "little"), int.from_bytes(length, "big"))
        kind = nib.Nifti2Image if big else nib.Nifti1Image
        return kind.from_file_map({"image": nib.FileHolder(fileobj=stream)}, mmap=False)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        ImageFileError,
        HeaderDataError,
        WrapStructError,
    ) as error:
        raise damaged(path, error) from error


def from_nifti(
    path: Path, frame: int | None = None, channel: int | None = None
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    with _opened(path) as stream:
        image = _image_in(path, stream)
        if frame is not None:
            return _one_frame(path, image, frame)
        more = [n for n in image.shape[3:] if n != 1]
        if len(image.shape) < 3 or min(image.shape) < 1 or len(more) > 1:
            raise RawDataError(
                f"A scan has three axes, but {path} has shape {image.shape} (x,y,z,...): extract one image."
            )
        number = choose_channel(path, more[0] if more else 1, channel)
        try:
            if more:
                array = np.asarray(image.dataobj[(..., *(number if n > 1 else 0 for n in image.shape[3:]))])
            else:
                array = np.asarray(image.dataobj).reshape(image.shape[:3], order="F")
            while stream.read(1 << 20):  # only at its end does gzip compare the checksum
                pass
        except MemoryError as error:
            raise _too_large(path, image) from error
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise damaged(path, error) from error
    header = _in_mm(image.header)
    return array.transpose(2, 1, 0), np.asarray(header.get_best_affine(), dtype=float), header


def _one_frame(
    path: Path, image: nib.Nifti1Image, frame: int
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    """One image of a series in time (x,y,z,t)."""
    if len(image.shape) != 4 or not 0 <= frame < image.shape[3] or min(image.shape) < 1:
        raise RawDataError(
            f"Frame {frame} (from 0) is wanted of {path}, whose shape is {image.shape} (x,y,z,t): "
            "give a 4D file that has it."
        )
    try:
        array = np.asarray(image.dataobj[..., frame])
    except MemoryError as error:
        raise _too_large(path, image) from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise damaged(path, error) from error
    header = _in_mm(image.header)
    header.set_data_shape(image.shape[:3])
    return array.transpose(2, 1, 0), np.asarray(header.get_best_affine(), dtype=float), header


def _too_large(path: Path, image: nib.Nifti1Image) -> RawDataError:
    shape = " x ".join(map(str, image.shape))
    megabytes = np.prod(image.shape, dtype=float) * image.get_data_dtype().itemsize / 2**20
    return too_large(path, f"{megabytes:.0f} MiB for the {shape} voxels that its header tells")


def _in_mm(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """The header with its lengths in mm where it counts in metres or microns (as ITK reads it)."""
    factor = MM_OF_UNIT.get(int(header["xyzt_units"]) % 8)
    if factor is None:
        return header
    header = header.copy()
    for field in LENGTHS:
        header[field] = header[field] * factor
    header["pixdim"][1:4] *= factor
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    return header
