"""From references to a judge: what tells `predict_cases` how good each of its masks is likely to be.

Witnesses are tasks of single references: where they disagree on a scan, the mask is in doubt. They are drawn by a seed
of their own, for each query from other subjects, and encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.confidence.calibration import Calibration, Judgement, judge
from iris_pipeline.confidence.disagreement import MOST_REFERENCES, gather_signs
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, plan_like
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import (
    ReferenceFiles,
    candidates_of,
    draw_references,
    embed_draws,
    embed_files,
    prepare_reference,
    stored_reference,
)
from iris_pipeline.scans.scan import ScanResult
from iris_pipeline.search.grey_weights import tasks_weighed_like
from iris_pipeline.search.showing import Showing
from iris_pipeline.tasks.grey import weights_of
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.adapters import Case
from preprocessing.errors import RawDataError, ReferenceCaseError
from preprocessing.findings import image_hash
from preprocessing.geometry import voxel_ml
from preprocessing.plan import MANIFEST
from preprocessing.store import Store
from preprocessing.volume import Volume

WITNESS_SEED = 1000
"""added to the seed of the references: other ones than those the task is made from, where it can be"""
Witnesses = Callable[[InputCase, TaskEmbedding], Sequence[TaskEmbedding]]
"""A query and its task -> tasks of single references on the same grid and intensities."""
Volumes = Callable[[InputCase, Volume], Mapping[str, float]]
"""A query and its image -> what volume (ml) the references let expect, by class."""


def no_witnesses(_case: InputCase, _task: TaskEmbedding) -> Sequence[TaskEmbedding]:
    """For tasks whose references are not at hand, or are but one."""
    return ()


def no_volumes(_case: InputCase, _image: Volume) -> Mapping[str, float]:
    """For tasks whose references' volumes are not known."""
    return {}


def known_volumes(volumes_ml: Mapping[str, float]) -> Volumes:
    """The same for every query."""
    return lambda _case, _image: volumes_ml


@dataclass(frozen=True)
class MaskJudge:
    """The judge for `predict_cases`. Of a query that is one of the references, which were not all drawn, its own labels
    have no say. Witnesses are not asked where the calibration makes nothing of what they say.
    """

    loaded: LoadedModel
    calibration: Calibration
    options: InferenceOptions
    review_below: float
    witnesses: Witnesses = no_witnesses
    volumes: Volumes = no_volumes

    def __call__(
        self, case: InputCase, image: Volume, tasks: Sequence[TaskEmbedding], result: ScanResult
    ) -> list[Judgement]:
        """Of every class of the label map; a class that lost all of its voxels there to others has none."""
        ask = self.witnesses if "references" in self.calibration.used else no_witnesses

        def others(task: TaskEmbedding) -> Sequence[TaskEmbedding]:
            asked = ask(case, task)
            own = image_hash(image) if asked else ""
            return [witness for witness in asked if own not in witness.reference_hashes]

        expected = self.volumes(case, image)
        signs = gather_signs(self.loaded, tasks, image, result, self.options, others, expected)
        return judge(self.calibration, case.id, signs, self.review_below)

    def again(self, former: Sequence[Judgement]) -> list[Judgement]:
        """By the signs that were noted."""
        return [
            judgement
            for each in former
            for judgement in judge(
                self.calibration, each.case, {each.class_name: each.signs}, self.review_below
            )
        ]


def file_witnesses(
    loaded: LoadedModel, files: ReferenceFiles, options: InferenceOptions, seed: int = 0
) -> Witnesses:
    """Up to three references on disk, the same for every query; none where there is but one."""
    if len(files.cases) < 2:
        return no_witnesses
    known: dict[tuple[object, ...], list[TaskEmbedding]] = {}

    def witnesses(_: InputCase, task: TaskEmbedding) -> Sequence[TaskEmbedding]:
        weights = tuple(weights_of(task.grey, task.class_names).items())
        grid = (
            task.spacing_mm,
            task.patch_size,
            task.pose,
            task.normalisation,
            task.intensity_offset,
            weights,
        )
        if grid not in known:
            embedded = embed_files(
                loaded,
                files,
                options,
                count=MOST_REFERENCES,
                seed=seed + WITNESS_SEED,
                like=task,
                showing=Showing(grey=0.0, looks=1),
            )
            known[grid] = tasks_weighed_like(embedded.pool, embedded.prepare, task)
        return known[grid]

    return witnesses


def stored_witnesses(
    loaded: LoadedModel,
    store: Store,
    ids: Iterable[str],
    options: InferenceOptions,
    count: int = 0,
    seed: int = 0,
    raw: Mapping[str, Case] | None = None,
) -> Witnesses:
    """Up to three of the store's cases `ids`, of other subjects than the query's, on the task's grid.

    count: of the strategy's references (0: the memory bank); one reference cannot disagree with itself, and no
    others are asked then. raw: from there they are read where the task's grid is not the store's, as a held-out
    dataset's never is.
    """
    if count == 1:
        return no_witnesses
    candidates = candidates_of(store, ids)
    classes, cache = list(store.manifest.classes), EmbeddingCache()

    def witnesses(case: InputCase, task: TaskEmbedding) -> Sequence[TaskEmbedding]:
        def prepare(name: str) -> PreparedReference:
            stored = (task.spacing_mm, task.pose) == (store.plan.spacing_mm, store.plan.pose)
            if store.manifest.role != "held-out" and (stored or raw is None):
                return stored_reference(store, name)
            if raw is None or name not in raw:
                raise RawDataError(
                    f"The raw files of the reference {name} are needed, and they are not there: put them back, or name "
                    "the folder of the raw datasets with --raw."
                )
            return prepare_reference(raw[name], plan_like(task), store.manifest.classes)

        # A scan that bears a stored case's name may be that case: nobody whom it shows is asked.
        shown = [case.subject, *(each.subject for each in candidates if each.id == case.id)]
        try:
            draws = draw_references(candidates, classes, MOST_REFERENCES, seed + WITNESS_SEED, shown)
        except ReferenceCaseError:  # nobody else: the sign is left out
            return ()
        pool = embed_draws(
            loaded,
            draws,
            prepare,
            plan_like(task),
            cache=cache,
            options=options,
        )
        return tasks_weighed_like(pool, prepare, task)

    return witnesses


def bank_witnesses(
    loaded: LoadedModel, store_folder: Path, options: InferenceOptions, seed: int = 0
) -> Witnesses:
    """Of a dataset's train part, for the memory bank, which keeps no reference.

    None without the store, and where it was planned anew since: its images lie on another grid than the bank's.
    """
    store = store_at_hand(loaded, store_folder)
    if store is None:
        return no_witnesses
    return stored_witnesses(loaded, store, train_ids(loaded, store), options, seed=seed)


def store_at_hand(loaded: LoadedModel, folder: Path) -> Store | None:
    """The store in a folder; None where there is none, or where it was planned anew since the model was trained."""
    if not (folder / MANIFEST).is_file():
        return None
    store = Store.open(folder)
    known = loaded.plans.get(store.manifest.dataset)
    return store if known is None or known.digest == store.plan.digest else None


def train_ids(loaded: LoadedModel, store: Store) -> list[str]:
    """The train part of the split that the model was trained on; of split "paper" for another dataset."""
    splits = store.manifest.splits
    return splits.get(str(loaded.state.settings.get("split")), splits["paper"])["train"]


def with_people(store: Store, inputs: Iterable[InputCase]) -> list[InputCase]:
    """Inputs that bear the name of a stored case may be that case: they are of its subject."""
    known = {entry.id: entry.subject for entry in store.manifest.cases}
    return [replace(case, subject=known.get(case.id, case.subject)) for case in inputs]


def stored_volumes(store: Store, ids: Iterable[str]) -> dict[str, float]:
    """Median volume (ml) of each class over the cases that show it."""
    found: dict[str, list[float]] = {}
    for case_id in ids:
        for name, entry in store.entry(case_id).classes.items():
            found.setdefault(name, []).append(entry.ml)
    return {name: float(np.median(values)) for name, values in found.items()}


def other_volumes(store: Store, ids: Sequence[str]) -> Volumes:
    """The same for each query, without those of its own subject."""

    def volumes(case: InputCase, _image: Volume) -> Mapping[str, float]:
        return stored_volumes(store, [i for i in ids if store.entry(i).subject != case.subject])

    return volumes


def file_volumes(files: ReferenceFiles) -> Volumes:
    """Median volume (ml) of each class over the label files that show it, the query's own left out."""
    known: list[tuple[str, dict[str, float]]] = []
    for case in files.cases:
        assert case.labels is not None
        labels = case.labels.read_labels()
        counts = {name: int(np.count_nonzero(labels.array == value)) for name, value in files.classes.items()}
        millilitres = {name: count * voxel_ml(labels.affine) for name, count in counts.items() if count}
        known.append((image_hash(case.image.read_image()), millilitres))

    def volumes(_: InputCase, image: Volume) -> Mapping[str, float]:
        own = image_hash(image)
        found: dict[str, list[float]] = {}
        for content, millilitres in known:
            for name, ml in millilitres.items() if content != own else ():
                found.setdefault(name, []).append(ml)
        return {name: float(np.median(values)) for name, values in found.items()}

    return volumes
