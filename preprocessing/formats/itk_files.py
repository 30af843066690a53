"""Files that SimpleITK reads, mha, mhd, nrrd and DICOM series, as array and affine; and the choice of a channel.

Arrays are [D,H,W] = (z,y,x) in the file's own orientation; affines map the voxel index (x,y,z,1) to RAS+ mm.
`preprocessing.volume` is the one that calls this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# ITK reads it at its start: cosines that are not quite orthonormal (M&Ms, TotalSegmentator) are then no error.
os.environ.setdefault("ITK_NIFTI_SFORM_PERMISSIVE", "1")
import SimpleITK as sitk

from preprocessing.errors import ChannelError, RawDataError
from preprocessing.runtime.files import plain_name

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
DICOM_POSITION = "0020|0032"  # image position (patient): the centre of a slice's first voxel, LPS+ mm
DICOM_MAGIC = b"DICM"  # behind a preamble of 128 bytes
IMAGE_KINDS = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9.]+")  # storage classes (DICOM PS3.4, B.5)
HEAD = 1024  # bytes of a DICOM file that hold its storage class
HEADERS = {".mhd": r"ElementDataFile\s*=", ".nhdr": r"data ?file:"}
LONGEST_HEADER = 2**20  # bytes; a list of slices has a line each
SHORT_OF_MEMORY = "Failed to allocate memory"  # as ITK says it
UNEVEN = 0.1  # slice steps of a DICOM series may differ by this share; a missing slice doubles one


def choose_channel(path: Path, channels: int, wanted: int | None) -> int:
    """The number of the channel to read; ChannelError where none was named and there are several, or another one."""
    if wanted is None and channels > 1:
        raise ChannelError(
            f"A scan has one channel, but {path} has {channels} and none was named: choose one of 0 to "
            f"{channels - 1} (--channel, of references --reference-channel)."
        )
    if wanted is not None and not 0 <= wanted < channels:
        there = f"{channels} channels, 0 to {channels - 1}" if channels > 1 else "one channel, 0"
        raise ChannelError(f"{path} has {there}, but channel {wanted} was asked for: name one that it has.")
    return wanted or 0


def data_files(header: Path) -> list[Path]:
    """Where the voxels of an mhd or nhdr header lie; nothing for other files, and where it holds them itself."""
    said = HEADERS.get(header.suffix.lower())
    if said is None or not header.is_file():
        return []
    text = header.read_bytes()[:LONGEST_HEADER].decode("utf-8", "replace")
    found = re.search(rf"^{said}(.*)$", text, re.IGNORECASE | re.MULTILINE)
    if found is None or found[1].strip().upper() == "LOCAL":
        return []
    listed = found[1].strip().upper().startswith("LIST")
    names = text[found.end() :].splitlines() if listed else [found[1]]
    return [header.parent / name.strip() for name in names if name.strip()]


def damaged(path: Path, error: Exception) -> RawDataError:
    """The sentence for a file that a reader broke on."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return RawDataError(f"{path} cannot be read ({reason}): the file is damaged, copy it again.")


def too_large(path: Path, wanted: str = "") -> RawDataError:
    """Memory was short: mostly nothing is wrong with the file, but a damaged header may ask for anything.

    wanted: how much its header asks for.
    """
    return RawDataError(
        f"{path} needs more memory than is free{f' ({wanted})' if wanted else ''}: make some free or give fewer "
        "--workers, then run again; if it should be smaller, copy it again."
    )


@contextmanager
def _itk_silent() -> Iterator[None]:
    """ITK prints no warnings of its own: what they tell about a series (none, uneven slices) our sentences say."""
    talks = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(talks)


def dicom_files(folder: Path) -> list[str]:
    """The files of the only series of a folder, by their place along the normal of the slices.

    RawDataError where there is no series or more than one.
    """
    place = _itk_name(folder)
    with _itk_silent():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(place)
    if len(series) != 1:
        raise RawDataError(
            f"A DICOM folder holds one series, but {folder} holds {len(series) or 'none'}: give each its own folder."
        )
    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(place, series[0]))
    for file in files:
        _itk_name(file)
    return files


def _itk_name(path: Path | str) -> str:
    """A path as SimpleITK takes it, in UTF-8 whatever the locale; RawDataError for others: they end the process."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise RawDataError(
            f"{plain_name(str(path))} cannot be read: its name is no UTF-8; rename it."
        ) from None


def from_dicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A series; the step between slices is measured from their positions, so a tilted gantry is a sheared affine.

    RawDataError where a slice cannot be read, where slices are missing or lie unevenly: no affine could place them.
    """
    files = dicom_files(folder)
    if damaged_file := unread_slice(folder, [Path(file) for file in files]):
        raise RawDataError(
            f"{damaged_file} cannot be read, although it lies among the slices of a series: copy it again, or take it "
            "away if it is none."
        )
    if len(files) == 1:
        return _from_itk(folder, lambda: sitk.ReadImage(files[0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    # Each slice has a slope of its own (PET): by the first one's type, others would lose fractions or wrap around.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _itk_silent():
        try:
            array, affine = _from_itk(folder, reader.Execute)
        except RawDataError:
            for file in files:  # the sentence is to name the one that the reader broke on
                _from_itk(Path(file), lambda file=file: sitk.ReadImage(file))  # type: ignore[misc]
            raise
    if all(reader.HasMetaDataKey(i, DICOM_POSITION) for i in range(len(files))):
        texts = [reader.GetMetaData(i, DICOM_POSITION).split("\\") for i in range(len(files))]
        steps = np.diff(np.array(texts, dtype=float), axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        if lengths.max() - lengths.min() > UNEVEN * lengths.mean():
            raise RawDataError(
                f"Slices of a DICOM series lie evenly, but those of {folder} lie {lengths.min():.2f} to "
                f"{lengths.max():.2f} mm apart: export the whole series again."
            )
        affine[:3, 2] = LPS_TO_RAS[:3, :3] @ steps.mean(axis=0)
    return array, affine


def unread_slice(folder: Path, slices: Sequence[Path]) -> Path | None:
    """The first file of a series' folder that should be a slice and is not among `slices`, those that can be read.

    ITK leaves out what it cannot read: a damaged slice would be missing, and at the ends of the series nobody would
    notice. A slice has their kind of name or of file; DICOM of another kind (a report, contours) may lie beside.
    """
    known = {path.name for path in slices}
    patterns = {_numbers_apart(name) for name in known}
    ours = _storage_class(slices[0])
    # links that lead nowhere first: GDCM leaves out good slices, too, where it meets one
    for path in sorted(folder.iterdir(), key=lambda path: (os.path.exists(path), path)):
        if path.name in known or path.name.startswith(".") or path.name == "DICOMDIR":
            continue
        try:
            if not path.is_file() and (os.path.exists(path) or not path.is_symlink()):
                continue  # a folder, say; a link that leads nowhere should be a slice if it is named as one
            with path.open("rb") as stream:
                is_dicom = stream.read(132)[128:] == DICOM_MAGIC
        except FileNotFoundError:
            is_dicom = False
        except OSError:  # not ours to read
            return path
        named = path.suffix.lower() == ".dcm" or _numbers_apart(path.name) in patterns
        if (is_dicom or named) and (not os.path.exists(path) or _storage_class(path) in (None, ours)):
            return path
    return None


def _numbers_apart(name: str) -> str:
    """'IM0012' and 'IM0013' -> 'IM0': names that differ in their numbers alone are the same."""
    return re.sub("[0-9]+", "0", name)


def _storage_class(path: Path) -> bytes | None:
    """What kind of DICOM a file says it is; None where its first bytes say nothing."""
    with path.open("rb") as stream:
        found = IMAGE_KINDS.search(stream.read(HEAD))
    return found.group() if found else None


def from_itk_file(path: Path, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of an mha, mhd or nrrd file."""
    return _from_itk(path, lambda: sitk.ReadImage(_itk_name(path)), channel)


def layers_from_itk_file(path: Path) -> tuple[list[np.ndarray], np.ndarray, dict[str, str]]:
    """All channels of an mha, mhd or nrrd file, an array each, their affine, and the pairs of keys and values in its
    header."""
    image = _itk_image(path, lambda: sitk.ReadImage(_itk_name(path)))
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    if image.GetDimension() == 4:
        parts = [_channel_of(image, number) for number in range(image.GetSize()[3])]
        return [sitk.GetArrayFromImage(part) for part in parts], _affine(parts[0]), header
    array = sitk.GetArrayFromImage(image)
    layers = [array[..., number] for number in range(array.shape[3])] if array.ndim == 4 else [array]
    return layers, _affine(image), header


def _from_itk(
    path: Path, read: Callable[[], sitk.Image], channel: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    image = _itk_image(path, read)
    vector = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() == 4:  # channels as a fourth axis
        image = _channel_of(image, choose_channel(path, image.GetSize()[3], channel))
    else:
        number = choose_channel(path, vector, channel)
        image = sitk.VectorIndexSelectionCast(image, number) if vector > 1 else image
    return sitk.GetArrayFromImage(image), _affine(image)


def _itk_image(path: Path, read: Callable[[], sitk.Image]) -> sitk.Image:
    """What `read` reads, of three axes, and perhaps of several channels as a fourth or in each voxel."""
    try:
        image = read()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or SHORT_OF_MEMORY in str(error):
            raise too_large(path) from error
        raise damaged(path, RuntimeError(_told_by_itk(path, error))) from error
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = sitk.Extract(image, [*image.GetSize()[:-1], 0], [0] * image.GetDimension())
    vector = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 and (image.GetDimension(), vector) != (4, 1):
        raise RawDataError(
            f"A scan has three axes and perhaps channels, but {path} has shape {image.GetSize()} (x,y,z,...) "
            f"with {vector} number{'s' * (vector > 1)} in each voxel: extract one image."
        )
    return image


def _told_by_itk(path: Path, error: Exception) -> str:
    """The last line of its message that says why; its reason is whatever the system last said, true or not."""
    lines = str(error).strip().splitlines()
    if not lines[-1].startswith("Reason:") or path.is_dir():
        return lines[-1]
    for file in (path, *data_files(path)):
        try:
            file.open("rb").close()
        except OSError as problem:
            return f"{file.name}: {problem.strerror}"
    return "it ends too early, or its header says something else"


def grid_of_itk_file(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (z,y,x) and affine from the header alone; RawDataError where it cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(_itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(path, RuntimeError(_told_by_itk(path, error))) from error
    axes = reader.GetDimension()
    if axes < 3:
        raise RawDataError(f"A scan has three axes, but {path} has {axes}: give a volume.")
    cosines = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    return reader.GetSize()[2::-1], _affine_of(cosines, reader.GetSpacing()[:3], reader.GetOrigin()[:3])


def _channel_of(image: sitk.Image, number: int) -> sitk.Image:
    """One channel of an image that has them as its fourth axis."""
    return sitk.Extract(image, [*image.GetSize()[:3], 0], [0, 0, 0, number])


def _affine(image: sitk.Image) -> np.ndarray:
    cosines = np.array(image.GetDirection()).reshape(3, 3)
    return _affine_of(cosines, image.GetSpacing(), image.GetOrigin())


def _affine_of(cosines: np.ndarray, spacing_mm: Sequence[float], origin_mm: Sequence[float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = cosines * np.array(spacing_mm)
    affine[:3, 3] = origin_mm
    return LPS_TO_RAS @ affine
