"""A dataset at half its resolution: the wide view, in which a crop of the same voxels shows eight times the volume.

Arrays are [D,H,W] = (z,y,x) in RAS+; shapes, boxes and spacings (mm) have the same order. A window of 64^3 voxels at
2.5 mm shows one kidney and not which one; at 5 mm it shows both. Training draws some of its episodes from here, and
prediction looks here first (`focus.py`). Halving is the mean over 2 x 2 x 2 voxels, for training and prediction alike.
"""

from __future__ import annotations

import numpy as np

from preprocessing.grid_types import Box
from preprocessing.plan import STRIDE
from preprocessing.store import CaseEntry, ClassEntry, Manifest, Store

WORTH = 2.0
"""a wide view is worth its while where the median case holds this many patches"""
KEEP_BYTES = 2**28
"""of halved cases of a dataset, in every process that draws episodes: eighty abdominal CTs, so that small datasets stay
whole and eight processes with a thousand scans do not fill the memory"""


def halve_image(image: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 x 2 voxels, float32 [ceil(D/2),ceil(H/2),ceil(W/2)]; an odd last plane counts twice."""
    result = np.asarray(image, dtype=np.float32)
    for axis in range(3):
        even, odd = _pairs(result, axis)
        result = (even + odd) / 2
    return result


def halve_labels(labels: np.ndarray, values: list[int]) -> np.ndarray:
    """The class that fills half of 2 x 2 x 2 voxels or more, uint8; of two that do, the last of `values`.

    A class that would vanish keeps each place in which it has a voxel: small is not absent. None takes the last place
    of another that way, so that a class is gone only where there are more of them than places.
    """
    result = np.zeros([(n + 1) // 2 for n in labels.shape], dtype=np.uint8)
    there, vanishing = [], []
    for value in values:
        mask = labels == value
        if not mask.any():
            continue
        there.append(value)
        share = halve_image(mask)
        found = share >= 0.5
        if found.any():
            result[found] = value
        else:
            vanishing.append((value, share > 0))
    for value, found in vanishing:
        result[found] = value
    counts = np.bincount(result.ravel(), minlength=256)
    for value in there:
        if not counts[value]:
            _make_room(value, labels, result, counts, set())
    return result


def _make_room(
    value: int, labels: np.ndarray, result: np.ndarray, counts: np.ndarray, asked: set[int]
) -> bool:
    """Give a class without a place in `result` some of those where it has a voxel; whether there was room for it.

    An owner of several places shares with it. Of those that have one alone, the first that finds room elsewhere moves
    (augmenting paths, as in bipartite matching); asked: the classes that are on the move. counts: places by class.
    """
    asked.add(value)
    share = halve_image(labels == value)
    fullest = np.argsort(-share[share > 0], kind="stable")
    places = [tuple(place) for place in np.argwhere(share > 0)[fullest].tolist()]
    for place in places:
        owner = result[place]
        if owner == 0 or counts[owner] > counts[value] + 1:
            _hand_over(place, value, result, counts)
    if counts[value]:
        return True
    for place in places:
        owner = int(result[place])
        if owner not in asked:
            _hand_over(place, value, result, counts)
            if _make_room(owner, labels, result, counts, asked):
                return True
            _hand_over(place, owner, result, counts)
    return False


def _hand_over(place: tuple[int, ...], value: int, result: np.ndarray, counts: np.ndarray) -> None:
    counts[result[place]] -= 1
    result[place] = value
    counts[value] += 1


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
    """A store whose arrays are halved as they are asked for, the latest kept in memory, as float16 and uint8.

    Its entries are reckoned from the store's: a bounding box may be a voxel too large. keep_bytes: of halved arrays, at
    most, but for the case that was asked for last.
    """

    def __init__(self, store: Store, keep_bytes: int = KEEP_BYTES) -> None:
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
        self._keep_bytes = keep_bytes
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # in the order of their latest use

    def image(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """float32 [D,H,W], or the part inside `box`."""
        return self._arrays(case_id)[0][_slices(box)].astype(np.float32)

    def labels(self, case_id: str, box: Box | None = None) -> np.ndarray:
        """uint8 [D,H,W], or the part inside `box`."""
        return self._arrays(case_id)[1][_slices(box)]

    def _arrays(self, case_id: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._kept.pop(case_id, None)
        if found is None:
            image = halve_image(self._whole.image(case_id)).astype(np.float16)
            found = image, halve_labels(self._whole.labels(case_id), list(self.manifest.classes.values()))
            free = self._keep_bytes - _bytes_of(found)
            kept = sum(map(_bytes_of, self._kept.values()))
            while self._kept and kept > free:
                kept -= _bytes_of(self._kept.pop(next(iter(self._kept))))
        self._kept[case_id] = found
        return found


def _bytes_of(arrays: tuple[np.ndarray, ...]) -> int:
    return sum(array.nbytes for array in arrays)


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
