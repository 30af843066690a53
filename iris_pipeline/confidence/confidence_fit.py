"""From signs of trouble to the Dice to expect: ridge regressions, one for each set of signs that may be known.

A sign is a number of one mask, higher where a mask is better, NaN where it cannot be told: a task file knows no volume
of its references, one reference cannot disagree with itself. A line over more signs than are known would have to guess
the rest, so each set has a line of its own, fitted to the masks of which all its signs are known. No sign may count
against a mask for being good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, combinations

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import nnls
from sklearn.model_selection import GroupKFold

SIGNS = {
    "windows": "Dice between the mask and those from windows that lie elsewhere",
    "references": "mean Dice between masks from different references",
    "certainty": "mean probability inside the mask",
    "likeness": "cosine of the task's tokens and those of the scan with its own mask as the reference",
    "cycle": "Dice between the mask and the one that the scan with its own mask as the reference gives",
    "volume": "ratio of the mask's volume to the references' (the smaller by the larger)",
}
Signs = Mapping[str, float]
MAY_LACK = (("references",), ("volume",), ("likeness", "cycle"))
"""what is unknown together: of one reference, of a task file, of what is too small to be a reference"""
PENALTIES = tuple(float(p) for p in np.logspace(-1, 3, 9))
FEWEST = 8  # masks: with fewer a line through six signs says nothing
FOLDS = 10
TINY = 1e-9  # what rounding gives a sign that is the same in all masks


class Line(BaseModel):
    """predicted Dice = intercept + sum of weight * (sign - mean) / scale, within 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signs: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    penalty: float
    masks: int

    def predict(self, signs: Signs) -> float:
        """The Dice to expect, 0..1; KeyError for a sign that is not known."""
        score = self.intercept
        for name, mean, scale, weight in zip(self.signs, self.means, self.scales, self.weights, strict=True):
            score += weight * (signs[name] - mean) / scale
        return min(1.0, max(0.0, score))


def predict(lines: Sequence[Line], signs: Signs) -> float:
    """By the first line of which all signs are known; lines: as `fit_lines` gives them, the last one without signs."""
    known = {name for name, value in signs.items() if not math.isnan(value)}
    return next(line for line in lines if known.issuperset(line.signs)).predict(signs)


def fit_lines(table: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[Line, ...]:
    """A line for each set of signs, larger sets first; the last one is the mean Dice and needs none.

    table: [masks, signs] in the order of SIGNS, NaN where a sign is not known. truth: [masks] Dice. groups: [masks]
    numbers of people; the penalty is the one that errs least on people left out of the fit. A set that is known whole
    of fewer than FEWEST masks, or of one person only, has no line.
    """
    names = list(SIGNS)
    lines = []
    for lacking in chain.from_iterable(combinations(MAY_LACK, count) for count in range(len(MAY_LACK) + 1)):
        signs = [name for name in names if name not in set(chain.from_iterable(lacking))]
        columns = table[:, [names.index(name) for name in signs]]
        whole = ~np.isnan(columns).any(axis=1)
        if whole.sum() >= FEWEST and len(np.unique(groups[whole])) > 1:
            lines.append(_line(signs, columns[whole], truth[whole], groups[whole]))
    lines.sort(key=lambda line: -len(line.signs))  # stable
    mean = Line(
        signs=(),
        means=(),
        scales=(),
        weights=(),
        intercept=float(truth.mean()),
        penalty=0.0,
        masks=len(truth),
    )
    return (*lines, mean)


def left_out(table: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[masks] What lines that were fitted to other people say of each mask; arguments as of `fit_lines`."""
    said = np.empty(len(truth))
    for train, test in _folds(groups):
        lines = fit_lines(table[train], truth[train], groups[train])
        for number in test:
            said[number] = predict(lines, dict(zip(SIGNS, table[number], strict=True)))
    return said


def _line(signs: Sequence[str], columns: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> Line:
    penalty = _best_penalty(columns, truth, groups)
    means, scales = _standard(columns)
    weights, intercept = _ridge((columns - means) / scales, truth, penalty)
    return Line(
        signs=tuple(signs),
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(weights.tolist()),
        intercept=intercept,
        penalty=penalty,
        masks=len(truth),
    )


def _folds(groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) rows; a person is in one fold with all of its rows."""
    return list(GroupKFold(min(FOLDS, len(np.unique(groups)))).split(groups, groups=groups))


def _best_penalty(columns: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> float:
    """By the squared error on people left out."""
    folds = _folds(groups)

    def error(penalty: float) -> float:
        total = 0.0
        for train, test in folds:
            means, scales = _standard(columns[train])
            weights, intercept = _ridge((columns[train] - means) / scales, truth[train], penalty)
            said = ((columns[test] - means) / scales @ weights + intercept).clip(0, 1)
            total += float(((said - truth[test]) ** 2).sum())
        return total

    return min(PENALTIES, key=error)


def _ridge(signs: np.ndarray, truth: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights >= 0 and intercept that minimise |signs w + b - truth|^2 + penalty |w|^2; columns have mean 0.

    As rows of a plain least-squares problem: the penalty's are sqrt(penalty) I w = 0.
    """
    intercept = float(truth.mean())
    penalised = np.vstack([signs, np.sqrt(penalty) * np.eye(signs.shape[1])])
    weights, _ = nnls(penalised, np.concatenate([truth - intercept, np.zeros(signs.shape[1])]))
    return np.where(weights > TINY, weights, 0.0), intercept


def _standard(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of each column; the spread of a constant one is called 1."""
    spread = columns.std(axis=0)
    return columns.mean(axis=0), np.where(spread > TINY, spread, 1.0)
