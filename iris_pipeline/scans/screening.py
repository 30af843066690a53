"""References on disk, looked at before use: which can be used, and which are of one person."""

from __future__ import annotations

import re
from dataclasses import replace

from iris_pipeline.inference.strategies import join_people
from iris_pipeline.scans.references import ReferenceFiles, made_up_spec
from preprocessing.errors import ReferenceCaseError
from preprocessing.fingerprint import measure_case
from preprocessing.guess import guess_subject_pattern
from preprocessing.runtime.progress import Bar
from preprocessing.spec import Modality


def with_people(files: ReferenceFiles, pattern: str | None = None) -> ReferenceFiles:
    """The references with their people, told by the names.

    pattern: a regular expression with a group (?P<subject>...) that is found in every name; "": each is a person of its
    own; None: guessed, as for a dataset (`preprocessing.guess`). ReferenceCaseError for one that does not fit.
    """
    if pattern is None:
        pattern = guess_subject_pattern([case.id for case in files.cases])[0]
    if not pattern:
        return files
    try:
        known = re.compile(pattern)
    except re.error as error:
        raise ReferenceCaseError(
            f"--subject-pattern takes a regular expression; {pattern!r} is none ({error}): correct it."
        ) from None
    cases = []
    for case in files.cases:
        match = known.search(case.id)
        if match is None or not match.groupdict().get("subject"):
            raise ReferenceCaseError(
                "--subject-pattern finds the person in each reference's name by a group (?P<subject>...); "
                f"{pattern!r} finds none in '{case.id}': correct it, or leave it out."
            )
        cases.append(replace(case, subject=match["subject"]))
    return replace(files, cases=tuple(cases))


def references_told(files: ReferenceFiles) -> str:
    """Sentences that name references that are doubtful, the same scan, or of one person; "" where there are none."""
    people: dict[str, list[str]] = {}
    for case in files.cases:
        people.setdefault(case.subject, []).append(case.id)
    several = [
        " and ".join(names)
        for names in people.values()
        if len(names) > 1 and tuple(names) not in files.copies
    ]
    copies = [" and ".join(names) for names in files.copies]
    told = [f"Reference '{name}': {why}." for name, why in files.remarks]
    if copies:
        told.append(
            f"The same scan under several names: {'; '.join(copies)}; it counts as one person's: keep one of them."
        )
    if several:
        told.append(
            f"Of one person, by their names or as the same scan: {'; '.join(several)}; they are never tried on one "
            "another (--subject-pattern says otherwise)."
        )
    return "\n".join(told)


def screen_references(
    files: ReferenceFiles, modality: Modality | None = None
) -> tuple[ReferenceFiles, dict[str, str]]:
    """The references that can be used, and of the others id -> why not. ReferenceCaseError where none can be used.

    The same scan under two names is one person's: each of the two tells nothing about the other (`copies`).
    """
    spec = made_up_spec(files.classes, modality or "MR")
    good, refused, remarks = [], {}, []
    contents: list[str] = []
    for case in Bar(files.cases, desc="Checking references", leave=False, disable=len(files.cases) < 2):
        found = measure_case(case, spec, reference=True)
        if not found.accepted:
            refused[case.id] = found.why
        elif not found.classes:  # of no use, and rarely meant
            refused[case.id] = (
                f"A reference shows a class, but {case.labels} has no voxel of {', '.join(files.classes)}: correct the "
                "label file, or take the reference away."
            )
        else:
            good.append(case)
            contents.append(found.content)
            if found.why:
                remarks.append((case.id, found.why))
    if not good:
        told = "; ".join(f"'{name}': {why}" for name, why in list(refused.items())[:3])
        raise ReferenceCaseError(
            f"At least one reference must be usable, and none of {len(refused)} is: {told}"
        )
    people = join_people([case.subject for case in good], contents)
    same: dict[str, list[str]] = {}
    for case, content in zip(good, contents, strict=True):
        same.setdefault(content or case.id, []).append(case.id)
    usable = replace(
        files,
        cases=tuple(replace(case, subject=person) for case, person in zip(good, people, strict=True)),
        copies=tuple(tuple(names) for names in same.values() if len(names) > 1),
        remarks=tuple(remarks),
    )
    return usable, refused
