"""The reference's crop of an episode: drawn until it shows enough of the class that the episode is about.

Arrays are [D,H,W] = (z,y,x) in RAS+ orientation; shapes and patch_size have the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iris_pipeline.sampling.augment import IDENTITY, draw_augmentation
from iris_pipeline.sampling.crops import (
    CasePool,
    Crop,
    Relabel,
    centred_start,
    densest_patch,
    fits_patch,
    inside,
    joint_box,
    voxels_of,
)
from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.sampling.synthetic import Cut
from preprocessing.store import CaseEntry

ATTEMPTS = 3


def reference_crop(
    rng: np.random.Generator,
    pool: CasePool,
    entry: CaseEntry,
    anchor: str,
    asked: Sequence[str],
    config: EpisodeConfig,
    cut_anchor: tuple[Cut, str] | None = None,
) -> tuple[Crop, list[str]]:
    """The reference's patch and the classes it shows well enough; redrawn until the anchor is one of them.

    The last draws lie where a patch holds the most of the anchor: near it and augmented, then there and as it is.
    """
    relabel = relabelled(cut_anchor, entry)
    box = joint_box(rng, pool, entry, anchor, asked)
    size, shape = np.asarray(pool.patch_size), np.asarray(entry.shape)
    for attempt in range(ATTEMPTS + 1):
        if attempt < ATTEMPTS:
            start = centred_start(rng, pool, entry, anchor, box, config.reference_jitter)
        else:
            offset = rng.uniform(-1.0, 1.0, 3) * config.reference_jitter * size
            start = inside(densest_patch(pool, entry, anchor).start + offset, size, shape)
        params = draw_augmentation(rng, pool.patch_size, config.reference_ranges)
        crop = pool.crop(entry, start, params if config.augment else IDENTITY, relabel)
        kept = _kept(crop, pool, asked, config, cut_anchor)
        if anchor in kept:
            return crop, kept
    crop = pool.crop(entry, densest_patch(pool, entry, anchor).start, IDENTITY, relabel)
    kept = _kept(crop, pool, asked, config, cut_anchor)
    # Too few voxels even so, as where a halved scan has fewer than it was reckoned to: it is the most there is.
    return crop, kept if anchor in kept else [c for c in asked if c == anchor or c in kept]


def relabelled(cut_anchor: tuple[Cut, str] | None, entry: CaseEntry) -> Relabel | None:
    """What cuts the anchor of this case in two; nothing where no cut was drawn or the case lacks the class."""
    if cut_anchor is None or voxels_of(entry, cut_anchor[1]) == 0:
        return None
    cut, name = cut_anchor
    return lambda labels, begin: cut.apply(labels, begin, entry, name)


def _kept(
    crop: Crop,
    pool: CasePool,
    asked: Sequence[str],
    config: EpisodeConfig,
    cut_anchor: tuple[Cut, str] | None = None,
) -> list[str]:
    kept = []
    for name in asked:
        voxels = crop.voxels(pool.classes[name])
        if cut_anchor is not None and name == cut_anchor[1]:
            voxels += crop.voxels(cut_anchor[0].second)
        if _is_enough(voxels, pool, crop.entry, name, config):
            kept.append(name)
    return kept


def _is_enough(voxels: int, pool: CasePool, entry: CaseEntry, name: str, config: EpisodeConfig) -> bool:
    whole = voxels_of(entry, name)
    if voxels >= max(min(config.minimum_voxels, whole / 2), config.minimum_share * whole):
        return True
    if voxels == 0 or fits_patch(pool, entry, name):
        return False
    # No patch may hold that share of a spine or of the lungs; asked last, since it reads the whole class once a case.
    return voxels >= config.densest_share * densest_patch(pool, entry, name).voxels
