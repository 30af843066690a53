"""The curve that shows what looks like a class as bright and all else as dark. Images are [D,H,W].

Grey values are counted inside and outside of a class; the logarithm of the ratio of both shares is its curve. So
are scans shown whose grey values say little to a network (`toning.py`), and a part of its training (`made_tones.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iris_pipeline.grey_ratios import log_ratio
from preprocessing.tones import Tones

KNOTS = 256
"""of a curve: 6 HU of CT apart"""
RADIUS = 1
"""voxels to each side over which grey values are averaged: the noise of CT is as large as what tissues differ by"""
DEPTH = 4.0
"""of log ratios: what is less likely than the likeliest by more than this is equally dark"""

Shown = tuple[np.ndarray, np.ndarray]
"""Grey values, averaged as they will be (`Tones.smoothed`), and the mask of what is to be bright, of one scan."""


def unchanged(low: float, high: float) -> Tones:
    """Tones that are the grey values themselves, averaged over cubes."""
    return Tones(low=low, high=high, values=(low, high), radius=RADIUS)


def curve_between(
    scans: Sequence[Shown], low: float, high: float, share: float | None = None
) -> Tones | None:
    """Tones of grey values from `low` to `high`: the log ratio of their share inside the masks over their share
    outside, each scan counting alike, scaled so that the scans have a mean of 0 and a spread of 1. None where no mask
    has two sides, or where there is but one grey value.

    share: of a scan that the mask is taken to fill for the scaling, in place of what it fills.
    """
    inside, outside, whole = np.zeros(KNOTS), np.zeros(KNOTS), np.zeros(KNOTS)
    for image, mask in scans:
        if mask.any() and not mask.all():
            inside += _shares(image[mask], low, high)
            outside += _shares(image[~mask], low, high)
        whole += _shares(image, low, high)
    if not inside.any():
        return None
    if share is not None:
        whole = share * inside + (1 - share) * outside
    ratios = log_ratio(inside, outside)
    ratios = np.maximum(ratios, ratios.max() - DEPTH)
    mean = float(np.average(ratios, weights=whole))
    spread = float(np.sqrt(np.average(np.square(ratios - mean), weights=whole)))
    if spread == 0.0:
        return None
    half = (high - low) / KNOTS / 2  # knots are the middles of bins
    values = tuple(((ratios - mean) / spread).round(4).tolist())
    return Tones(low=low + half, high=high - half, values=values, radius=RADIUS)


def _shares(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of each bin; what lies beyond counts in the outermost."""
    counts = np.histogram(np.clip(grey, low, high), KNOTS, (low, high))[0]
    return counts / counts.sum()
