"""DICOM series with PNG masks beside them, one or several volumes a subject (CHAOS)."""

from __future__ import annotations

from pathlib import Path

from preprocessing.adapters.base import Case
from preprocessing.adapters.files import file_sources, nothing_found, pair_up
from preprocessing.layouts import SeriesFiles
from preprocessing.patterns import Match, fill, find
from preprocessing.sources.source import Source
from preprocessing.sources.source_kinds import PngStackSource
from preprocessing.spec import DatasetSpec


def find_dicom_png_cases(raw: Path, spec: DatasetSpec) -> list[Case]:
    """Layout `dicom_png`: one case for each subject and each of the volumes of the specification.

    RawDataError where there is no series at all.
    """
    form = spec.raw_files
    assert isinstance(form, SeriesFiles)
    folder = spec.settled_folder(raw)
    greys = tuple(sorted((low, high, spec.classes[name]) for name, (low, high) in form.greys.items()))
    images: dict[str, Source] = {}
    labels: dict[str, Source] = {}
    for name, volume in form.volumes.items():

        def named(pattern: str, name: str = name) -> list[Match]:
            matches = find(folder, [pattern], form.where)
            return [Match(match.path, {**match.names, "volume": name}) for match in matches]

        images |= file_sources(named(volume.image), form.case)
        for match in named(volume.masks):
            series = folder / fill(volume.masks_of or volume.image, match.names)
            labels[fill(form.case, match.names)] = PngStackSource(match.path, series, greys)
    if not images:
        raise nothing_found(folder, spec, form.patterns)
    return pair_up(images, labels, spec)
