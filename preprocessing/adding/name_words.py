"""What the words in the names of files and folders tell: image, mask, part of a set; no name is known beforehand."""

from __future__ import annotations

import re
from functools import lru_cache

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
_RATERS = "rater raters reader readers observer observers annotator annotators radiologist radiologists expert experts"
_VERSIONS = "auto automatic automated pred preds prediction predictions predicted old new corrected revised"
LABEL_WORDS, IMAGE_WORDS = frozenset(_LABELS.split()), tuple(_IMAGES.split())
PARTS_OF_A_SET = frozenset(_PARTS.split())
RATERS = frozenset(_RATERS.split())
VERSIONS = frozenset(_VERSIONS.split())
_OF_PARTS = PARTS_OF_A_SET | {"set", "data", "split", "cases"}  # "training set"
_LONG_PARTS = frozenset(part for part in PARTS_OF_A_SET if len(part) > 3)
"""train 1 is a part, TS_001 a patient"""
CLASS = "{class}"
FIELD = re.compile(r"\{[a-z]+\}|\*")


def words(text: str) -> set[str]:
    """'imagesTr_P01' -> {'imagestr', 'images', 'tr', 'p01', 'p'}: with and without digits and inner capitals."""
    tokens = re.findall(r"[A-Za-z0-9]+", text)
    tokens += [part for token in tokens for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", token)]
    tokens += re.findall(r"[A-Za-z]+", text)
    return {token.lower() for token in tokens}


def fixed_words(pattern: str) -> set[str]:
    """The words of a pattern beside its fields."""
    return words(FIELD.sub(" ", pattern))


def names_a_drawing(name: str) -> bool:
    """Whether a name says who or what drew the masks: rater1 and rater2 are the same structures twice, no classes.

    >>> names_a_drawing("mask_rater1"), names_a_drawing("labels_auto"), names_a_drawing("new_lesion")
    (True, True, False)
    """
    drawn = RATERS | VERSIONS
    tokens = [token for token in re.findall("[a-z]+", name.lower()) if len(token) > 1]  # reader_a is a reader
    return bool(drawn & set(tokens)) and drawn | LABEL_WORDS >= set(tokens)


def says_mask(word: str) -> bool:
    """Whether a word says no more than that it is a mask, or whose."""
    return word.lower() in LABEL_WORDS or names_a_drawing(word)


def names_a_class(name: str) -> bool:
    """Whether a name among images and masks may be a class: more than words of image, mask or part, and numbers."""
    return not _only(name, LABEL_WORDS | set(IMAGE_WORDS) | PARTS_OF_A_SET)


def may_be_class(name: str, pattern: str, beside_images: bool) -> bool:
    """Whether what stands for {class} in a pattern may be one. beside_images: the images fit the pattern, too.

    Where only masks lie, T1 is a vertebra and 12 a rib; beside images T1 is a sequence. A file called "mask" among
    the masks of classes is taken for all of them in one.
    """
    told = fixed_words(pattern)
    if names_a_drawing(name):
        return False
    if not told & LABEL_WORDS and (beside_images or told & set(IMAGE_WORDS)):
        return names_a_class(name)
    if name.lower() in LABEL_WORDS:
        return False
    whole_name = pattern.rpartition("/")[2].partition(".")[0] == CLASS
    return whole_name or not _only(name, PARTS_OF_A_SET)


@lru_cache(maxsize=4096)
def part_of(folder: str) -> tuple[str, str] | None:
    """A folder's name that says which part of a set it holds, as pattern and part; None for any other.

    >>> part_of("val"), part_of("imagesTr"), part_of("test-masks"), part_of("TS_001")
    (('{part}', 'val'), ('images{part}', 'Tr'), ('{part}-masks', 'test'), None)
    """
    pieces = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^A-Za-z0-9]+", folder)
    told = {piece.lower() for piece in pieces if piece.isalpha()}
    spots = [index for index, piece in enumerate(pieces) if piece.lower() in PARTS_OF_A_SET]
    if spots and told <= _OF_PARTS:
        numbered = any(piece.isdecimal() for piece in pieces)
        return ("{part}", folder) if not numbered or told & _LONG_PARTS else None
    if len(spots) != 1 or not told & (LABEL_WORDS | set(IMAGE_WORDS)):
        return None
    spot = spots[0]
    return "".join([*pieces[:spot], "{part}", *pieces[spot + 1 :]]), pieces[spot]


def _only(name: str, known: frozenset[str]) -> bool:
    """Whether all words of a name are known, or numbers; a known word may have a number behind it."""
    tokens = re.findall(r"[A-Za-z0-9]+", name.lower())
    return all(token.isdecimal() or token in known or token.rstrip("0123456789") in known for token in tokens)
