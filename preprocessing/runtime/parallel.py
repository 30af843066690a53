"""Many cases over several processes, with one bar and an estimate of the time left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

from preprocessing.errors import RawDataError
from preprocessing.runtime.progress import Bar

Item = TypeVar("Item")
Result = TypeVar("Result")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")


def default_workers() -> int:
    """One process a core that this process may use, at most 8: beyond that the disk is the limit."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, available))


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    label: str,
    progress: bool = True,
) -> Iterator[Result]:
    """`function(item)` of every item, in the order of completion. One worker: in this process, in order.

    `workers` None: `default_workers()`. `function` must be importable (processes are spawned, never forked:
    forking with threads may hang). An exception in `function` comes through. RawDataError where a process is
    ended from outside, mostly for want of memory.
    """
    workers = workers or default_workers()
    bar = Bar(total=len(items), desc=label, unit="case", disable=not progress, dynamic_ncols=True)
    with bar:
        if workers <= 1 or len(items) <= 1:
            for item in items:
                yield function(item)
                bar.update()
            return
        with (
            _single_threaded_children(),
            ProcessPoolExecutor(min(workers, len(items)), get_context("spawn"), _start_child) as pool,
        ):
            futures = [pool.submit(function, item) for item in items]
            try:
                for future in as_completed(futures):
                    yield future.result()
                    bar.update()
            except BrokenProcessPool:
                raise RawDataError(
                    f"A worker process was ended during '{label}', mostly for want of memory: run again with "
                    "fewer workers (finished cases are kept)."
                ) from None
            finally:
                for future in futures:
                    future.cancel()


def _start_child() -> None:
    """Ctrl-C is the parent's to handle: running cases are finished and kept. A child ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that ends."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Children read these variables at their start: N processes of N threads each would fight for N cores."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
