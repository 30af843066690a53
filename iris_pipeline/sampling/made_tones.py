"""Training as scans of an unknown kind are shown later: through the curve of what the reference's grey values say.

Images [1,D,H,W], masks [K,D,H,W]. A network is shown such images only where it reads others badly (`toning.py`), and
unless some of its training looks like them it has never seen one. What is read badly is seldom as clear as scans of the
training are: in CT noise is as large as what a tumour differs by from muscle. So noise is added first, and the curve
is that of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from iris_pipeline.tasks.tone_curves import curve_between, unchanged

NOISE = (0.0, 0.6)
"""its standard deviation in those of the reference's crop"""
GRAIN_VOXELS = (0.3, 1.2)
"""sigma of the blur that noise has: that of a scan is not independent from voxel to voxel"""
BLUR_VOXELS = (0.5, 4.0)
"""sigma of the blur that tones have, where they have one"""
BLURRED = 0.7
"""probability of it"""
SHARE = (0.003, 0.3)
"""of a scan that a class is taken to fill, evenly in its logarithm: tones are scaled over a whole scan, of which a crop
round a class says nothing"""
ONE_CLASS = 0.5
"""probability that the curve is that of one class alone, though several may be asked for"""
RANGE = (-9.0, 8.0)
"""standard deviations between which grey values have tones of their own"""


@dataclass(frozen=True)
class MadeTones:
    """How one episode's reference and query are shown. noise: in standard deviations of the reference's image; grain,
    blur: of the noise and of the tones, sigma in voxels; share: that a class is taken to fill; one: 0..1 picks the
    class whose curve it is, None: all.
    """

    noise: float
    grain: float
    blur: float
    share: float
    one: float | None
    seed: int

    def __call__(self, reference: Tensor, masks: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Both images in the reference's tones, new tensors; as they came where its masks are empty or everything."""
        spread, rng = float(reference.std()), np.random.default_rng(self.seed)
        rough = [self._noisy(rng, image, spread) for image in (reference, query)]
        low, high = max(RANGE[0], float(rough[0].min())), min(RANGE[1], float(rough[0].max()))
        if low >= high:
            return reference, query
        shown = masks if self.one is None else masks[[int(self.one * len(masks))]]
        smooth = unchanged(low, high).smoothed(rough[0])
        curve = curve_between([(smooth, shown.any(0).numpy())], low, high, self.share, (self.blur,))
        if curve is None:
            return reference, query
        first, second = (torch.from_numpy(curve(image))[None] for image in rough)
        return first, second

    def _noisy(self, rng: np.random.Generator, image: Tensor, spread: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(image.shape[1:], np.float32), self.grain)
        noise *= self.noise * spread / max(float(noise.std()), 1e-6)
        return image[0].numpy() + noise


def draw_made_tones(rng: np.random.Generator) -> MadeTones:
    """Each within its range; half of the curves are of one class."""
    low, high = np.log(SHARE)
    return MadeTones(
        noise=float(rng.uniform(*NOISE)),
        grain=float(rng.uniform(*GRAIN_VOXELS)),
        blur=float(rng.uniform(*BLUR_VOXELS)) if rng.random() < BLURRED else 0.0,
        share=float(np.exp(rng.uniform(low, high))),
        one=float(rng.random()) if rng.random() < ONE_CLASS else None,
        seed=int(rng.integers(2**31)),
    )
