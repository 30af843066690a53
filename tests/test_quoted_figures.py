"""Figures that prose quotes are those of the rows and tables in results/; each run there is measured or explained."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
ROWS = RESULTS / "iris_small_6" / "evaluation"
CARD = (ROOT / "iris_pipeline" / "weights" / "README.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize(("dataset", "way"), [("lung_mr", "low"), ("sts_ct", "high")])
def test_how_far_expected_dice_is_off_is_rounded_once(dataset: str, way: str) -> None:
    file = ROWS / f"{dataset}__one-shot_k1_draw0__confidence.json"
    masks = json.loads(file.read_text(encoding="utf-8"))["each"]
    off = sum(mask["predicted"] - mask["true"] for mask in masks) / len(masks)
    said = f"called {abs(off):.2f} too {way}"
    assert (off > 0) == (way == "high") and said in README and said in CARD


def test_the_card_has_the_means_of_table_1() -> None:
    means = {
        row["strategy"]: float(row["mean"].partition(" ")[0]) / 100
        for row in table(RESULTS / "tables" / "table1.csv")
        if row["run"] == "iris_small_6"
    }
    assert f"(`-d DATASET`, {means['bank']:.3f} over their eight test sets)" in CARD
    assert f"from one reference its Dice there is {means['one-shot']:.3f} (mean over draws)" in CARD


def test_the_card_has_the_range_of_the_sarcomas_that_are_found() -> None:
    files = [*ROWS.glob("sts_ct__one-shot_k1_draw?.csv"), *ROWS.glob("sts_ct__ensemble_k3_draw?.csv")]
    dice = [float(row["dice"]) for file in files for row in table(file)]
    found = [each for each in dice if each >= 0.005]
    assert len(dice) == 36 and f"others come out at {min(found):.2f} to {max(found):.2f}" in CARD


def test_every_run_is_measured_or_named_on_the_page() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    # Runs of whoever works here are nobody's figures: those that were committed count.
    listed = subprocess.run(
        ["git", "ls-files", "results/*/run.json"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("no git repository here")
    runs = [(ROOT / line).parent for line in listed.stdout.splitlines() if line.count("/") == 2]
    unmeasured = {run.name for run in runs if not any(run.glob("evaluation/*.csv"))}
    assert not {name for name in unmeasured if f"--name {name}" not in page}
