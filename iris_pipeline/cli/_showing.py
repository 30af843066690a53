"""How references are shown to the network, as options: --pose, --scale, --grey, --looks and --tones (`showing.py`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields

from iris_pipeline.search.pose import SEARCH, pose_named
from iris_pipeline.search.showing import SEARCHED, Showing, grey_named, scale_named
from iris_pipeline.search.toning import TONINGS
from preprocessing.errors import PredictionError
from preprocessing.store import Store


def add_showing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pose",
        type=_worded(pose_named, "--pose"),
        default=SEARCH,
        metavar="POSE",
        help="how references of -r and of held-out datasets, and the queries, are oriented. auto tries all 48 "
        "axis-aligned poses (rotations and mirror images) on the references and takes the one the model "
        "segments them best in (one to several minutes on a CPU, once per task; twice that if other tones "
        "are tried). upright, or three letters such as LSA, sets one (default: auto)",
    )
    parser.add_argument(
        "--scale",
        type=_worded(scale_named, "--scale"),
        default=SEARCH,
        metavar="X",
        help="for the same references: X times the spacing at which their objects fill a window; auto tries "
        "three values (default: auto)",
    )
    parser.add_argument(
        "--grey",
        type=_worded(grey_named, "--grey"),
        default=SEARCH,
        metavar="W",
        help="for the same references: how much grey values count beside the network's logits. Added is the log "
        "ratio of how often a grey value occurs inside and outside a class, times W: 0 is off, 1 is Bayes' "
        "rule; auto tries five weights per class on the references (default: auto)",
    )
    parser.add_argument(
        "--looks",
        type=int,
        choices=(1, 2),
        default=SEARCHED.looks,
        help="for the same references: with 2, a scan is segmented roughly, its grey values around what was "
        "found are matched to the references, it is segmented roughly again, and the version the model is "
        "surer of is kept. This helps with cropped scans and other fields of view. With the memory bank "
        "(-d), only for scans unlike most training scans. 1 leaves these rough passes out (default: 2)",
    )
    parser.add_argument(
        "--tones",
        choices=TONINGS,
        default=SEARCH,
        help="for the same references: show scans through a grey-value curve that makes the references' "
        "structures bright. auto does so if the model segments the references badly and the curve clearly "
        "helps, as for soft tissue in CT; it does not try if --pose and --scale are both given (default: "
        "auto)",
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
            f"References of {', '.join(found)} are taken as they are in the store, so {', '.join(useless)} would "
            "change nothing (for references of -r and of held-out datasets only): leave "
            f"{'it' if len(useless) == 1 else 'them'} out."
        )
