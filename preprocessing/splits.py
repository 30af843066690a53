"""Who trains, who validates, who tests: always whole subjects, never single cases."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from preprocessing.errors import SpecError
from preprocessing.spec import FOLDS, DatasetSpec

Split = dict[str, list[str]]
PARTS = ("train", "validation", "test")


def make_splits(
    spec: DatasetSpec, subjects: Mapping[str, str], usable: Collection[str] | None = None
) -> dict[str, Split]:
    """Splits "paper", "0".."4" and "all", each {"train","validation","test"} of sorted case ids.

    `subjects`: case id -> subject, of every case that was found; `usable`: the ids that the splits may hold
    (default: all). The draw sees refused cases too, so that mending one later moves nobody else. "paper" is
    75/5/20 of the subjects, drawn from the specification's seed, or its lists. "0".."4" are cross-validation
    folds of the subjects outside the paper's test part, which stays the test. "all" trains on everybody,
    except test subjects that the specification lists by name (they may be people of a held-out dataset). A
    held-out dataset is test everywhere; where it lists test subjects only they are scored, and the others (who
    train in another dataset) may be references.
    """
    listed = {case: subject for case, subject in subjects.items() if usable is None or case in usable}
    if spec.role == "held-out":
        chosen = spec.split.test_subjects
        test_cases = sorted(case for case, person in listed.items() if chosen is None or person in chosen)
        return {name: {"train": [], "validation": [], "test": test_cases} for name in split_names()}
    people = sorted(set(subjects.values()))
    order = _shuffled(people, spec.split.seed)
    test, validation = _test_and_validation(spec, order)
    splits = {"paper": _by_subject(listed, validation, test)}
    rest = [subject for subject in order if subject not in test]
    for number, fold in enumerate(_folds(spec, rest)):
        splits[str(number)] = _by_subject(listed, fold, test)
    splits["all"] = _by_subject(listed, set(), set(spec.split.test_subjects or ()))
    return splits


def split_names() -> list[str]:
    """All names `make_splits` gives."""
    return ["paper", *(str(number) for number in range(FOLDS)), "all"]


def subjects_of_test(spec: DatasetSpec, subjects: Mapping[str, str]) -> set[str]:
    """Subjects of the paper split's test part; none for a held-out dataset, which is all test."""
    if spec.role == "held-out":
        return set()
    return _test_and_validation(spec, _shuffled(sorted(set(subjects.values())), spec.split.seed))[0]


def _shuffled(people: list[str], seed: int) -> list[str]:
    return [people[int(index)] for index in np.random.default_rng(seed).permutation(len(people))]


def _test_and_validation(spec: DatasetSpec, order: list[str]) -> tuple[set[str], set[str]]:
    if spec.split.test_subjects is not None and spec.split.validation_subjects is not None:
        return set(spec.split.test_subjects), set(spec.split.validation_subjects)
    if len(order) < 3:
        return set(), set()
    tests, validations = max(1, round(0.20 * len(order))), max(1, round(0.05 * len(order)))
    return set(order[:tests]), set(order[tests : tests + validations])


def _folds(spec: DatasetSpec, rest: list[str]) -> list[set[str]]:
    """The validation subjects of each fold; with fewer subjects than folds some folds share one."""
    if spec.split.folds is not None:
        missing = sorted(set(rest) - {subject for fold in spec.split.folds for subject in fold})
        if missing and not spec.split.loose_folds:
            raise SpecError(
                f"The folds of dataset {spec.name} lack the subjects {', '.join(missing)}: write each "
                "of them into one of the five lists."
            )
        return [set(fold) for fold in spec.split.folds]
    if len(rest) < FOLDS:
        return [{rest[number % len(rest)]} if len(rest) > 1 else set() for number in range(FOLDS)]
    return [set(rest[number::FOLDS]) for number in range(FOLDS)]


def _by_subject(subjects: Mapping[str, str], validation: set[str], test: set[str]) -> Split:
    split: Split = {part: [] for part in PARTS}
    for case, subject in sorted(subjects.items()):
        part = "test" if subject in test else "validation" if subject in validation else "train"
        split[part].append(case)
    return split
