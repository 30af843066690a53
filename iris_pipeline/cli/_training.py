"""What options of `iris_train` mean beside another run: the one it starts from, or the one that it goes on with."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from iris_pipeline.checkpoints.checkpoint import RunState, checkpoint_of, load_model
from iris_pipeline.cli._models import find_run
from iris_pipeline.model import IrisConfig, build_config
from iris_pipeline.training.train_settings import TrainSettings, size_of
from preprocessing.errors import CheckpointError

ADJUSTABLE = ("workers", "precision", "validate_every")
"""settings that a run may go on with others of"""
_SETTING = {
    "fold": "split",
    "one_way": "both_ways",
    "no_foreground_token": "foreground_token",
    "coarse_masking": "full_resolution_masking",
}
"""of options whose setting has another name"""


_EITHER = ("rectified_stem",)
"""options that can be said with and without a leading no-"""


def given_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> set[str]:
    """Names of the arguments that the command line says itself, whether or not they are as the defaults."""
    names = vars(parser.parse_args(argv))
    said = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names)))  # which keeps defaults out
    return {name for name, value in vars(said).items() if value is not None}


def find_start(results: Path, name: str) -> Path:
    """The folder that --start-from means, as -m of the other commands does; CheckpointError if no model is there."""
    folder = find_run(results, name, "--start-from")
    if checkpoint_of(folder) is None:
        raise CheckpointError(f"--start-from names {folder}, which holds no model: give another one.")
    return folder


def with_start(
    arguments: argparse.Namespace, given: Collection[str], results: Path
) -> tuple[argparse.Namespace, Path | None]:
    """The folder to start from, and the arguments with the shape of its network where no option says another.

    Where a run goes on, the one it started from may be gone.
    """
    if not arguments.start_from:
        return arguments, None
    try:
        start = find_start(results, arguments.start_from)
        network = load_model(start).config
    except CheckpointError:
        if arguments.resume:
            return arguments, None
        raise
    return shaped_as(network, arguments, given), start


def shaped_as(
    network: IrisConfig, arguments: argparse.Namespace, given: Collection[str]
) -> argparse.Namespace:
    """Arguments that make this network, but for options that were given."""
    size = arguments.size if "size" in given else size_of(network) or arguments.size
    whole = build_config(size)

    def changed(name: str) -> Any:
        value = getattr(network, name)
        return None if value == getattr(whole, name) else value

    shape = {
        "size": size,
        "task_levels": changed("task_levels"),
        "context_tokens": changed("context_tokens"),
        "decoder_blocks": changed("decoder_blocks"),
        "rectified_stem": network.rectified_stem,
        "no_foreground_token": not network.foreground_token,
        "coarse_masking": not network.full_resolution_masking,
    }
    kept = {name: value for name, value in vars(arguments).items() if name in given or name not in shape}
    return argparse.Namespace(**shape | kept)


def resumed_settings(
    before: RunState, asked: TrainSettings, given: Collection[str], folder: Path
) -> TrainSettings:
    """The settings of a run that goes on: its own, but for `ADJUSTABLE` ones; CheckpointError names other options.

    asked: what the command line makes of them.
    """
    saved = TrainSettings.from_json(before.settings)
    changes: dict[str, Any] = {}
    differ: dict[str, str] = {}
    for option in sorted(given):
        name = _SETTING.get(option, option)
        if name in ADJUSTABLE:
            changes[name] = getattr(asked, name)
        elif hasattr(saved, name) and getattr(asked, name) != getattr(saved, name):
            differ[option] = f"{_said(option, asked)} where it has {_had(option, saved)}"
    if differ:
        longer = (
            " The learning rate falls over the length that a run began with; to train for longer, start another one "
            f"from it: --start-from {folder.name} --name OTHER."
        )
        raise CheckpointError(
            f"--resume goes on with {folder.name} as it was set; got {', '.join(differ.values())}: give what it has, "
            f"or another --name.{longer if {'iterations', 'minutes'} & differ.keys() else ''}"
        )
    return TrainSettings(**vars(saved) | changes)


def _said(option: str, asked: TrainSettings) -> str:
    """An option with its value, as one would type it."""
    value = getattr(asked, _SETTING.get(option, option))
    name = "fold" if option == "fold" else f"--{option.replace('_', '-')}"
    if isinstance(value, bool):
        return f"--no-{name[2:]}" if option in _EITHER and not value else name
    return f"{name} {_value(value)}"


def _had(option: str, saved: TrainSettings) -> str:
    """What a run has for an option; of one that can be said either way, how it would be said."""
    return _said(option, saved) if option in _EITHER else _value(getattr(saved, _SETTING.get(option, option)))


def _value(value: Any) -> str:
    """A setting in words.

    >>> [_value(each) for each in (None, (0, 1), (("cells", 0.1),), {"a": 2.0}, 0.5, True)]
    ['none', '0 1', 'cells 0.1', 'a 2', '0.5', 'none']
    """
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple):
        return " ".join(_value(each) for each in value) or "none"
    if value is None or isinstance(value, bool):  # an option without a value is given or not
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
