"""Which structure of the body a class name means, read from its words, so that datasets can be compared.

`structure_of` gives the words that matter, in one spelling: "LV_cavity" and "left ventricle blood pool" are one
structure. `group_of` gives the part of the body that colours a map. Both read the class's name and, where its
words tell nothing ("anterior"), the dataset's title. The tables below are all there is to it; a name that they
do not know is a structure of its own in the group "other".
"""

from __future__ import annotations

import re
from typing import Literal

SIDES = frozenset({"left", "right"})
OTHER = "other"
# Spellings, abbreviations and other languages' words -> the words used here.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "esophagus": ("oesophagus",),
    "lv": ("left", "ventricle"),
    "rv": ("right", "ventricle"),
    "la": ("left", "atrium"),
    "ra": ("right", "atrium"),
    "lvc": ("left", "ventricle"),
    "rvc": ("right", "ventricle"),
    "myo": ("myocardium",),
    "gray": ("grey",),
    "gm": ("grey", "matter"),
    "wm": ("white", "matter"),
    "gallbladder": ("gall", "bladder"),
    "ivc": ("inferior", "vena", "cava"),
    "postcava": ("inferior", "vena", "cava"),
    "cerebrospinal": ("csf",),
    "discs": ("disc",),
    "stem": ("brainstem",),
    "cord": ("spinal", "cord"),
    "kidneys": ("kidney",),
    "renal": ("kidney",),
    "hepatic": ("liver",),
    "lungs": ("lung",),
    "pulmonary": ("lung",),
    "adrenals": ("adrenal",),
    "vertebrae": ("vertebra",),
    "spine": ("vertebra",),
    "tumor": ("tumour",),
    "cancer": ("tumour",),
    "carcinoma": ("tumour",),
    "lesion": ("tumour",),
    "lesions": ("tumour",),
    "nodule": ("tumour",),
    "metastasis": ("tumour",),
    "edema": ("oedema",),
}
# Words that tell the same structure apart in no way: the cavity of a ventricle is what a mask of it holds.
FILLERS = frozenset(
    {"cavity", "blood", "pool", "fluid", "gland", "glands", "organ", "whole", "the", "of", "and"}
)
# Group -> its words; the first group with one of the name's words has it, so a liver tumour is a tumour.
GROUPS: dict[str, tuple[str, ...]] = {
    "tumour": ("tumour", "sarcoma", "glioma", "oedema", "cyst"),
    "heart and vessels": (
        *("heart", "ventricle", "atrium", "myocardium", "aorta", "vena", "artery", "vein", "portal"),
    ),
    "brain": (
        *(
            "brain",
            "csf",
            "grey",
            "white",
            "hippocampus",
            "brainstem",
            "cerebellum",
            "thalamus",
            "ventricles",
        ),
        *("caudate", "putamen", "amygdala", "pallidum", "temporal", "pituitary"),
    ),
    "kidney and adrenal": ("kidney", "adrenal", "ureter"),
    "liver and gall bladder": ("liver", "gall"),
    "other abdomen": ("spleen", "pancreas", "stomach", "duodenum", "bowel", "colon", "intestine"),
    "chest": ("lung", "trachea", "oesophagus", "bronchus", "airway", "breast"),
    "head and neck": (
        *(
            "parotid",
            "larynx",
            "mandible",
            "submandibular",
            "thyroid",
            "eye",
            "optic",
            "cochlea",
            "lens",
            "ear",
        ),
        *("temporomandibular",),
    ),
    "bone and spine": (
        *(
            "vertebra",
            "disc",
            "spinal",
            "rib",
            "femur",
            "hip",
            "pelvis",
            "sacrum",
            "bone",
            "skull",
            "scapula",
        ),
    ),
    "pelvic organs": ("bladder", "prostate", "uterus", "rectum", "seminal"),
}

Relation = Literal["same", "other side", "same group", "different"]


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in one spelling, fillers left out.

    >>> words_of("RV cavity"), words_of("left_kidney"), words_of("Esophagus")
    (('right', 'ventricle'), ('left', 'kidney'), ('oesophagus',))
    """
    found: list[str] = []
    for word in re.findall(r"[a-z]+", name.lower()):
        found += SYNONYMS.get(word, (word,))
    kept = [word for word in found if word not in FILLERS]
    return tuple(dict.fromkeys(kept or found))


def structure_of(class_name: str, dataset_title: str = "") -> frozenset[str]:
    """The structure a class means, as a set of words: equal sets are the same anatomy.

    A name whose words no group knows takes the dataset's known words along, lest the "anterior" of two
    datasets be one structure.
    """
    words = frozenset(words_of(class_name))
    if _group(words) is None:
        words |= frozenset(word for word in words_of(dataset_title) if _group(frozenset({word})))
    return words


def group_of(structure: frozenset[str]) -> str:
    """The part of the body that a structure belongs to, "other" where no word is known."""
    return _group(structure) or OTHER


def relation(first: frozenset[str], second: frozenset[str]) -> Relation:
    """How two structures are related: left and right kidney are each the other's other side."""
    if first == second:
        return "same"
    if first - SIDES == second - SIDES and first & SIDES and second & SIDES:
        return "other side"
    return "same group" if group_of(first) == group_of(second) != OTHER else "different"


def _group(words: frozenset[str]) -> str | None:
    return next((group for group, known in GROUPS.items() if words & set(known)), None)
