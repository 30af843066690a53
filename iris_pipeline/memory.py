"""Freed memory is kept for the next tensors, on systems whose C library is glibc.

Feature maps of tens of megabytes come and go with every layer. glibc hands what is freed at the end of its heap back to
the system as soon as it is 64 MB, and takes it again page by page, each of them zeroed by the kernel: a tenth of the
time of a CPU run (LOG.md). The price is that up to `KEPT_BYTES` of freed memory stay with the process.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 512 * 2**20
GROWTH_BYTES = 64 * 2**20  # the heap grows by this at a time
LARGEST_ON_HEAP = 32 * 2**20
"""glibc's own limit for a block on the heap; it comes to that by itself, and slowly"""
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD"""


def keep_freed_memory() -> bool:
    """Ask the C library for it; False where it knows no such wish (macOS, Windows, musl) and all stays as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wishes = (
        (MMAP_THRESHOLD, LARGEST_ON_HEAP),
        (TRIM_THRESHOLD, KEPT_BYTES),
        (TOP_PAD, GROWTH_BYTES),
    )
    return all([mallopt(*wish) == 1 for wish in wishes])
