"""report.csv beside the masks: what became of each case of one run, and what was left out, for other programs to read.

It is of one run: the one of before is taken away as the run begins, and it is written whole as the run ends.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from preprocessing.files import discard, write_bytes

REPORT = "report.csv"
COLUMNS = ("case", "status", "reason", "seconds")
LEFT_OUT, NOT_REACHED = "left out", "not reached"


def begin_report(out: Path) -> None:
    """Take away that of the run before."""
    discard(out / REPORT)


def write_report(
    out: Path, lines: Iterable[tuple[str, str, str, float]], cases: Sequence[str], left_out: Sequence[str]
) -> None:
    """lines: case, status, reason, seconds. cases: all of the run, of which those without a line were not reached.
    left_out: notes on inputs that make no case. Where it cannot be written (a full disk, OUT is gone) there is none.
    """
    if not out.is_dir():
        return
    rows = [(case, status, reason, f"{seconds:.1f}") for case, status, reason, seconds in lines]
    told = {row[0] for row in rows}
    rows += [(case, NOT_REACHED, "the run ended before.", "0.0") for case in cases if case not in told]
    rows += [("", LEFT_OUT, note, "0.0") for note in left_out]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    with suppress(OSError):
        write_bytes(out / REPORT, text.getvalue().encode("utf-8", "backslashreplace"))
