"""Whose labels have a say in a mask's confidence: never the query's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans import volume
from stub_model import GreyModel, loaded_with, make_task, tiny_model

from iris_pipeline.confidence import judging
from iris_pipeline.confidence.calibration import Calibration
from iris_pipeline.confidence.judging import (
    MaskJudge,
    file_volumes,
    file_witnesses,
    known_volumes,
    other_volumes,
    stored_witnesses,
    with_people,
)
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import PreparedReference, one_shot, plan_like
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import ReferenceFiles, prepare_reference, stored_reference
from iris_pipeline.search.grey_weights import grey_evidence
from iris_pipeline.tasks.grey import BINS, GreyEvidence
from iris_pipeline.tasks.task import TaskEmbedding
from preprocessing.adapters import Case, find_cases
from preprocessing.findings import image_hash
from preprocessing.sources.source import FileSource
from preprocessing.store import Store
from preprocessing.volume import write_volume

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def reference_files(folder: Path, voxels: dict[str, int], affine: np.ndarray = AFFINE) -> ReferenceFiles:
    """Scans of 2 mm voxels whose masks hold so many of them; each has a grey of its own."""
    cases = []
    for number, (name, count) in enumerate(voxels.items()):
        image, labels = np.full((8, 8, 8), 10.0 + number, np.float32), np.zeros((8, 8, 8), np.uint8)
        image[0, 0, 0], labels.flat[:count] = 1.0, 3
        for kind, array in (("image", image), ("labels", labels)):
            write_volume(folder / f"{name}_{kind}.nii.gz", volume(array, affine))
        sources = (FileSource(folder / f"{name}_{kind}.nii.gz") for kind in ("image", "labels"))
        cases.append(Case(name, name, *sources, "MR"))
    return ReferenceFiles(tuple(cases), {"x": 3, "y": 4})


def test_the_volume_to_expect_is_not_the_querys_own(tmp_path: Path) -> None:
    files = reference_files(tmp_path, {"a": 10, "b": 30, "c": 100})
    volumes, query = file_volumes(files), InputCase("q", None)
    stranger = volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    # a voxel of 2 mm is 0.008 ml; nobody shows y
    assert volumes(query, stranger) == {"x": pytest.approx(30 * 0.008)}
    assert volumes(query, files.cases[2].image.read_image()) == {"x": pytest.approx(20 * 0.008)}
    assert volumes(query, files.cases[0].image.read_image()) == {"x": pytest.approx(65 * 0.008)}


def test_the_volume_to_expect_under_a_tilted_gantry(tmp_path: Path) -> None:
    tilted = AFFINE.copy()
    tilted[:3, 2] = 0, 2 * np.sin(np.deg2rad(20)), 2 * np.cos(np.deg2rad(20))
    volumes = file_volumes(reference_files(tmp_path, {"a": 100}, tilted))
    expected = 100 * 0.008 * np.cos(np.deg2rad(20))
    stranger = volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    assert volumes(InputCase("q", None), stranger) == {"x": pytest.approx(expected)}


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


def test_a_scan_that_bears_a_stored_name_is_of_its_subject(tiny_store: Store) -> None:
    given = [InputCase("s2_a", None), InputCase("unheard of", None), InputCase("new", None, "somebody")]
    assert [case.subject for case in with_people(tiny_store, given)] == ["s2", "", "somebody"]


def test_the_volume_to_expect_is_of_other_people(tiny_store: Store) -> None:
    ids = ["s1_a", "s2_a", "s2_b"]
    ml = {i: tiny_store.entry(i).classes["left"].ml for i in ids}
    image = volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    volumes = other_volumes(tiny_store, ids)
    for subject, counted in (("s2", ["s1_a"]), ("s1", ["s2_a", "s2_b"]), ("", ids)):
        found = volumes(InputCase("q", None, subject), image)["left"]
        assert found == pytest.approx(np.median([ml[i] for i in counted])), subject


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


def check_evidence(
    told: Sequence[TaskEmbedding], task: TaskEmbedding, shown: Sequence[PreparedReference]
) -> None:
    """Each witness has the evidence of one of those who are shown, weighed like the task's."""
    weights = dict(zip(task.class_names, task.grey.weights.tolist(), strict=True)) if task.grey else {}
    for each in told:
        assert each.grey is not None
        assert each.grey.weights.tolist() == [weights.get(name, 0.0) for name in each.class_names]
        own = [
            grey_evidence(reference, each.class_names, task.patch_size).ratios
            for reference in shown
            if set(each.class_names) <= set(reference.classes)
        ]
        assert sum(torch.equal(each.grey.ratios, ratios) for ratios in own) == 1


def test_witnesses_of_a_store_weigh_their_own_grey_values_like_the_task(tiny_store: Store) -> None:
    loaded, asked = tiny_model(), ["s1_a", "s2_a", "s3_a", "s4_a"]
    prepared = [stored_reference(tiny_store, name) for name in asked]
    bare = one_shot(loaded.model, prepared[2], tiny_store.plan, model_hash=loaded.model_hash)
    evidence = grey_evidence(prepared[2], bare.class_names, bare.patch_size)
    task = replace(bare, grey=evidence.weighed([0.5, 0.0, 3.0]))
    witnesses = stored_witnesses(loaded, tiny_store, asked, InferenceOptions(), count=2)
    query = InputCase("s3_a", None, "s3")
    told = witnesses(query, task)
    assert len(told) == 3
    check_evidence(told, task, [each for each in prepared if each.id != "s3_a"])
    assert all(each.grey is None for each in witnesses(query, bare))


def test_witnesses_of_files_weigh_their_own_grey_values_like_the_task(
    tiny_raw: Any, tiny_store: Store
) -> None:
    loaded = loaded_with(GreyModel(), plans={"tiny": tiny_store.plan})
    cases = [case for case in find_cases(tiny_raw.dataset, tiny_raw.spec) if case.id in ("s1_a", "s3_a")]
    files = ReferenceFiles(tuple(cases), {"left": 1, "right": 2, "core": 5})
    plan = tiny_store.plan
    task = make_task(
        [1.0, 2.0],
        ("core", "left"),
        spacing_mm=plan.spacing_mm,
        patch_size=plan.patch_size,
        modality=plan.modality,
        normalisation=plan.normalisation,
        intensity_offset=plan.intensity_offset,
        grey=GreyEvidence(torch.zeros(2, BINS), torch.tensor([2.0, 0.5])),
    )
    query = InputCase("q", None)
    witnesses = file_witnesses(loaded, files, InferenceOptions())
    told = witnesses(query, task)
    assert len(told) == 2
    check_evidence(told, task, [prepare_reference(case, plan_like(task), files.classes) for case in cases])
    assert witnesses(query, task) is told, "read once"
    assert all(each.grey is None for each in witnesses(query, replace(task, grey=None)))
    assert task.grey is not None
    lighter = replace(task, grey=task.grey.weighed([1.0, 0.5]))
    check_evidence(
        witnesses(query, lighter),
        lighter,
        [prepare_reference(case, plan_like(task), files.classes) for case in cases],
    )
