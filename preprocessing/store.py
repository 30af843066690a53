"""The unified store: one folder a dataset, arrays with chunks near a patch, a class manifest written last.

Arrays are [D,H,W] = (z,y,x) in RAS+; shapes, spacings (mm) and boxes have the same order. A box is
((z0,z1),(y0,y1),(x0,x1)), half-open, inside the volume.

    preprocessed/<dataset>/  fingerprint.json  plan.json  manifest.json (last)  preprocess.log
                             cases/<id>.b2nd (float16)  cases/<id>.seg.b2nd (uint8)  cases/<id>.json (what was
                             written)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy import ndimage

from preprocessing.errors import RawDataError, StoreError
from preprocessing.fingerprint import CasePrint, Verdict, load_fingerprint
from preprocessing.geometry import label_counts
from preprocessing.grid_types import Box, Shape, Triple
from preprocessing.plan import MANIFEST, Plan
from preprocessing.runtime.files import load_json, replaced, save_json, text_digest
from preprocessing.spec import DatasetSpec, Modality, Role, unknown_name
from preprocessing.splits import Split

CASES = "cases"


class ClassEntry(BaseModel):
    """One class in one stored case: voxels and ml on the STORED grid, bounding box half-open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    ml: float
    bbox: Box


class CaseEntry(BaseModel):
    """One stored case. `classes` holds only classes with at least one voxel; an absent class has no key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    subject: str
    shape: Shape
    spacing_mm: Triple
    native_shape: Shape
    classes: dict[str, ClassEntry]
    verdict: Verdict
    why: str = ""


class CaseRecord(BaseModel):
    """cases/<id>.json, written after both arrays: proof that they are whole and of this plan and source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    plan_digest: str
    source_digest: str
    image_bytes: int
    labels_bytes: int
    entry: CaseEntry


class Manifest(BaseModel):
    """The class manifest. `classes`: name -> value in the labels. `refused`: case id -> why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    dataset: str
    title: str
    modality: Modality
    role: Role
    classes: dict[str, int]
    plan: Plan
    spec: DatasetSpec
    cases: tuple[CaseEntry, ...]
    refused: dict[str, str]
    splits: dict[str, Split]


class Store:
    """One finished dataset, for reading. Opening is cheap: arrays are read box by box from disk."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._entries = {entry.id: entry for entry in manifest.cases}

    @staticmethod
    def open(folder: Path | str) -> Store:
        """StoreError where `folder` has no manifest (unfinished) or one of another schema version."""
        folder = Path(folder)
        remedy = f"run iris_plan_and_preprocess -d {folder.name}"
        if not (folder / MANIFEST).is_file():
            raise StoreError(f"{folder} is no finished store (it has no {MANIFEST}): {remedy}.")
        return Store(folder, load_json(folder / MANIFEST, Manifest, StoreError, f"{remedy} --overwrite"))

    @property
    def plan(self) -> Plan:
        return self.manifest.plan

    def entry(self, case_id: str) -> CaseEntry:
        """StoreError for an id the store does not hold."""
        try:
            return self._entries[case_id]
        except KeyError:
            refused = self.manifest.refused.get(case_id)
            why = f"it was refused: {refused}" if refused else f"it holds {len(self._entries)} others"
            raise StoreError(f"Store {self.manifest.dataset} has no case '{case_id}': {why}.") from None

    def source_digest(self, case_id: str) -> str:
        """Digest of what a stored case was made from (`digest_of_source`); "" where its record is not there."""
        try:
            text = record_path(self.folder, case_id).read_text(encoding="utf-8")
            return CaseRecord.model_validate_json(text).source_digest
        except (OSError, ValidationError, UnicodeDecodeError):
            return ""

    def content(self, case_id: str) -> str:
        """Content hash (`findings.image_hash`) of the scan that a stored case was made from, as it was measured then.

        "" where the fingerprint is gone, of another version, or of other files than the stored ones.
        """
        found = self._prints.get(case_id)
        if found is None or digest_of_source(found, self.manifest.spec) != self.source_digest(case_id):
            return ""
        return found.content

    @cached_property
    def _prints(self) -> dict[str, CasePrint]:
        try:
            return {found.id: found for found in load_fingerprint(self.folder).cases}
        except RawDataError:
            return {}

    def image(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """float32 [D,H,W], or the part inside `box`; normalised grey values."""
        return self._read(image_path(self.folder, case_id), case_id, box).astype(np.float32)

    def labels(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """uint8 [D,H,W], or the part inside `box`; values as in `manifest.classes`, 0 background."""
        return self._read(labels_path(self.folder, case_id), case_id, box)

    def _read(self, path: Path, case_id: str, box: Box | None) -> np.ndarray:
        shape = self.entry(case_id).shape
        box = box or ((0, shape[0]), (0, shape[1]), (0, shape[2]))
        if any(not 0 <= low < high <= edge for (low, high), edge in zip(box, shape, strict=True)):
            raise StoreError(
                f"Box {box} is empty or leaves case '{case_id}' of shape {shape}: clip it first."
            )
        try:
            array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
            return np.asarray(array[tuple(slice(low, high) for low, high in box)])
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}): delete it and run iris_plan_and_preprocess "
                f"-d {self.manifest.dataset} again."
            ) from None


def open_stores(preprocessed: Path | str, names: Iterable[str] | str | None = None) -> dict[str, Store]:
    """The stores of these names (or of one), or every finished one, by name. StoreError where one is missing."""
    preprocessed = Path(preprocessed)
    names = [names] if isinstance(names, str) else names
    finished = sorted(path.parent.name for path in preprocessed.glob(f"*/{MANIFEST}"))
    wanted = finished if names is None else list(dict.fromkeys(names))
    if not wanted or (not finished and not any((preprocessed / name).is_dir() for name in wanted)):
        told = " ".join(wanted) or "NAME"
        raise StoreError(
            f"{preprocessed} holds no finished store: run iris_plan_and_preprocess -d {told} first."
        )
    for name in wanted:
        if not (preprocessed / name).is_dir():
            raise StoreError(
                f"{unknown_name(name, finished)} (These are the finished stores under {preprocessed}.)"
            )
    return {name: Store.open(preprocessed / name) for name in wanted}


def image_path(folder: Path, case_id: str) -> Path:
    return folder / CASES / f"{case_id}.b2nd"


def labels_path(folder: Path, case_id: str) -> Path:
    return folder / CASES / f"{case_id}.seg.b2nd"


def record_path(folder: Path, case_id: str) -> Path:
    return folder / CASES / f"{case_id}.json"


def digest_of_source(found: CasePrint, spec: DatasetSpec) -> str:
    """What a stored case depends on beside the plan: raw bytes, whose scan it is, names of classes."""
    names = sorted(spec.classes.items())
    return text_digest(f"{found.digest} {found.subject} {found.verdict} {found.why} {names}")


def write_case(
    folder: Path, entry: CaseEntry, image: np.ndarray, labels: np.ndarray, plan: Plan, source_digest: str
) -> CaseRecord:
    """Image (float16), labels (uint8), then the record that says both are whole. Same input, same bytes."""
    (folder / CASES).mkdir(parents=True, exist_ok=True)
    record_path(folder, entry.id).unlink(missing_ok=True)
    sizes = [
        _write_array(image_path(folder, entry.id), image.astype(np.float16), plan.patch_size),
        _write_array(labels_path(folder, entry.id), labels.astype(np.uint8), plan.patch_size),
    ]
    record = CaseRecord(
        plan_digest=plan.digest,
        source_digest=source_digest,
        image_bytes=sizes[0],
        labels_bytes=sizes[1],
        entry=entry,
    )
    save_json(record_path(folder, entry.id), record)
    return record


def valid_record(folder: Path, case_id: str, plan: Plan, source_digest: str) -> CaseRecord | None:
    """The record of a case that is whole and was made from this source by this plan; otherwise None."""
    path = record_path(folder, case_id)
    try:
        record = CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
        sizes = (image_path(folder, case_id).stat().st_size, labels_path(folder, case_id).stat().st_size)
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    same = (record.plan_digest, record.source_digest) == (plan.digest, source_digest)
    whole = sizes == (record.image_bytes, record.labels_bytes)
    known_schema = record.schema_version == CaseRecord.model_fields["schema_version"].default
    return record if same and whole and known_schema else None


def describe_labels(labels: np.ndarray, voxel_ml: float, classes: dict[str, int]) -> dict[str, ClassEntry]:
    """Voxels, millilitres and bounding box of every class with a voxel in uint8 labels [D,H,W]."""
    counts = label_counts(labels)
    boxes = ndimage.find_objects(labels, max_label=max(classes.values()))
    described = {}
    for name, value in classes.items():
        found = boxes[value - 1]
        if found is not None:
            z, y, x = ((part.start, part.stop) for part in found)
            voxels = int(counts[value])
            described[name] = ClassEntry(voxels=voxels, ml=round(voxels * voxel_ml, 4), bbox=(z, y, x))
    return described


def _write_array(path: Path, array: np.ndarray, patch: Shape) -> int:
    """One compressed array, written under a temporary name; returns the file's bytes."""
    chunks = tuple(min(edge, size) for edge, size in zip(patch, array.shape, strict=True))
    # Blocks are what is decompressed at least: a quarter of the patch's edge wastes little at a box's border.
    blocks = tuple(min(chunk, max(8, edge // 4)) for chunk, edge in zip(chunks, patch, strict=True))
    # The order of the blocks and a byte of the header depend on numbers of threads: one gives stable bytes.
    compression: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1}
    with replaced(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams=compression,
            dparams={"nthreads": 1},
        )
    return path.stat().st_size
