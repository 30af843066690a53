"""Scans to segment that are themselves the references: refused before minutes are spent on the task, where all are."""

from __future__ import annotations

from collections.abc import Sequence

from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import Candidate
from preprocessing.errors import ReferenceCaseError
from preprocessing.findings import image_hash
from preprocessing.runtime.files import UNUSABLE


def refuse_own_queries(inputs: Sequence[InputCase], drawn: Sequence[Candidate]) -> None:
    """ReferenceCaseError if every scan is one of the drawn references, by its voxels (`findings.image_hash`).

    Scans are read one by one, up to the first that is none: that one needs the task, and then each reference among them
    is refused in its turn. One that cannot be read is not known to be a reference.
    """
    known = {each.content: each.id for each in drawn if each.content}
    named: list[str] = []
    for case in inputs:
        try:
            own = known.get(image_hash(case.image.read_image())) if case.image is not None else None
        except UNUSABLE:
            return
        if own is None:
            return
        named.append(case.id if case.id == own else f"{case.id} is {own}")
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    whole = "the scan" if len(named) == 1 else f"each of the {len(named)} scans"
    raise ReferenceCaseError(
        f"A reference is never its own query, and {whole} to segment is one of the references ({shown}): give other "
        "scans, or take them out of the references."
    )
