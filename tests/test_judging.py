"""Whose labels have a say in a mask's confidence: never the query's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans import volume
from stub_model import GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline import judging
from iris_pipeline.confidence import Calibration
from iris_pipeline.inputs import InputCase
from iris_pipeline.judging import MaskJudge, file_volumes, known_volumes, other_people, stored_witnesses
from iris_pipeline.predict import InferenceOptions
from iris_pipeline.references import ReferenceFiles, stored_reference
from iris_pipeline.strategies import one_shot
from preprocessing.adapters import Case
from preprocessing.findings import image_hash
from preprocessing.source import FileSource
from preprocessing.store import Store
from preprocessing.volume import write_volume


def reference_files(folder: Path, voxels: dict[str, int]) -> ReferenceFiles:
    """Scans of 2 mm voxels whose masks hold so many of them; each has a grey of its own."""
    cases = []
    for number, (name, count) in enumerate(voxels.items()):
        image, labels = np.full((8, 8, 8), 10.0 + number, np.float32), np.zeros((8, 8, 8), np.uint8)
        image[0, 0, 0], labels.flat[:count] = 1.0, 3
        for kind, array in (("image", image), ("labels", labels)):
            write_volume(folder / f"{name}_{kind}.nii.gz", volume(array, np.diag([2.0, 2.0, 2.0, 1.0])))
        sources = (FileSource(folder / f"{name}_{kind}.nii.gz") for kind in ("image", "labels"))
        cases.append(Case(name, name, *sources, "MR"))
    return ReferenceFiles(tuple(cases), {"x": 3, "y": 4})


def test_the_volume_to_expect_is_not_the_querys_own(tmp_path: Path) -> None:
    files = reference_files(tmp_path, {"a": 10, "b": 30, "c": 100})
    volumes = file_volumes(files)
    stranger = volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    # a voxel of 2 mm is 0.008 ml; nobody shows y
    assert volumes(stranger) == {"x": pytest.approx(30 * 0.008)}
    assert volumes(files.cases[2].image.read_image()) == {"x": pytest.approx(20 * 0.008)}
    assert volumes(files.cases[0].image.read_image()) == {"x": pytest.approx(65 * 0.008)}


def test_a_query_is_no_witness_of_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    image = volume(np.ones((8, 8, 8), np.float32), np.eye(4))
    own = make_task([1.0], ("x",), reference_hashes=(image_hash(image),))
    other = make_task([2.0], ("x",), reference_hashes=("another",))
    task, asked, given = make_task([3.0], ("x",)), [], {}

    def gathered(_l: Any, _t: Any, _i: Any, _r: Any, _o: Any, witnesses: Any, volumes_ml: Any) -> dict:
        given["witnesses"], given["volumes"] = witnesses(task), volumes_ml
        return {}

    def witnesses(case: InputCase, _task: Any) -> list:
        asked.append(case.id)
        return [own, other]

    monkeypatch.setattr(judging, "gather_signs", gathered)
    for used, expected in ((("references",), [other]), (("windows",), [])):
        monkeypatch.setattr(Calibration, "used", used)
        calibration = object.__new__(Calibration)
        judge = MaskJudge(
            loaded_with(GreyModel()),
            calibration,
            InferenceOptions(),
            0.7,
            witnesses,
            known_volumes({"x": 2.0}),
        )
        assert judge(InputCase("q", None), image, [task], None) == []  # type: ignore[arg-type]
        assert given == {"witnesses": expected, "volumes": {"x": 2.0}}
    assert asked == ["q"], "nobody is asked whose answer is not used"


def test_nobody_whom_a_query_may_show_is_a_reference(tiny_store: Store) -> None:
    """s2 has two scans: where one is segmented, the other is not its reference, either."""
    everybody = [entry.id for entry in tiny_store.manifest.cases]
    assert other_people(tiny_store, everybody, {"s2_a", "unheard of"}) == [
        case for case in everybody if not case.startswith("s2_")
    ]
    assert other_people(tiny_store, everybody, ()) == everybody


def test_nobody_whom_a_query_may_show_is_its_witness(tiny_store: Store) -> None:
    """Without a subject, as of -i, the name tells: s2_a's witnesses are neither itself nor s2_b."""
    loaded, asked = tiny_model(), ["s1_a", "s2_a", "s2_b", "s4_a"]
    task = one_shot(
        loaded.model, stored_reference(tiny_store, "s3_a"), tiny_store.plan, model_hash=loaded.model_hash
    )
    witnesses = stored_witnesses(loaded, tiny_store, asked, InferenceOptions(), count=2)
    expected = [
        one_shot(
            loaded.model, stored_reference(tiny_store, name), tiny_store.plan, model_hash=loaded.model_hash
        )
        for name in ("s1_a", "s4_a")
    ]
    told = witnesses(InputCase("s2_a", None), task)
    assert len(told) == 2
    for one in expected:
        assert any(torch.equal(one.tokens[0], each.tokens[0]) for each in told if each.classes == one.classes)
    assert len(witnesses(InputCase("a stranger", None), task)) == 3
