"""Names of classes are read as anatomy: spellings, sides, groups, and datasets whose classes say too little."""

from __future__ import annotations

import pytest

from iris_pipeline.pages.anatomy import (
    FILLERS,
    GROUPS,
    OTHER,
    SYNONYMS,
    group_of,
    relation,
    structure_of,
    words_of,
)
from preprocessing.spec import list_specs, load_spec


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left kidney", "left_kidney"),
        ("LV cavity", "Left Ventricle blood pool"),
        ("esophagus", "oesophagus"),
        ("right lung", "lung-right"),
        ("liver tumor", "tumour of the liver"),
        ("spine", "vertebrae"),
    ],
)
def test_one_structure_under_two_names(one: str, other: str) -> None:
    assert structure_of(one) == structure_of(other)
    assert relation(structure_of(one), structure_of(other)) == "same"


def test_relations() -> None:
    left, right, ventricle = structure_of("left kidney"), structure_of("right kidney"), structure_of("LV")
    assert relation(left, right) == "other side"
    assert relation(left, structure_of("adrenals")) == "same group"
    assert relation(left, ventricle) == "different"
    assert relation(left, structure_of("kidney")) == "same group", "a kidney of no side is not this one"
    assert relation(structure_of("left thing"), structure_of("right stuff")) == "different"
    assert relation(structure_of("widget"), structure_of("gadget")) == "different", "others are no group"


def test_groups() -> None:
    assert group_of(structure_of("LV myocardium")) == "heart and vessels"
    assert group_of(structure_of("soft-tissue sarcoma")) == "tumour"
    assert group_of(structure_of("liver lesion")) == "tumour", "a tumour before its organ"
    assert group_of(structure_of("gallbladder")) == "liver and gall bladder"
    assert group_of(structure_of("bladder")) == "pelvic organs"
    assert group_of(structure_of("widget")) == OTHER


def test_a_name_that_says_too_little_takes_the_datasets_words() -> None:
    assert structure_of("anterior", "MSD Task04 Hippocampus") == {"anterior", "hippocampus"}
    assert group_of(structure_of("anterior", "MSD Task04 Hippocampus")) == "brain"
    assert structure_of("anterior", "Another set") == {"anterior"}
    assert structure_of("spleen", "Liver scans") == {"spleen"}, "a known word needs no help"


def test_words() -> None:
    assert words_of("RV cavity") == ("right", "ventricle")
    assert words_of("cavity") == ("cavity",), "a filler alone is all there is"


def test_the_tables_agree() -> None:
    """A group's words are in the spelling that words_of gives, and in one group only."""
    listed = [word for words in GROUPS.values() for word in words]
    assert len(listed) == len(set(listed))
    for word in listed:
        assert words_of(word) == (word,), word
    assert not FILLERS & set(listed)
    for word in SYNONYMS:
        assert words_of(" ".join(words_of(word))) == words_of(word), "reading twice changes nothing"


def test_every_shipped_class_has_a_group() -> None:
    for name in list_specs():
        spec = load_spec(name)
        for label in spec.classes:
            assert group_of(structure_of(label, spec.title)) != OTHER, f"{name}: {label}"
