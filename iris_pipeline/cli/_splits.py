"""What the commands that segment a split share: its raw scans, and where the masks of an experiment go."""

from __future__ import annotations

from iris_pipeline.prediction.predict_split import Experiment
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import RawDataError
from preprocessing.runtime.paths import Root
from preprocessing.store import Store


def stored_raw_cases(root: Root, store: Store) -> list[Case]:
    """The dataset's raw cases; none where its raw folder is not at hand."""
    folder = store.manifest.spec.raw_folder(root.raw)
    return find_cases(folder, store.manifest.spec) if folder.is_dir() else []


def raw_cases(root: Root, store: Store) -> list[Case]:
    """The dataset's raw cases; RawDataError where its raw folder is not at hand."""
    cases = stored_raw_cases(root, store)
    if not cases:
        raise RawDataError(
            "Results are to lie on the raw grids, so the raw scans are needed: there is no "
            f"{store.manifest.spec.raw_folder(root.raw)}; name the folder of the raw datasets with --raw."
        )
    return cases


def experiment_name(experiment: Experiment, part: str, numbered: bool) -> str:
    """The folder of an experiment's masks; numbered: with references and draw, so that several stand side by side."""
    name = experiment.strategy if part == "test" else f"{experiment.strategy}_{part}"
    if experiment.strategy == "bank" or not numbered:
        return name
    return f"{name}_k{experiment.count}_draw{experiment.seed}"
