"""One scan twice and one person in two parts: found within a dataset and between datasets, and said in a sentence."""

from __future__ import annotations

from preprocessing.leaks import (
    KnownCase,
    declared_overlaps,
    images_of_two_datasets,
    people_in_two_parts,
    same_images,
)


def case(
    dataset: str, case_id: str, content: str, *, people: str = "", subject: str = "", **parts: str
) -> KnownCase:
    named = {name.removeprefix("fold"): part for name, part in parts.items()}
    return KnownCase(dataset, case_id, people or dataset, subject or case_id, content, named)


def test_one_image_within_a_dataset() -> None:
    cases = [
        case("a", "c1", "x", paper="train"),
        case("a", "c2", "y", paper="train"),
        case("a", "c3", "x", paper="test"),
    ]
    assert same_images(cases) == [
        "The cases c1, c3 are one image under several subjects, and parted by the split 'paper' (c1: train; "
        "c3: test): keep one."
    ]
    twice = [case("a", name, "x", subject="s", paper="train") for name in ("c1", "c2")]
    assert same_images(twice) == ["The cases c1, c2 are one image of one subject: keep one."]
    assert same_images(cases[:2]) == []


def test_one_image_in_two_datasets() -> None:
    cases = [
        case("a", "c1", "x", paper="train"),
        case("b", "k7", "x", paper="test"),
        case("b", "k8", "z", paper="test"),
        case("b", "k9", "z", paper="test"),
    ]
    assert images_of_two_datasets(cases) == [
        "The cases a/c1, b/k7 are one image under several subjects, and parted by the split 'paper' (a/c1: train; "
        "b/k7: test): keep one."
    ]
    assert images_of_two_datasets(cases[2:]) == [], "the dataset's own report says that"


def test_one_person_in_two_parts_of_a_split() -> None:
    shared = [
        case("pet", "p1", "1", people="sts", subject="s1", paper="train", fold0="validation"),
        case("ct", "q1", "2", people="sts", subject="s1", paper="test", fold0="test"),
        case("pet", "p2", "3", people="sts", subject="s2", paper="train", fold0="train"),
        case("ct", "q2", "4", people="sts", subject="s2", paper="test", fold0="train"),
        case("pet", "p3", "5", people="sts", subject="s3", paper="test", fold0="test"),
        case("ct", "q3", "6", people="sts", subject="s3", paper="test", fold0="test"),
    ]
    assert people_in_two_parts(shared) == [
        "In the split paper the same people test in ct and train in pet (s1, s2): list the same subjects under split "
        "in both.",
        "In the split 0 the same people test in ct and validate in pet (s1): list the same subjects under split in "
        "both.",
    ]


def test_the_same_id_is_another_person_where_the_people_are_others() -> None:
    cases = [case("a", "c", "1", subject="1", paper="train"), case("b", "k", "2", subject="1", paper="test")]
    assert people_in_two_parts(cases) == []


def test_declared_overlaps_are_said_once_and_only_of_what_is_there() -> None:
    assert declared_overlaps({"acdc": ("acdc_mini",), "acdc_mini": ("acdc", "mnms"), "lits": ()}) == [
        "acdc and acdc_mini show some of the same people under other ids: they are not trained on together, and "
        "neither is tested with a model of the other."
    ]
    assert declared_overlaps({"acdc": ("acdc_mini",)}) == []


def test_long_lists_are_cut() -> None:
    cases = [
        case(dataset, f"{dataset}{i}", f"{dataset}{i}", people="p", subject=f"s{i:02}", paper=part)
        for i in range(11)
        for dataset, part in (("a", "train"), ("b", "test"))
    ]
    (sentence,) = people_in_two_parts(cases)
    assert "(s00, s01, s02, s03, s04, s05, s06, s07 and 3 more)" in sentence
