"""A dataset at half its resolution: the wide view, in which a crop of the same voxels shows eight times the volume.

Arrays are [D,H,W] = (z,y,x) in RAS+; shapes, boxes and spacings (mm) have the same order. A window of 64^3 voxels at
2.5 mm shows one kidney and not which one; at 5 mm it shows both. Training draws some of its episodes from here, and
prediction looks here first (`rough.py`). Halving is the mean over 2 x 2 x 2 voxels, for training and prediction alike.
"""

from __future__ import annotations

import numpy as np

from preprocessing.store import Box, CaseEntry, ClassEntry, Manifest, Store

STRIDE = 16
WORTH = 2.0
"""a wide view is worth its while where the median case holds this many patches"""


def halve_image(image: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 x 2 voxels, float32 [ceil(D/2),ceil(H/2),ceil(W/2)]; an odd last plane counts twice."""
    result = np.asarray(image, dtype=np.float32)
    for axis in range(3):
        even, odd = _pairs(result, axis)
        result = (even + odd) / 2
    return result


def halve_labels(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """The class that fills half of 2 x 2 x 2 voxels or more, uint8; of two that do, the last of `values`.

    A class that would vanish keeps each place in which it has a voxel: small is not absent.
    """
    result = np.zeros([(n + 1) // 2 for n in labels.shape], dtype=np.uint8)
    vanishing = []
    for value in values:
        mask = labels == value
        if not mask.any():
            continue
        share = halve_image(mask)
        found = share >= 0.5
        if found.any():
            result[found] = value
        else:
            vanishing.append((value, share > 0))
    for value, found in vanishing:
        result[found] = value
    return result


def halved_patch(patch: tuple[int, int, int], shapes: list[tuple[int, ...]]) -> tuple[int, int, int]:
    """The patch on the halved grid: never larger than `patch`, nor than what 95 % of the volumes fill."""
    z, y, x = (int(np.ceil(n)) for n in np.percentile(np.asarray(shapes) / 2, 95, axis=0))
    return window_edges(patch, (z, y, x))


def window_edges(patch: tuple[int, int, int], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The patch's edges, none longer than an axis of `shape` needs: multiples of 16, one of them above 16."""
    z, y, x = (min(edge, STRIDE * -(-n // STRIDE)) for edge, n in zip(patch, shape, strict=True))
    # 16^3 is one voxel at the network's deepest stage, which instance norm turns into zero.
    return z, y, max(x, 2 * STRIDE) if z == y == STRIDE else x


def wide_view(store: Store) -> HalvedStore | None:
    """The store at half its resolution; None where its patch shows most of a scan anyhow."""
    shapes = [entry.shape for entry in store.manifest.cases]
    patches = np.median([np.prod(shape) for shape in shapes]) / np.prod(store.plan.patch_size)
    return HalvedStore(store) if patches >= WORTH else None


class HalvedStore(Store):
    """A store whose arrays are halved as they are asked for and then kept in memory, as float16 and uint8.

    Its entries are reckoned from the store's: a bounding box may be a voxel too large.
    """

    def __init__(self, store: Store) -> None:
        plan = store.plan
        spacing = (2 * plan.spacing_mm[0], 2 * plan.spacing_mm[1], 2 * plan.spacing_mm[2])
        patch = halved_patch(plan.patch_size, [entry.shape for entry in store.manifest.cases])
        manifest: Manifest = store.manifest.model_copy(
            update={
                "plan": plan.model_copy(update={"spacing_mm": spacing, "patch_size": patch}),
                "cases": tuple(_halved_entry(entry, spacing) for entry in store.manifest.cases),
            }
        )
        super().__init__(store.folder, manifest)
        self._whole = store
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def image(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """float32 [D,H,W], or the part inside `box`."""
        return self._arrays(case_id)[0][_slices(box)].astype(np.float32)

    def labels(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """uint8 [D,H,W], or the part inside `box`."""
        return self._arrays(case_id)[1][_slices(box)]

    def _arrays(self, case_id: str) -> tuple[np.ndarray, np.ndarray]:
        if case_id not in self._kept:
            image = halve_image(self._whole.image(case_id)).astype(np.float16)
            labels = halve_labels(self._whole.labels(case_id), list(self.manifest.classes.values()))
            self._kept[case_id] = image, labels
        return self._kept[case_id]


def _pairs(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    length = array.shape[axis]
    even = array.take(range(0, length, 2), axis=axis)
    odd = array.take([min(i + 1, length - 1) for i in range(0, length, 2)], axis=axis)
    return even, odd


def _slices(box: Box | None) -> tuple[slice, ...]:
    return () if box is None else tuple(slice(low, high) for low, high in box)


def _halved_entry(entry: CaseEntry, spacing_mm: tuple[float, float, float]) -> CaseEntry:
    classes = {}
    for name, found in entry.classes.items():
        z, y, x = ((low // 2, (high + 1) // 2) for low, high in found.bbox)
        classes[name] = ClassEntry(voxels=max(1, found.voxels // 8), ml=found.ml, bbox=(z, y, x))
    depth, height, width = ((n + 1) // 2 for n in entry.shape)
    return entry.model_copy(
        update={"shape": (depth, height, width), "spacing_mm": spacing_mm, "classes": classes}
    )
