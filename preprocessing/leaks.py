"""One scan twice and one person in two parts of a split: what would let a test see its own answer.

Cases are compared within a dataset and over all that are checked together; the same voxels are the same scan
whatever the file is called, compressed or turned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

VERBS = {"train": "train", "validation": "validate", "test": "test"}
MOST_NAMES = 8


@dataclass(frozen=True)
class KnownCase:
    """A usable case. people: namespace of the subject ids; content: hash of the voxels; parts: split -> part."""

    dataset: str
    id: str
    people: str
    subject: str
    content: str
    parts: Mapping[str, str] = field(default_factory=dict)


def same_images(cases: Sequence[KnownCase]) -> list[str]:
    """A sentence for each scan that is there more than once."""
    several = len({case.dataset for case in cases}) > 1
    groups: dict[str, list[KnownCase]] = defaultdict(list)
    for case in cases:
        if case.content:
            groups[case.content].append(case)
    return [_same_image(group, several) for group in groups.values() if len(group) > 1]


def images_of_two_datasets(cases: Sequence[KnownCase]) -> list[str]:
    """As `same_images`, but only scans that are in more than one dataset."""
    found: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        found[case.content].add(case.dataset)
    return same_images([case for case in cases if len(found[case.content]) > 1])


def people_in_two_parts(cases: Sequence[KnownCase]) -> list[str]:
    """A sentence for each two datasets of the same people (subject_group) whose splits part a person."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for case in cases:
        found[case.people, case.subject][case.dataset] = dict(case.parts)
    subjects: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    splits: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    for (_, subject), datasets in found.items():
        for one, other in combinations(sorted(datasets), 2):
            for split in datasets[one].keys() & datasets[other].keys():
                parts = datasets[one][split], datasets[other][split]
                if parts[0] != parts[1]:
                    subjects[one, parts[0], other, parts[1]].add(subject)
                    splits[one, parts[0], other, parts[1]].add(split)
    return [
        f"In the split{'s' * (len(splits[key]) > 1)} {_few(splits[key])} the same people {VERBS[key[1]]} in {key[0]} "
        f"and {VERBS[key[3]]} in {key[2]} ({_few(subjects[key])}): list the same subjects under split in both."
        for key in sorted(subjects)
    ]


def declared_overlaps(overlaps: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each two of the datasets that say of themselves that they have people in common."""
    pairs = {
        tuple(sorted((name, other)))
        for name, others in overlaps.items()
        for other in others
        if other in overlaps
    }
    return [
        f"{one} and {other} show some of the same people under other ids: they are not trained on together, and "
        "neither is tested with a model of the other."
        for one, other in sorted(pairs)
    ]


def _same_image(group: Sequence[KnownCase], several: bool) -> str:
    names = [f"{case.dataset}/{case.id}" if several else case.id for case in group]
    parts = {name: case.parts.get("paper", "") for name, case in zip(names, group, strict=True)}
    people = {(case.people, case.subject) for case in group}
    told = ""
    if len(set(parts.values())) > 1:
        of_parts = "; ".join(f"{name}: {part or 'no part'}" for name, part in parts.items())
        told = f", and parted by the split 'paper' ({of_parts})"
    under = "under several subjects" if len(people) > 1 else "of one subject"
    return f"The cases {', '.join(names)} are one image {under}{told}: keep one."


def _few(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return ", ".join(listed[:MOST_NAMES]) + more
