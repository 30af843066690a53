"""How episodes are drawn, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from iris_pipeline.sampling.augment import QUERY_RANGES, REFERENCE_RANGES, AugmentationRanges
from iris_pipeline.sampling.synthetic import SyntheticTasks
from preprocessing.errors import EpisodeError

NO_TASKS = SyntheticTasks()


@dataclass(frozen=True)
class EpisodeConfig:
    """How episodes are drawn; shares of the patch's edge where a length is meant."""

    max_classes: int = 8
    full_set_probability: float = 0.5
    """all classes of the dataset are wanted; else a random subset that holds the anchor"""
    empty_query_probability: float = 0.05
    """classes that the query lacks are asked for all the same (its truth is then empty); never of a dataset that is
    partly labelled, whose query may show them"""
    foreground_probability: float = 0.65
    """the query's crop shows one of the asked classes; else it lies anywhere, as most windows of a whole scan do"""
    reference_jitter: float = 0.1
    """the reference's crop moves this far off its objects' centre, as long as they stay inside"""
    query_jitter: float = 0.25
    """the query's crop moves this far beyond where its object is wholly inside"""
    minimum_voxels: int = 50
    """a class is kept where the reference's crop shows min(this, half of the class's voxels in the case) ..."""
    minimum_share: float = 0.2
    """... and no less than this share of them: a sliver of an organ is a poor reference for the whole; ..."""
    densest_share: float = 0.5
    """... or, of a class larger than the crop, this share of what the fullest crop of the case would show of it"""
    augment: bool = True
    reference_ranges: AugmentationRanges = REFERENCE_RANGES
    query_ranges: AugmentationRanges = QUERY_RANGES
    synthetic: SyntheticTasks = NO_TASKS
    wide_probability: float = 0.0
    """the crops show eight times the volume at half the resolution, where scans are large enough (`halved.py`)"""

    def __post_init__(self) -> None:
        for name in (
            "full_set_probability",
            "empty_query_probability",
            "foreground_probability",
            "minimum_share",
            "densest_share",
            "wide_probability",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise EpisodeError(f"{name} must lie between 0 and 1, but is {getattr(self, name)}.")
        for name in ("max_classes", "minimum_voxels"):
            if getattr(self, name) < 1:
                raise EpisodeError(f"{name} must be at least 1, but is {getattr(self, name)}.")
