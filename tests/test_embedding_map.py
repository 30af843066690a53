"""Neighbours and agreement by hand-made vectors; the map is the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iris_pipeline.pages.embedding_map import (
    Agreement,
    agreement,
    class_centres,
    embedding_map,
    nearest_classes,
    write_nearest,
)
from iris_pipeline.pages.embeddings import EmbeddingRow, Embeddings

# Two datasets with a kidney and a liver each, and one with a widget that nobody else has.
PLACES = {
    ("a", "left kidney"): (10.0, 0.0, 0.0),
    ("a", "liver"): (0.0, 10.0, 0.0),
    ("b", "left_kidney"): (9.0, 0.5, 0.0),
    ("b", "liver"): (8.0, 0.0, 1.0),  # beside the kidneys: wrong
    ("c", "widget"): (0.0, 0.0, 12.0),
}


def made(cases: int = 3, bank: bool = True) -> Embeddings:
    rows, vectors = [], []
    rng = np.random.default_rng(0)
    for (dataset, name), place in PLACES.items():
        for case in range(cases):
            rows.append(EmbeddingRow(dataset, dataset.upper(), name, f"s{case}", dataset != "c"))
            vectors.append(np.array(place) + rng.normal(0, 0.01, 3))
        if bank:
            rows.append(EmbeddingRow(dataset, dataset.upper(), name, "", dataset != "c"))
            vectors.append(np.array([0.0, 0.0, -50.0]))  # far off: it must not move a centre
    return Embeddings(tuple(rows), np.array(vectors, np.float32), {"model": "x"}, ("a note",))


def test_centres_are_the_means_over_cases() -> None:
    centres = class_centres(made())
    assert [(c.dataset, c.class_name, c.cases) for c in centres] == [(*key, 3) for key in PLACES]
    for centre, place in zip(centres, PLACES.values(), strict=True):
        np.testing.assert_allclose(centre.vector, place, atol=0.03)
    assert [c.group for c in centres] == [
        *("kidney and adrenal", "liver and gall bladder", "kidney and adrenal", "liver and gall bladder"),
        "other",
    ]
    alone = class_centres(Embeddings(made().rows[3:4], made().vectors[3:4], {}))
    assert alone[0].cases == 0 and alone[0].vector[2] == -50.0, "the bank's where no case is at hand"


def test_nearest_of_another_dataset() -> None:
    nearest = nearest_classes(class_centres(made())).set_index(["dataset", "class"])
    vectors = np.array(list(PLACES.values()))
    shifted = vectors - vectors.mean(axis=0)
    expected = shifted[0] @ shifted[2] / np.linalg.norm(shifted[0]) / np.linalg.norm(shifted[2])
    first = nearest.loc[("a", "left kidney")]
    assert (first["nearest dataset"], first["nearest class"], first["relation"]) == (
        "b",
        "left_kidney",
        "same",
    )
    assert first["cosine"] == pytest.approx(expected, abs=0.005)
    assert first["rank of same anatomy"] == 1 and first["trained"] == "yes"
    wrong = nearest.loc[("b", "liver")]
    assert (wrong["nearest class"], wrong["relation"]) == ("left kidney", "different")
    assert wrong["same anatomy elsewhere"] == "a: liver" and wrong["rank of same anatomy"] > 1
    lonely = nearest.loc[("c", "widget")]
    assert pd.isna(lonely["same anatomy elsewhere"]) and pd.isna(lonely["rank of same anatomy"])
    one = nearest_classes(class_centres(Embeddings(made().rows[:3], made().vectors[:3], {})))
    assert pd.isna(one["nearest class"]).all(), "one dataset has no other"


def test_agreement_by_hand() -> None:
    found = embedding_map(made())
    # Kidneys find each other; neither liver finds the other one: a's is nearest to b's kidney or liver by chance
    # of the mean, so the number is worked out from the vectors here.
    vectors = np.array(list(PLACES.values()))
    shifted = vectors - vectors.mean(axis=0)
    unit = shifted / np.linalg.norm(shifted, axis=1, keepdims=True)
    cosines = unit @ unit.T
    datasets, same = "aabbc", {0: 2, 1: 3, 2: 0, 3: 1}
    right = sum(
        max((j for j in range(5) if datasets[j] != datasets[i]), key=lambda j, i=i: cosines[i, j]) == same[i]
        for i in same
    )
    assert found.classes == Agreement("classes", 4, right, pytest.approx(1 / 3))
    assert 2 <= right < 4
    assert found.cases.asked == 12 and found.cases.right == 3 * right
    assert found.cases.chance == pytest.approx(3 / 9)
    assert f"{right} ({right / 4:.0%}) lie nearest to it" in found.classes.sentence
    assert "drawn at random, 33% would" in found.classes.sentence
    assert [name for name, _, _ in found.by_tokens] == ["all tokens"], "no layout, no parts"
    parts = embedding_map(replace(made(), layout=((3, 1),)))
    assert [name for name, _, _ in parts.by_tokens] == ["all tokens", "foreground token", "context tokens"]
    assert parts.by_tokens[0][1:] == (found.classes, found.cases)
    nothing = agreement("classes", class_centres(made())[4:], np.ones((1, 3)))
    assert nothing.sentence.startswith("None of the classes has its anatomy in a second dataset")
    assert agreement("cases", [], np.empty((0, 3))).asked == 0


def test_the_map_is_the_same_each_time_and_keeps_neighbours() -> None:
    found, again = embedding_map(made()), embedding_map(made())
    pd.testing.assert_frame_equal(found.points, again.points)
    points = found.points
    assert len(points) == 20 and points["kind"].value_counts().to_dict() == {"case": 15, "bank": 5}
    assert list(points.loc[points["dataset"] == "c", "place"].unique()) == [4]
    for plane in ("tsne", "pca"):
        places = points[points["kind"] == "case"][[f"{plane}_x", f"{plane}_y"]].to_numpy()
        inside = np.linalg.norm(places[0] - places[1])
        across = np.linalg.norm(places[0] - places[12])
        assert inside < across, plane
    assert sum(found.pca_share) <= 1.0 and found.pca_share[0] > found.pca_share[1] > 0
    assert found.notes[-1] == "a note"


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_handful_of_rows_still_makes_a_map(rows: int) -> None:
    few = Embeddings(made().rows[:rows], made().vectors[:rows], {})
    points = embedding_map(few).points
    assert np.isfinite(points[["tsne_x", "tsne_y", "pca_x", "pca_y"]].to_numpy()).all()


def test_the_table_of_neighbours(tmp_path: Path) -> None:
    write_nearest(tmp_path / "near.csv", embedding_map(made()), "Made by `x`.")
    text = (tmp_path / "near.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0].startswith("dataset,class,group,trained,cases,nearest dataset")
    assert "\n# Cosine of class centres" in text and text.endswith("# a note\n# Made by `x`.\n")
    frame = pd.read_csv(tmp_path / "near.csv", comment="#")
    assert len(frame) == 5 and frame["rank of same anatomy"].notna().sum() == 4
