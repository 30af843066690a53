"""What a model makes of every class of every dataset: task embeddings as vectors, kept beside the model.

One row is one class of one labelled case (`case` is its id) or of the memory bank (`case` is ""). A vector is
the class's tokens of all levels, each level [m+1,C_l] flattened and scaled to length 1, one after the other: so
the inner product of two rows, over the number of levels, is the mean of the levels' cosines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iris_pipeline.checkpoints.checkpoint import LoadedModel, load_model
from iris_pipeline.checkpoints.memory_bank import bank_key
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import one_shot
from iris_pipeline.provenance import without_machine
from iris_pipeline.scans.references import stored_reference
from preprocessing.errors import CheckpointError, EvaluationError, IrisError, StoreError
from preprocessing.plan import MANIFEST
from preprocessing.runtime.files import write_bytes
from preprocessing.runtime.progress import Bar
from preprocessing.store import Store, open_stores

SCHEMA_VERSION = 1
FILE = "embeddings.safetensors"
CASES_PER_DATASET = 8
_METADATA_KEY = "iris_embeddings"
_TENSOR = "vectors"


@dataclass(frozen=True)
class EmbeddingRow:
    """One class of one case, or of the memory bank (case ""). trained: whether the model saw the dataset."""

    dataset: str
    title: str
    class_name: str
    case: str
    trained: bool


@dataclass(frozen=True)
class Embeddings:
    """rows and their vectors [N,F] float32. key: what they were made from. notes: what was left out and why.

    layout: (m+1, C_l) of each level, in the order of a vector's parts; () where it is not known.
    """

    rows: tuple[EmbeddingRow, ...]
    vectors: np.ndarray
    key: dict[str, Any]
    notes: tuple[str, ...] = ()
    layout: tuple[tuple[int, int], ...] = ()

    @property
    def model_hash(self) -> str:
        return str(self.key["model"])

    def tokens(self, foreground: bool) -> np.ndarray:
        """The foreground tokens alone, or the context tokens alone: [N,F'], each level's part of length 1."""
        parts, start = [], 0
        for tokens, channels in self.layout:
            level = self.vectors[:, start : start + tokens * channels]
            part = level[:, :channels] if foreground else level[:, channels:]
            parts.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12))
            start += tokens * channels
        return np.concatenate(parts, axis=1)


def run_embeddings(
    run: Path,
    preprocessed: Path,
    *,
    cases: int = CASES_PER_DATASET,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Embeddings:
    """The embeddings of a run's model over all stores: those of its folder where they still hold, else made anew.

    cases: how many training cases of each dataset. Without a checkpoint, or without stores, those that the
    run's folder keeps are taken as they are. CheckpointError or StoreError if there is neither.
    """
    path = run / FILE
    kept = read_embeddings(path) if path.is_file() and not overwrite else None
    try:
        loaded = load_model(run, device)
        stores, notes = _readable_stores(preprocessed)
    except (CheckpointError, StoreError):
        if kept is None:
            raise
        return kept
    if kept is not None and kept.key == _key(loaded, stores, cases, seed):
        return kept
    made = compute_embeddings(loaded, stores, cases=cases, seed=seed, device=device, progress=progress)
    made = replace(made, notes=(*notes, *made.notes))
    write_embeddings(path, made)
    return made


def compute_embeddings(
    loaded: LoadedModel,
    stores: dict[str, Store],
    *,
    cases: int = CASES_PER_DATASET,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> Embeddings:
    """Bank vectors of every seen class, and `cases` references of every store encoded one by one.

    References of a trained dataset are cases of its train part; of any other dataset, all cases may be drawn. A
    store that was planned otherwise than the model's, or a case that shows nothing at the plan's spacing, is a
    note.
    """
    rows: list[EmbeddingRow] = []
    vectors: list[np.ndarray] = []
    notes: list[str] = []
    layout: tuple[tuple[int, int], ...] = ()
    for dataset, spec in loaded.specs.items():
        for name in spec["classes"]:
            if bank_key(dataset, name) in loaded.bank:
                tokens = loaded.bank.get([bank_key(dataset, name)])
                rows.append(EmbeddingRow(dataset, str(spec.get("title", dataset)), name, "", True))
                vectors.append(vector_of([level[0, 0] for level in tokens]))
                layout = _layout(tokens)
    drawn = [
        (store, case) for store in stores.values() for case in draw_cases(loaded, store, cases, seed, notes)
    ]
    bar = Bar(drawn, desc="encoding references", unit="case", disable=not progress, dynamic_ncols=True)
    for store, case in bar:
        dataset = store.manifest.dataset
        bar.set_postfix_str(dataset)
        try:
            task = one_shot(
                loaded.model,
                stored_reference(store, case),
                store.plan,
                model_hash=loaded.model_hash,
                options=InferenceOptions(device=device),
            )
        except IrisError as error:
            notes.append(f"{dataset}: {error}")
            continue
        layout = _layout(task.tokens)
        for index, name in enumerate(task.class_names):
            rows.append(EmbeddingRow(dataset, store.manifest.title, name, case, dataset in loaded.plans))
            vectors.append(vector_of([level[0, index] for level in task.tokens]))
    if not rows:
        raise EvaluationError(
            "No class could be embedded: the memory bank is empty and no store has a case: train first."
        )
    return Embeddings(tuple(rows), np.stack(vectors), _key(loaded, stores, cases, seed), tuple(notes), layout)


def draw_cases(loaded: LoadedModel, store: Store, count: int, seed: int, notes: list[str]) -> list[str]:
    """`count` case ids of a store by seed, one a subject as long as there are subjects; [] with a note."""
    manifest = store.manifest
    if manifest.dataset in loaded.plans:
        if loaded.plans[manifest.dataset].digest != store.plan.digest:
            notes.append(
                f"{manifest.dataset}: its store was planned otherwise than when the model was trained."
            )
            return []
        trained = str(loaded.state.settings.get("split", "paper"))
        split = manifest.splits.get(trained)
        ids: Sequence[str] = split["train"] if split else []
    else:
        ids = [entry.id for entry in manifest.cases]
    if not ids:
        notes.append(f"{manifest.dataset}: it has no case to draw references from.")
        return []
    order = [sorted(ids)[int(i)] for i in np.random.default_rng(seed).permutation(len(ids))]
    firsts = list({store.entry(case).subject: case for case in reversed(order)}.values())[::-1]
    return [*firsts, *(case for case in order if case not in firsts)][:count]


def vector_of(levels: Sequence[torch.Tensor]) -> np.ndarray:
    """Tokens of one class, each level [m+1,C_l] -> one float32 vector; each level has length 1 in it."""
    parts = []
    for level in levels:
        flat = level.detach().float().cpu().numpy().ravel()
        parts.append(flat / max(float(np.linalg.norm(flat)), 1e-12))
    return np.concatenate(parts).astype(np.float32)


def write_embeddings(path: Path, made: Embeddings) -> None:
    """One safetensors file: the vectors, and everything else as JSON in its metadata."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": made.key,
        "notes": list(made.notes),
        "layout": [list(level) for level in made.layout],
        "rows": [asdict(row) for row in made.rows],
    }
    metadata = {_METADATA_KEY: json.dumps(content, ensure_ascii=False)}
    write_bytes(path, save({_TENSOR: np.ascontiguousarray(made.vectors, np.float32)}, metadata=metadata))


def read_embeddings(path: Path) -> Embeddings:
    """What `write_embeddings` wrote; EvaluationError where it is damaged or of another schema version."""
    remedy = "make it again with iris_embeddings --overwrite"
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            content = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
            vectors = file.get_tensor(_TENSOR)
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            rows = tuple(EmbeddingRow(**row) for row in content["rows"])
            layout = tuple((int(tokens), int(channels)) for tokens, channels in content["layout"])
            return Embeddings(rows, vectors, content["key"], tuple(content["notes"]), layout)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is no file of embeddings ({error}): {remedy}.") from None
    raise EvaluationError(
        f"{path} has schema version {version}, this version reads {SCHEMA_VERSION}: {remedy}."
    )


def _layout(tokens: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """(m+1, C_l) of each level [1,K,m+1,C_l]."""
    return tuple((int(level.shape[2]), int(level.shape[3])) for level in tokens)


def _readable_stores(preprocessed: Path) -> tuple[dict[str, Store], list[str]]:
    """Every finished store, and a sentence for each that cannot be read; StoreError if there is none at all."""
    stores: dict[str, Store] = {}
    notes = []
    for folder in sorted(path.parent for path in preprocessed.glob(f"*/{MANIFEST}")):
        try:
            stores[folder.name] = Store.open(folder)
        except StoreError as error:
            notes.append(without_machine(str(error)))
    return (stores, notes) if stores else (open_stores(preprocessed), notes)


def _key(loaded: LoadedModel, stores: dict[str, Store], cases: int, seed: int) -> dict[str, Any]:
    return {
        "model": loaded.model_hash,
        "cases": cases,
        "seed": seed,
        "stores": {name: store.plan.digest for name, store in sorted(stores.items())},
    }
