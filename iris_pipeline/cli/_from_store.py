"""iris_predict with references that a store lends (-d with a strategy but the bank), and what its ways share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.cli._outputs import wishes_of
from iris_pipeline.cli._references import tuning_settings
from iris_pipeline.cli._showing import showing_of
from iris_pipeline.cli._splits import stored_raw_cases
from iris_pipeline.confidence import judging
from iris_pipeline.inference.retrieval import RetrievalSettings
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.predict import Verdict, predict_cases
from iris_pipeline.prediction.predict_split import (
    DEFAULT_REFERENCES,
    Experiment,
    check_plan,
    note_references,
    stored_digest,
    stored_tasks,
)
from iris_pipeline.scans.inputs import InputCase
from preprocessing.adapters import Case
from preprocessing.errors import TaskError
from preprocessing.runtime.paths import Root
from preprocessing.store import Store, open_stores


def predict_from_store(
    arguments: argparse.Namespace,
    root: Root,
    loaded: LoadedModel,
    folder: Path,
    dataset: str,
    inputs: Sequence[InputCase],
    out: Path,
    options: InferenceOptions,
) -> list[Verdict]:
    """Every query's references are drawn from the store's train part, of other people than it may show."""
    store = open_stores(root.preprocessed, [dataset])[dataset]
    check_plan(loaded, store)
    ids = judging.train_ids(loaded, store)
    if not ids:
        raise TaskError(
            f"Dataset {dataset} has no train case to be a reference ({store.manifest.role}): give references "
            "with -r."
        )
    experiment = experiment_of(arguments, arguments.strategy)
    count = min(experiment.count, len(ids))
    print(
        f"Task: {experiment.strategy} from {count} reference{'s' * (count != 1)} among the {len(ids)} train cases "
        f"of {dataset}."
    )
    raw = _raw_of_unknown(root, store, ids)
    wishes = wishes_of(
        arguments,
        loaded,
        folder,
        options,
        witnesses=lambda: judging.stored_witnesses(
            loaded, store, ids, options, experiment.count, experiment.seed
        ),
        volumes=lambda _: judging.other_volumes(store, ids),
    )
    return predict_cases(
        loaded,
        stored_tasks(loaded, store, ids, experiment, options, raw, note_references(out)),
        judging.with_people(store, inputs),
        out,
        options,
        classes=store.manifest.classes,
        made_from={"dataset": dataset, "from": ids, "stored": stored_digest(store, ids)}
        | experiment.describe(),
        left_out=arguments.left_out,
        **wishes,
    )


def _raw_of_unknown(root: Root, store: Store, ids: Sequence[str]) -> dict[str, Case]:
    """The raw cases, where the store does not tell what scans its own were; a warning where they do not, either.

    Else a copy of a reference under another name would be segmented from itself, and nobody would know.
    """
    unknown = [case_id for case_id in ids if not store.content(case_id)]
    raw = {case.id: case for case in stored_raw_cases(root, store)} if unknown else {}
    if nowhere := [case_id for case_id in unknown if case_id not in raw]:
        name = store.manifest.dataset
        print(
            f"Warning: neither the store nor raw files tell which scans {len(nowhere)} of the {len(ids)} train cases "
            f"of {name} are: a copy of one under another name is not known as its own reference; run "
            f"iris_plan_and_preprocess -d {name}, with its raw folder at hand.",
            file=sys.stderr,
        )
    return raw


def experiment_of(arguments: argparse.Namespace, strategy: str) -> Experiment:
    return Experiment(
        strategy,
        arguments.references or DEFAULT_REFERENCES,
        arguments.seed or 0,
        retrieval_settings(arguments),
        tuning_settings(arguments),
        showing_of(arguments),
    )


def retrieval_settings(arguments: argparse.Namespace) -> RetrievalSettings:
    return RetrievalSettings(**({} if arguments.top is None else {"top": arguments.top}))
