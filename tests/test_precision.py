"""Which precision is taken: by what was measured, never by the clock of the machine that runs the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iris_pipeline.training import precision
from iris_pipeline.training.precision import autocast, choose_precision, decide, fastest, knows_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("ratio", "taken"), [(1.6, "bf16"), (1.1, "bf16"), (1.05, "fp32"), (0.66, "fp32")])
def test_bfloat16_has_to_be_a_tenth_faster(ratio: float, taken: str) -> None:
    assert decide(ratio).precision == taken
    assert decide(ratio).why == f"bfloat16 took {1 / ratio:.2f} of float32's time in a short measurement"


def test_auto_measures_only_where_there_is_something_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measured_ratio", lambda: 2.0)
    monkeypatch.setattr(precision, "knows_bfloat16", lambda: True)
    assert choose_precision("auto", CPU).precision == "bf16" and autocast(CPU, "auto")._enabled
    assert choose_precision("fp32", CPU).precision == "fp32" and not autocast(CPU, "fp32")._enabled
    monkeypatch.setattr(precision, "knows_bfloat16", lambda: False)
    assert choose_precision("auto", CPU).why == "the processor has no bfloat16"
    assert choose_precision("bf16", CPU).precision == "bf16"


def test_flags_are_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("flags : fpu avx512f avx512_bf16 sse\n")
    assert knows_bfloat16(file)
    file.write_text("flags : fpu avx512f nobf16x\n")
    assert not knows_bfloat16(file) and not knows_bfloat16(tmp_path / "none")


def test_the_first_round_does_not_count_and_the_fastest_does() -> None:
    times = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    calls: list[int] = []
    assert fastest(lambda: calls.append(1), lambda: next(times)) == 2.0
    assert len(calls) == 4


def test_the_measurement_is_a_ratio() -> None:
    assert precision.measured_ratio() > 0
