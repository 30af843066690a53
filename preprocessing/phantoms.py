"""Three small phantom datasets in MSD layout, drawn from a seed, so that the whole path runs anywhere.

phantom_ct (HU, thick axial slices) and phantom_mr (coil shading, thick sagittal slices) show the same organs;
phantom_pet (smooth, standardised uptake) has hot lesions, a class that the others lack. Every subject has an
anatomy of its own (preprocessing.phantom_anatomy), every file its own axis order, flips and oblique angle.

Arrays are [D,H,W] = (z,y,x) along the file's own axes, as preprocessing.volume reads them; affines map
the voxel index (x,y,z,1) to RAS+ mm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from preprocessing.grid_types import Triple
from preprocessing.phantom_anatomy import Anatomy, Organ, distance_mm, draw_anatomy
from preprocessing.runtime.files import write_text
from preprocessing.runtime.progress import Bar
from preprocessing.spec import load_spec
from preprocessing.volume import Volume, write_volume

MAX_OBLIQUE_DEGREES = 12.0


@dataclass(frozen=True)
class Kind:
    """How one dataset is scanned."""

    name: str
    modality: str
    voxels: tuple[int, int, int]
    spacing_mm: Triple
    middle_mm: Triple
    """Voxels, their edges, and the middle of the field of view along Right, Anterior, Superior."""
    axcodes: tuple[str, ...]
    """Directions that the x, y and z axes of the files run toward, taken in turn."""
    cases: int = 14
    visits: Mapping[int, int] = field(default_factory=dict, hash=False)
    """Case -> subject where a case is a second visit: splits must go by subject."""
    without: Mapping[int, str] = field(default_factory=dict, hash=False)
    """Subject -> the organ it lacks, so that a class is absent somewhere."""

    def subject(self, case: int) -> int:
        return self.visits.get(case, case)

    def case_id(self, case: int) -> str:
        """`ct_s03_v1`: modality, subject, visit; subject_pattern reads the middle part."""
        return f"{self.modality.lower()}_s{self.subject(case):02d}_v{2 if case in self.visits else 1}"


# Coarse on purpose: a crop of 32 voxels then shows most of a trunk, which lets the demo train in minutes. The field of
# view of PET is narrow: seen from far, hot spots are under 2 % of a scan, and clipping to percentiles hides them.
KINDS = (
    Kind(
        "phantom_ct",
        "CT",
        voxels=(40, 32, 28),
        spacing_mm=(6.5, 6.5, 10.0),
        middle_mm=(0, 0, 0),
        axcodes=("LPS", "RAS", "RPI", "LAS"),
        without={5: "left_kidney"},
    ),
    Kind(
        "phantom_mr",
        "MR",
        voxels=(26, 32, 43),
        spacing_mm=(10.0, 6.5, 6.5),
        middle_mm=(0, 0, 0),
        axcodes=("PSL", "ASR", "PIR", "LSA"),
        visits={12: 2, 13: 7},
    ),
    Kind(
        "phantom_pet",
        "PET",
        voxels=(40, 32, 36),
        spacing_mm=(5.0, 5.0, 6.2),
        middle_mm=(0, 0, -30),
        axcodes=("LPS", "LAS", "PIR", "SRA"),
    ),
)


def make_phantoms(raw_root: Path, seed: int = 0, cases_per_dataset: int | None = None) -> list[Path]:
    """Write the three datasets under `raw_root`; the same seed writes the same arrays. Returns their folders.

    `cases_per_dataset` cuts each dataset short (a test wants few).
    """
    folders = []
    for kind in KINDS:
        classes = dict(load_spec(kind.name).classes)
        folder = Path(raw_root) / kind.name
        cases = range(min(kind.cases, cases_per_dataset or kind.cases))
        for case in Bar(cases, desc=kind.name, unit="case"):
            image, labels = make_case(kind, case, seed, classes)
            for part, volume in (("imagesTr", image), ("labelsTr", labels)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                write_volume(folder / part / f"{kind.case_id(case)}.nii.gz", volume)
        _write_description(folder, kind, [kind.case_id(case) for case in cases], classes)
        folders.append(folder)
    return folders


def make_case(kind: Kind, case: int, seed: int, classes: dict[str, int]) -> tuple[Volume, Volume]:
    """Image and labels of one case: a function of dataset, case number and seed, and of nothing else."""
    rng = np.random.default_rng([seed, _number(kind), 1, case])
    codes = kind.axcodes[case % len(kind.axcodes)]
    shape, affine = draw_grid(rng, kind, codes, oblique=case > 0)
    points = grid_points(shape, affine)
    anatomy = subject_anatomy(kind, kind.subject(case), seed)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    image = render(anatomy, points, spacing_mm, kind.modality, rng)
    return Volume(image, affine), Volume(anatomy.label_map(points, classes), affine)


def subject_anatomy(kind: Kind, subject: int, seed: int) -> Anatomy:
    """The body of one subject: the same at each visit."""
    rng = np.random.default_rng([seed, _number(kind), 0, subject])
    return draw_anatomy(rng, with_lesion=kind.modality == "PET", without=kind.without.get(subject, ""))


def draw_grid(
    rng: np.random.Generator, kind: Kind, axcodes: str, oblique: bool
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (x,y,z of the file) and affine of the grid of a kind, its axes toward `axcodes`."""
    orientation = nib.orientations.axcodes2ornt(tuple(axcodes)).astype(int)
    world_axis, sign = orientation[:, 0], orientation[:, 1]
    shape = np.array(kind.voxels)[world_axis]
    directions = np.zeros((3, 3))
    directions[world_axis, np.arange(3)] = sign
    if oblique:
        axis = rng.normal(size=3)
        angle = np.deg2rad(rng.uniform(0.3, 1.0) * MAX_OBLIQUE_DEGREES)
        directions = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix() @ directions
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(kind.spacing_mm)[world_axis]
    affine[:3, 3] = np.array(kind.middle_mm) - affine[:3, :3] @ ((shape - 1) / 2)
    return (int(shape[0]), int(shape[1]), int(shape[2])), affine


def grid_points(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Voxel centres [D,H,W,3] in RAS+ mm of a grid of `shape` (x,y,z) voxels."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in reversed(shape)), indexing="ij")
    return np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def render(
    anatomy: Anatomy, points: np.ndarray, spacing_mm: np.ndarray, modality: str, rng: np.random.Generator
) -> np.ndarray:
    """The scan [D,H,W] at points [D,H,W,3]: int16 HU for CT, uint16 for MR, float32 uptake for PET."""
    canonical = anatomy.to_canonical(points)
    clean = np.full(points.shape[:-1], {"CT": -1000.0, "MR": 0.0, "PET": 0.05}[modality])
    voxel_mm = float(max(spacing_mm))
    for organ in anatomy.organs:
        # partial volume at the surface
        share = np.clip(0.5 - distance_mm(organ, canonical) / voxel_mm, 0.0, 1.0)
        level = getattr(organ, modality.lower()) * _texture(organ, canonical, rng)
        clean += share * (level - clean)
    if modality == "CT":
        return np.clip(np.rint(clean + rng.normal(0.0, 18.0, clean.shape)), -1024, 3071).astype(np.int16)
    if modality == "MR":
        return _to_mr(clean, points, rng)
    blurred = gaussian_filter(clean, [7.0 / 2.355 / s for s in spacing_mm])  # 7 mm full width at half maximum
    noise = gaussian_filter(rng.normal(size=clean.shape), 0.8) * 0.3 * np.sqrt(blurred)
    return np.maximum(blurred + noise, 0.0).astype(np.float32)


def _texture(organ: Organ, canonical: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A factor about 1: grain everywhere, loops in the gut, discs between the vertebrae."""
    factor = 1.0 + 0.5 * gaussian_filter(rng.normal(size=canonical.shape[:-1]), 1.5)
    if organ.name == "gut":
        factor += 0.5 * np.sin(canonical[..., 0] / 6.0) * np.sin(canonical[..., 2] / 7.0)
    if organ.name == "spine":
        factor *= 0.8 + 0.35 * np.tanh(4 * np.cos(2 * np.pi * canonical[..., 2] / 32.0) + 2)
    return factor


def _to_mr(clean: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coil shading (its logarithm is a quadric of the place), Rician noise, and a scale of no meaning."""
    place = points / 130.0
    x, y, z = place[..., 0], place[..., 1], place[..., 2]
    shaded = clean * np.exp(np.stack([x, y, z, x * x, y * z], axis=-1) @ rng.uniform(-0.2, 0.2, 5))
    noisy = np.hypot(shaded + rng.normal(0, 0.03, clean.shape), rng.normal(0, 0.03, clean.shape))
    return np.rint(noisy * rng.uniform(300.0, 1500.0)).astype(np.uint16)


def _write_description(folder: Path, kind: Kind, ids: list[str], classes: dict[str, int]) -> None:
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ids]
    description = {
        "name": kind.name,
        "description": "Drawn by preprocessing.phantoms; no person was scanned.",
        "tensorImageSize": "3D",
        "modality": {"0": kind.modality},
        "labels": {"0": "background"} | {str(value): name for name, value in classes.items()},
        "numTraining": len(ids),
        "numTest": 0,
        "training": pairs,
        "test": [],
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")


def _number(kind: Kind) -> int:
    return [other.name for other in KINDS].index(kind.name)


def main(argv: list[str] | None = None) -> int:
    """Command line: `python -m preprocessing.phantoms RAW_DIR --seed 0`."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.phantoms", description="Write three phantom datasets."
    )
    parser.add_argument("raw", type=Path, help="the folder that gets phantom_ct, phantom_mr and phantom_pet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cases", type=int, default=None, help="at most so many cases a dataset (default: all 14)"
    )
    options = parser.parse_args(argv)
    make_phantoms(options.raw, options.seed, options.cases)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
