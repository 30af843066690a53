"""Groups of episodes from worker processes: signals are the main process's to take, and workers end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocessing.errors import StoreError

WATCH = """
import os, signal, sys, threading, time
def end_with_the_tests(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
threading.Thread(target=end_with_the_tests, daemon=True).start()
"""
START = """
from multiprocessing import active_children
sys.path.insert(0, 'tests')
from memory_store import make_store
from iris_pipeline.sampling.episodes import EpisodeSampler
from iris_pipeline.training.groups import group_stream
from iris_pipeline.training.interrupt import StopAtStepEnd
from iris_pipeline.training.train_settings import TrainSettings

groups = group_stream(EpisodeSampler({'a': make_store()}), TrainSettings(workers=1), 5)
"""
SIGNALLED = """
def signal_everybody_as_soon_as_there_is_a_worker():
    while not active_children():
        time.sleep(0.01)
    os.killpg(0, signal.SIGTERM)

with StopAtStepEnd() as stop:
    thread = threading.Thread(target=signal_everybody_as_soon_as_there_is_a_worker, daemon=True)
    thread.start()
    first = next(groups)
    thread.join()
    print('SIGTERM', stop.asked, first[0].index)
with StopAtStepEnd() as stop:
    os.killpg(0, signal.SIGINT)
    more = [next(groups)[0].index for _ in range(5)]
    print('SIGINT', stop.asked, more, flush=True)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A process of its own group; returns when it and its workers, which hold the same stdout, have ended.

    As nothing that is sent to the tests reaches it, it ends by itself where they are killed.
    """
    return subprocess.run(
        [sys.executable, "-c", WATCH + START + code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        timeout=300,
    )


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_signals_to_everybody_leave_the_workers_at_work_and_they_end_with_the_main_process() -> None:
    done = run(SIGNALLED + "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.stdout.splitlines() == ["SIGTERM True 5", "SIGINT True [6, 7, 8, 9, 10]"], done.stderr
    assert done.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_where_the_tests_are_killed_their_process_ends_too() -> None:
    inner = WATCH + "print('begun', flush=True); time.sleep(60)"
    outer = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    )
    tests = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None and tests.stdout.readline() == "begun\n"
    started = time.monotonic()
    tests.kill()
    assert tests.stdout.read() == "", "whoever holds it has ended"
    assert tests.wait() == -signal.SIGKILL and time.monotonic() - started < 40


def test_a_stream_that_broke_off_has_no_workers_left_though_its_error_is_kept() -> None:
    done = run(
        "next(groups)\n"
        "try:\n"
        "    groups.throw(KeyboardInterrupt())\n"
        "except KeyboardInterrupt as error:\n"
        "    kept = error\n"
        "print(active_children())\n"
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


class Damaged:
    """Stands for a sampler whose eighth group cannot be read."""

    def __len__(self) -> int:
        return 99

    def batch(self, index: int, size: int) -> list[int]:
        if index == 7:
            raise StoreError("case1 is damaged: make the store anew.")
        return [index]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_the_same_one_sentence(workers: int) -> None:
    done = run(
        "from test_groups import Damaged, StoreError\n"
        f"groups = group_stream(Damaged(), TrainSettings(workers={workers}), 5)\n"
        "print(next(groups), next(groups))\n"
        "try:\n"
        "    next(groups)\n"
        "except StoreError as error:\n"
        "    print(error, active_children())\n"
    )
    assert done.stdout.splitlines() == ["[5] [6]", "case1 is damaged: make the store anew. []"], done.stderr
