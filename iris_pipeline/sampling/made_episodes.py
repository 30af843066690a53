"""Episodes whose masks are made and not annotated: cells of one scan, bands of grey values, shapes of no scan at all.

Arrays are [D,H,W] = (z,y,x); images [1,D,H,W], masks [K,D,H,W]. What the kinds are says `synthetic.py`. Of a group all
episodes have the same number of classes, named region 1, region 2, ..., so that they can be stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from iris_pipeline.sampling.augment import (
    IDENTITY,
    AugmentationRanges,
    apply_intensity,
    draw_augmentation,
    sample_patch,
)
from iris_pipeline.sampling.crops import CasePool, Crop, bounds, centred_start, inside, roaming_start
from iris_pipeline.sampling.episode import Episode, Sample, made_sample
from iris_pipeline.sampling.shapes import draw_scene, draw_view
from iris_pipeline.sampling.synthetic import Draw, cells, draw_bands, frequent, region_box
from preprocessing.errors import EpisodeError
from preprocessing.store import CaseEntry

Ranges = tuple[AugmentationRanges, AugmentationRanges]
"""of reference and query"""
NOT_AUGMENTED = AugmentationRanges(
    p_spatial=0.0, p_brightness=0.0, p_gamma=0.0, p_contrast=0.0, p_blur=0.0, p_noise=0.0
)
BANDS = 3
"""intervals asked for at once, at most"""
ANYWHERE = 0.3
"""share of bands whose crops lie anywhere instead of round a class that both subjects show"""
ATTEMPTS = 10


def made_group(
    index: int,
    pool: CasePool,
    streams: Sequence[np.random.Generator],
    ranges: Ranges,
    jitter: float,
    count: int,
    draw: Draw,
    wide: bool,
) -> list[Episode]:
    """One made episode a stream, all with as many classes, `count` at most."""
    pairs = []
    for stream in streams:
        if draw.structure == "cells":
            pairs.append(_cells(stream, pool, ranges, count, draw))
        elif draw.structure == "bands":
            pairs.append(_bands(stream, pool, ranges, jitter, count, draw))
        else:
            pairs.append(_shapes(stream, pool, count, draw))
    fewest = min(len(reference.masks) for reference, _ in pairs)
    names = tuple(f"region {number}" for number in range(1, fewest + 1))
    return [
        Episode(index, pool.name, names, _first(reference, fewest), _first(query, fewest), True, wide)
        for reference, query in pairs
    ]


def _first(sample: Sample, count: int) -> Sample:
    return replace(sample, masks=sample.masks[:count])


def _masks(labels: Tensor, values: Sequence[int]) -> Tensor:
    return torch.stack([labels == value for value in values]).float()


def _chosen(rng: np.random.Generator, labels: Tensor, count: int) -> list[int]:
    """Up to `count` of the values that fill enough of the labels, in random order."""
    return [int(value) for value in rng.permutation(frequent(labels))[:count]]


def _cells(
    rng: np.random.Generator, pool: CasePool, ranges: Ranges, count: int, draw: Draw
) -> tuple[Sample, Sample]:
    """Supervoxels of one scan as classes; reference and query are two views of it, turned and coloured apart."""
    entry = pool.cases[int(rng.integers(len(pool.cases)))]
    box = region_box(rng, entry.shape, pool.patch_size)
    image = pool.store.image(entry.id, box)
    labels, fill = cells(rng, image), float(image.min())
    size, shape = np.asarray(pool.patch_size), np.asarray(image.shape)
    views = []
    for each in ranges:
        params = draw_augmentation(rng, pool.patch_size, each) if each is not NOT_AUGMENTED else IDENTITY
        start = inside(rng.random(3) * np.maximum(shape - size, 0), size, shape)
        cut, mask = sample_patch(params, image, labels, start, pool.patch_size, fill)
        views.append(Crop(entry, apply_intensity(params, cut), mask))
    values = _chosen(rng, views[0].labels, count)
    reference, query = (made_sample(view, _masks(view.labels, values), draw) for view in views)
    return reference, query


def _bands(
    rng: np.random.Generator, pool: CasePool, ranges: Ranges, jitter: float, count: int, draw: Draw
) -> tuple[Sample, Sample]:
    """Intervals of grey values in the scans of two subjects, cropped round a class that both show or anywhere."""
    for _ in range(ATTEMPTS):
        anchors = pool.anchors()
        anchor = anchors[int(rng.integers(len(anchors)))]
        first = pool.showing[anchor][int(rng.integers(len(pool.showing[anchor])))]
        others = [entry for entry in pool.showing[anchor] if entry.subject != first.subject]
        second = others[int(rng.integers(len(others)))]
        anywhere = bool(rng.random() < ANYWHERE)
        reference, query = (
            _crop(rng, pool, entry, None if anywhere else anchor, each, jitter)
            for entry, each in zip((first, second), ranges, strict=True)
        )
        shown, wanted = draw_bands(rng, reference.image, query.image, min(count, BANDS))
        if len(shown):
            return made_sample(reference, shown, draw), made_sample(query, wanted, draw)
    raise EpisodeError(f"Scans of dataset '{pool.name}' show nothing but air: leave the dataset out.")


def _crop(
    rng: np.random.Generator,
    pool: CasePool,
    entry: CaseEntry,
    anchor: str | None,
    ranges: AugmentationRanges,
    jitter: float,
) -> Crop:
    if anchor is None:
        start = roaming_start(rng, pool, entry, None, jitter)
    else:
        start = centred_start(rng, pool, entry, anchor, bounds(entry.classes[anchor].bbox), jitter)
    params = draw_augmentation(rng, pool.patch_size, ranges)
    return pool.crop(entry, start, params)


def _shapes(rng: np.random.Generator, pool: CasePool, count: int, draw: Draw) -> tuple[Sample, Sample]:
    """Two views of a scene that nobody scanned."""
    scene = draw_scene(rng)
    reference, query = (draw_view(rng, scene, pool.patch_size) for _ in range(2))
    values = _chosen(rng, reference[1], count)
    first, second = (
        Sample(f"scene, {name}", "", *draw.apply(image, _masks(labels, values)))
        for name, (image, labels) in (("reference", reference), ("query", query))
    )
    return first, second
