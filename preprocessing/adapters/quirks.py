"""The quirks of a specification laid around the sources of its cases."""

from __future__ import annotations

from dataclasses import replace

from preprocessing.adapters.base import Case
from preprocessing.sources.mending import (
    DoubtfulSpacing,
    NearestRotation,
    OnGridOf,
    PlacedAs,
    SidesByPlace,
    ValuesMapped,
    WithSpacing,
    by_segment_names,
)
from preprocessing.sources.source import Source, Unreadable
from preprocessing.spec import DatasetSpec


def mended(case: Case, spec: DatasetSpec) -> Case:
    """The case with its sources as the specification wants them read; without quirks the same case."""
    image = _placed(case.image, case.id, spec)
    if spec.quirks.doubtful_spacing_mm and case.id not in spec.quirks.spacing_mm:
        image = DoubtfulSpacing(image, spec.quirks.doubtful_spacing_mm)
    labels = case.labels
    if labels is not None and not isinstance(labels, Unreadable):
        labels = _labels(_placed(labels, case.id, spec), image, spec)
    return replace(case, image=case.image if isinstance(case.image, Unreadable) else image, labels=labels)


def _placed(source: Source, case_id: str, spec: DatasetSpec) -> Source:
    """Where the voxels lie: the same for image and labels."""
    if spec.quirks.nearest_rotation:
        source = NearestRotation(source)
    if case_id in spec.quirks.spacing_mm:
        source = WithSpacing(source, spec.quirks.spacing_mm[case_id])
    return source


def _labels(source: Source, image: Source, spec: DatasetSpec) -> Source:
    quirks = spec.quirks
    if quirks.values or quirks.ignored_values:
        source = ValuesMapped(source, tuple(sorted(quirks.values.items())), quirks.ignored_values)
    else:  # values that the specification speaks of are those in the files
        source = by_segment_names(source, spec.classes)
    if quirks.label_grid == "resample":
        source = OnGridOf(source, image)
    elif quirks.label_grid == "image":
        source = PlacedAs(source, image)
    if quirks.sides_between is not None:
        (left,), (right,) = spec.sides["left"], spec.sides["right"]
        names = (left, right, quirks.sides_between)
        source = SidesByPlace(source, spec.classes[left], spec.classes[right], spec.classes[names[2]], names)
    return source
