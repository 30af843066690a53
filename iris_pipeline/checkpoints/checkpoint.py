"""Checkpoints: safetensors + JSON, everything prediction and resuming need, replaced atomically. Never a pickle.

A folder holds `state.json` and the tensor files it names (`weights-*.safetensors`, `bank-*`, `optimizer-*`, and
`trained-*` where the weights are a running mean of the trained ones). The tensor
files are written first under names of their own; replacing `state.json` is the one step that makes them the checkpoint,
so a run killed at any moment leaves the former one whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from iris_pipeline import __version__
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.checkpoints.trained_cases import TrainedCases, TrainedPart
from iris_pipeline.model import Iris, IrisConfig, build_iris
from iris_pipeline.tasks.task import Deviation, Surroundings
from preprocessing.errors import CheckpointError, ModelError
from preprocessing.plan import Plan
from preprocessing.runtime.files import sweep, write_bytes, write_json

SCHEMA_VERSION = 1
RUN_SCHEMA_VERSION = 1  # of the run.json beside a run's checkpoint
STATE_FILE = "state.json"


@dataclass(frozen=True)
class KnownSurroundings:
    """What a dataset's scans have round its classes (`second_look.py`), over cases that trained the model.

    classes: those of `TaskEmbedding.surroundings`, by name. usual: how far off most of these cases are.
    """

    classes: dict[str, Surroundings]
    usual: Deviation


@dataclass(frozen=True)
class RunState:
    """Where a training run stands, beside the weights.

    iteration: optimiser steps done, which is also the position of the episode sampler: episode i = f(seed, i), and
    nothing else in the run draws random numbers. seconds: training time so far. seed, settings: as trained. trained:
    the cases that the weights have learnt from, those of the runs they started from among them; wide_datasets:
    those that this run has met at half their resolution (`halved.py`). Both are None in checkpoints that do not tell.
    """

    iteration: int
    seconds: float
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    trained: TrainedCases | None = None
    wide_datasets: tuple[str, ...] | None = None
    pieces: dict[str, dict[str, float]] | None = None
    """dataset -> class -> `TaskEmbedding.largest_pieces` over the cases that trained; told by `export_checkpoint`"""
    surroundings: dict[str, KnownSurroundings] | None = None
    """by dataset; told by `export_checkpoint`"""


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with all that prediction needs. plans, specs: by dataset name."""

    model: Iris
    bank: MemoryBank
    plans: dict[str, Plan]
    specs: dict[str, dict[str, Any]]
    state: RunState
    model_hash: str
    version: str

    @property
    def config(self) -> IrisConfig:
        """Configuration of the network."""
        return self.model.config

    @property
    def knows_wide_view(self) -> bool:
        """Whether it was trained on scans at half their resolution too (`halved.py`)."""
        if self.state.wide_datasets is not None:
            return bool(self.state.wide_datasets)
        return float(self.state.settings.get("wide", 0.0)) > 0


def usable_device(device: torch.device | str) -> torch.device:
    """The device of that name; ModelError where there is none such on this machine."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ModelError(f"A device is 'cpu', 'cuda', 'cuda:1' or the like; got {device!r}.") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"The device {found} needs a GPU with CUDA, and this PyTorch sees {torch.cuda.device_count()}: use 'cpu'."
        )
    return found


def hash_weights(model: torch.nn.Module) -> str:
    """16 hex digits of SHA-256 over names, shapes and values: a task file belongs to exactly these weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_checkpoint(
    folder: Path,
    model: Iris,
    bank: MemoryBank,
    state: RunState,
    *,
    plans: dict[str, Plan],
    specs: dict[str, dict[str, Any]],
    optimizer: torch.optim.Optimizer | None = None,
    trained: Iris | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint; the former one stays valid until the last step and is removed after it.

    trained: where `model` is a running mean over the steps, the weights that training goes on with.
    half: weights as float16, which must hold them exactly (`export_checkpoint`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = f"{state.iteration:07d}"
    while (folder / f"weights-{stamp}.safetensors").exists():
        stamp += "+"  # a second save of the same step must not touch the files that state.json names
    files = {"weights": f"weights-{stamp}.safetensors", "bank": f"bank-{stamp}.safetensors"}
    weights = {k: v.cpu() for k, v in model.state_dict().items()}
    _save_tensors(folder / files["weights"], {k: v.half() if half else v for k, v in weights.items()})
    _save_tensors(folder / files["bank"], bank.tensors())
    if trained is not None:
        files["trained"] = f"trained-{stamp}.safetensors"
        _save_tensors(folder / files["trained"], {k: v.cpu() for k, v in trained.state_dict().items()})
    if optimizer is not None:
        files["optimizer"] = f"optimizer-{stamp}.safetensors"
        _save_tensors(folder / files["optimizer"], _optimizer_tensors(optimizer))
    content = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "files": files,
        "config": model.config.to_dict(),
        "model_hash": hash_weights(model),
        "bank": {"momentum": bank.momentum, "counts": bank.counts()},
        "state": {name: value for name, value in asdict(state).items() if value is not None},
        "plans": {name: plan.model_dump(mode="json") for name, plan in plans.items()},
        "specs": specs,
    }
    write_json(folder / STATE_FILE, content)
    sweep(folder, "*-*.safetensors")
    for old in folder.glob("*-*.safetensors"):
        if old.name not in files.values():
            old.unlink()


def check_no_model_in(folder: Path) -> None:
    """CheckpointError where a folder holds a model, its own or a run's: another one in it would hide that one."""
    held = checkpoint_of(folder)
    if held == folder:
        raise CheckpointError(f"{folder} holds a checkpoint already: give another -o, or remove it.")
    if held is not None:
        raise CheckpointError(
            f"{folder} is a run's folder, whose own model would be hidden: give another -o."
        )


def export_checkpoint(
    loaded: LoadedModel,
    folder: Path,
    pieces: Mapping[str, Mapping[str, float]] | None = None,
    surroundings: Mapping[str, KnownSurroundings] | None = None,
) -> str:
    """A run's model as float16 weights with its bank, to be shared: it predicts, and cannot be resumed.

    Its hash is its own, since rounding changes the weights: tasks are encoded with the one or with the other.
    pieces, surroundings: of its datasets, for the bank; those that it tells itself stay.

    Returns the hash. CheckpointError where `folder` holds a checkpoint or a run already.
    """
    check_no_model_in(folder)
    model = deepcopy(loaded.model).half().float()  # what load_model will find
    known = {name: dict(found) for name, found in (pieces or {}).items()} | (loaded.state.pieces or {})
    around = dict(surroundings or {}) | (loaded.state.surroundings or {})
    state = replace(loaded.state, pieces=known or None, surroundings=around or None)
    save_checkpoint(folder, model, loaded.bank, state, plans=loaded.plans, specs=loaded.specs, half=True)
    return hash_weights(model)


@torch.inference_mode(mode=False)  # else the weights could never be tuned or trained
def load_model(folder: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Read a checkpoint folder (or a run folder that holds `checkpoint/`); the model comes in eval mode.

    Raises CheckpointError if it is missing, of another schema version, or does not match its own hash, ModelError for a
    device that is not there.
    """
    device = usable_device(device)
    content, folder = _read_state(Path(folder))
    # With a seed of its own, the weights that are overwritten now draw nothing from the caller's random numbers.
    model = build_iris(IrisConfig.from_dict(content["config"]), seed=0).float()
    weights = _load_tensors(folder / content["files"]["weights"])
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {folder} do not fit their own configuration: copy the checkpoint again ({error})."
        ) from error
    found = hash_weights(model)
    if found != content["model_hash"]:
        raise CheckpointError(
            f"The weights in {folder} hash to {found}, but state.json says {content['model_hash']}: "
            "the file was changed or damaged, copy the checkpoint again."
        )
    bank = MemoryBank.restore(
        content["bank"]["momentum"],
        _load_tensors(folder / content["files"]["bank"]),
        content["bank"]["counts"],
    )
    return LoadedModel(
        model=model.to(device).eval(),
        bank=bank,
        plans={name: _read_plan(folder, name, plan) for name, plan in content["plans"].items()},
        specs=content["specs"],
        state=_read_run_state(folder, content),
        model_hash=found,
        version=content["version"],
    )


def _read_run_state(folder: Path, checkpoint: dict[str, Any]) -> RunState:
    """The state as it was: JSON's lists are tuples again; what an older version did not write is not known.

    CheckpointError for what a newer one wrote.
    """
    content = checkpoint["state"]
    if unknown := content.keys() - {each.name for each in fields(RunState)}:
        raise CheckpointError(
            f"The checkpoint in {folder} tells {', '.join(sorted(unknown))}, which this version does not know: use "
            f"iris-pipeline {checkpoint['version']} or newer."
        )
    trained, wide = content.get("trained"), content.get("wide_datasets")
    if trained is not None:
        trained = {name: tuple(TrainedPart(**part) for part in parts) for name, parts in trained.items()}
    wide = None if wide is None else tuple(wide)
    around = content.get("surroundings")
    if around is not None:
        around = {name: _read_surroundings(each) for name, each in around.items()}
    return RunState(**content | {"trained": trained, "wide_datasets": wide, "surroundings": around})


def _read_surroundings(content: dict[str, Any]) -> KnownSurroundings:
    def pair(values: Sequence[float]) -> tuple[float, float]:
        first, second = values
        return first, second

    classes = {name: pair(values) for name, values in content["classes"].items()}
    return KnownSurroundings(classes, pair(content["usual"]))


def _read_plan(folder: Path, name: str, content: dict[str, Any]) -> Plan:
    known = Plan.model_fields["schema_version"].default
    found = content.get("schema_version")
    if found != known:
        raise CheckpointError(
            f"The plan of {name} in {folder} has schema {found}, this version reads {known}: use the iris-pipeline "
            "that trained it, or train again."
        )
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(
            f"The plan of {name} in {folder} is damaged ({error.error_count()} fields): copy the checkpoint again."
        ) from error


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Fill an optimiser of the same parameters with the saved moments; CheckpointError if none were saved."""
    content, folder = _read_state(folder)
    name = content["files"].get("optimizer")
    if name is None:
        raise CheckpointError(
            f"{folder} holds weights only, no optimiser state: it can predict but not be resumed."
        )
    tensors = _load_tensors(folder / name)
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        # safetensors keeps no 0-d tensors apart from 1-element ones, so the step comes back as a scalar.
        moments = {key: tensors[f"{index}.{key}"] for key in ("m", "v") if f"{index}.{key}" in tensors}
        if moments:
            step = tensors[f"{index}.step"].reshape(())
            optimizer.state[parameter] = {k: t.to(parameter) for k, t in moments.items()} | {"step": step}


def restore_trained(folder: Path, model: Iris) -> None:
    """Fill a model with the weights that training goes on with; they are its own where no running mean was kept."""
    content, folder = _read_state(folder)
    name = content["files"].get("trained")
    if name is not None:
        model.load_state_dict(_load_tensors(folder / name))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{index}.{key}": value.detach().cpu().reshape(value.shape or (1,))
        for index, parameter in enumerate(parameters)
        for key, value in optimizer.state[parameter].items()
    }


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:  # as bytes: `save_file` makes files that nobody else on a shared machine may read
        write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint cannot be written to {path} ({error}): make room there or mend its permissions; "
            "the former one is kept."
        ) from error


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): copy the checkpoint again."
        ) from error


def checkpoint_of(folder: Path) -> Path | None:
    """Where the checkpoint of a folder lies: in itself, or in a run's `checkpoint/`; None where there is none."""
    return next((each for each in (folder, folder / "checkpoint") if (each / STATE_FILE).is_file()), None)


def _read_state(folder: Path) -> tuple[dict[str, Any], Path]:
    folder = checkpoint_of(folder) or folder
    try:
        content = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"No checkpoint in {folder}: {STATE_FILE} is missing; train one with iris_train or give another -m."
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{folder / STATE_FILE} is not valid JSON: copy the checkpoint again."
        ) from error
    if content.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint schema {content.get('schema_version')}, this version reads {SCHEMA_VERSION}: "
            f"use iris-pipeline {content.get('version', 'of its time')} or train again."
        )
    return content, folder
