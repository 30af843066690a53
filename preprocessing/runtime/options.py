"""Options and the ending that the stages' commands share (preprocessing.fingerprint, .plan and .run)."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from preprocessing.errors import IrisError
from preprocessing.runtime.files import FULL
from preprocessing.runtime.parallel import default_workers

INTERRUPTED = "Interrupted; what was finished is kept, run the same command again to go on."
DATASETS_HELP = "names, YAML files, or: all, upstream, held-out, phantom (those with a folder under raw/)"


def add_root_option(parser: argparse.ArgumentParser) -> None:
    """--root: where all lies, see `paths.Root`."""
    parser.add_argument(
        "--root",
        help="folder with raw/, preprocessed/ and results/ (default: IRIS_ROOT, or the current folder)",
    )


def add_raw_option(parser: argparse.ArgumentParser) -> None:
    """--raw: where raw scans lie that are not under the root."""
    parser.add_argument("--raw", help="folder of the raw datasets (default: raw/ under the root)")


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """-d, --root, --raw, --workers, --quiet: what, where, and how much at once."""
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="NAME", help=DATASETS_HELP)
    add_root_option(parser)
    add_raw_option(parser)
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
        help="target spacing. paper: 1.5 mm, finer for small objects; fit: such that objects fit the patch "
        "(default: paper)",
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
        "--overwrite", action="store_true", help="replace preprocessed data that were made with another plan"
    )


def ending(function: Callable[[], int], interrupted: str = INTERRUPTED) -> int:
    """The exit status of a command; what a user can mend becomes one sentence on stderr.

    Status 1 for an IrisError and for a file or folder that the system refuses, 130 for Ctrl-C (`interrupted`); also 1
    for a command that went well but for its standard output, of which a part could not be written. Anything else is a
    defect of ours and keeps its traceback.
    """
    out = _mend_streams()
    for stream in (sys.stdout, sys.stderr):
        # a nightly job may have an ASCII locale: a "?" is better than a crash
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = function()
        sys.stdout.flush()
    except IrisError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough: nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"Error: {_refused_by_system(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    if out is not None and out.lost is not None and not status:
        print(
            f"Error: Standard output cannot be written ({out.lost.strerror}), and what was to stand there is lost; all "
            "else is done: make room there, or send it elsewhere.",
            file=sys.stderr,
        )
        return 1
    return status


class _Unfailing(io.FileIO):
    """What cannot be written is dropped. lost: why the first of it was. piped: but for a pipe that nobody reads, which
    raises BrokenPipeError.
    """

    def __init__(self, descriptor: int, piped: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None
        self._piped = piped

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if self._piped and isinstance(error, BrokenPipeError):
                raise
            self.lost = self.lost or error
        return len(data)


def _mend_streams() -> _Unfailing | None:
    """No bar and no remark ends a run because nobody can see it: stdout and stderr may be a full disk, or closed.

    What stdout writes to, where it is the process' own.
    """
    own = None
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        # also lest the next file that is opened gets its number, and the libraries' remarks
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            raw = _Unfailing(stream.fileno(), piped=name == "stdout")
            by_line = name == "stderr" or stream.line_buffering or stream.write_through
            with suppress(OSError):  # what was said before comes first
                stream.flush()
            kept = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "replace", line_buffering=by_line
            )
            setattr(sys, name, kept)
            own = raw if name == "stdout" else own
    return own


def _refused_by_system(error: OSError) -> str:
    """One sentence on a path that cannot be read or written, or on a full disk."""
    place = f"{error.filename} cannot be read or written" if error.filename else "A file cannot be written"
    remedy = "make room there" if error.errno in FULL else "give another path or mend its permissions"
    return f"{place} ({error.strerror}): {remedy}."


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"the number of processes is at least 1, not '{text}'")
    return number
