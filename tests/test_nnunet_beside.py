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


def test_what_was_planned_for_less_memory_is_kept_apart(script: ModuleType, tmp_path: Path) -> None:
    plain, small = (script.Beside(tmp_path, tmp_path, None, 60.0, False, "cpu", gb) for gb in (None, 2.5))
    assert (plain.plans, plain.method) == ("nnUNetPlans", "nnU-Net_60_min")
    assert (small.plans, small.method) == ("nnUNetPlans_2.5GB", "nnU-Net_60_min_2.5GB")
    assert small.masks.name == "masks_60_minutes_2.5GB"


def test_the_planner_is_told_the_memory_and_the_trainer_the_plans(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(script.Beside, "call", lambda _, *what: called.append(what) or "")
    raw = tmp_path / "nnunet" / "nnUNet_raw" / "Dataset501_liver"
    (raw / "labelsTr").mkdir(parents=True)
    (raw / "labelsTr" / "case_1.nii.gz").touch()
    beside = script.Beside(tmp_path, tmp_path, None, 60.0, False, "cpu", 2.0)
    script.train(beside, script.prepare(beside, "liver"))
    planning, training = called[1], called[2]
    assert planning[0] == "nnUNetv2_plan_and_preprocess"
    assert planning[-4:] == ("-gpu_memory_target", "2", "-overwrite_plans_name", "nnUNetPlans_2GB")
    assert training[:4] == ("nnUNetv2_train", "501", "3d_fullres", "0")
    assert training[4:6] == ("-p", "nnUNetPlans_2GB")


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
