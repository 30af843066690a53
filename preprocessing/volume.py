"""Volume = array + affine, and the one seam to file formats.

Arrays are [D,H,W] = (z,y,x): `array[k, j, i]` is the voxel (i, j, k) of the file, in the file's own orientation.
`affine` is 4x4, nibabel's convention: it maps the voxel index (i, j, k, 1) to mm in the RAS+ world. Shapes and
`spacing_mm` are (z,y,x) like the array.

>>> scan = Volume(np.zeros((30, 256, 200), np.float32), np.diag([1.25, 1.25, 7.7, 1.0]))
>>> scan.shape, scan.spacing_mm
((30, 256, 200), (7.7, 1.25, 1.25))
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.formats.itk_files import (
    choose_channel,
    from_dicom,
    from_itk_file,
    grid_of_itk_file,
)
from preprocessing.formats.nifti_files import from_nifti, grid_of_nifti_file, place, unread
from preprocessing.formats.slicer import ENDINGS as SEGMENTATIONS
from preprocessing.formats.slicer import Segmentation, is_segmentation, read_segmentation
from preprocessing.runtime.files import replaced

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
FRACTION = 1e-3  # of a label value: below it a float is a whole number that was scaled and stored
SINGULAR = 1e-12  # mm^3 of a voxel: below it the affine places nothing
CORNER_VOXELS = 0.5  # two geometries whose corners lie no farther apart count as one


@dataclass(frozen=True)
class Volume:
    """array [D,H,W]; affine (4,4) to RAS+ mm; header: the NIfTI header of the file it came from, if any.

    repairs: what was mended while it was read, doubts: what looks odd and was kept, a phrase each. segments: of a
    segmentation of 3D Slicer's, which may cover a part of its scan only, as long as it has its own grid.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    repairs: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    segments: Segmentation | None = None

    @property
    def partial(self) -> bool:
        """Whether it may cover a part of its scan only; what is beyond is background then."""
        return self.segments is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        d, h, w = self.array.shape
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel (z,y,x) in mm: the norms of the affine's columns."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x


def is_image_path(path: Path) -> bool:
    """Whether the name is of a format that can be read; hidden files (macOS' shadows, unfinished ones) are not."""
    return not path.name.startswith(".") and path.name.lower().endswith(NIFTI + ITK)


def stem_of(path: Path) -> str:
    """The name without its ending (`.seg.nrrd` is one): the case id of a label map, which has no channels."""
    ending = next((each for each in SEGMENTATIONS + NIFTI + ITK if path.name.lower().endswith(each)), "")
    return path.name[: len(path.name) - len(ending)]


def case_id_of(path: Path, others: Collection[str] = ()) -> str:
    """The name without its ending and without nnU-Net's channel suffix.

    others: ids of what it is to be paired with; a whole name that is among them is kept, as cases may be numbered from
    0000 on.

    >>> case_id_of(Path("scans/liver_004_0000.nii.gz"))
    'liver_004'
    >>> case_id_of(Path("scans/case_0000.nii.gz"), {"case_0000", "case_0001"})
    'case_0000'
    """
    stem = stem_of(path)
    return stem if stem in others else stem.removesuffix("_0000")


def read_volume(path: Path, channel: int | None = None) -> Volume:
    """A scan as float32 [D,H,W]: NIfTI, mha, mhd, nrrd, or a folder with one DICOM series.

    channel: which one, from 0 on, of an image with several (a fourth axis, or a vector in each voxel).
    RawDataError, one sentence with the file's name, where it is missing, damaged or no single 3D image.
    """
    return as_image(read_raw(path, channel=channel))


def read_labels(path: Path) -> Volume:
    """A label map [D,H,W] in the smallest unsigned type that holds it, a signed one if it has negatives.

    Formats and errors as `read_volume`; RawDataError too where values are not whole numbers.
    """
    return as_labels(read_raw(path), str(path))


def read_raw(path: Path, frame: int | None = None, channel: int | None = None) -> Volume:
    """The voxels in the file's own type; `frame` (from 0) chooses one of a 4D NIfTI. Else as `read_volume`.

    The layers of a segmentation of 3D Slicer's become one label map, see `slicer.py`.
    """
    path = Path(path)
    if channel is None and is_segmentation(path) and path.is_file():
        array, affine, segments, repairs = read_segmentation(path)
        _check(path, array, affine)
        return Volume(array, affine, None, repairs, segments=segments)
    array, affine, header = _read(path, frame, channel)
    _check(path, array, affine)
    return Volume(array, affine, header)


def as_image(volume: Volume) -> Volume:
    """The same as float32."""
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which normalise refuses
        return replace(volume, array=np.ascontiguousarray(volume.array, dtype=np.float32))


def as_labels(volume: Volume, where: str) -> Volume:
    """The same in the smallest type that holds it; RawDataError naming `where` for values that are not whole.

    LabelValueError for a segmentation whose values mean nothing and whose names were not known either
    (`mending.SegmentsByName`).
    """
    array = volume.array
    if volume.segments is not None and volume.segments.by_order:
        names = ", ".join(name for name, _ in volume.segments.names)
        raise LabelValueError(
            f"The segments of {where} ({names}) share label values, so they need the names of the classes: rename "
            "them in 3D Slicer, or export them to a label map there (Segmentations, Export)."
        )
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(whole).all() or np.abs(array - whole).max() > FRACTION:
            raise RawDataError(
                f"Label maps hold whole numbers, but {where} holds others: export it as integers."
            )
        array = whole
    low, high = int(array.min()), int(array.max())
    kind = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    return replace(volume, array=np.ascontiguousarray(array.astype(kind, copy=False)))


def write_volume(path: Path, volume: Volume, scale: float | None = None) -> None:
    """NIfTI (.nii.gz or .nii) of the array's own type; the same volume always gives the same bytes.

    scale: what the numbers in the file are multiples of; readers multiply by it (scl_slope).

    Where `volume.header` places the voxels as `volume.affine` does, its qform, sform, their codes and the
    units are kept to the bit, so that every viewer lays the result over the scan as before. RawDataError for
    another ending or a type that NIfTI lacks.
    """
    with coming_volume(Path(path), volume, scale):
        pass


@contextmanager
def coming_volume(path: Path, volume: Volume, scale: float | None = None) -> Iterator[None]:
    """What `write_volume` writes, whole under a hidden name inside the context, and under its own behind it; not at
    all where the context fails. So several files may come together. Errors as there.
    """
    ending = next((each for each in NIFTI if path.name.lower().endswith(each)), None)
    if ending is None:
        raise RawDataError(f"Volumes are written as .nii.gz or .nii, but {path} was asked for: rename it.")
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    kind = nib.Nifti2Image if isinstance(volume.header, nib.Nifti2Header) else nib.Nifti1Image
    try:
        image = kind(array.transpose(2, 1, 0), None, dtype=array.dtype)  # an affine would rule the header
    except HeaderDataError:
        raise RawDataError(
            f"NIfTI has no type {array.dtype} (for {path}): convert the array first."
        ) from None
    place(image.header, volume.affine, volume.header)
    if scale is not None:
        image.header.set_slope_inter(scale, 0)
    with replaced(path, f".part{ending}") as temporary:
        nib.save(image, temporary)
        yield


def orientation_conflict(path: Path) -> str | None:
    """A phrase where a NIfTI's qform and sform place a corner more than half a voxel apart (BTCV), else None.

    `read_volume` then follows the sform. RawDataError where the file's header cannot be read.
    """
    path = Path(path)
    if path.is_dir() or not path.name.lower().endswith(NIFTI):
        return None
    header = unread(path).header
    if not header["qform_code"] or not header["sform_code"]:
        return None
    try:
        qform, sform = header.get_qform(), header.get_sform()
    except (ValueError, HeaderDataError):
        return "the qform is not valid; the sform is used"
    shape = header.get_data_shape()[2::-1]
    if corner_shift(shape, sform, qform)[0] <= CORNER_VOXELS:
        return None
    return f"qform and sform lie {corner_shift(shape, sform, qform)[1]:.1f} mm apart at a corner; the sform is used"


def grid_of(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (z,y,x) and affine of a NIfTI, mha, mhd or nrrd file, from its header alone: channels of one scan share
    them. RawDataError where it cannot be read.
    """
    if not path.name.lower().endswith(NIFTI):
        return grid_of_itk_file(path)
    return grid_of_nifti_file(path)


def same_grid(one: tuple[tuple[int, ...], np.ndarray], other: tuple[tuple[int, ...], np.ndarray]) -> bool:
    """Whether two of `grid_of` are one: the same shape, corners at most half a voxel apart; an affine that places
    nothing is taken for any.
    """
    if one[0] != other[0] or len(one[0]) < 3:
        return one[0] == other[0]
    if not all(abs(np.linalg.det(affine[:3, :3])) >= SINGULAR for _, affine in (one, other)):
        return True
    return corner_shift(one[0], one[1], other[1])[0] <= CORNER_VOXELS


def corner_shift(shape: tuple[int, ...], affine: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """How far two affines place the corners of an array (z,y,x) apart: (voxels of `affine`, mm).

    Voxels are counted along each axis by itself and the largest count is given: 1 mm across slices 10 mm
    thick is a tenth.
    """
    ends = [(0, n - 1) for n in shape[::-1]]
    corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]], dtype=float)
    shift_mm = (corners @ (other - affine).T)[:, :3]
    voxels = np.linalg.solve(affine[:3, :3], shift_mm.T)
    return float(np.abs(voxels).max()), float(np.linalg.norm(shift_mm, axis=1).max())


def _read(
    path: Path, frame: int | None = None, channel: int | None = None
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header | None]:
    if not path.exists():
        raise RawDataError(f"{path} does not exist: check the name.")
    header = None
    if path.is_dir():
        array, affine = from_dicom(path)
        choose_channel(path, 1, channel)
    elif path.name.lower().endswith(NIFTI):
        array, affine, header = from_nifti(path, frame, channel)
    elif path.name.lower().endswith(ITK):
        array, affine = from_itk_file(path, channel)
    else:
        raise RawDataError(f"{path} is in no known format: give {', '.join(NIFTI + ITK)} or a DICOM folder.")
    return array, affine, header


def _check(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """RawDataError for voxels that are no real numbers, or that have no place."""
    if array.dtype.kind not in "biuf":
        raise RawDataError(
            f"A voxel holds one real number, but {path} holds {array.dtype}: extract one channel."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SINGULAR:
        raise RawDataError(f"{path} has a singular affine, so its voxels have no place: mend its header.")
