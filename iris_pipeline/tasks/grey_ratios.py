"""What a count of grey values inside and outside of a class says about each value. Counts are [N], N bins."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SPREAD_BINS = 1.0
"""histograms are smoothed by this: neighbouring grey values are met alike"""
RARE = 1e-4
"""added to each share: what is met on one side only is unlikely on the other and not impossible, and what is met on
neither says nothing"""


def log_ratio(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Counts [N] inside and outside of a class -> log of the share of each bin over its share outside; 0 where either
    was never seen at all.
    """
    if not inside.sum() or not outside.sum():
        return np.zeros(len(inside))
    shares = [
        ndimage.gaussian_filter1d(counts / counts.sum(), SPREAD_BINS, mode="nearest") + RARE
        for counts in (inside, outside)
    ]
    return np.log(shares[0] / shares[1])
