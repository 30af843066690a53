"""Guesses from names and grey values, with their reasons; grey values as real scans have them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from preprocessing.guess import (
    GreyValues,
    guess_modality,
    guess_name,
    guess_offset,
    guess_sides,
    guess_subject_pattern,
    modality_text,
)
from preprocessing.volume import Volume

HU = GreyValues(-1024, -300, 800, 3071, True)
RAISED = GreyValues(0, 700, 1900, 4095, True)
WINDOWED = GreyValues(0, 80, 250, 255, True)
MAGNITUDE = GreyValues(0, 40, 850, 1400, True)
UPTAKE = GreyValues(0, 0.38, 9.9, 21.7, False)


def test_grey_values_of_a_scan() -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0] = np.nan
    found = GreyValues.of(Volume(array, np.eye(4)))
    assert (found.low, found.middle, found.top, found.whole) == (1.0, 500.0, 999.0, True)
    assert found.high == pytest.approx(np.percentile(np.arange(1, 1000), 99.5))
    assert not GreyValues.of(Volume(array / 3, np.eye(4))).whole


@pytest.mark.parametrize(
    ("scans", "told", "names", "modality", "why"),
    [
        ([HU], "", [], "CT", "grey values go down to -1024, as air does in HU"),
        ([HU], "", ["T1"], "CT", "as air does in HU"),
        ([HU], "MRI", ["ct"], "MR", "'MRI' in dataset.json"),
        ([MAGNITUDE], "", [], "MR", "grey values from 0 to 1400 are neither HU nor uptake values"),
        ([UPTAKE, UPTAKE, MAGNITUDE], "", [], "PET", "as uptake values"),
        ([MAGNITUDE], "", ["case", "brain_T2w"], "MR", "'brain_T2w' says so"),
        ([UPTAKE], "", ["pet_mr"], "PET", "as uptake values"),
        ([RAISED], "", ["ct"], "CT", "'ct' says so"),
        ([WINDOWED], "", ["ct"], "CT", "'ct' says so, but grey values from 0 to 255 are no HU"),
    ],
)
def test_modality(scans: list[GreyValues], told: str, names: list[str], modality: str, why: str) -> None:
    guessed, reason = guess_modality(scans, told, names)
    assert guessed == modality and why in reason


def test_the_offset_of_ct_without_negative_values() -> None:
    assert guess_offset([RAISED, RAISED]) == -1024
    assert guess_offset([RAISED, HU]) == 0 and guess_offset([WINDOWED]) == 0


@pytest.mark.parametrize(
    ("ids", "subjects"),
    [
        (["p1_frame01", "p1_frame12", "p2_frame01"], ["p1", "p1", "p2"]),
        (["p1-ED", "p1-ES", "p2-ED", "p2-ES"], ["p1", "p1", "p2", "p2"]),
        (["p1", "p1_followup", "p2"], ["p1", "p1", "p2"]),
        (["A01_1", "A01_2", "A02_1"], ["A01", "A01", "A02"]),
        (["amos_0001", "amos_0002"], None),
        (["c1", "c2", "c3"], None),
        (["s_t1", "s_t2"], None),
    ],
)
def test_subjects(ids: list[str], subjects: list[str] | None) -> None:
    pattern, reason = guess_subject_pattern(ids)
    if subjects is None:
        assert (pattern, reason) == (None, "each case is one subject")
        return
    assert pattern is not None
    assert [found["subject"] for name in ids if (found := re.search(pattern, name))] == subjects
    assert reason.startswith(f"{len(set(subjects))} subjects in {len(ids)} cases")


def test_sides_are_pairs_of_names() -> None:
    classes = ["kidney_left", "Right Lung", "kidney_right", "left lung", "left atrium", "liver", "leftover"]
    assert guess_sides(classes) == {
        "left": ("kidney_left", "left lung"),
        "right": ("kidney_right", "Right Lung"),
    }
    assert guess_sides(["left atrium", "liver"]) == {}


def test_names() -> None:
    assert guess_name(Path("data/Liver Mets 2024 (final)")) == "liver_mets_2024_final"
    assert guess_name(Path("data/肝臓")) == "my_dataset"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"modality": {"0": "CT"}}, "CT"),
        ({"channel_names": {"0": "MRI", "1": "T2"}}, "MRI"),
        ({"modality": "PET"}, "PET"),
        ({"labels": {}}, ""),
        ({"modality": [1]}, ""),
    ],
)
def test_dataset_json(content: dict[str, object], text: str) -> None:
    assert modality_text(content) == text
