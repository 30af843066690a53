"""Signals are taken between two steps, never inside one."""

import os
import signal

import pytest

from iris_pipeline.interrupt import StopAtStepEnd


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
