"""Grey values of CT, MR and PET made comparable (paper, Sec. 4.1). Arrays are [D,H,W] = (z,y,x).

>>> Normalisation.for_modality("CT").clip
(-990.0, 500.0)
>>> normalise(np.array([[[-2000.0, -990.0], [500.0, 3000.0]]]), Normalisation.for_modality("CT")).tolist()
[[[-1.0, -1.0], [1.0, 1.0]]]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from preprocessing.errors import RawDataError
from preprocessing.spec import Modality
from preprocessing.tones import Tones

BODY_ABOVE_HU = -500.0  # air outside and inside the body lies below, every tissue but lung above
FLAT = 1e-6  # a spread below this share of the largest value is rounding, not contrast


class Normalisation(BaseModel):
    """CT is clipped to `clip` (HU), MR and PET to `percentiles` of the volume; then every volume is z-scored.

    The z-score's mean and spread are taken over the whole volume (paper), or over the voxels above `body_above`
    where it is given: the share of air in a scan then has no say in how its tissues look.

    tones: what the values become at last, once the volume is resampled (`case.preprocess_case`); those of CT are looked
    up in HU then, which mean the same in every scan, and not z-scored before.

    pydantic's ValidationError for a range whose ends are not in order, for percentiles outside 0..100, and
    where both ranges are given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    clip: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    body_above: float | None = None
    tones: Tones | None = None

    @model_validator(mode="after")
    def _check(self) -> Normalisation:
        for name, ends in (("clip", self.clip), ("percentiles", self.percentiles)):
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name} must be (low, high) with low < high, but {ends} came")
        if self.percentiles is not None and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"percentiles must lie in 0..100, but {self.percentiles} came")
        if self.clip is not None and self.percentiles is not None:
            raise ValueError("clip and percentiles exclude each other: give one of them")
        return self

    @model_serializer(mode="wrap")
    def _said(self, said: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without tones nothing is said of them: what was written before there were any means the same."""
        return {name: value for name, value in said(self).items() if name != "tones" or value is not None}

    def __repr_args__(self) -> Any:
        return [
            (name, value) for name, value in super().__repr_args__() if name != "tones" or value is not None
        ]

    @classmethod
    def for_modality(cls, modality: Modality, body: bool = False) -> Normalisation:
        """The paper's ranges: CT [-990, 500] HU, MR and PET 2nd to 98th percentile.

        body: the z-score of CT looks at voxels above -500 HU only, not at the whole volume as in the paper.
        """
        if modality == "CT":
            return cls(modality=modality, clip=(-990.0, 500.0), body_above=BODY_ABOVE_HU if body else None)
        return cls(modality=modality, percentiles=(2.0, 98.0))


def normalise(array: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Clip, then z-score over the whole volume -> float32 of the same shape; zeros for a constant one. CT that is
    to have tones is clipped alone.

    The input is left as it is. Where both percentiles are one value (a small object on an empty background),
    clipping would wipe the object out and is left out. RawDataError for NaN or infinity.
    """
    values = np.asarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise RawDataError(
            "Grey values must be finite, but the image holds NaN or infinity: leave out or mend it."
        )
    ends = normalisation.clip
    if normalisation.percentiles is not None:
        low, high = np.percentile(values, normalisation.percentiles)
        ends = (float(low), float(high)) if low < high else None
    values = values.clip(*ends) if ends is not None else values.copy()
    if normalisation.tones is not None and normalisation.modality == "CT":
        return values
    largest = max(abs(float(values.min())), abs(float(values.max())))
    counted = _counted(values, normalisation.body_above)
    values -= np.float32(values.mean(dtype=np.float64, where=counted))
    # slice by slice: no float64 copy of the volume
    planes = zip(values, np.broadcast_to(counted, values.shape), strict=True)
    squares = sum(float(np.square(plane, dtype=np.float64).sum(where=inside)) for plane, inside in planes)
    spread = float(np.sqrt(squares / np.broadcast_to(counted, values.shape).sum()))
    if spread <= FLAT * largest:
        return np.zeros_like(values)
    values /= np.float32(spread)
    return values


def spread_about(values: np.ndarray, mean: float) -> float:
    """Standard deviation of grey values [D,H,W] about their mean; plane by plane: no float64 copy of the volume."""
    squares = sum(float(np.square(plane - np.float64(mean)).sum()) for plane in values)
    return float(np.sqrt(squares / values.size))


def _counted(values: np.ndarray, above: float | None) -> np.ndarray:
    """The voxels whose mean and spread are taken; all of them where none lies above the limit."""
    inside = np.array(True) if above is None else values > above
    return inside if inside.any() else np.array(True)
