"""A store in memory for the tests of episodes and crops. Arrays are [D,H,W] = (z,y,x).

Image voxels carry the case's own number, so a patch tells where it came from.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

CLASSES = {"liver": 1, "spleen": 2, "tumour": 5}


@dataclass
class MemoryStore:
    """The part of preprocessing.store.Store that episodes use, and a count of the voxels that were read."""

    volumes: dict[str, tuple[str, np.ndarray, np.ndarray]]
    classes: dict[str, int]
    patch_size: tuple[int, int, int]
    splits: dict[str, dict[str, list[str]]]
    read: list[int] = field(default_factory=list)
    partly_labelled: bool = False

    def __post_init__(self) -> None:
        self.manifest = SimpleNamespace(
            classes=self.classes,
            splits=self.splits,
            spec=SimpleNamespace(partly_labelled=self.partly_labelled),
        )
        self.plan = SimpleNamespace(patch_size=self.patch_size)

    def image(self, case_id: str, box: tuple | None = None) -> np.ndarray:
        return self._part(self.volumes[case_id][1], box).astype(np.float32)

    def labels(self, case_id: str, box: tuple | None = None) -> np.ndarray:
        return self._part(self.volumes[case_id][2], box)

    def _part(self, array: np.ndarray, box: tuple | None) -> np.ndarray:
        if box is None:
            box = tuple((0, n) for n in array.shape)
        assert all(0 <= a < b <= n for (a, b), n in zip(box, array.shape, strict=True)), (
            f"box {box} not inside"
        )
        part = array[tuple(slice(a, b) for a, b in box)]
        self.read.append(part.size)
        return part.copy()

    def entry(self, case_id: str) -> SimpleNamespace:
        subject, _, labels = self.volumes[case_id]
        classes = {}
        for name, value in self.classes.items():
            where = np.argwhere(labels == value)
            if len(where):
                box = tuple(zip(where.min(0).tolist(), (where.max(0) + 1).tolist(), strict=True))
                classes[name] = SimpleNamespace(voxels=len(where), bbox=box)
        return SimpleNamespace(id=case_id, subject=subject, shape=labels.shape, classes=classes)


def make_store(
    cases: int = 6,
    shape: tuple[int, int, int] = (40, 44, 36),
    patch: tuple[int, int, int] = (32, 32, 32),
    per_subject: int = 1,
) -> MemoryStore:
    """Liver and spleen in every case, a tumour of 30 voxels in the even ones; image = 10 * case + label."""
    volumes = {}
    for number in range(cases):
        labels = np.zeros(shape, dtype=np.uint8)
        at = number % 4
        labels[8 + at : 20 + at, 10:24, 6:20] = 1
        labels[22:30, 26 + at : 34 + at, 22:30] = 2
        if number % 2 == 0:
            labels[12:15, 14:19, 8:10] = 5
        image = (10 * number + labels).astype(np.float32)
        volumes[f"case{number}"] = (f"subject{number // per_subject}", image, labels)
    ids = list(volumes)
    train, held = ids[: cases - 2], ids[cases - 2 :]
    splits = {
        "paper": {"train": train, "validation": held, "test": []},
        "all": {"train": ids, "validation": []},
    }
    return MemoryStore(volumes, CLASSES, patch, splits)
