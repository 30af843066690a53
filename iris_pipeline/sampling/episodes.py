"""Unified store -> training episodes: a reference that shows a task, and a query of another subject.

Arrays are [D,H,W] = (z,y,x) in RAS+ orientation; every box, shape and patch_size has the same order. Episode
i is a function of (seed, i) alone: there is no state, so a run that resumes, or draws in several processes,
meets the very same episodes. One episode: draw a dataset, a class of it (the anchor), a subset of classes
round the anchor, a reference that shows the anchor, a query of another subject; crop both from the store,
augment both.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from iris_pipeline.sampling.augment import (
    IDENTITY,
    draw_augmentation,
)
from iris_pipeline.sampling.crops import (
    CasePool,
    Crop,
    bounds,
    inside,
    roaming_start,
    voxels_of,
)
from iris_pipeline.sampling.episode import Episode, join_crops
from iris_pipeline.sampling.episode_config import EpisodeConfig
from iris_pipeline.sampling.halved import wide_view
from iris_pipeline.sampling.made_episodes import NOT_AUGMENTED, made_group
from iris_pipeline.sampling.reference_crops import reference_crop, relabelled
from iris_pipeline.sampling.synthetic import (
    Cut,
    Draw,
    draw_cut,
    draw_tasks,
    free_value,
    unite,
)
from preprocessing.errors import EpisodeError
from preprocessing.store import CaseEntry, Store

EPISODES = 10**9
"""What `len()` of a sampler says: episodes never end, a loader only needs a number"""
TASK_STREAM, PAIR_STREAM, VALIDATION_STREAM, SYNTHETIC_STREAM, VIEW_STREAM = 0, 1, 2, 3, 4


class EpisodeSampler(Dataset[Episode]):
    """Episodes of the `part` ("train", "validation", "test") of a split of the stores.

    `sampler.episode(i)` = f(seed, i). Datasets are drawn by `weights` (equal where None), then classes alike,
    then cases: a rare class is met as often as a frequent one. Also a torch Dataset: use `batch_size=None`, and no
    `shuffle`, as they are drawn already and never end. Raises EpisodeError where fewer than two subjects of a dataset
    show the same class, and for unknown splits, parts and weights.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        split: str = "paper",
        part: str = "train",
        seed: int = 0,
        config: EpisodeConfig | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not stores:
            raise EpisodeError("At least one dataset is needed to draw episodes, but none was given.")
        if seed < 0:
            raise EpisodeError(f"The seed must be 0 or a positive whole number, but is {seed}.")
        self.seed, self.config = seed, config or EpisodeConfig()
        self.pools = [CasePool(name, store, split, part) for name, store in stores.items()]
        for pool in self.pools:
            subjects = {entry.subject for entry in pool.cases}
            if len(subjects) < 2:
                raise EpisodeError(
                    "Reference and query must be of two different subjects, but part "
                    f"'{part}' of split '{split}' of dataset '{pool.name}' has {len(subjects)}: "
                    "add cases or leave the dataset out."
                )
            if not pool.anchors():
                raise EpisodeError(
                    f"No class of dataset '{pool.name}' is present in two subjects of part '{part}' of split "
                    f"'{split}': add cases or leave the dataset out."
                )
        self.wide: dict[str, CasePool] = {}
        for name, store in stores.items() if self.config.wide_probability else ():
            view = wide_view(store)
            if view is not None:
                self.wide[name] = CasePool(name, view, split, part)
        self.probabilities = _probabilities([pool.name for pool in self.pools], weights)

    def __len__(self) -> int:
        return EPISODES

    def __getitem__(self, index: int) -> Episode:
        return self.episode(index)

    def episode(self, index: int) -> Episode:
        """Episode `index`, the same one however often and in whatever order it is asked for."""
        return self.batch(index, 1)[0]

    def batch(self, index: int, size: int) -> list[Episode]:
        """`size` pairs of one dataset that share their classes, so that `stack_episodes` can join them."""
        if index < 0:
            raise EpisodeError(
                f"Episodes are numbered from 0 and have no last one; got {index}: count from the start."
            )
        config = self.config
        rng = np.random.default_rng((self.seed, index, TASK_STREAM))
        pool = self.pools[int(rng.choice(len(self.pools), p=self.probabilities))]
        view = np.random.default_rng((self.seed, index, VIEW_STREAM))
        wide = pool.name in self.wide and bool(view.random() < config.wide_probability)
        pool = self.wide[pool.name] if wide else pool
        anchors = pool.anchors()
        anchor = anchors[int(rng.integers(len(anchors)))]
        wanted = _draw_subset(rng, list(pool.classes), anchor, config.full_set_probability)
        empty = bool(rng.random() < config.empty_query_probability) and pool.knows_absence
        made = np.random.default_rng((self.seed, index, SYNTHETIC_STREAM))
        draw = draw_tasks(made, config.synthetic)
        streams = [np.random.default_rng((self.seed, index, PAIR_STREAM, pair)) for pair in range(size)]
        if draw.structure in ("cells", "bands", "shapes"):
            ranges = (config.reference_ranges, config.query_ranges)
            ranges = ranges if config.augment else (NOT_AUGMENTED, NOT_AUGMENTED)
            count = int(made.integers(1, config.max_classes + 1))
            return made_group(index, pool, streams, ranges, config.reference_jitter, count, draw, wide)
        second = free_value(pool.classes.values())
        cut = draw_cut(made, pool.classes[anchor], second or 0)
        if second is None and draw.structure == "split":
            draw = replace(draw, structure="")
        cut_anchor = (cut, anchor) if draw.structure == "split" else None
        drawn = []
        for stream in streams:
            reference, query = _draw_pair(stream, pool, anchor, empty)
            asked = [c for c in wanted if voxels_of(reference, c) > 0 and (empty or voxels_of(query, c) > 0)]
            crop, kept = reference_crop(stream, pool, reference, anchor, asked, config, cut_anchor)
            drawn.append((crop, query, kept))
        # The pairs of a batch share what every one of their references shows: the anchor at the least.
        names = [c for c in wanted if all(c in kept for _, _, kept in drawn)]
        names = _truncate(rng, names, anchor, config.max_classes)
        classes = _task_classes(made, pool, names, draw, cut_anchor)
        return [
            _episode(
                index,
                pool,
                crop,
                _query_crop(stream, pool, query, names, config, cut_anchor),
                classes,
                draw,
                wide,
            )
            for stream, (crop, query, _) in zip(streams, drawn, strict=True)
        ]


def validation_episodes(
    stores: Mapping[str, Store], split: str, per_dataset: int, seed: int = 0, max_classes: int = 8
) -> list[Episode]:
    """A fixed list without augmentation: references from the training part, queries from the validation part.

    Goes round the classes and their validation cases; both crops are centred on the class in turn, and all
    classes that both cases show are asked. A dataset's episodes depend on (seed, its name) alone. A dataset
    without validation cases (split "all") contributes none. All are held in memory: about 2 (1 + K) MB each
    at 64^3 voxels.
    """
    config = EpisodeConfig(max_classes=max_classes, reference_jitter=0.0, augment=False)
    episodes: list[Episode] = []
    for name, store in stores.items():
        train, held = CasePool(name, store, split, "train"), CasePool(name, store, split, "validation")
        key = (seed, zlib.crc32(name.encode()), VALIDATION_STREAM)
        rounds = _validation_rounds(np.random.default_rng(key), train, held)
        for number in range(per_dataset if rounds else 0):
            rng = np.random.default_rng((*key, number))
            anchor, queries = rounds[number % len(rounds)]
            query = queries[number // len(rounds) % len(queries)]
            reference = _choose(rng, _others(train.showing[anchor], query.subject))
            asked = [c for c in train.classes if voxels_of(reference, c) > 0 and voxels_of(query, c) > 0]
            crop, kept = reference_crop(rng, train, reference, anchor, asked, config)
            size, (low, high) = np.asarray(held.patch_size), bounds(query.classes[anchor].bbox)
            start = inside((low + high - size) / 2, size, np.asarray(query.shape))
            names = _truncate(rng, kept, anchor, max_classes)
            classes = {c: [train.classes[c]] for c in names}
            episodes.append(_episode(len(episodes), train, crop, held.crop(query, start, IDENTITY), classes))
    return episodes


def _validation_rounds(
    rng: np.random.Generator, train: CasePool, held: CasePool
) -> list[tuple[str, list[CaseEntry]]]:
    """Every class with the validation cases it can be asked of, in random order."""
    rounds = []
    for name in train.classes:
        queries = [q for q in held.showing[name] if _others(train.showing[name], q.subject)]
        if queries:
            rounds.append((name, [queries[k] for k in rng.permutation(len(queries))]))
    return rounds


def _task_classes(
    rng: np.random.Generator,
    pool: CasePool,
    names: Sequence[str],
    draw: Draw,
    cut_anchor: tuple[Cut, str] | None,
) -> dict[str, list[int]]:
    """The classes of the task and the label values that make up each; united or cut in two where that was drawn."""
    classes = {name: [pool.classes[name]] for name in names}
    if draw.structure == "unite" and len(names) > 1:
        groups = [[names[k] for k in group] for group in unite(rng, len(names))]
        return {" + ".join(group): [value for name in group for value in classes[name]] for group in groups}
    if cut_anchor is not None:
        cut, anchor = cut_anchor
        halves = {f"{anchor}, first part": [cut.value], f"{anchor}, second part": [cut.second]}
        return halves | {name: values for name, values in classes.items() if name != anchor}
    return classes


def _episode(
    index: int,
    pool: CasePool,
    reference: Crop,
    query: Crop,
    classes: Mapping[str, Sequence[int]],
    draw: Draw | None = None,
    wide: bool = False,
) -> Episode:
    """The one way from two crops of annotated cases to an episode."""
    if reference.entry.subject == query.entry.subject:
        # The draws never do this; a model that trains on its own answer looks excellent and is useless.
        raise EpisodeError(
            f"A reference must never be its own query, but both are of subject '{query.entry.subject}' of "
            f"dataset '{pool.name}': this is a defect, please report it."
        )
    return join_crops(index, pool.name, reference, query, classes, draw or Draw(), wide)


def _others(entries: Sequence[CaseEntry], subject: str) -> list[CaseEntry]:
    return [entry for entry in entries if entry.subject != subject]


def _choose(rng: np.random.Generator, entries: Sequence[CaseEntry]) -> CaseEntry:
    return entries[int(rng.integers(len(entries)))]


def _probabilities(names: Sequence[str], weights: Mapping[str, float] | None) -> np.ndarray:
    if weights is None:
        return np.full(len(names), 1 / len(names))
    values = np.array([weights.get(name, 0.0) for name in names], dtype=float)
    if set(weights) != set(names) or not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise EpisodeError(
            f"Weights must be positive, one for each of {', '.join(names)}, but are {dict(weights)}."
        )
    return values / values.sum()


def _draw_subset(rng: np.random.Generator, names: list[str], anchor: str, full: float) -> list[str]:
    """All names, or the anchor with a random number of others, in the dataset's order."""
    others = [name for name in names if name != anchor]
    whole, count = rng.random() < full, int(rng.integers(len(others) + 1))
    chosen = {anchor, *(others[k] for k in rng.permutation(len(others))[:count])}
    return list(names) if whole else [name for name in names if name in chosen]


def _truncate(rng: np.random.Generator, names: Sequence[str], anchor: str, limit: int) -> list[str]:
    others = [name for name in names if name != anchor]
    chosen = {anchor, *(others[k] for k in rng.permutation(len(others))[: limit - 1])}
    return [name for name in names if name in chosen]


def _draw_pair(
    rng: np.random.Generator, pool: CasePool, anchor: str, empty: bool
) -> tuple[CaseEntry, CaseEntry]:
    """A reference that shows the anchor and a query of another subject, which may lack it only if `empty`."""
    reference = _choose(rng, pool.showing[anchor])
    return reference, _choose(rng, _others(pool.cases if empty else pool.showing[anchor], reference.subject))


def _query_crop(
    rng: np.random.Generator,
    pool: CasePool,
    entry: CaseEntry,
    names: Sequence[str],
    config: EpisodeConfig,
    cut_anchor: tuple[Cut, str] | None = None,
) -> Crop:
    """A patch that shows one of the named classes, wholly or in part, or that lies anywhere in the volume."""
    present = [c for c in names if voxels_of(entry, c) > 0]
    focus = rng.random() < config.foreground_probability and bool(present)
    name = present[int(rng.integers(len(present)))] if focus else None
    start = roaming_start(rng, pool, entry, name, config.query_jitter)
    params = draw_augmentation(rng, pool.patch_size, config.query_ranges)
    return pool.crop(entry, start, params if config.augment else IDENTITY, relabelled(cut_anchor, entry))
