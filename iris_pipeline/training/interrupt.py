"""Ctrl-C and a scheduler's SIGTERM, taken at the end of a step, so that what is saved is one whole step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED, TERMINATED = (128 + number for number in SIGNALS)
"""exit statuses of what Ctrl-C or a SIGTERM ended"""


class StopAtStepEnd:
    """Inside the context the first signal is only noted; `check` raises KeyboardInterrupt for it between two steps.

    A second signal interrupts at once. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopAtStepEnd:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """KeyboardInterrupt if a signal came since the context was entered."""
        if self.asked:
            raise KeyboardInterrupt


class TerminatedAsInterrupted:
    """Inside the context SIGTERM, as schedulers and time limits send it, does what Ctrl-C does: KeyboardInterrupt.

    For commands that keep what is finished case by case. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self._came = False
        self._former: Any = None

    def __enter__(self) -> TerminatedAsInterrupted:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        raise KeyboardInterrupt

    def status(self, otherwise: int) -> int:
        """The exit status of a command that ended with `otherwise`: 143, not 130, where a SIGTERM stopped it."""
        return TERMINATED if self._came and otherwise == INTERRUPTED else otherwise
