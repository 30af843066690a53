"""Whether a NIfTI file is whole, without reading its voxels: a folder of thousands is looked through in seconds.

What was broken off, by a full disk say, is shorter than its header tells; of a compressed file the last four bytes tell
how long it is unpacked. Shapes are (z,y,x), affines map voxel indices (x,y,z,1) to RAS+ mm.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from preprocessing.errors import RawDataError
from preprocessing.formats.nifti_files import GZIP_MAGIC, grid_of_nifti, unread
from preprocessing.volume import read_raw

TRAILER = 4  # bytes of a gzip file: the unpacked length modulo 2^32, low byte first


def whole_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a NIfTI file that holds all its voxels; RawDataError for one that does not.

    Where lengths say something else than the header (several compressed parts, bytes behind the voxels) all is read.
    """
    with suppress(RawDataError, OSError):  # reading all of it says what is wrong, if anything is
        image = unread(path)
        told = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
        if len(image.shape) == 3 and _is_long(path, told):
            return grid_of_nifti(image)
    volume = read_raw(path)
    return volume.shape, volume.affine


def _is_long(path: Path, told: int) -> bool:
    """Whether the file has as many bytes, unpacked, as its header tells."""
    with path.open("rb") as stream:
        if stream.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return os.fstat(stream.fileno()).st_size >= told
        stream.seek(-TRAILER, os.SEEK_END)
        return int.from_bytes(stream.read(TRAILER), "little") == told % 2**32
