"""How much a mask can be trusted, as numbers: signs of trouble -> the Dice to expect, fitted and written as plain JSON.

A sign is a number of one case and class, most of them in 0..1 and higher where a mask is better (see `SIGNS`); NaN
where it cannot be told. Ridge regressions over the signs (`confidence_fit.py`) give the predicted Dice. Their few
numbers are stored with the model; what they say of people they were not fitted on is stored beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from iris_pipeline.checkpoints.checkpoint import STATE_FILE
from iris_pipeline.confidence.confidence_fit import FEWEST, SIGNS, Line, Signs, fit_lines, left_out, predict
from iris_pipeline.scans.case_table import CaseTable
from preprocessing.errors import CheckpointError, PredictionError
from preprocessing.runtime.files import load_json, save_json

FILE = "confidence.json"  # in the checkpoint's folder
TABLE = "confidence.csv"  # beside the masks
REVIEW_BELOW = 0.7
COLUMNS = ("case", "class", "predicted_dice", "review", *SIGNS)


class JudgedMask(BaseModel):
    """Of one mask the Dice that was predicted, the true one, and whether it was marked for review."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    predicted: float
    true: float
    marked: bool


class Agreement(BaseModel):
    """Predicted against true Dice: Pearson's and Spearman's correlation (None: not to be told), mean error.

    poor: masks whose true Dice is below `review_below`; flagged: those that are marked for review. each: the masks
    themselves, where they are to be looked at with those of other datasets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    masks: int
    cases: int
    pearson: float | None
    spearman: float | None
    mean_absolute_error: float
    poor: int
    poor_flagged: int
    flagged: int
    review_below: float = REVIEW_BELOW
    each: tuple[JudgedMask, ...] = ()

    def sentence(self) -> str:
        """For people."""
        r, rho = ("-" if v is None else f"{v:.2f}" for v in (self.pearson, self.spearman))
        return (
            f"predicted against true Dice of {self.masks} mask{'s' * (self.masks != 1)} in {self.cases} "
            f"case{'s' * (self.cases != 1)}: Pearson {r}, Spearman {rho}, "
            f"mean error {self.mean_absolute_error:.3f}; below {self.review_below:g} are {self.poor}, of which "
            f"{self.poor_flagged} are marked for review, with {self.flagged - self.poor_flagged} better ones"
        )


class Calibration(BaseModel):
    """lines: for each set of signs that may be known, larger sets first (`confidence_fit.fit_lines`).

    volumes_ml: dataset -> class -> median volume in the train part. agreement: on people that the numbers were not
    fitted on (each fold of them by the others); agreement_of_all: with the masks that it does not count, those of scans
    shown as no model is trained on (calibrate.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    model_hash: str
    lines: tuple[Line, ...]
    agreement: Agreement
    made_from: dict[str, str]
    volumes_ml: dict[str, dict[str, float]] = {}
    agreement_of_all: Agreement | None = None

    def predict(self, signs: Signs) -> float:
        """The Dice to expect, 0..1."""
        return predict(self.lines, signs)

    @property
    def used(self) -> set[str]:
        """The signs that have a say; what is needed for the others only need not be made."""
        return {
            name
            for line in self.lines
            for name, weight in zip(line.signs, line.weights, strict=True)
            if weight
        }


@dataclass(frozen=True)
class Judgement:
    """One case and class. predicted_dice is 0 where the mask is empty: nothing was found, which is to be looked at."""

    case: str
    class_name: str
    predicted_dice: float
    review: bool
    signs: Signs

    def cells(self) -> list[str]:
        """Text in the order of COLUMNS; unknown signs are empty."""
        values = [self.signs.get(name, math.nan) for name in SIGNS]
        shown = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
        return [
            self.case,
            self.class_name,
            f"{self.predicted_dice:.4f}",
            "yes" if self.review else "no",
            *shown,
        ]

    @classmethod
    def of_cells(cls, cells: Mapping[str, str]) -> Judgement:
        """What `cells` wrote, by column; errors as `CaseTable` expects them."""
        return cls(
            cells["case"],
            cells["class"],
            float(cells["predicted_dice"]),
            cells["review"] == "yes",
            {name: float(cells[name]) for name in SIGNS if cells[name]},
        )


def judge(
    calibration: Calibration, case: str, signs: Mapping[str, Signs], review_below: float
) -> list[Judgement]:
    """The judgement of every class of a case. signs: by class; an empty mask has none."""
    found = []
    for name, values in signs.items():
        predicted = calibration.predict(values) if values else 0.0
        found.append(Judgement(case, name, predicted, predicted < review_below, values))
    return found


def fit(
    signs: Sequence[Signs],
    dice: Sequence[float],
    cases: Sequence[str],
    *,
    subjects: Sequence[str] | None = None,
    counted: Sequence[bool] | None = None,
    model_hash: str,
    made_from: Mapping[str, str],
    volumes_ml: Mapping[str, Mapping[str, float]] | None = None,
    review_below: float = REVIEW_BELOW,
) -> Calibration:
    """Fit the numbers to masks whose true Dice is known; one entry a mask, `cases` says which belong together.

    subjects: the person of each (default: the case). counted: the masks of which the agreement tells (default: all).
    PredictionError where there are fewer than 8 masks or only one person.
    """
    people = np.unique(np.asarray(cases if subjects is None else subjects), return_inverse=True)[1]
    if len(dice) < FEWEST or len(np.unique(people)) < 2:
        raise PredictionError(
            f"Confidence is calibrated on {FEWEST} or more masks of at least two people's validation cases; got "
            f"{len(dice)} of {len(np.unique(people))}: name more datasets."
        )
    table = np.array([[row.get(name, math.nan) for name in SIGNS] for row in signs], dtype=float)
    truth = np.asarray(dice, dtype=float)
    said = left_out(table, truth, people)
    told = np.ones(len(truth), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    return Calibration(
        model_hash=model_hash,
        lines=fit_lines(table, truth, people),
        agreement=agreement(said[told], truth[told], np.asarray(cases)[told].tolist(), review_below),
        made_from=dict(made_from),
        volumes_ml={name: dict(volumes) for name, volumes in (volumes_ml or {}).items()},
        agreement_of_all=None if told.all() else agreement(said, truth, cases, review_below),
    )


def agreement(
    predicted: Sequence[float] | np.ndarray,
    truth: Sequence[float] | np.ndarray,
    cases: Sequence[str],
    review_below: float = REVIEW_BELOW,
    marked: Sequence[bool] | None = None,
) -> Agreement:
    """Predicted against true Dice, one entry a mask; PredictionError without one.

    marked: for review (default: whose predicted Dice is below `review_below`).
    """
    said, true = np.asarray(predicted, dtype=float), np.asarray(truth, dtype=float)
    if not len(true):
        raise PredictionError("Predicted and true Dice are compared on one mask or more; none has both.")
    varied = len(true) > 2 and np.ptp(said) > 0 and np.ptp(true) > 0
    poor = true < review_below
    flagged = said < review_below if marked is None else np.asarray(marked, dtype=bool)
    return Agreement(
        masks=len(true),
        cases=len(set(cases)),
        pearson=float(stats.pearsonr(said, true).statistic) if varied else None,
        spearman=float(stats.spearmanr(said, true).statistic) if varied else None,
        mean_absolute_error=float(np.abs(said - true).mean()),
        poor=int(poor.sum()),
        poor_flagged=int((poor & flagged).sum()),
        flagged=int(flagged.sum()),
        review_below=review_below,
    )


def compare_with_truth(judgements: Sequence[Judgement], dice: Mapping[tuple[str, str], float]) -> Agreement:
    """Judgements against the true Dice by (case, class); masks without one (NaN) are left out.

    PredictionError without a mask that has both.
    """
    pairs = [(j, dice.get((j.case, j.class_name), math.nan)) for j in judgements]
    return agreement_of(
        [
            JudgedMask(
                case=j.case, predicted=round(j.predicted_dice, 6), true=round(true, 6), marked=j.review
            )
            for j, true in pairs
            if not math.isnan(true)
        ]
    )


def agreement_of(masks: Sequence[JudgedMask]) -> Agreement:
    """Of these masks, which it keeps. PredictionError without one."""
    found = agreement(
        [mask.predicted for mask in masks],
        [mask.true for mask in masks],
        [mask.case for mask in masks],
        marked=[mask.marked for mask in masks],
    )
    return found.model_copy(update={"each": tuple(masks)})


def calibration_path(run: Path) -> Path:
    """Where a run's (or a checkpoint's) folder keeps it: beside the checkpoint's state.json."""
    return (run if (run / STATE_FILE).is_file() else run / "checkpoint") / FILE


def save_calibration(run: Path, calibration: Calibration) -> Path:
    """Write it with the model; the path is returned."""
    path = calibration_path(run)
    save_json(path, calibration)
    return path


def load_calibration(run: Path, model_hash: str) -> Calibration:
    """What `save_calibration` wrote; CheckpointError if it is missing, damaged or of other weights."""
    path = calibration_path(run)
    calibration = load_json(path, Calibration, CheckpointError, f"make it with iris_calibrate -m {run.name}")
    if calibration.model_hash != model_hash:
        raise CheckpointError(
            f"{path} was calibrated for model {calibration.model_hash}, this one is {model_hash}: run iris_calibrate "
            "again."
        )
    return calibration


def judgements_in(folder: Path) -> CaseTable[Judgement]:
    """confidence.csv of a folder of masks."""
    remedy = "take it away, it is made anew with --confidence"
    return CaseTable(folder / TABLE, COLUMNS, Judgement.of_cells, remedy)
