"""Splits: proportions, whole subjects, and no person on two sides of any dataset."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from preprocessing.adapters import find_cases
from preprocessing.errors import SpecError
from preprocessing.spec import DatasetSpec, list_specs, load_spec
from preprocessing.splits import PARTS, make_splits, split_names, subjects_of_test


def spec_with(**changes: object) -> DatasetSpec:
    base = {"name": "x", "title": "", "modality": "MR", "role": "upstream", "source": "", "licence": ""}
    return DatasetSpec.model_validate(base | {"classes": {"a": 1}} | changes)


def numbered(count: int) -> dict[str, str]:
    return {f"c{number:03d}": f"c{number:03d}" for number in range(count)}


@pytest.mark.parametrize(
    ("count", "sizes"), [(120, (90, 6, 24)), (20, (15, 1, 4)), (7, (5, 1, 1)), (3, (1, 1, 1)), (2, (2, 0, 0))]
)
def test_the_paper_split_is_75_5_20(count: int, sizes: tuple[int, int, int]) -> None:
    split = make_splits(spec_with(), numbered(count))["paper"]
    assert tuple(len(split[part]) for part in PARTS) == sizes
    assert sorted(case for part in PARTS for case in split[part]) == sorted(numbered(count))


def test_the_seed_and_nothing_else_decides() -> None:
    once, again = make_splits(spec_with(), numbered(20)), make_splits(spec_with(), numbered(20))
    other = make_splits(spec_with(split={"seed": 1}), numbered(20))
    assert once == again
    assert once["paper"]["test"] != other["paper"]["test"]


def test_a_seed_draws_the_same_people_in_every_version() -> None:
    """Or a model of yesterday would be tested on who trained it: people in the order of numpy's permutation, a fifth
    of them test, the next twentieth validates; of those who do not test every fifth one is a fold's.
    """
    subjects = {f"c{number:02d}_{scan}": f"p{number:02d}" for number in range(27) for scan in "ab"}
    splits = make_splits(spec_with(split={"seed": 4}), subjects)
    order = [f"p{number:02d}" for number in np.random.default_rng(4).permutation(27)]

    def cases(people: list[str]) -> list[str]:
        return sorted(case for case, person in subjects.items() if person in people)

    assert splits["paper"] == {
        "train": cases(order[6:]),
        "validation": cases(order[5:6]),
        "test": cases(order[:5]),
    }
    for number in range(5):
        fold = order[5:][number::5]
        assert splits[str(number)]["validation"] == cases(fold)
        assert splits[str(number)]["train"] == cases([person for person in order[5:] if person not in fold])
    assert subjects_of_test(spec_with(split={"seed": 4}), subjects) == set(order[:5])


def test_each_subject_outside_the_test_validates_in_exactly_one_fold() -> None:
    splits = make_splits(spec_with(), numbered(27))
    assert list(splits) == split_names() == ["paper", "0", "1", "2", "3", "4", "all"]
    seen = [case for fold in "01234" for case in splits[fold]["validation"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == set(numbered(27)) - set(splits["paper"]["test"])
    for fold in "01234":
        assert splits[fold]["test"] == splits["paper"]["test"]
        assert not set(splits[fold]["train"]) & set(splits[fold]["validation"])
    assert splits["all"] == {"train": sorted(numbered(27)), "validation": [], "test": []}


def test_few_subjects_still_validate_in_every_fold() -> None:
    splits = make_splits(spec_with(), numbered(4))
    assert all(len(splits[fold]["validation"]) == 1 and splits[fold]["train"] for fold in "01234")
    rest = set(numbered(4)) - set(splits["paper"]["test"])
    assert {case for fold in "01234" for case in splits[fold]["validation"]} == rest, "they take turns"


def test_cases_of_one_subject_stay_together() -> None:
    subjects = {f"p{number:02d}_{frame}": f"p{number:02d}" for number in range(10) for frame in "ab"}
    for split in make_splits(spec_with(), subjects).values():
        sides = [{subjects[case] for case in split[part]} for part in PARTS]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_a_refused_case_moves_nobody_else() -> None:
    subjects = numbered(20)
    whole = make_splits(spec_with(), subjects)["paper"]
    lost = whole["train"][3]
    less = make_splits(spec_with(), subjects, set(subjects) - {lost})["paper"]
    assert less["train"] == [case for case in whole["train"] if case != lost]
    assert (less["validation"], less["test"]) == (whole["validation"], whole["test"])


def test_a_held_out_dataset_is_test_everywhere() -> None:
    spec = spec_with(role="held-out")
    splits = make_splits(spec, numbered(4))
    assert all(
        split == {"train": [], "validation": [], "test": sorted(numbered(4))} for split in splits.values()
    )
    assert subjects_of_test(spec, numbered(4)) == set()


def test_of_a_held_out_dataset_with_a_list_only_the_listed_are_scored() -> None:
    lists = {"validation_subjects": [], "test_subjects": ["s1", "s3"]}
    cases = {"a": "s1", "b": "s2", "c": "s3", "d": "s3"}
    splits = make_splits(spec_with(role="held-out", split=lists), cases)
    assert all(split == {"train": [], "validation": [], "test": ["a", "c", "d"]} for split in splits.values())


def test_folds_that_forget_a_subject_are_refused() -> None:
    lists = {"test_subjects": [], "validation_subjects": [], "folds": [["a"], [], [], [], []]}
    with pytest.raises(SpecError, match="folds of dataset x lack the subjects b"):
        make_splits(spec_with(split=lists), {"a": "a", "b": "b"})


def test_no_person_is_on_two_sides_over_all_real_datasets(shared_data: Path) -> None:
    """Trained on one dataset of STS and tested on another would be the same tumour on both sides."""
    sides: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    shared = defaultdict(set)
    for name in list_specs():
        spec = load_spec(name)
        if spec.role == "phantom" or not (shared_data / name).is_dir():
            continue
        subjects = {case.id: case.subject for case in find_cases(shared_data / name, spec)}
        for subject in subjects.values():
            shared[spec.people, subject].add(name)
        for split_name, split in make_splits(spec, subjects).items():
            for part in PARTS:
                for case in split[part]:
                    sides[split_name, spec.people, subjects[case]].add(part)
    assert {names for key in shared if len(names := frozenset(shared[key])) == 3} == {
        frozenset({"sts_ct", "sts_pet", "sts_t1"})
    }
    assert {key: parts for key, parts in sides.items() if len(parts) > 1} == {}


def test_the_sts_lists_are_those_of_the_held_out_ct(shared_data: Path) -> None:
    def parts(name: str) -> dict[str, list[str]]:
        spec = load_spec(name)
        cases = {case.id: case.subject for case in find_cases(shared_data / name, spec)}
        split = make_splits(spec, cases)["paper"]
        return {part: [cases[case] for case in split[part]] for part in PARTS}

    ct = parts("sts_ct")["test"]
    assert ct == ["012", "015", "018", "019", "024", "025"]
    assert parts("sts_pet")["test"] == ct
    assert parts("sts_pet")["validation"] == ["002", "003"]
    assert parts("sts_t1")["test"] == ["024", "025"]
    assert parts("sts_t1")["validation"] == ["002"]
    assert len(parts("sts_pet")["train"]) == 22 and len(parts("sts_t1")["train"]) == 6


def test_acdc_patients_are_not_torn_apart(shared_data: Path) -> None:
    spec = load_spec("acdc_mini")
    cases = {case.id: case.subject for case in find_cases(shared_data / "acdc_mini", spec)}
    split = make_splits(spec, cases)["paper"]
    assert [len(split[part]) for part in PARTS] == [30, 2, 8]
    assert [len({cases[case] for case in split[part]}) for part in PARTS] == [15, 1, 4]
