"""How a file's axes become an array's: to RAS+, or to the pose in which a network is to see it. Loses nothing.

Arrays are [D,H,W] = (z,y,x); after `Reorientation.to_ras` the index grows toward Superior, Anterior, Right (RAS+).
Affines map (x,y,z,1) to RAS+ mm.

>>> upright = Reorientation.to_ras(np.diag([-1.0, -1.0, 1.0, 1.0]))  # a file in LPS+
>>> upright.apply(np.arange(4).reshape(1, 2, 2)).tolist()
[[[3, 2], [1, 0]]]
>>> upright.turned("LAS")  # D, H, W of a network that likes them to grow toward Left, Anterior, Superior
Reorientation(axes=(2, 1, 0), flips=(False, True, False))
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import nibabel as nib
import numpy as np

from preprocessing.grid_types import Shape, Triple

Frame = tuple[Triple, Triple, Triple]
UPRIGHT = "SAR"
"""The directions toward which D, H, W of an array in RAS+ grow, in the order of its axes (z,y,x)"""
_DIRECTIONS = ("SI", "AP", "RL")  # of z, y, x: forward, backward


@dataclass(frozen=True)
class Reorientation:
    """A permutation of axes, then flips; loses nothing. axes[a]: the file's axis that becomes axis a (z,y,x)."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_ras(cls, affine: np.ndarray) -> Reorientation:
        """To the nearest RAS+ axes; an oblique rotation stays in the affine, nothing is interpolated."""
        axes, flips = [0, 0, 0], [False, False, False]
        # row i: to which world axis (x,y,z) the file's axis i (x,y,z) is nearest, and its direction
        for source, (target, direction) in enumerate(nib.io_orientation(affine)):
            axes[2 - int(target)] = 2 - source
            flips[2 - int(target)] = bool(direction < 0)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def toward(cls, affine: np.ndarray, frame: Frame) -> Reorientation:
        """To the axes whose directions are nearest to a frame's: of all 48 ways the one of the largest sum of cosines.

        For the frame of RAS+ that is `to_ras`, but for scans that lie askew by half a right angle.
        """
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        cosines = np.asarray(frame) @ directions[:, ::-1]  # [D,H,W of the frame, axes (z,y,x) of the array]
        order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[a, axes[a]]) for a in range(3)))
        d, h, w = order
        return cls((d, h, w), (bool(cosines[0, d] < 0), bool(cosines[1, h] < 0), bool(cosines[2, w] < 0)))

    def frame(self, affine: np.ndarray) -> Frame:
        """The directions in RAS+ (x,y,z), of unit length, toward which the new axes D, H, W grow."""
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        rows = [
            directions[:, 2 - axis] * (-1 if flip else 1)
            for axis, flip in zip(self.axes, self.flips, strict=True)
        ]
        d, h, w = ((float(x), float(y), float(z)) for x, y, z in rows)
        return d, h, w

    def turned(self, axes: str) -> Reorientation:
        """This one, then on to the axes whose letters are given, such as "LAS" for D, H, W; it leads to "SAR".

        ValueError as `parse_axes`.
        """
        turn = parse_axes(axes)
        first, second, third = ((self.axes[axis], self.flips[axis] != flip) for axis, flip in turn)
        return Reorientation((first[0], second[0], third[0]), (first[1], second[1], third[1]))

    def view(self, array: np.ndarray) -> np.ndarray:
        """The file's order -> RAS+ order, as a view: what is written into it is written into `array`."""
        return np.flip(array.transpose(self.axes), self._flipped)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The file's order -> RAS+ order, contiguous."""
        return np.ascontiguousarray(self.view(array))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """RAS+ order -> the file's order, contiguous: `undo(apply(a))` is `a`."""
        back = np.argsort(self.axes)
        return np.ascontiguousarray(np.flip(array, self._flipped).transpose(back))

    def apply_affine(self, affine: np.ndarray, shape: Shape) -> np.ndarray:
        """The affine of the RAS+ array, from the file's affine and array shape (z,y,x)."""
        step = np.zeros((4, 4))  # RAS+ index (x,y,z,1) -> the file's index
        step[3, 3] = 1
        for target, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            step[2 - source, 2 - target] = -1 if flip else 1
            step[2 - source, 3] = shape[source] - 1 if flip else 0
        return affine @ step

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if self.flips[axis])


AS_IT_IS = Reorientation((0, 1, 2), (False, False, False))


def parse_axes(axes: str) -> tuple[tuple[int, bool], ...]:
    """For each letter the RAS+ axis (0, 1, 2 for z, y, x) it runs along, and whether it runs backward.

    ValueError unless there is one letter each of S or I, A or P, R or L.

    >>> parse_axes("SAR"), parse_axes("LSP")
    (((0, False), (1, False), (2, False)), ((2, True), (0, False), (1, True)))
    """
    found = tuple(
        (axis, pair.index(letter) == 1)
        for letter in axes
        for axis, pair in enumerate(_DIRECTIONS)
        if letter in pair
    )
    if len(axes) != 3 or sorted(axis for axis, _ in found) != [0, 1, 2]:
        raise ValueError(
            f"Axes are three letters, one each of S or I, A or P, R or L, such as {UPRIGHT}; got {axes!r}."
        )
    return found


@dataclass(frozen=True)
class Pose:
    """How arrays lie when a network sees them.

    frame: the directions of what is called S, A, R; None: RAS+. A heart is cut across its own axis, which lies half
    between the body's; what is nearest to Right of one scan is nearest to Anterior of the next. In the frame of one of
    them all lie alike. axes: the letters toward which D, H, W grow, in that frame. ValueError as `parse_axes`.
    """

    axes: str = UPRIGHT
    frame: Frame | None = None

    def __post_init__(self) -> None:
        parse_axes(self.axes)

    def orient(self, affine: np.ndarray) -> Reorientation:
        """From a file's own axes to these."""
        base = (
            Reorientation.to_ras(affine) if self.frame is None else Reorientation.toward(affine, self.frame)
        )
        return base.turned(self.axes)


RAS = Pose()
