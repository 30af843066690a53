"""Signals are taken between two steps, never inside one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from iris_pipeline.cli.predict import predict_main
from iris_pipeline.training.interrupt import TERMINATED, StopAtStepEnd, TerminatedAsInterrupted
from preprocessing.runtime.options import ending


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_ends_before_the_signal_is_taken(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done = []
    with pytest.raises(KeyboardInterrupt), StopAtStepEnd() as stop:
        for step in range(5):
            if step == 2:
                os.kill(os.getpid(), number)
            done.append(step)
            stop.check()
    assert done == [0, 1, 2]
    assert signal.getsignal(number) == before


def test_a_second_signal_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), StopAtStepEnd():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("first is noted")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")
    assert done == ["first is noted"]


def test_nothing_asked_nothing_raised() -> None:
    with StopAtStepEnd() as stop:
        stop.check()
    assert not stop.asked


WAITS = """
import sys, time
from iris_pipeline.cli import predict
def waits(arguments):
    print("begun", flush=True)
    time.sleep(60)
predict._predict_command = waits
sys.exit(predict.predict_main(["-i", "in", "-o", "out"]))
"""


def test_a_scheduler_ends_it_as_ctrl_c_does() -> None:
    command = [sys.executable, "-c", WAITS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == TERMINATED == 143
    assert error == "Interrupted; what was finished is kept, run the same command again to go on.\n"


LOADS = """
import os, signal, sys
class Slow:
    def find_spec(self, name, *_):
        if name == "torch":
            WHAT
sys.meta_path.insert(0, Slow())
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background has it ignored
from iris_pipeline.cli.predict import predict_main
"""


def test_ctrl_c_while_libraries_are_loaded_is_a_sentence_and_a_defect_stays_one() -> None:
    for what, status, told in (
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "Interrupted before anything was begun.\n"),
        ("raise RuntimeError('a defect')", 1, "RuntimeError: a defect\n"),
    ):
        code = LOADS.replace("WHAT", what)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr.splitlines(True)[-1]) == (status, told)
        assert ("Traceback" in done.stderr) == (status == 1)


def test_the_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict_main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "Exit status: 0 all scans are done" in told
        and "; 130 and 143 interrupted by Ctrl-C or SIGTERM." in told
    )


def test_the_help_tells_how_windows_are_weighted_and_what_the_paper_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        predict_main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "a window's middle counts more than its edges, or all alike, as in the paper" in told


def test_the_exit_status_is_the_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def gets(number: int) -> int:
        os.kill(os.getpid(), number)
        time.sleep(1)
        return 0

    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with TerminatedAsInterrupted() as terminated:
            status = ending(lambda number=number: gets(number))  # type: ignore[misc]
        assert terminated.status(status) == expected
    assert signal.getsignal(signal.SIGTERM) == before
    with TerminatedAsInterrupted() as terminated:
        assert terminated.status(0) == 0 and terminated.status(1) == 1
