"""How references are shown to the network, as options: --pose, --scale, --grey, --looks and --tones (`showing.py`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields

from iris_pipeline.pose import SEARCH, pose_named
from iris_pipeline.showing import SEARCHED, Showing, grey_named, scale_named
from iris_pipeline.toning import TONINGS
from preprocessing.errors import PredictionError
from preprocessing.store import Store


def add_showing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pose",
        type=_worded(pose_named, "--pose"),
        default=SEARCH,
        metavar="POSE",
        help="of references of -r and of datasets the model was not trained on: auto tries the 48 ways in which a cube "
        "can lie and takes the one in which the model reads the references best (one to several minutes on a "
        "CPU, once a task, and twice that where other tones are tried); upright, or three letters such as LSA, take "
        "that one (default: auto)",
    )
    parser.add_argument(
        "--scale",
        type=_worded(scale_named, "--scale"),
        default=SEARCH,
        metavar="X",
        help="of the same references: X times the spacing at which their objects fill a window; auto tries three "
        "(default: auto)",
    )
    parser.add_argument(
        "--grey",
        type=_worded(grey_named, "--grey"),
        default=SEARCH,
        metavar="W",
        help="of the same references: how much it counts, beside what the network says, whether a voxel's grey value "
        "is met inside a class or outside of it: 0 nothing, 1 as Bayes' rule says; auto tries five for each class on "
        "the references (default: auto)",
    )
    parser.add_argument(
        "--looks",
        type=int,
        choices=(1, 2),
        default=SEARCHED.looks,
        help="of the same references: 2 looks at a scan roughly, matches its grey values to the references' round what "
        "was found, looks again, and takes what the model is surer of, so that what else is in the scan, or was "
        "cropped away, says little; of the memory bank (-d): only where the scan is unlike most that trained the "
        "model; 1 leaves these rough passes out (default: 2)",
    )
    parser.add_argument(
        "--tones",
        choices=TONINGS,
        default=SEARCH,
        help="of the same references: show scans through a curve that makes bright what is as grey as the references' "
        "structures; auto does where the model reads the references badly and that mends it, as of soft tissue in CT, "
        "and not where both --pose and --scale are given (default: auto)",
    )


def showing_of(arguments: argparse.Namespace) -> Showing:
    """From the options that `add_showing_options` added."""
    return Showing(arguments.pose, arguments.scale, arguments.grey, arguments.looks, arguments.tones)


def _worded(read: Callable[[str], float | str], option: str) -> Callable[[str], float | str]:
    """A reader of an option's text for argparse, which names the option itself where the text is refused."""

    def value(text: str) -> float | str:
        try:
            return read(text)
        except PredictionError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{option} is ")) from None

    return value


def check_showing(showing: Showing, stores: Iterable[Store], strategies: Iterable[str]) -> None:
    """PredictionError for a pose, scale or weight that none of the datasets' references would be shown in; a number of
    looks is the bank's, too.
    """
    of_bank = ("looks",) if "bank" in strategies else ()
    useless = [
        f"--{each.name}"
        for each in fields(showing)
        if each.name not in of_bank and getattr(showing, each.name) != getattr(SEARCHED, each.name)
    ]
    found = {store.manifest.dataset: store.manifest.role for store in stores}
    if useless and "held-out" not in found.values():
        raise PredictionError(
            f"{', '.join(useless)}: of files (-r) and of held-out datasets only; references of {', '.join(found)} are "
            f"taken as they are in the store: leave {'it' if len(useless) == 1 else 'them'} out."
        )
