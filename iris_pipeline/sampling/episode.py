"""An episode as a value: a task of K classes, the sample that shows it and the sample on which it is to be solved.

Images [1,D,H,W] float32, masks [K,D,H,W] of 0 and 1; arrays are (z,y,x) in RAS+ orientation. How episodes are drawn
stands in `episodes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iris_pipeline.sampling.crops import Crop
from iris_pipeline.sampling.synthetic import Draw
from preprocessing.errors import EpisodeError


@dataclass(frozen=True)
class Sample:
    """One side of an episode: image [1,D,H,W] float32 (normalised), masks [K,D,H,W] float32 of 0 and 1."""

    case_id: str
    subject: str
    image: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Episode:
    """A task of K classes of one dataset, shown by the reference, to be solved on the query.

    is_made: a synthetic task (`synthetic.py`), whose classes are not those of the dataset. wide: seen at half the
    dataset's resolution (`halved.py`).
    """

    index: int
    dataset: str
    class_names: tuple[str, ...]
    reference: Sample
    query: Sample
    is_made: bool = False
    wide: bool = False


@dataclass(frozen=True)
class StackedEpisodes:
    """Episodes of the same dataset and classes as batches: images [B,1,D,H,W], masks [B,K,D,H,W]."""

    dataset: str
    class_names: tuple[str, ...]
    reference_images: Tensor
    reference_masks: Tensor
    query_images: Tensor
    query_masks: Tensor


def stack_episodes(episodes: Sequence[Episode]) -> StackedEpisodes:
    """Join episodes of one dataset and the same classes (from `EpisodeSampler.batch`) along B."""
    tasks = {(e.dataset, e.class_names) for e in episodes}
    if len(tasks) != 1:
        raise EpisodeError(
            f"Only episodes of one dataset and the same classes can be joined, but {len(tasks)} came."
        )
    ((dataset, class_names),) = tasks
    return StackedEpisodes(
        dataset=dataset,
        class_names=class_names,
        reference_images=torch.stack([e.reference.image for e in episodes]),
        reference_masks=torch.stack([e.reference.masks for e in episodes]),
        query_images=torch.stack([e.query.image for e in episodes]),
        query_masks=torch.stack([e.query.masks for e in episodes]),
    )


def join_crops(
    index: int,
    dataset: str,
    reference: Crop,
    query: Crop,
    classes: Mapping[str, Sequence[int]],
    draw: Draw,
    wide: bool = False,
) -> Episode:
    """Two crops and the label values of each class (name -> values) as an episode, as far as drawn a made one."""
    values = list(classes.values())
    shown, wanted = _masks(reference, values), _masks(query, values)
    if draw.tones is not None:
        images = draw.tones(reference.image, shown, query.image)
        reference, query = (
            replace(crop, image=image) for crop, image in zip((reference, query), images, strict=True)
        )
    first, second = made_sample(reference, shown, draw), made_sample(query, wanted, draw)
    return Episode(index, dataset, tuple(classes), first, second, draw.is_made, wide)


def made_sample(crop: Crop, masks: Tensor, draw: Draw) -> Sample:
    """A crop with masks [K,D,H,W] of our own making instead of its labels."""
    return Sample(crop.entry.id, crop.entry.subject, *draw.apply(crop.image, masks))


def _masks(crop: Crop, values: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([torch.isin(crop.labels, torch.tensor(each)) for each in values]).float()
