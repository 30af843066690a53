"""A folder of scans that the grey model segments exactly, two bad ones among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scans import affine_of, paint, save
from stub_model import GreyModel, make_task

from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.normalise import Normalisation, normalise
from preprocessing.sources.source import FileSource

BLOCKS = {1: np.s_[2:6, 6:18, 8:22], 2: np.s_[2:10, 24:36, 12:30]}


def grey_task(image: np.ndarray, labels: np.ndarray, **changes: Any) -> tuple[GreyModel, TaskEmbedding]:
    """The grey model and a task, both set to the z-scores that this image's blocks will have."""
    scores = normalise(image, Normalisation.for_modality("MR"))
    means = [float(scores[labels == value].mean()) for value in sorted(set(labels.ravel().tolist()) - {0})]
    width = 0.5 * min(
        abs(a - b) for a in [*means, float(scores[labels == 0].mean())] for b in means if a != b
    )
    return GreyModel(width), make_task(means, **changes)


def write_scans(folder: Path) -> Path:
    """Three good scans of different grids, b of them obliquely permuted, and two bad files."""
    image, _ = paint((12, 40, 34), BLOCKS)
    save(folder / "in" / "a.nii.gz", image, affine_of("RAS", (3.0, 1.0, 1.0)))
    save(folder / "in" / "b.nii.gz", image, affine_of("PSR", (1.0, 1.0, 1.0), degrees=14.0))
    save(folder / "in" / "e.nii", image.astype(np.int16), affine_of("LPS", (3.0, 1.0, 1.0)))
    content = (folder / "in" / "a.nii.gz").read_bytes()
    (folder / "in" / "c.nii.gz").write_bytes(content[: len(content) // 2])
    return folder


def cases_of(folder: Path) -> list[InputCase]:
    paths = [folder / "in" / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", "e.nii")]
    return [InputCase(path.name.split(".")[0], FileSource(path)) for path in paths]
