"""The curve that shows what looks like a class as bright and all else as dark. Images are [D,H,W].

Grey values are counted inside and outside of a class; the logarithm of the ratio of both shares is its curve. So
are scans shown whose grey values say little to a network (`toning.py`), and a part of its training (`made_tones.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iris_pipeline.tasks.grey_ratios import log_ratio
from preprocessing.tones import Tones, blurred

KNOTS = 256
"""of a curve: 6 HU of CT apart"""
RADIUS = 1
"""voxels to each side over which grey values are averaged: the noise of CT is as large as what tissues differ by"""
DEPTH = 4.0
"""of log ratios: what is less likely than the likeliest by more than this is equally dark"""
BLURS = (0.0, 1.0, 2.0, 3.0, 4.0)
"""voxels: single voxels tell a tumour from muscle badly, and many of them well; more blurs what is thin away"""

Shown = tuple[np.ndarray, np.ndarray]
"""Grey values, averaged as they will be (`Tones.smoothed`), and the mask of what is to be bright, of one scan."""


def unchanged(low: float, high: float) -> Tones:
    """Tones that are the grey values themselves, averaged over cubes."""
    return Tones(low=low, high=high, values=(low, high), radius=RADIUS)


def curve_between(
    scans: Sequence[Shown],
    low: float,
    high: float,
    share: float | None = None,
    blurs: Sequence[float] = BLURS,
) -> Tones | None:
    """Tones of grey values from `low` to `high`: the log ratio of their share inside the masks over their share
    outside, each scan counting alike, blurred as it suits the masks best and scaled so that the scans have a mean of 0
    and a spread of 1. None where no mask has two sides, or where there is but one grey value.

    share: of a scan that its mask is taken to fill for the scaling, in place of what it fills. blurs: to choose from.
    """
    sided = [(image, mask) for image, mask in scans if mask.any() and not mask.all()]
    if not sided:
        return None
    inside = [_shares(image[mask], low, high) for image, mask in sided]
    outside = [_shares(image[~mask], low, high) for image, mask in sided]
    ratios = log_ratio(np.sum(inside, axis=0), np.sum(outside, axis=0))
    ratios = np.maximum(ratios, ratios.max() - DEPTH)
    half = (high - low) / KNOTS / 2  # knots are the middles of bins
    curve = Tones(low=low + half, high=high - half, values=tuple(ratios.tolist()), radius=0)
    toned = [(curve(image), mask) for image, mask in sided]
    candidates = ((sigma, [(blurred(image, sigma), mask) for image, mask in toned]) for sigma in blurs)
    blur, shown = max(candidates, key=lambda each: told_apart(each[1]))
    mean, square = np.mean([_moments(image, mask, share) for image, mask in shown], axis=0)
    spread = float(np.sqrt(square - mean**2))
    if spread < 1e-6:
        return None
    values = tuple(((ratios - mean) / spread).round(4).tolist())
    return curve.model_copy(update={"values": values, "radius": RADIUS, "blur": blur})


def told_apart(scans: Sequence[Shown]) -> float:
    """The Dice with which the best threshold would segment all of the scans, the mean of them; 0..1."""
    low, high = (float(end([end(image) for image, _ in scans])) for end in (np.min, np.max))
    if low == high:
        return 0.0
    each = []
    for image, mask in scans:
        above, hit = (
            np.histogram(part, KNOTS, (low, high))[0][::-1].cumsum() for part in (image, image[mask])
        )
        each.append(2 * hit / (above + hit[-1]))
    return float(np.mean(each, axis=0).max())


def _moments(tones: np.ndarray, mask: np.ndarray, share: float | None) -> tuple[float, float]:
    """The mean and the mean square."""
    if share is None:
        return float(tones.mean()), float(np.square(tones).mean())
    parts = [(part.mean(), np.square(part).mean()) for part in (tones[mask], tones[~mask])]
    mean, square = share * np.asarray(parts[0]) + (1 - share) * np.asarray(parts[1])
    return float(mean), float(square)


def _shares(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of each bin; what lies beyond counts in the outermost."""
    counts = np.histogram(np.clip(grey, low, high), KNOTS, (low, high))[0]
    return counts / counts.sum()
