"""What the words in the names of files and folders tell: image, mask, part of a set; no name is known beforehand."""

from __future__ import annotations

import re

_LABELS = (
    "seg segs segm segmentation segmentations mask masks msk label labels labelmap labelmaps labelstr labelsva lbl lab "
    "gt groundtruth truth annotation annotations annot roi rois contour contours manual structures"
)
# The earlier, the likelier it is the image that was meant where several pair up.
_IMAGES = (
    "image images img imgs imaging imagestr imagesva scan scans volume volumes vol ct mr mri pet suv 0000 dicom orig "
    "data raw t1 t1w t2 t2w t1c t1ce t1gd flair adc dwi lge cine cbct ctres phase"
)
_PARTS = "train training tr val valid validation va test testing ts batch fold part"
LABEL_WORDS, IMAGE_WORDS = frozenset(_LABELS.split()), tuple(_IMAGES.split())
PARTS_OF_A_SET = frozenset(_PARTS.split())


def words(text: str) -> set[str]:
    """'imagesTr_P01' -> {'imagestr', 'images', 'tr', 'p01', 'p'}: with and without digits and inner capitals."""
    tokens = re.findall(r"[A-Za-z0-9]+", text)
    tokens += [part for token in tokens for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", token)]
    tokens += re.findall(r"[A-Za-z]+", text)
    return {token.lower() for token in tokens}


def names_a_class(name: str) -> bool:
    """Whether what stands for {class} may be one: no number, and no word that means an image, a mask or a part."""
    plain = {name.lower(), name.lower().rstrip("0123456789")}
    return not plain & (LABEL_WORDS | set(IMAGE_WORDS) | PARTS_OF_A_SET) and not name.isdecimal()
