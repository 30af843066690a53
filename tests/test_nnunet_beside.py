"""The benchmark beside nnU-Net: what tells its runs apart, and what it refuses before anything is run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "nnunet_beside.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nnunet_beside", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_mirrored_masks_are_not_taken_for_others(script: ModuleType, tmp_path: Path) -> None:
    plain, mirrored = (script.Beside(tmp_path, tmp_path, None, 12.0, tta, "cpu") for tta in (False, True))
    assert (plain.masks.name, plain.method) == ("masks_12_minutes", "nnU-Net_12_min")
    assert (mirrored.masks.name, mirrored.method) == ("masks_12_minutes_tta", "nnU-Net_12_min_tta")
    assert plain.results == mirrored.results, "mirrored in prediction: the training is the same"


@pytest.mark.parametrize("count", ["0", "-1", "few"])
def test_references_below_one_are_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    """0 would mean all of the dataset, silently."""
    monkeypatch.setattr(script, "run_dataset", lambda *_: pytest.fail("trained on the whole dataset"))
    arguments = ["liver", "--nnunet", "bin", "--cpu-minutes", "1", f"--references={count}"]
    monkeypatch.setattr(sys, "argv", ["nnunet_beside.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert f"argument --references: takes a whole number from 1 on, not '{count}'" in capsys.readouterr().err
