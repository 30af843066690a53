"""The console scripts: the only place that parses arguments, prints and exits."""

from __future__ import annotations

import os
import sys
from types import TracebackType

# Before torch is loaded: threads that spin while they wait for one another take many times as long where another
# program has a core, and gain nothing where none has.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_former_hook = sys.excepthook


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C in the seconds in which libraries are loaded: a sentence; `ending` takes it from there on."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted before anything was begun.", file=sys.stderr)
    else:
        _former_hook(kind, error, trace)


sys.excepthook = _told  # every command loads this package first; else benchmarks alone do
