"""Freed memory stays with the process: counted by the pages that the kernel has to provide again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iris_pipeline import memory

ROUNDS, ARRAYS, MEGABYTES = 10, 12, 16
SCRIPT = f"""
import resource, sys
import numpy as np
from iris_pipeline.memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        held = [np.ones({MEGABYTES} * 2**20, np.uint8) for _ in range({ARRAYS})]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = len(sys.argv) > 1
known = keep_freed_memory() if asked else True
pages()
print(known, pages())
"""


def pages_taken(*arguments: str) -> tuple[str, int]:
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    known, count = made.stdout.split()
    return known, int(count)


@pytest.mark.skipif(sys.platform == "win32", reason="the count of pages is POSIX's")
def test_pages_are_not_taken_again() -> None:
    known, count = pages_taken("asked")
    if known != "True":
        pytest.skip("the C library is not glibc")
    once = ARRAYS * MEGABYTES * 2**20 // 4096
    _, without = pages_taken()
    assert count < once / 10, "the second time round nothing is new"
    assert without > once, "otherwise there would be nothing to gain"


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> object:
        return object()

    monkeypatch.setattr(memory.ctypes, "CDLL", none)
    assert memory.keep_freed_memory() is False
