"""Intervals and paired tests against the plain loop, by hand, and on data whose answer is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from iris_pipeline.measures.rows import Origin, Row
from iris_pipeline.tables.result_tables import class_means, frame_of
from iris_pipeline.tables.uncertainty import (
    LEAST_SUBJECTS,
    RESAMPLES,
    bootstrap_draws,
    bootstrap_mean,
    bootstrap_mean_of_datasets,
    holm,
    paired_test,
)

NAN = float("nan")


def frame(
    scores: dict[tuple[str, str], list[float]], dataset: str = "toy", run: str = "night"
) -> pd.DataFrame:
    """(subject, class) -> the Dice of its cases."""
    where = Origin(run, dataset, "paper/test", "bank")
    return frame_of(
        Row(where, f"{subject}_{number}", subject, name, dice, 10, 10)
        for (subject, name), values in scores.items()
        for number, dice in enumerate(values)
    )


def random_frame(seed: int, subjects: int = 8, dataset: str = "toy") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scores = {
        (f"s{number}", name): list(rng.uniform(0, 1, 1 + number % 2))
        for number, name in itertools.product(range(subjects), ("liver", "spleen"))
    }
    scores["s1", "spleen"] = [NAN, NAN]
    return frame(scores, dataset)


def test_draws_are_those_of_the_plain_loop() -> None:
    """Each draw is the table's own mean over the rows of the drawn subjects, as often as they were drawn."""
    rows = random_frame(0)
    people = sorted(set(rows["subject"]))
    counts = np.random.default_rng(3).multinomial(
        len(people), np.full(len(people), 1 / len(people)), RESAMPLES
    )
    expected = [
        class_means(
            pd.concat(
                [
                    rows[rows["subject"] == person]
                    for person, times in zip(people, line, strict=True)
                    for _ in range(times)
                ]
            )
        ).mean()
        for line in counts[:25]
    ]
    np.testing.assert_allclose(bootstrap_draws(rows, seed=3)[:25], expected, rtol=1e-12)


def test_interval_and_mean() -> None:
    rows = random_frame(1)
    interval = bootstrap_mean(rows)
    assert interval.mean == class_means(rows).mean() and interval.subjects == 8
    draws = bootstrap_draws(rows)
    assert (interval.low, interval.high) == tuple(np.percentile(draws, [2.5, 97.5]))
    assert interval.low < interval.mean < interval.high
    assert bootstrap_mean(rows) == interval, "seeded"


def test_cases_of_one_subject_are_no_evidence_of_their_own() -> None:
    """Ten cases a subject or one, all equal within the subject: the interval must not shrink."""
    values = [0.2, 0.4, 0.6, 0.8, 0.5, 0.9]
    once = frame({(f"s{n}", "liver"): [value] for n, value in enumerate(values)})
    often = frame({(f"s{n}", "liver"): [value] * 10 for n, value in enumerate(values)})
    assert bootstrap_mean(often).low == pytest.approx(bootstrap_mean(once).low)
    assert bootstrap_mean(often).high == pytest.approx(bootstrap_mean(once).high)
    without = often.assign(subject="")  # each case then stands for a subject
    assert bootstrap_mean(without).low > bootstrap_mean(often).low


def test_too_few_subjects_have_no_interval() -> None:
    few = frame({(f"s{n}", "liver"): [0.1 * n] for n in range(LEAST_SUBJECTS - 1)})
    interval = bootstrap_mean(few)
    assert interval.mean == pytest.approx(0.15) and math.isnan(interval.low) and math.isnan(interval.high)
    one = frame({("s", "liver"): [0.5]})
    assert len(bootstrap_draws(one)) == 0 and bootstrap_mean(one).mean == 0.5
    assert math.isnan(bootstrap_mean(frame({("s", "liver"): [NAN]})).mean)


def test_mean_of_datasets() -> None:
    first, second = random_frame(2), random_frame(3, dataset="other")
    alone = frame({("s", "liver"): [0.5]}, "single")
    interval = bootstrap_mean_of_datasets([first, second, alone])
    draws = (bootstrap_draws(first, seed=0) + bootstrap_draws(second, seed=1) + 0.5) / 3
    assert interval.mean == pytest.approx((class_means(first).mean() + class_means(second).mean() + 0.5) / 3)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert interval.subjects == 17


def test_paired_by_hand() -> None:
    """Seven subjects, always better: the exact two-sided p is 2 / 2^7."""
    first = frame({(f"s{n}", "liver"): [0.5 + 0.01 * n, 0.7] for n in range(7)})
    second = frame({(f"s{n}", "liver"): [0.4, 0.7 - 0.001 * n] for n in range(7)}, run="day")
    found = paired_test(first, second)
    assert found.difference.subjects == 7
    assert found.first == pytest.approx(np.mean([(0.5 + 0.01 * n + 0.7) / 2 for n in range(7)]))
    assert found.difference.mean == pytest.approx(found.first - found.second)
    assert found.p == pytest.approx(2 / 2**7)
    assert found.difference.low < found.difference.mean < found.difference.high
    back = paired_test(second, first)
    assert back.p == found.p and back.difference.mean == pytest.approx(-found.difference.mean)


def test_paired_on_what_both_have() -> None:
    first = frame(
        {("s0", "liver"): [0.5], ("s1", "liver"): [NAN], ("s2", "liver"): [0.9], ("s2", "cyst"): [0.1]}
    )
    second = frame({("s0", "liver"): [0.4], ("s1", "liver"): [0.9], ("s2", "liver"): [0.9]}, run="day")
    found = paired_test(first, second)
    assert (found.difference.subjects, found.first, found.second) == (
        2,
        pytest.approx(0.7),
        pytest.approx(0.65),
    )
    assert paired_test(second, second).p == 1.0
    nothing = paired_test(first, frame({("s0", "liver"): [0.4]}, "other"))
    assert nothing.difference.subjects == 0 and math.isnan(nothing.p)


def test_holm_by_hand() -> None:
    # 0.01 * 4; 0.015 * 3 = 0.045; 0.02 * 2 = 0.04 is not below it; 0.7 * 1
    assert holm([0.7, 0.01, 0.02, 0.015]) == pytest.approx([0.7, 0.04, 0.045, 0.045])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8]) and holm([0.6, 0.6]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.03])
    assert math.isnan(corrected[1]) and corrected[::2] == pytest.approx([0.04, 0.04])
    assert holm([]) == []
