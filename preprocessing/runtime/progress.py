"""Progress bars: on terminals alone; a log gets a plain line every minute, and one at the end."""

from __future__ import annotations

import io
import sys
import time
from contextlib import suppress
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines in a log


class Bar(tqdm):
    """tqdm's bar with its arguments; unit "%": of a total of 100. Where it cannot be written it does not matter."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self._plain = not _is_terminal(sys.stderr)
        self._since = self._told = time.monotonic()
        if self._plain:
            named |= {"file": io.StringIO(), "dynamic_ncols": False}  # what tqdm draws is for terminals
        super().__init__(*given, **named)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw it, or tell how far it is where that is due."""
        if not self._plain:
            return bool(super().display(msg, pos))
        if time.monotonic() - self._told >= EVERY:
            self._tell()
        return False

    def close(self) -> None:
        """What stays on a terminal leaves a line in a log."""
        if self._plain and not getattr(self, "disable", True) and self.leave and self.n:
            self._tell()
        super().close()

    def _tell(self) -> None:
        self._told = time.monotonic()
        passed = self._told - self._since
        behind = f", {self.postfix}" if self.postfix else ""
        say(
            f"{self.desc or 'Working'}: {self._far()} after {passed:.0f} s{self._left(passed)}{behind}",
            sys.stderr,
        )

    def _far(self) -> str:
        if self.unit == "%":
            return f"{self.n:.1f} %"
        total = f" of {self.total}" if self.total is not None else ""
        alone = (self.n if self.total is None else self.total) == 1
        return f"{self.n}{total} {self.unit if alone else _plural(self.unit)}"

    def _left(self, passed: float) -> str:
        """The estimate of what is left, by the mean pace so far; nothing where there is none, or at the end."""
        done = self.n - self.initial
        if self.total is None or done <= 0 or self.n >= self.total:
            return ""
        return f", about {self.format_interval(passed * (self.total - self.n) / done)} left"


def say(text: str, stream: Any = None) -> None:
    """A line among bars, on stdout or another stream. One that cannot be written is dropped, but for a broken pipe:
    its reader has seen enough.
    """
    try:
        Bar.write(text, file=stream or sys.stdout)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, AttributeError):
        return


def _plural(unit: str) -> str:
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def _is_terminal(stream: Any) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return bool(stream.isatty())
    return False
