"""What the commands that use a model share: which run, on which device."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from iris_pipeline.checkpoints.checkpoint import RUN_SCHEMA_VERSION, LoadedModel, checkpoint_of, load_model
from iris_pipeline.checkpoints.shipped import is_shipped, shipped_model
from iris_pipeline.training.precision import choose_precision
from preprocessing.errors import CheckpointError
from preprocessing.runtime.options import add_root_option
from preprocessing.runtime.paths import Root


def newest_run(results: Path) -> Path:
    """The finished training run that ended last and whose model is there; CheckpointError if there is none.

    A run whose tables alone were kept, as those that come with the repository, has no model. One whose run.json is
    of another schema version is told and left out.
    """
    finished = []
    for path in results.glob("*/run.json"):
        if checkpoint_of(path.parent) is None:
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = record.get("schema_version") if isinstance(record, dict) else None
        if found != RUN_SCHEMA_VERSION:
            print(
                f"Left out: {path} has schema version {found}, this version reads {RUN_SCHEMA_VERSION}; "
                "name the run with -m to use it all the same."
            )
        elif record.get("status") == "finished":
            finished.append((str(record.get("finished", "")), path.parent))
    if not finished:
        raise CheckpointError(
            f"No finished run in {results}: train one with iris_train, or name a model with -m."
        )
    return max(finished)[1]


def find_run(results: Path, model: str | None, option: str = "-m") -> Path:
    """The folder that -m means, or another option: a run's name under results/, a path, or the name of a model of the
    package.

    None: the newest finished run, or, where there is none, the model that comes with the package.
    """
    if model is None:
        try:
            return newest_run(results)
        except CheckpointError:
            shipped = shipped_model()
            if shipped is None:
                raise
            print(f"No finished run in {results}: using {shipped.name}, which comes with the package.")
            return shipped
    folders = [folder for folder in (results / model, Path(model).expanduser()) if folder.is_dir()]
    # A clone holds what was measured of a run, not its weights: then the package's model of that name is meant.
    whole = [folder for folder in folders if checkpoint_of(folder) is not None]
    own = shipped_model(model)
    if candidates := [*whole, *([own] if own else []), *folders]:
        return candidates[0]
    known = sorted(path.parent.name for path in results.glob("*/run.json"))
    ours = shipped_model()
    raise CheckpointError(
        f"{option} names a run under {results} ({', '.join(known) or 'there is none'}) or a run's folder"
        f"{f', or {ours.name}, which comes with the package' if ours else ''}; got {model!r}."
    )


def results_folder(folder: Path, root: Root) -> Path:
    """Where predictions of the model in `folder` go: there, or, of a model of the package, results/<its name>.

    The package may be read-only and serves every root; iris_evaluate looks for a run's name under results/.
    """
    return root.results / folder.name if is_shipped(folder) else folder


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        help="a run under results/, its path, or the name of the bundled model (default: the newest finished run, or "
        "the bundled model if there is none)",
    )
    add_root_option(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="auto: bf16 if that is faster here (measured, on a CPU that has it)",
    )


def autocast_of(precision: str, device: str) -> bool:
    return choose_precision(precision, torch.device(device)).precision == "bf16"


def load_run(
    arguments: argparse.Namespace, root: Root, device: str, autocast: bool = False
) -> tuple[LoadedModel, Path]:
    folder = find_run(root.results, arguments.model)
    loaded = load_model(folder, device)
    if autocast and device == "cpu":
        # bfloat16 convolutions of a CPU are a quarter faster where channels lie side by side (float32 ones are not).
        loaded.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    known = ", ".join(loaded.plans) or "nothing"
    print(f"Model: {folder} ({loaded.model_hash}), trained on {known}; on {device}.")
    return loaded, folder
