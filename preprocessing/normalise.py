"""Grey values of CT, MR and PET made comparable (Sec. 4.1 of the paper). Arrays are [D,H,W] = (z,y,x)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from preprocessing.errors import RawDataError


class Normalisation(BaseModel):
    """CT is clipped to `clip` (HU), MR and PET to `percentiles` of the volume; then every volume is z-scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["CT", "MR", "PET"]
    clip: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    @classmethod
    def for_modality(cls, modality: Literal["CT", "MR", "PET"]) -> Normalisation:
        """The paper's ranges: CT [-990, 500] HU, MR and PET 2nd to 98th percentile."""
        if modality == "CT":
            return cls(modality=modality, clip=(-990.0, 500.0))
        return cls(modality=modality, percentiles=(2.0, 98.0))


def normalise(array: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Clip, then z-score over the whole volume -> float32; zeros for a constant one. RawDataError for NaN or inf."""
    values = np.asarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise RawDataError(
            "Grey values must be finite, but the image holds NaN or infinity: mend or leave out the scan."
        )
    if normalisation.clip is not None:
        values = values.clip(*normalisation.clip)
    elif normalisation.percentiles is not None:
        low, high = np.percentile(values, normalisation.percentiles)
        values = values.clip(low, high)
    spread = float(values.std(dtype=np.float64))
    if spread < 1e-6:
        return np.zeros_like(values)
    return ((values - float(values.mean(dtype=np.float64))) / spread).astype(np.float32)
