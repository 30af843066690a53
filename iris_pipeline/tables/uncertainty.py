"""How sure a mean is, and whether two rows differ: bootstrap over subjects, Wilcoxon's signed-rank test.

Rows are frames with the columns subject, case, class and a measure. A mean is the mean over the classes of each
class's mean over its cases, as in every table. Cases of one subject depend on one another, so subjects are resampled
and compared, never cases; a case without a subject stands for one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 2000
LEVEL_PERCENT = 95
CI = f"{LEVEL_PERCENT} % CI"
LEAST_SUBJECTS = 5
"""Of fewer the percentiles take so few values that an interval would look surer than it is."""


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval; low and high are NaN below LEAST_SUBJECTS scored subjects."""

    mean: float
    low: float
    high: float
    subjects: int


@dataclass(frozen=True)
class PairedTest:
    """Two rows on the cases and classes that both have scored.

    first, second: the means over subjects of each subject's mean; difference: first minus second, with its interval;
    p: two-sided Wilcoxon signed-rank test over subjects, NaN with fewer than two of them, 1 where none differs.
    """

    first: float
    second: float
    difference: Interval
    p: float


def subject_of(rows: pd.DataFrame) -> pd.Series:
    """The subject of each row, its case where no subject is known."""
    named, cases = (rows[column].to_numpy(dtype=object) for column in ("subject", "case"))
    return pd.Series(np.where(named != "", named, cases), index=rows.index)


@dataclass(frozen=True)
class _Scores:
    """What a row of one dataset has scored, summed by subject and class: sums and counts are [subjects, classes].

    Arrays, as the tables ask for some thousands of intervals and grouping frames for each took nearly all their time.
    """

    sums: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(rows: pd.DataFrame, measure: str) -> _Scores:
        values = rows[measure].to_numpy(dtype=float)
        scored = ~np.isnan(values)
        subjects, of_subject = np.unique(subject_of(rows).to_numpy(dtype=object)[scored], return_inverse=True)
        classes, of_class = np.unique(rows["class"].to_numpy(dtype=object)[scored], return_inverse=True)
        sums, counts = np.zeros((2, len(subjects), len(classes)))
        np.add.at(sums, (of_subject, of_class), values[scored])
        np.add.at(counts, (of_subject, of_class), 1)
        return _Scores(sums, counts)

    @property
    def subjects(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        """Over classes of each one's mean over cases; NaN where nothing is scored."""
        return float(np.mean(self.sums.sum(0) / self.counts.sum(0))) if self.subjects else float("nan")

    def draws(self, seed: int, resamples: int) -> np.ndarray:
        """[resamples] means over as many subjects as there are, drawn with replacement; empty below two."""
        if self.subjects < 2:
            return np.empty(0)
        times = _times_drawn(self.subjects, seed, resamples)
        with np.errstate(invalid="ignore"):  # a class that no drawn subject has is NaN
            means = (times @ self.sums) / (times @ self.counts)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # a draw without any score is NaN and left out below
            drawn = np.nanmean(means, axis=1)
        return drawn[~np.isnan(drawn)]


def bootstrap_draws(
    rows: pd.DataFrame, measure: str = "dice", seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """[resamples] means, each over as many subjects as there are, drawn with replacement; empty below two."""
    return _Scores.of(rows, measure).draws(seed, resamples)


@lru_cache(maxsize=64)
def _times_drawn(subjects: int, seed: int, resamples: int) -> np.ndarray:
    """[resamples, subjects]: how often each is drawn; the same for every row of as many subjects."""
    return np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), resamples)


def bootstrap_mean(rows: pd.DataFrame, measure: str = "dice", seed: int = 0) -> Interval:
    """The mean of a row of one dataset with its percentile interval."""
    scores = _Scores.of(rows, measure)
    low, high = percentiles(scores.draws(seed, RESAMPLES), scores.subjects)
    return Interval(scores.mean, low, high, scores.subjects)


def bootstrap_mean_of_datasets(groups: Sequence[pd.DataFrame], measure: str = "dice") -> Interval:
    """The mean over datasets of their means; subjects are resampled within each dataset, independently."""
    parts = [_Scores.of(rows, measure) for rows in groups]
    draws = [part.draws(number, RESAMPLES) for number, part in enumerate(parts)]
    # A dataset with one subject has no spread to show: its mean stays as it is, and the notes say how many it has.
    shortest = min((len(each) for each in draws if len(each)), default=0)
    columns = [
        each[:shortest] if len(each) else np.full(shortest, part.mean)
        for each, part in zip(draws, parts, strict=True)
    ]
    subjects = sum(part.subjects for part in parts)
    low, high = percentiles(np.mean(columns, axis=0) if shortest else np.empty(0), subjects)
    return Interval(float(np.mean([part.mean for part in parts])), low, high, subjects)


def percentiles(draws: np.ndarray, subjects: int) -> tuple[float, float]:
    """The bounds of the interval that holds LEVEL_PERCENT of the draws; NaN below LEAST_SUBJECTS subjects."""
    if not len(draws) or subjects < LEAST_SUBJECTS:
        return float("nan"), float("nan")
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def paired_test(
    first: pd.DataFrame, second: pd.DataFrame, measure: str = "dice", seed: int = 0
) -> PairedTest:
    """Compare two rows subject by subject on what both have scored, over any number of datasets."""
    keys = ["dataset", "split", "case", "class"]
    both = first.assign(person=subject_of(first))[[*keys, "person", measure]].merge(
        second[[*keys, measure]], on=keys, suffixes=("_first", "_second")
    )
    both = both.dropna(subset=[f"{measure}_first", f"{measure}_second"])
    means = both.groupby(["dataset", "person"])[[f"{measure}_first", f"{measure}_second"]].mean().to_numpy()
    nothing = float("nan")
    if not len(means):
        return PairedTest(nothing, nothing, Interval(nothing, nothing, nothing, 0), nothing)
    differences = means[:, 0] - means[:, 1]
    picked = np.random.default_rng(seed).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = percentiles(differences[picked].mean(axis=1), len(differences))
    first_mean, second_mean = (float(mean) for mean in means.mean(axis=0))
    interval = Interval(float(differences.mean()), low, high, len(differences))
    return PairedTest(first_mean, second_mean, interval, _wilcoxon(differences))


def holm(p: Sequence[float]) -> list[float]:
    """p of several tests corrected for their number (Holm 1979), in the same order.

    The least is multiplied by the number of tests, the next by one less, and so on; none becomes less than a smaller
    one did, nor more than 1. NaN, where nothing could be tested, stays so and is not counted.
    """
    corrected, least = list(p), 0.0
    tested = sorted(
        (number for number, value in enumerate(p) if not pd.isna(value)), key=lambda number: p[number]
    )
    for place, number in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - place) * p[number]))
        corrected[number] = least
    return corrected


def _wilcoxon(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros: scipy then takes the normal approximation
        return float(stats.wilcoxon(differences).pvalue)
