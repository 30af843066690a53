"""Models that come with the package: weights/<name>, found by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from iris_pipeline.checkpoints import checkpoint
from iris_pipeline.checkpoints.checkpoint import STATE_FILE, LoadedModel, checkpoint_of
from preprocessing.errors import CheckpointError

SHIPPED = Path(str(resources.files("iris_pipeline"))) / "weights"


def shipped_model(name: str | None = None) -> Path | None:
    """The model of that name that comes with the package, or the first one; None where there is none."""
    return next((folder for folder in _folders() if name in (None, folder.name)), None)


def _folders() -> list[Path]:
    return sorted(path.parent for path in SHIPPED.glob(f"*/{STATE_FILE}"))


def is_shipped(folder: Path) -> bool:
    """Whether it is the folder of such a model."""
    return folder.resolve().parent == SHIPPED.resolve()


def load_model(model: Path | str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """A run's folder, its checkpoint, or the name of a model that comes with the package; the model is in eval mode.

    None: the model that comes with the package. CheckpointError where there is none such, and errors as
    of `checkpoint.load_model`.
    """
    folder = None if model is None else Path(model).expanduser()
    # As for -m: a folder of results alone is no model, and the package's of that name is meant.
    if folder is None or checkpoint_of(folder) is None:
        own = shipped_model(None if model is None else str(model))
        if own is None and (folder is None or not folder.is_dir()):
            known = ", ".join(each.name for each in _folders())
            raise CheckpointError(
                "A model is the folder of a run, or the name of one that comes with the package "
                f"({known or 'there is none'}); got {model if model is None else repr(str(model))}: check the name."
            )
        folder = own or folder
    assert folder is not None
    return checkpoint.load_model(folder, device)
