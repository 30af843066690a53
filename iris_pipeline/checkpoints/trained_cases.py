"""Which cases a model has learnt from: kept with its weights (`not_trained.py` asks before results are made).

A split's name does not tell: one case more in the dataset and the split is drawn anew, and a run may have started from
the weights of another one, which was trained on other datasets and splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocessing.store import Store


@dataclass(frozen=True)
class TrainedPart:
    """The train part of one dataset's split as it was when a model was trained on it.

    cases: id -> subject; None where the checkpoint is older than this record and does not tell. people: the namespace
    of the subjects (`DatasetSpec.people`).
    """

    split: str
    cases: dict[str, str] | None = None
    people: str = ""


TrainedCases = dict[str, tuple[TrainedPart, ...]]
"""By dataset; an empty tuple: trained on, by which split is not known"""


def cases_of_stores(stores: Mapping[str, Store], split: str) -> TrainedCases:
    """What a run over these stores learns from."""
    return {
        name: (
            TrainedPart(
                split,
                {each: store.entry(each).subject for each in store.manifest.splits[split]["train"]},
                store.manifest.spec.people,
            ),
        )
        for name, store in stores.items()
    }


def join_cases(*records: TrainedCases) -> TrainedCases:
    """All that any of the records holds, each part once, the first record's first."""
    names = dict.fromkeys(name for record in records for name in record)
    return {
        name: tuple(_distinct([part for record in records for part in record.get(name, ())]))
        for name in names
    }


def _distinct(parts: Sequence[TrainedPart]) -> list[TrainedPart]:
    return [part for index, part in enumerate(parts) if part not in parts[:index]]
