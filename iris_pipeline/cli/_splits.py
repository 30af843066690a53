"""What the commands that segment a split share: its raw scans, and where the masks of an experiment go."""

from __future__ import annotations

from collections.abc import Iterable

from iris_pipeline.predict_split import Experiment
from iris_pipeline.showing import SEARCHED, Showing
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import PredictionError, RawDataError
from preprocessing.paths import Root
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


def check_showing(showing: Showing, stores: Iterable[Store]) -> None:
    """PredictionError for a pose or scale that none of the datasets' references would be shown in."""
    found = {store.manifest.dataset: store.manifest.role for store in stores}
    if showing != SEARCHED and "held-out" not in found.values():
        raise PredictionError(
            "--pose and --scale are of files (-r) and of held-out datasets; references of "
            f"{', '.join(found)} are taken as they are in the store: leave both out."
        )


def experiment_name(experiment: Experiment, part: str, numbered: bool) -> str:
    """The folder of an experiment's masks; numbered: with references and draw, so that several stand side by side."""
    name = experiment.strategy if part == "test" else f"{experiment.strategy}_{part}"
    if experiment.strategy == "bank" or not numbered:
        return name
    return f"{name}_k{experiment.count}_draw{experiment.seed}"
