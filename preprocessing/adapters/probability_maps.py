"""An image with one probability map a class: the label map is where each is largest (brain tissue)."""

from __future__ import annotations

from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.adapters.files import by_case, file_sources, nothing_found, one_file_each, pair_up
from preprocessing.layouts import MapFiles
from preprocessing.patterns import find
from preprocessing.sources.source import Source, Unreadable
from preprocessing.sources.source_kinds import ArgmaxSource
from preprocessing.spec import DatasetSpec


def find_probability_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """Layout `probability_maps`. A case that lacks one of its maps is refused by name, not argued about.

    RawDataError where there is no image.
    """
    form = spec.raw_files
    assert isinstance(form, MapFiles)
    folder = spec.settled_folder(raw)
    images = file_sources(find(folder, form.image, form.where), form.case)
    if not images:
        raise nothing_found(folder, spec, form.image)
    maps = {name: by_case(find(folder, each, form.where), form.case) for name, each in form.maps.items()}
    labels: dict[str, Source] = {}
    for case_id in sorted({case for found in maps.values() for case in found}):
        missing = [name for name, found in maps.items() if case_id not in found]
        if missing:
            labels[case_id] = Unreadable(
                f"Case {case_id} lacks the probability map of {', '.join(missing)}: all {len(maps)} are needed."
            )
        else:
            ordered = sorted((spec.classes[name], found[case_id][0]) for name, found in maps.items())
            twice = one_file_each({name: found[case_id] for name, found in maps.items()})
            labels[case_id] = twice or ArgmaxSource(tuple(ordered), form.above)
    return pair_up(images, labels, spec)
