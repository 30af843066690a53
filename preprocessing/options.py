"""Options and the ending that the stages' commands share (preprocessing.fingerprint, .plan and .run)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from preprocessing.errors import IrisError
from preprocessing.parallel import default_workers

DATASETS_HELP = "names, YAML files, or: all, upstream, held-out, phantom (those with a folder under raw/)"


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """-d, --root, --raw, --workers, --quiet: what, where, and how much at once."""
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="NAME", help=DATASETS_HELP)
    parser.add_argument("--root", help="root folder (default: IRIS_ROOT, else the current folder)")
    parser.add_argument("--raw", help="folder of the raw datasets (default: ROOT/raw)")
    add_speed_options(parser)


def add_speed_options(parser: argparse.ArgumentParser) -> None:
    """--workers, --quiet."""
    parser.add_argument("--workers", type=_at_least_one, help=f"processes (default: {default_workers()})")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """--policy, --crop, --overwrite: what the plan is made for."""
    parser.add_argument(
        "--policy",
        choices=["paper", "fit"],
        default="paper",
        help="paper: 1.5 mm, finer for small objects; fit: objects fit the crop (default: paper)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=3,
        default=[64, 64, 64],
        metavar=("Z", "Y", "X"),
        help="largest patch in voxels, multiples of 16 (default: 64 64 64)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a store that was made by another plan"
    )


def ending(function: Callable[[], int]) -> int:
    """The exit status of a stage; an IrisError becomes its sentence on stderr and status 1."""
    try:
        return function()
    except IrisError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"the number of processes is at least 1, not '{text}'")
    return number
