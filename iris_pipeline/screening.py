"""References on disk, looked at before use: which can be used, and which are of one person."""

from __future__ import annotations

import re
from dataclasses import replace

from tqdm import tqdm

from iris_pipeline.references import ReferenceFiles, made_up_spec
from preprocessing.errors import ReferenceCaseError
from preprocessing.fingerprint import measure_case
from preprocessing.guess import guess_subject_pattern
from preprocessing.spec import Modality


def with_people(files: ReferenceFiles, pattern: str | None = None) -> ReferenceFiles:
    """The references with their people, told by the names.

    pattern: a regular expression with a group (?P<subject>...) that every name matches whole; "": each is a person of
    its own; None: guessed, as for a dataset (`preprocessing.guess`). ReferenceCaseError for one that does not fit.
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
        match = known.fullmatch(case.id)
        if match is None or not match.groupdict().get("subject"):
            raise ReferenceCaseError(
                "--subject-pattern finds the person in each reference's whole name by a group (?P<subject>...); "
                f"{pattern!r} finds none in '{case.id}': correct it, or leave it out."
            )
        cases.append(replace(case, subject=match["subject"]))
    return replace(files, cases=tuple(cases))


def people_told(files: ReferenceFiles) -> str:
    """A sentence that names the references of one person; "" where each is of another."""
    people: dict[str, list[str]] = {}
    for case in files.cases:
        people.setdefault(case.subject, []).append(case.id)
    several = [" and ".join(names) for names in people.values() if len(names) > 1]
    if not several:
        return ""
    return (
        f"Of one person, by their names or as the same scan: {'; '.join(several)}; they are never tried on one another "
        "(--subject-pattern says otherwise)."
    )


def screen_references(
    files: ReferenceFiles, modality: Modality | None = None
) -> tuple[ReferenceFiles, dict[str, str]]:
    """The references that can be used, and of the others id -> why not. ReferenceCaseError where none can be used.

    The same scan under two names is one person's: each of the two tells nothing about the other.
    """
    spec = made_up_spec(files.classes, modality or "MR")
    good, refused = [], {}
    shown_in: dict[str, str] = {}
    for case in tqdm(files.cases, desc="Checking references", leave=False, disable=len(files.cases) < 2):
        found = measure_case(case, spec, reference=True)
        if not found.accepted:
            refused[case.id] = found.why
        elif not found.classes:  # of no use, and rarely meant
            refused[case.id] = (
                f"A reference shows a class, but {case.labels} has no voxel of {', '.join(files.classes)}: correct the "
                "label file, or take the reference away."
            )
        else:
            good.append(replace(case, subject=shown_in.setdefault(found.content, case.subject)))
    if not good:
        told = "; ".join(f"'{name}': {why}" for name, why in list(refused.items())[:3])
        raise ReferenceCaseError(
            f"At least one reference must be usable, and none of {len(refused)} is: {told}"
        )
    return replace(files, cases=tuple(good)), refused
