"""report.csv beside the masks: what became of each case of one run, and what was left out, for other programs to read.

It is of one run: the one of before is taken away as the run begins, and it is written whole as the run ends. What ends
before it began (no input, another setting than the folder's) is told there, too: else all would be done, as yesterday.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from iris_pipeline.scans.inbox import RECORD
from preprocessing.errors import IrisError, LockError
from preprocessing.runtime.files import append_log, discard, refusal, write_bytes
from preprocessing.runtime.lock import only_run_in

REPORT = "report.csv"
LOG = "predict.log"
COLUMNS = ("case", "status", "reason", "seconds")
LEFT_OUT, NOT_REACHED, FAILED = "left out", "not reached", "failed"


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


@contextmanager
def failure_told(out: Path, left_out: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Whatever is raised in the context is told in the report and the log of OUT, where that is a folder of results and
    no run began there meanwhile, and raised again. left_out: notes known by then.

    Of a LockError nothing is told: the folder is another run's, or cannot be written.
    """
    former = _seen(out)
    try:
        yield
    except LockError:
        raise
    except BaseException as error:
        if _seen(out) == former and (out / RECORD).is_file():
            with suppress(LockError, OSError), only_run_in(out, "wait until it has ended"):
                _tell_failure(out, f"The run ended before its first case: {_why(error)}", left_out())
        raise


def _tell_failure(out: Path, why: str, left_out: Sequence[str]) -> None:
    begin_report(out)
    write_report(out, [("", FAILED, why, 0.0)], [], left_out)
    append_log(out / LOG, why)


def _seen(out: Path) -> tuple[int, int] | None:
    """Which report is there; another one is another file, or of another time."""
    try:
        stat = (out / REPORT).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _why(error: BaseException) -> str:
    """One sentence."""
    if isinstance(error, IrisError):
        return str(error)
    if isinstance(error, OSError):
        return refusal(error, "The run")
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted."
    return f"{type(error).__name__}: {error}"
