"""Figures whose numbers can be read back from the drawing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from iris_pipeline.pages.anatomy import GROUPS
from iris_pipeline.pages.figures import WIDTH, Box, box_plot, group_order, map_plot, marker, training_curve


def test_five_numbers() -> None:
    # Quartiles of 1..9 are 3 and 7; 1.5 * 4 beyond them reaches -3 and 13, so 30 is left outside.
    box = Box.of([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert (box.low, box.first, box.median, box.third, box.high) == (1, 3, 5, 7, 9)
    assert Box.of([1, 2, 3, 4, 5, 6, 7, 8, 30]).high == 8
    assert Box.of([0.5]) == Box(0.5, 0.5, 0.5, 0.5, 0.5)


def rows(**values: list[float]) -> pd.DataFrame:
    lines = [
        {"class": name, "strategy": strategy, "case": f"<{number}>", "dice": value}
        for name, dice in values.items()
        for strategy in ("one-shot", "bank")
        for number, value in enumerate(dice)
    ]
    return pd.DataFrame(lines)


def test_boxes_lie_where_the_values_are() -> None:
    frame = rows(liver=[0.0, 0.5, 1.0, float("nan")], spleen=[0.25, 0.75])
    drawn = str(box_plot(frame, "class", ["one-shot", "ensemble", "bank"], "of <x>"))
    tree = ElementTree.fromstring(drawn)
    assert tree.get("aria-label") == "of <x>"
    groups = [g for g in tree.iter("g")]
    assert [g.get("class") for g in groups] == ["series s0", "series s2"] * 2, "one colour a strategy"
    left = float(next(line.get("x1", "") for line in tree.iter("line")))  # the line at Dice 0
    right = WIDTH - 14.0

    def value(x: float) -> float:
        return (x - left) / (right - left)

    dots = [value(float(c.get("cx", ""))) for c in groups[0].iter("circle")]
    assert dots == pytest.approx([0.0, 0.5, 1.0], abs=0.001)
    assert [t.text for t in groups[0].iter("title")] == ["<0>: 0.000", "<1>: 0.500", "<2>: 1.000"]
    (box,) = groups[0].iter("rect")
    assert value(float(box.get("x", ""))) == pytest.approx(0.25, abs=0.001)
    assert float(box.get("width", "")) == pytest.approx(0.5 * (right - left), abs=0.2)
    assert not list(groups[2].iter("rect")), "two values make no box"
    median = next(p.get("d", "") for p in groups[2].iter("path") if p.get("class") == "median")
    assert value(float(re.match(r"M(\S+) ", median)[1])) == pytest.approx(0.5, abs=0.001)  # type: ignore[index]
    assert box_plot(rows(liver=[float("nan")]), "class", ["bank"], "x") == ""
    assert box_plot(rows(liver=[0.5]), "class", ["ensemble"], "x") == ""


def points() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "dataset": ["a", "a", "b"],
            "class": ["liver", "liver", "a<b"],
            "case": ["s1", "", "s2"],
            "group": ["liver and gall bladder", "liver and gall bladder", "brain"],
            "place": [0, 0, 1],
            "pca_x": [0.0, 1.0, 2.0],
            "pca_y": [0.0, 4.0, 2.0],
        }
    )


def test_a_map_shows_every_row_once() -> None:
    tree = ElementTree.fromstring(str(map_plot(points(), "pca", "a map")))
    marks = [g for g in tree.iter("g")]
    assert [m.get("data-place") for m in marks] == ["0", "0", "1"]
    assert [t.text for t in tree.iter("title")] == [
        "a: liver, case s1",
        "a: liver, memory bank",
        "b: a<b, case s2",
    ]
    assert [m.get("class") for m in marks] == ["point s1", "point s1", "point s0"], (
        "brain comes before the liver"
    )
    rings = [m for m in marks if any(c.get("class") == "ring" for c in m.iter("circle"))]
    assert rings == [marks[1]]
    numbers = [t for t in tree.iter("text")]
    assert [n.text for n in numbers] == ["1", "2"]
    # The number of class 1 stands on its case, not between it and the bank: lowest point, so largest y.
    assert float(numbers[0].get("y", "")) == pytest.approx(380 - 18 + 4, abs=0.1)
    assert float(numbers[1].get("x", "")) == pytest.approx(440 - 18, abs=0.1)


def test_groups_differ_in_colour_or_shape() -> None:
    order = group_order(pd.Series([*GROUPS, "other", "other"]))
    assert list(order) == [*GROUPS, "other"]
    seen = {
        (number % 8, re.sub(r"[\d.,\s-]+", "", marker(number, 5, 5, 4)), number % 5)
        for number in order.values()
    }
    assert len(seen) == len(order)


@pytest.mark.parametrize("number", range(5))
def test_markers_are_about_as_large(number: int) -> None:
    text = marker(number, 50.0, 50.0, 4.0)
    if "points" in text:
        found = np.array([pair.split(",") for pair in re.search(r'points="([^"]+)"', text)[1].split()], float)  # type: ignore[index]
        assert 4.0 <= np.abs(found - 50).max() <= 5.3
    else:
        assert "50.0" in text or "46.0" in text


def test_the_curve_takes_the_pages_colours(tmp_path: Path) -> None:
    assert training_curve(tmp_path) == ""
    (tmp_path / "train.csv").write_text("iteration,loss,validation_dice\n20,1.5,\n40,1.1,\n40,,0.4\n")
    alone = training_curve(tmp_path)
    assert "validation Dice" in alone and "currentColor" in alone and "#12345" not in alone
    assert "var(--s0)" in alone and 'role="img"' in alone
    (tmp_path / "validation.csv").write_text("iteration,dataset,dice\n40,hearts,0.4\n40,livers,0.6\n")
    curve = training_curve(tmp_path)
    assert curve.startswith("<svg") and "hearts" in curve and "livers" in curve and "var(--s1)" in curve
    assert curve == training_curve(tmp_path), "the same run gives the same page"
