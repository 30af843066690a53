"""The console scripts: the only place that parses arguments, prints and exits."""

from __future__ import annotations

import sys
from types import TracebackType

_former_hook = sys.excepthook


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C in the seconds in which libraries are loaded: a sentence; `ending` takes it from there on."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted before anything was begun.", file=sys.stderr)
    else:
        _former_hook(kind, error, trace)


sys.excepthook = _told  # every command loads this package first; else benchmarks alone do
