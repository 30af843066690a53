"""Segmentations as 3D Slicer saves them (.seg.nrrd): names, values and layers of their segments, made one label map.

Arrays are [D,H,W] = (z,y,x) in the file's own orientation. By default such a file is cut down to what is segmented, so
that it covers a part of its scan only. Segments that overlap lie in layers; values follow the order in which segments
were made, so that only their names say what they are, and segments of different layers may share a value. Source:
Slicer's developer guide, "Segmentations file format".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.formats.itk_files import layers_from_itk_file

ENDINGS = (".seg.nrrd", ".seg.nhdr")
KEY = re.compile(r"Segment(\d+)_(Name|ID|LabelValue|Layer)")


@dataclass(frozen=True)
class Segment:
    """One segment as the header tells it."""

    name: str
    value: int
    layer: int


@dataclass(frozen=True)
class Segmentation:
    """What else is known of a label map that was a segmentation.

    names: (name, value in the label map), in the file's order. by_order: segments share values in the file, so the
    label map numbers them by their order, which says nothing beyond this file: only the names do.
    """

    names: tuple[tuple[str, int], ...] = ()
    by_order: bool = False


def is_segmentation(path: Path) -> bool:
    """Whether the name is that of a segmentation of 3D Slicer's."""
    return path.name.lower().endswith(ENDINGS)


def same_name(name: str) -> str:
    """What two names of one segment have in common: neither letter case nor blanks around them count."""
    return name.strip().casefold()


def read_segmentation(path: Path) -> tuple[np.ndarray, np.ndarray, Segmentation, tuple[str, ...]]:
    """Label map, affine, names, and what was mended, a phrase each.

    RawDataError for a damaged header, LabelValueError for a voxel that is no segment's.
    """
    layers, affine, header = layers_from_itk_file(path)
    segments = _segments(path, header, len(layers))
    if not segments:
        if len(layers) > 1:
            raise RawDataError(
                f"A segmentation names its segments, but {path} has {len(layers)} layers without a name: save it "
                "again in 3D Slicer, or export it to a label map there."
            )
        return layers[0], affine, Segmentation(), ()
    _check_claimed(path, layers, segments)
    values = [segment.value for segment in segments]
    by_order = len(set(values)) < len(values)
    if by_order:
        values = list(range(1, len(segments) + 1))
    known = Segmentation(tuple((s.name, value) for s, value in zip(segments, values, strict=True)), by_order)
    if len(layers) == 1:  # then no two share a value, see `_segments`
        return layers[0], affine, known, ()
    array, twice = _merged(layers, segments, values)
    told = (f"{twice} voxels lie in several segments and go to the later one",) if twice else ()
    return array, affine, known, told


def _segments(path: Path, header: Mapping[str, str], layers: int) -> tuple[Segment, ...]:
    """In the order of their numbers. Older files have a layer a segment, and tell neither layers nor values."""
    told: dict[int, dict[str, str]] = {}
    for key, text in header.items():
        if found := KEY.fullmatch(key):
            told.setdefault(int(found[1]), {})[found[2]] = text.strip()
    older = layers > 1 and not any("Layer" in each for each in told.values())
    segments: list[Segment] = []
    for place, number in enumerate(sorted(told)):
        each = told[number]
        name = each.get("Name") or each.get("ID") or f"Segment_{number + 1}"
        try:
            value = int(each.get("LabelValue", "1"))
            layer = int(each.get("Layer", place if older else 0))
        except ValueError:
            value = layer = -1
        if value < 1 or not 0 <= layer < layers:
            raise RawDataError(
                f"A segment has a label value from 1 on and one of the file's {layers} layers (from 0), but "
                f"'{name}' in {path} has {each}: save the segmentation again in 3D Slicer."
            )
        twin = next((s.name for s in segments if (s.value, s.layer) == (value, layer)), None)
        if twin is not None:
            raise RawDataError(
                f"Segments of one layer have values of their own, but '{twin}' and '{name}' in {path} both have "
                f"{value}: save the segmentation again in 3D Slicer."
            )
        segments.append(Segment(name, value, layer))
    return tuple(segments)


def _check_claimed(path: Path, layers: Sequence[np.ndarray], segments: Sequence[Segment]) -> None:
    for number, layer in enumerate(layers):
        claimed = {segment.value for segment in segments if segment.layer == number}
        strange = sorted(set(np.unique(layer).tolist()) - {0} - claimed)
        if strange:
            shown = ", ".join(f"{value:g}" for value in strange[:5])
            raise LabelValueError(
                f"Each voxel of a segmentation is a segment's, but {path} holds the value {shown}, which none of "
                f"{', '.join(segment.name for segment in segments)} has: save it again in 3D Slicer."
            )


def _merged(
    layers: Sequence[np.ndarray], segments: Sequence[Segment], values: Sequence[int]
) -> tuple[np.ndarray, int]:
    """One label map, where the later segment wins, and how many voxels several of them have."""
    merged = np.zeros(layers[0].shape, np.min_scalar_type(max(values)))
    twice = np.zeros(layers[0].shape, bool)
    for segment, value in zip(segments, values, strict=True):
        inside = layers[segment.layer] == segment.value
        twice |= inside & (merged != 0)
        merged[inside] = value
    return merged, int(np.count_nonzero(twice))
