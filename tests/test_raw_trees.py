"""The nineteen downloads as they are: every object lands where it is in the world, with its class, and back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from raw_trees import TREES, Truth, write_tree

from preprocessing.adapters import find_cases
from preprocessing.case import preprocess_case
from preprocessing.fingerprint import measure_case
from preprocessing.normalise import Normalisation
from preprocessing.spec import load_spec

NAMES = sorted(TREES)
SPACING_MM = (1.5, 1.5, 1.5)


@pytest.fixture(scope="session")
def raw_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Truth]]]:
    root = tmp_path_factory.mktemp("downloads")
    return root, {name: write_tree(name, root) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_objects_are_where_they_are_with_their_class(
    name: str, raw_root: tuple[Path, dict[str, dict[str, Truth]]]
) -> None:
    root, truths = raw_root[0], raw_root[1][name]
    spec = load_spec(name)
    cases = find_cases(spec.raw_folder(root), spec)
    assert {case.id: case.subject for case in cases} == {i: truth.subject for i, truth in truths.items()}
    for case in cases:
        truth = truths[case.id]
        found = measure_case(case, spec)
        assert found.verdict in ("ok", "repaired"), found.why
        assert truth.why in found.why and bool(found.why) == bool(truth.why), found.why
        assert case.labels is not None
        image, labels = case.image.read_image(), case.labels.read_labels()
        prepared = preprocess_case(image, SPACING_MM, Normalisation.for_modality(spec.modality), labels)
        assert prepared.labels is not None
        undone = prepared.trace.undo_labels(prepared.labels)
        expected = truth.labels.transpose(2, 1, 0)
        if truth.exact:
            np.testing.assert_array_equal(undone, expected)
        else:
            assert (undone != expected).mean() < 0.01
        for class_name, centre in truth.centres_mm.items():
            index = np.argwhere(prepared.labels == spec.classes[class_name]).mean(axis=0)[::-1]
            place = prepared.affine @ [*index, 1]
            assert np.abs(place[:3] - centre).max() < 1.6, (case.id, class_name, place, centre)
            bright = prepared.image[prepared.labels == spec.classes[class_name]]
            assert bright.mean() > prepared.image[prepared.labels == 0].mean()
        assert set(found.classes) == set(truth.centres_mm)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", case.id)
