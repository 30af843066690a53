"""Case: one image with its label map as listed on disk, before a voxel is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from preprocessing.sources.source import Source
from preprocessing.spec import DatasetSpec, Modality


@dataclass(frozen=True)
class Case:
    """`labels` is None where the image has no label file: reported as refused, never lost silently."""

    id: str
    subject: str
    image: Source
    labels: Source | None
    modality: Modality


class Adapter(Protocol):
    """One raw LAYOUT: a dataset's raw folder and its specification -> its cases, sorted by id."""

    def __call__(self, raw: Path, spec: DatasetSpec) -> list[Case]: ...
