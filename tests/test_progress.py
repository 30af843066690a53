"""Bars on terminals, lines in logs, and a run that goes on where neither can be written."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.runtime import progress as module
from preprocessing.runtime.progress import Bar, say

LOOP = (
    "import sys, warnings\n"
    "from preprocessing.runtime import progress; from preprocessing.runtime.options import ending\n"
    "progress.EVERY = 0.0\n"
    "def command():\n"
    "    for n in progress.Bar(range(3), desc='Going', unit='case', mininterval=0): warnings.warn(f'no {n}')\n"
    "    progress.say('A remark.', sys.stderr); print('went on'); return 0\n"
    "sys.exit(ending(command))\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(Bar(range(3), desc="Going", unit="case")) == [0, 1, 2]
    assert "\rGoing: " in stream.getvalue() and "3/3" in stream.getvalue()


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Bar(total=50, desc="Going", unit="case") as bar:
        for number in range(50):
            bar.set_postfix_str(f"p{number}")
            now[0] += 4.0
            bar.update()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and len(lines) == 4, "200 seconds are three minutes"
    assert lines[0] == "Going: 15 of 50 cases after 60 s, about 02:20 left, p15", "35 cases of 4 s"
    assert lines[-1] == "Going: 50 of 50 cases after 200 s, p49"
    stream.truncate(0)
    Bar(range(3), leave=False).close()
    list(Bar(range(3), leave=False))
    assert not stream.getvalue().strip("\0"), "what leaves nothing on a terminal leaves nothing here"
    Bar(range(3), disable=True).close()


def test_per_cent_are_told_with_one_decimal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Bar(total=100, initial=12.2, desc="Training", unit="%") as bar:
        now[0] += 60.0
        bar.set_postfix_str("iteration 512, loss 0.713", refresh=False)
        bar.update(0.1499)
        bar.refresh()
        bar.update(100.0 - bar.n)
    assert stream.getvalue() == (
        "Training: 12.3 % after 60 s, about 9:44:43 left, iteration 512, loss 0.713\n"
        "Training: 100.0 % after 60 s, iteration 512, loss 0.713\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_a_stderr_that_cannot_be_written_ends_nothing(redirection: str) -> None:
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, LOOP]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "went on\n")


SPEAKS = (
    "import sys; from preprocessing.runtime.options import ending\n"
    "def command():\n"
    "    for number in range(int(sys.argv[1])): print(number)\n"
    "    print('went on', file=sys.stderr); return 0\n"
    "sys.exit(ending(command))\n"
)


def speak(lines: int, redirection: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that prints so many lines."""
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {lines} {redirection}', sys.executable, SPEAKS]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_stdout_that_cannot_be_written_ends_nothing_and_is_told(lines: int) -> None:
    assert speak(lines, ">/dev/full") == (
        1,
        "",
        "went on\nError: Standard output cannot be written (No space left on device), and what was to stand there is "
        "lost; all else is done: make room there, or send it elsewhere.\n",
    )


def test_a_stdout_that_can_be_written_is() -> None:
    assert speak(2, "") == (0, "0\n1\n", "went on\n")
    assert speak(2, ">&-") == (0, "", "went on\n"), "who closes it wants nothing said"


def test_a_reader_who_has_seen_enough_ends_it() -> None:
    assert speak(1_000_000, "| head -n 1") == (1, "0\n", "")


def test_remarks_come_through_where_they_can() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "A remark.\n" in done.stderr
        and "Going: 2 of 3 cases after 0 s" in done.stderr
    )


def test_a_remark_that_cannot_be_written_is_dropped_but_not_that_nobody_reads() -> None:
    class Full(io.StringIO):
        error: type[OSError] = OSError

        def write(self, text: str) -> int:
            raise self.error(28, "No space left on device")

    stream = Full()
    say("A remark.", stream)
    stream.error = BrokenPipeError
    with pytest.raises(BrokenPipeError):
        say("A remark.", stream)
