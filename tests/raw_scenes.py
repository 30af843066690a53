"""Scenes for miniature downloads: boxes in world mm, drawn on a grid and written as NIfTI, DICOM and PNG.

Arrays are in the files' order (x,y,z); affines map it to RAS+ mm. Labels have the values of the specification.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from preprocessing.spec import DatasetSpec

HALF_FIELD_MM = (31.0, 31.0, 33.0)
OFF_CENTRE_MM = np.array([2.5, -2.5, 3.0])
SPACING_MM = (2.5, 2.2, 3.0)  # along x, y and z of the world
HALF_BOX_MM = 4.6
CELLS = [(y, z) for z in (-20.0, -6.5, 6.5, 20.0) for y in (-17.0, 0.0, 17.0)]
GREYS = {"liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


@dataclass(frozen=True)
class Truth:
    """What is true about a case. why: a part of what its verdict must say. exact: undone voxel for voxel."""

    subject: str
    labels: np.ndarray
    centres_mm: dict[str, np.ndarray]
    why: str = ""
    exact: bool = True


@dataclass
class Download:
    """The tree of one dataset while it is written."""

    spec: DatasetSpec
    top: Path
    truths: dict[str, Truth] = field(default_factory=dict)

    def ids(self, part: str, count: int = 1) -> list[str]:
        """Subjects of one list of the authors' split."""
        path = resources.files("dataset_specs") / "splits" / f"{self.spec.name}.json"
        return json.loads(path.read_text(encoding="utf-8"))[part][:count]


def boxes_mm(spec: DatasetSpec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Class -> (centre, half edges) of its box in world mm (x,y,z)."""
    if "heart" in spec.classes and spec.quirks.volume_ml:
        small = np.full(3, HALF_BOX_MM)
        centres = {"left lung": (-36, 0, 0), "right lung": (36, 0, 0), "heart": (0, 10, 0)}
        centres |= {"esophagus": (0, -30, -20), "trachea": (0, -30, 20), "spinal cord": (14, -30, 0)}
        large = np.array([28.0, 28.0, 28.0])
        return {
            name: (
                np.array(centre, float),
                large if name == "heart" else np.full(3, 9.0) if "cord" in name else small,
            )
            for name, centre in centres.items()
        }
    columns: dict[str, list[str]] = {"left": [], "middle": [], "right": []}
    for name in spec.classes:
        side = next((side for side, names in spec.sides.items() if name in names), "middle")
        columns[side].append(name)
    return {
        name: (
            np.array([{"left": -17.0, "middle": 0.0, "right": 17.0}[side], *CELLS[i]]) + OFF_CENTRE_MM,
            np.full(3, HALF_BOX_MM),
        )
        for side, names in columns.items()
        for i, name in enumerate(names)
    }


def grid(
    codes: str, half_mm: tuple[float, ...] = HALF_FIELD_MM, spacing: tuple[float, ...] = SPACING_MM
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An affine with these axis codes, centred at 0, and the array's shape (x,y,z of the file)."""
    affine, shape = np.eye(4), []
    for axis, code in enumerate(codes):
        world = "RAS".find(code) if code in "RAS" else "LPI".find(code)
        affine[:3, axis] = 0
        affine[world, axis] = spacing[world] * (1 if code in "RAS" else -1)
        shape.append(round(2 * half_mm[world] / spacing[world]))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, (shape[0], shape[1], shape[2])


def paint(spec: DatasetSpec, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Labels on a grid: which voxel centres lie in which box."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    for name, (centre, half) in boxes_mm(spec).items():
        labels[(np.abs(world - centre) <= half).all(axis=-1)] = spec.classes[name]
    return labels


def shade(spec: DatasetSpec, labels: np.ndarray, name: str) -> np.ndarray:
    """Grey values: noise, another one for every scan of every dataset, about one value a class."""
    rng = np.random.default_rng(zlib.crc32(f"{spec.name} {name}".encode()))
    base = {"CT": -100.0, "MR": 100.0, "PET": 2.0}[spec.modality]
    step = {"CT": 40.0, "MR": 40.0, "PET": 5.0}[spec.modality]
    return base + step * labels + rng.normal(0, step / 8, labels.shape)


def save(path: Path, array: np.ndarray, affine: np.ndarray, qform: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine if qform is None else qform, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def shadow(path: Path, content: bytes = b"\0\5\x16\7") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def pair(
    to: Download,
    case: str,
    image: str,
    labels: str,
    codes: str = "LPS",
    *,
    subject: str = "",
    stored: Mapping[int, int] | None = None,
    also: Mapping[int, tuple[int, int, int]] | None = None,
    qform: bool = False,
    why: str = "",
    grid_of: tuple[np.ndarray, tuple[int, int, int]] | None = None,
    label_grid: tuple[np.ndarray, tuple[int, int, int]] | None = None,
    label_header: np.ndarray | None = None,
    label_codes: str | None = None,
) -> None:
    """One scan with its label map as NIfTI. stored: value of the class -> value in the file.

    also: value in the file -> voxel that has it and means background. qform: one that lies elsewhere than the
    sform. label_grid: a grid of the label map's own. label_header: an affine in its header that is wrong. label_codes:
    the same voxels in other axes.
    """
    half = (46.0, 46.0, 40.0) if to.spec.quirks.volume_ml else HALF_FIELD_MM
    affine, shape = grid_of or grid(codes, half)
    truth = paint(to.spec, affine, shape)
    kind = np.float32 if to.spec.modality == "PET" else np.int16
    flipped = affine @ np.diag([1.0, -1.0, 1.0, 1.0]) if qform else None
    grey = shade(to.spec, truth, case)
    save(to.top / image, grey.astype(kind), affine, flipped)
    there = truth if label_grid is None else paint(to.spec, *label_grid)
    in_file = np.vectorize(lambda value: (stored or {}).get(value, value), otypes=[np.uint8])(there)
    for value, voxel in (also or {}).items():
        in_file[voxel] = value
    header = affine if label_grid is None else label_grid[0]
    header = header if label_header is None else label_header
    if label_codes is not None:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(label_codes))
        )
        in_file = nib.orientations.apply_orientation(in_file, turn)
        header = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    save(to.top / labels, in_file, header)
    remember(to, case, subject or case, truth, why, exact=label_grid is None and grid_of is None)


def remember(
    to: Download, case: str, subject: str, labels: np.ndarray, why: str = "", exact: bool = True
) -> None:
    to.truths[case] = Truth(subject, labels, {n: c for n, (c, _) in boxes_mm(to.spec).items()}, why, exact)


def write_dicom(folder: Path, array: np.ndarray, affine: np.ndarray, stems: list[str]) -> None:
    """One MR series of axial slices, array (x,y,z) with an affine to RAS+ mm; stems: names along z."""
    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    series, study, frame = (
        generate_uid(entropy_srcs=[str(folder), word]) for word in ("series", "study", "frame")
    )
    for z, stem in enumerate(stems):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), stem])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        part = Dataset()
        part.file_meta = meta
        part.SOPClassUID, part.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        part.Modality, part.PatientID, part.PatientName = "MR", "anon", "anon"
        part.StudyInstanceUID, part.SeriesInstanceUID, part.FrameOfReferenceUID = study, series, frame
        part.SeriesNumber, part.InstanceNumber = 4, int(stem.rpartition("-")[2])
        part.ImagePositionPatient = [f"{value:.6f}" for value in (lps @ [0, 0, z, 1])[:3]]
        part.ImageOrientationPatient = [
            f"{v:.6f}" for v in (*lps[:3, 0] / spacing[0], *lps[:3, 1] / spacing[1])
        ]
        part.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        part.SliceThickness = f"{spacing[2]:.6f}"
        part.Rows, part.Columns = array.shape[1], array.shape[0]
        part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
        part.BitsAllocated, part.BitsStored, part.HighBit, part.PixelRepresentation = 16, 16, 15, 0
        part.PixelData = np.ascontiguousarray(array[:, :, z].T).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{stem}.dcm", part, enforce_file_format=True)


def write_masks(folder: Path, spec: DatasetSpec, labels: np.ndarray, stems: list[str]) -> None:
    """One PNG a slice in CHAOS' grey values."""
    folder.mkdir(parents=True)
    grey = np.zeros(256, np.uint8)
    for name, value in GREYS.items():
        grey[spec.classes[name]] = value
    for z, stem in enumerate(stems):
        Image.fromarray(grey[labels[:, :, z].T]).save(folder / f"{stem}.png")
