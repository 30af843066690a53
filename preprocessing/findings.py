"""What can be wrong with a scan or its label map although both can be read: one phrase or one sentence each.

Arrays are [D,H,W] = (z,y,x), affines nibabel's: voxel (x,y,z,1) -> RAS+ mm, so that x grows to the patient's
right and the patient's left is at smaller x. A phrase is a remark or a repair for a verdict; what makes a case
useless or dangerous is raised.

>>> side_pairs({"left": ("left kidney",), "right": ("right lung", "right kidney")})
[('left kidney', 'right kidney')]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.errors import LabelValueError, RawDataError
from preprocessing.orientation import Reorientation
from preprocessing.volume import Volume

SMALLEST_MM, LARGEST_MM = 1.0, 3000.0
"""of a scan's longest edge: a body is shorter, a header in metres is below"""
RIGHT_ANGLE = 1e-4
"""the cosine between two axes up to which they count as orthogonal; ITK's readers refuse more"""
EXACT_MM = 1e-6
SIDE_WORDS = {"left": ("left", "l", "lt", "sin"), "right": ("right", "r", "rt", "dex")}


def image_hash(image: Volume) -> str:
    """Content hash of the voxels in RAS+ order: a copy of other name, format or orientation has the same."""
    array = np.ascontiguousarray(Reorientation.to_ras(image.affine).apply(image.array), dtype=np.float32)
    digest = hashlib.blake2b(f"{array.shape}".encode(), digest_size=16)
    digest.update(array.reshape(-1).data)
    return digest.hexdigest()


def check_grey_values(array: np.ndarray, name: str) -> None:
    """RawDataError where values are NaN or infinite, or where all are one value."""
    finite = np.isfinite(array)
    if not finite.all():
        bad = array.size - int(np.count_nonzero(finite))
        raise RawDataError(
            f"{name} holds values that are not finite ({bad} of {array.size} voxels): only finite grey values can "
            "be used; export the scan again or give these voxels the value of the background."
        )
    if array.min() == array.max():
        raise RawDataError(
            f"{name} holds the grey value {array.flat[0]:g} in every voxel, so it shows nothing: copy the scan "
            "again from its source."
        )


def check_field(shape: Sequence[int], spacing_mm: Sequence[float], name: str) -> None:
    """RawDataError where the longest edge of the field of view is one that no scan of a body has."""
    edges = [count * mm for count, mm in zip(shape, spacing_mm, strict=True)]
    if not SMALLEST_MM <= max(edges) <= LARGEST_MM:
        told = " x ".join(f"{edge:.3g}" for edge in edges)
        raise RawDataError(
            f"The longest edge of a scan is {SMALLEST_MM:g} to {LARGEST_MM:g} mm, but {name} is {told} mm (z,y,x): "
            "its header counts in another unit or has a wrong spacing; mend the header."
        )


def skew(affine: np.ndarray) -> str | None:
    """A phrase where the axes are not at right angles (M&Ms, a tilted gantry), else None."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs((axes.T @ axes)[np.triu_indices(3, 1)]).max())
    if cosine <= RIGHT_ANGLE:
        return None
    degrees = np.degrees(np.arcsin(min(1.0, cosine)))
    return f"the direction cosines are not orthonormal ({degrees:.2g} degrees off); the axes are taken as orthogonal"


def no_place(header: nib.Nifti1Header | None) -> str | None:
    """A phrase where a NIfTI header has neither qform nor sform, else None."""
    if header is None or header["qform_code"] or header["sform_code"]:
        return None
    return "the header does not say how the patient lies (qform and sform codes are 0); L,A,S is assumed"


def one_slice(shape: Sequence[int]) -> str | None:
    """A phrase where a scan (z,y,x) is a single slice along an axis, else None."""
    if 1 not in shape:
        return None
    return f"the scan is one slice ({' x '.join(map(str, shape))} voxels, z,y,x), and the model reads volumes"


def side_pairs(sides: Mapping[Any, Sequence[str]]) -> list[tuple[str, str]]:
    """(left, right) classes: by the name without its side ("kidney_left", "L kidney"), the rest in order.

    A rest of two lengths is no pair of anything and is left out.
    """
    left, right = list(sides.get("left", ())), list(sides.get("right", ()))
    pairs = []
    for name in list(left):
        twin = next((other for other in right if _bare(other, "right") == _bare(name, "left")), None)
        if twin is not None:
            pairs.append((name, twin))
            left.remove(name)
            right.remove(twin)
    return pairs + (list(zip(left, right, strict=True)) if len(left) == len(right) else [])


def check_sides(
    labels: Volume, classes: Mapping[str, int], sides: Mapping[Any, Sequence[str]], name: str
) -> None:
    """LabelValueError where the class of the left lies further right (at greater world x) than its partner.

    Only pairs that are both in the label map can say something: centre is compared with centre, so that it does
    not matter where in the scanner the patient lies.
    """
    boxes = ndimage.find_objects(labels.array, max_label=max(classes.values()))
    wrong = []
    for left, right in side_pairs(sides):
        centres = [_centre_x_mm(labels, boxes, classes[each]) for each in (left, right)]
        if centres[0] is not None and centres[1] is not None and centres[0] > centres[1]:
            wrong.append(f"'{left}' lies {centres[0] - centres[1]:.0f} mm to the right of '{right}'")
    if wrong:
        raise LabelValueError(
            f"Left classes lie on the patient's left of their partners, but in {name} {' and '.join(wrong)}: the "
            "label values or the orientation in the header are swapped; mend them (or, where the patient is built "
            "like this, leave the case out)."
        )


def lost_spacings(spacings_mm: Mapping[str, Sequence[float]]) -> list[str]:
    """Ids of the cases whose spacing is exactly 1 x 1 x 1 mm where most others' is not (LiTS 28 to 47)."""
    exact = [
        case for case, spacing in spacings_mm.items() if all(abs(edge - 1.0) < EXACT_MM for edge in spacing)
    ]
    return sorted(exact) if 2 * len(exact) < len(spacings_mm) else []


def _centre_x_mm(labels: Volume, boxes: Sequence[tuple[slice, ...] | None], value: int) -> float | None:
    """World x of a class's centre of mass in mm; None where the class has no voxel."""
    box = boxes[value - 1]
    if box is None:
        return None
    mask = labels.array[box] == value
    index = []  # of the centre, along each axis of the array
    for axis, part in enumerate(box):
        counts = mask.sum(axis=tuple(other for other in range(3) if other != axis))
        index.append(part.start + float(counts @ np.arange(len(counts))) / float(counts.sum()))
    return float(labels.affine[0, :3] @ index[::-1] + labels.affine[0, 3])


def _bare(name: str, side: str) -> str:
    """'Kidney_Left' -> 'kidney': the words of a name without the side's own."""
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return " ".join(word for word in words if word not in SIDE_WORDS[side])
