"""The bodies that preprocessing.phantoms scans: organs as signed distances, and each subject's own pose.

Everything here is a function of points [..., 3] = (x,y,z) in RAS+ mm: x grows toward the patient's Right,
y toward Anterior, z toward Superior, the origin is the middle of the trunk. No grid and no file is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from preprocessing.grid_types import Triple

MAX_ORGAN_SHIFT_MM = 4.0  # how far an organ strays from its usual place, beyond what pose and deformation do
_WAVES = 4


@dataclass(frozen=True)
class Blob:
    """An ellipsoid, turned about the Anterior axis; `bite` (offset, radii) is cut out of it."""

    centre: Triple
    radii: Triple
    roll_degrees: float = 0.0
    bite: tuple[Triple, Triple] | None = None

    def distance_mm(self, points: np.ndarray) -> np.ndarray:
        """Signed distance in mm, negative inside, of points [..., 3] (first order: exact at the surface)."""
        turn = Rotation.from_euler("y", self.roll_degrees, degrees=True).as_matrix()
        local = (points - self.centre) @ turn
        distance = _ellipsoid_distance(local, self.radii)
        if self.bite is not None:
            offset, radii = self.bite
            distance = np.maximum(distance, -_ellipsoid_distance(local - offset, radii))
        return distance


@dataclass(frozen=True)
class Tube:
    """A rod along the Superior axis; its centre line bends forward and back by `bend_mm`, as a spine does."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    bend_mm: float = 0.0

    def distance_mm(self, points: np.ndarray) -> np.ndarray:
        """Signed distance in mm, negative inside, of points [..., 3]."""
        x = points[..., 0] - self.centre[0]
        y = points[..., 1] - self.centre[1] - self.bend_mm * np.cos(points[..., 2] / 55.0)
        return _ellipsoid_distance(np.stack([x, y], axis=-1), self.radii)


Shape = Blob | Tube


@dataclass(frozen=True)
class Organ:
    """One tissue: the union of its shapes, and its level in CT (HU), MR (share of full scale), PET (SUV)."""

    name: str
    shapes: tuple[Shape, ...]
    ct: float
    mr: float
    pet: float


# Painted in this order: a later organ lies over an earlier one. What no specification names is scenery.
ORGANS = (
    Organ("fat", (Tube((0, 0), (112, 84)),), ct=-95, mr=0.85, pet=0.3),
    Organ("muscle", (Tube((0, -2), (101, 74)),), ct=55, mr=0.30, pet=0.6),
    Organ(
        "lung",
        (Blob((56, 0, 150), (40, 58, 58)), Blob((-56, 0, 150), (40, 58, 58))),
        ct=-820,
        mr=0.04,
        pet=0.3,
    ),
    Organ("gut", (Blob((0, 30, -45), (72, 30, 38)),), ct=15, mr=0.55, pet=1.0),
    Organ("stomach", (Blob((-38, 32, 40), (30, 26, 36), 20),), ct=5, mr=0.75, pet=0.8),
    Organ("aorta", (Tube((-10, -24), (9, 9)),), ct=220, mr=0.06, pet=1.1),
    Organ(
        "liver", (Blob((50, 6, 46), (46, 52, 44)), Blob((4, 34, 54), (44, 22, 22))), ct=110, mr=0.50, pet=1.4
    ),
    Organ("spleen", (Blob((-74, -22, 52), (22, 33, 32), -15),), ct=135, mr=0.68, pet=1.2),
    Organ(
        "right_kidney",
        (Blob((58, -36, -14), (21, 20, 36), -12, bite=((-19, 4, 0), (11, 14, 11))),),
        ct=190,
        mr=0.95,
        pet=1.6,
    ),
    Organ(
        "left_kidney",
        (Blob((-58, -36, -4), (21, 20, 36), 12, bite=((19, 4, 0), (11, 14, 11))),),
        ct=190,
        mr=0.95,
        pet=1.6,
    ),
    Organ("spine", (Tube((0, -50), (18, 17), bend_mm=7),), ct=420, mr=0.18, pet=1.3),
    Organ("bladder", (Blob((0, 22, -96), (30, 25, 22)),), ct=8, mr=1.0, pet=11.0),
)


@dataclass(frozen=True)
class Anatomy:
    """One subject: its organs in canonical mm, and the smooth way from the subject's own mm to those.

    canonical = matrix (p - shift) + sum over waves of amplitude * sin(wave vector . p + phase).
    """

    organs: tuple[Organ, ...]
    matrix: np.ndarray
    shift_mm: np.ndarray
    wave_vectors: np.ndarray
    wave_phases: np.ndarray
    wave_amplitudes_mm: np.ndarray

    def to_canonical(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the subject in RAS+ mm -> canonical mm."""
        waves = np.sin(points @ self.wave_vectors.T + self.wave_phases)
        return (points - self.shift_mm) @ self.matrix.T + waves @ self.wave_amplitudes_mm

    def label_map(self, points: np.ndarray, classes: dict[str, int]) -> np.ndarray:
        """Class values (uint8) at points [..., 3] in RAS+ mm: the topmost organ counts, scenery is 0."""
        canonical = self.to_canonical(points)
        labels = np.zeros(points.shape[:-1], np.uint8)
        for organ in self.organs:
            labels[distance_mm(organ, canonical) < 0] = classes.get(organ.name, 0)
        return labels


def distance_mm(organ: Organ, canonical: np.ndarray) -> np.ndarray:
    """Signed distance in mm, negative inside, from canonical points [..., 3] to the organ's surface."""
    return np.minimum.reduce([shape.distance_mm(canonical) for shape in organ.shapes])


def draw_anatomy(rng: np.random.Generator, *, with_lesion: bool = False, without: str = "") -> Anatomy:
    """Draw one subject; `without` names an organ that was taken out."""
    angles = rng.uniform(-5.0, 5.0, 3)
    scale = rng.uniform(0.92, 1.06) * rng.uniform(0.96, 1.04, 3)
    organs = tuple(organ for organ in (_vary(organ, rng) for organ in ORGANS) if organ.name != without)
    if with_lesion:
        organs += (_draw_lesion(rng),)
    directions = rng.normal(size=(_WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Anatomy(
        organs,
        matrix=Rotation.from_euler("xyz", angles, degrees=True).as_matrix() / scale[:, None],
        shift_mm=rng.uniform(-5.0, 5.0, 3),
        wave_vectors=directions * (2 * np.pi / rng.uniform(150.0, 280.0, (_WAVES, 1))),
        wave_phases=rng.uniform(0, 2 * np.pi, _WAVES),
        wave_amplitudes_mm=rng.uniform(-2.0, 2.0, (_WAVES, 3)),
    )


def _ellipsoid_distance(local: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    """Signed distance to first order, f / |grad f| with f = |p / r| - 1; -min(r) where grad f is 0."""
    squares, inverse = np.square(local), 1.0 / np.square(np.asarray(radii, dtype=float))
    norm, slope = np.sqrt(squares @ inverse), np.sqrt(squares @ np.square(inverse))
    return np.where(slope > 1e-9, norm * (norm - 1) / np.maximum(slope, 1e-9), -float(min(radii)))


def _vary(organ: Organ, rng: np.random.Generator) -> Organ:
    """The organ of one subject: all its blobs moved and scaled alike.

    Tubes keep their places: a spine moved by itself would swallow its neighbours.
    """
    shift = rng.uniform(-MAX_ORGAN_SHIFT_MM, MAX_ORGAN_SHIFT_MM, 3)
    scale = rng.uniform(0.92, 1.08, 3)

    def vary(shape: Shape) -> Shape:
        if isinstance(shape, Tube):
            return shape
        return replace(
            shape, centre=_triple(np.add(shape.centre, shift)), radii=_triple(np.multiply(shape.radii, scale))
        )

    return replace(organ, shapes=tuple(vary(shape) for shape in organ.shapes))


def _draw_lesion(rng: np.random.Generator) -> Organ:
    """One hot lesion in the trunk above the bladder, in half of the subjects with a satellite beside it."""
    centre = rng.uniform((-40.0, -20.0, -35.0), (40.0, 25.0, 20.0))
    shapes = [_draw_ball(centre, rng.uniform(18.0, 28.0), rng)]
    if rng.random() < 0.5:
        side = rng.normal(size=3)
        beside = centre + 34.0 * np.array([side[0], side[1], abs(side[2])]) / np.linalg.norm(side)
        shapes.append(_draw_ball(beside, rng.uniform(12.0, 16.0), rng))
    return Organ("lesion", tuple(shapes), ct=60, mr=0.7, pet=rng.uniform(6.0, 9.0))


def _draw_ball(centre: np.ndarray, radius_mm: float, rng: np.random.Generator) -> Blob:
    return Blob(_triple(centre), _triple(radius_mm * rng.uniform(0.85, 1.15, 3)), rng.uniform(0.0, 90.0))


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z
