"""A curve that gives grey values other tones, for scans whose own ones a network reads badly. Arrays are [D,H,W].

>>> negative = Tones(low=0.0, high=2.0, values=(1.0, 0.0, -1.0), radius=0)
>>> negative(np.array([[[-1.0, 0.0, 0.5, 2.0, 9.0]]])).tolist()
[[[1.0, 1.0, 0.5, -1.0, -1.0]]]
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator
from scipy import ndimage


class Tones(BaseModel):
    """Tones at evenly spaced grey values from `low` to `high`, both included, straight lines between them; what lies
    beyond has the tone of the nearer end. radius: voxels to each side over which grey values are averaged first; blur:
    standard deviation in voxels of the Gaussian by which tones are averaged at last.

    pydantic's ValidationError for fewer than two tones, for ends that are not in order, and for a radius or a blur
    below 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    values: tuple[float, ...]
    radius: int = 1
    blur: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Tones:
        if len(self.values) < 2 or not self.low < self.high or min(self.radius, self.blur) < 0:
            raise ValueError(
                "tones are two or more from low to high > low, and radius and blur are 0 or more, but "
                f"{len(self.values)} from {self.low:g} to {self.high:g} came, and {self.radius} and {self.blur:g}"
            )
        return self

    @property
    def told(self) -> str:
        """For people."""
        return "tones of its own" + (f", blurred by {self.blur:g} voxels" if self.blur else "")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """float32 of the image's shape; the image stays as it is."""
        smooth = self.smoothed(image)
        knots = np.linspace(self.low, self.high, len(self.values))
        for plane in smooth:  # np.interp makes float64 copies
            plane[...] = np.interp(plane, knots, self.values)
        return blurred(smooth, self.blur)

    def smoothed(self, image: np.ndarray) -> np.ndarray:
        """The mean over each voxel's cube, of fewer voxels at the border; float32, a new array."""
        image = np.asarray(image, np.float32)
        if not self.radius:
            return image.copy()
        edge = 2 * self.radius + 1
        sums = ndimage.uniform_filter(image, edge, mode="constant")
        shares = [
            ndimage.uniform_filter1d(np.ones(n, np.float32), edge, mode="constant") for n in image.shape
        ]
        for axis, share in enumerate(shares):
            sums /= share.reshape([-1 if other == axis else 1 for other in range(3)])
        return sums


def blurred(tones: np.ndarray, sigma: float) -> np.ndarray:
    """Averaged by a Gaussian of this standard deviation in voxels; the border goes on as it ends."""
    return ndimage.gaussian_filter(tones, sigma, mode="nearest") if sigma else tones
