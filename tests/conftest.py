"""Fixtures shared by the tests.

`tiny_raw`     TinyRaw: a generated dataset in MSD layout. 5 cases of 4 subjects (s2 was scanned twice),
anisotropic, each with another orientation and an oblique affine; three classes under the values 1, 2 and 5
(`left` and `right` of the midline, `core` between them, which the case s4_a lacks). Session scope: do not
change the files, copy the folder first. `tiny_store`   the finished Store made from it by the real stages,
crop 32^3 (session scope, read only). `shared_data`  the folder of the real datasets; the test is skipped,
with a message, where it is absent. `opened`   the names of the files that `Path.open` opened since, a list that
may be cleared.

Arrays are [D,H,W] = (z,y,x); affines map (x,y,z) to RAS+ mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocessing.run import plan_and_preprocess
from preprocessing.spec import DatasetSpec, load_spec
from preprocessing.store import Store

SPEC = """\
name: tiny
title: Five generated scans
modality: MR
role: upstream
layout: msd
source: tests/conftest.py
licence: Apache-2.0
classes:
  left: 1
  right: 2
  core: 5
sides:
  left: [left]
  right: [right]
subject_pattern: "^(?P<subject>s[0-9]+)_"
expected_cases: 5
"""

# case id -> axis codes of the file
CASES = {"s1_a": "RAS", "s2_a": "LPS", "s2_b": "PIR", "s3_a": "ASL", "s4_a": "LAI"}
SPACING_MM = {"R": 1.2, "L": 1.2, "A": 1.4, "P": 1.4, "S": 3.0, "I": 3.0}
FIELD_MM = 48.0
VALUES = {"left": 1, "right": 2, "core": 5}


@dataclass(frozen=True)
class TinyRaw:
    """`root` is a raw root (it holds tiny/imagesTr and labelsTr); `spec_path` the YAML; `cases` the ids."""

    root: Path
    spec_path: Path
    spec: DatasetSpec
    cases: tuple[str, ...] = tuple(CASES)

    @property
    def dataset(self) -> Path:
        return self.root / "tiny"


def oblique_affine(codes: str, degrees: float, shape_xyz: tuple[int, ...]) -> np.ndarray:
    """An affine of these axis codes, turned by `degrees` about (1,2,3), with its field centred at 0."""
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        row = "RAS".find(code) if code in "RAS" else "LPI".find(code)
        affine[:3, axis] = 0
        affine[row, axis] = SPACING_MM[code] * (1 if code in "RAS" else -1)
    u = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    angle = np.deg2rad(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_xyz) - 1) / 2)
    return affine


def draw_case(codes: str, seed: int, with_core: bool) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Image and label map of one generated scan: ellipsoids in world mm, each of its own grey value."""
    rng = np.random.default_rng(seed)
    shape = tuple(round(FIELD_MM / SPACING_MM[code]) for code in codes)
    affine = oblique_affine(codes, float(rng.uniform(-12, 12)), shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    organs = {"left": (-11, 0, 0, 8, 12, 14), "right": (11, 0, 0, 8, 10, 12), "core": (0, 3, 2, 4, 6, 7)}
    for name, (x, y, z, *radii) in organs.items():
        if name == "core" and not with_core:
            continue
        centre = np.array([x, y, z]) + rng.uniform(-1.5, 1.5, 3)
        size = np.array(radii) * rng.uniform(0.9, 1.1)
        labels[(((world - centre) / size) ** 2).sum(axis=-1) <= 1] = VALUES[name]
    grey = np.select([labels == 1, labels == 2, labels == 5], [220, 150, 300], 60) + rng.normal(0, 12, shape)
    return nib.Nifti1Image(grey.astype(np.int16), affine), nib.Nifti1Image(labels, affine)


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> TinyRaw:
    root = tmp_path_factory.mktemp("raw")
    for folder in ("imagesTr", "labelsTr"):
        (root / "tiny" / folder).mkdir(parents=True)
    for seed, (case, codes) in enumerate(CASES.items()):
        image, labels = draw_case(codes, seed, with_core=case != "s4_a")
        nib.save(image, root / "tiny" / "imagesTr" / f"{case}.nii.gz")
        nib.save(labels, root / "tiny" / "labelsTr" / f"{case}.nii.gz")
    spec_path = root / "tiny.yaml"
    spec_path.write_text(SPEC, encoding="utf-8")
    return TinyRaw(root, spec_path, load_spec(spec_path))


@pytest.fixture(scope="session")
def tiny_store(tiny_raw: TinyRaw, tmp_path_factory: pytest.TempPathFactory) -> Store:
    preprocessed = tmp_path_factory.mktemp("preprocessed")
    plan_and_preprocess(
        tiny_raw.root, preprocessed, [str(tiny_raw.spec_path)], crop=(32, 32, 32), workers=1, progress=False
    )
    return Store.open(preprocessed / "tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real datasets: {folder} is absent")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = Path.open

    def noted(path: Path, *how, **more):  # type: ignore[no-untyped-def]
        names.append(path.name)
        return real(path, *how, **more)

    monkeypatch.setattr(Path, "open", noted)
    return names
