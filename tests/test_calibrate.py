"""Ways to show a validation case that no model was trained on, so that a calibration has masks that fail; rows that are
kept, and when they are made anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans import save
from stub_model import GreyModel, loaded_with

from iris_pipeline.checkpoints.checkpoint import RunState
from iris_pipeline.confidence.judging import bank_witnesses, no_witnesses, stored_witnesses
from iris_pipeline.evaluation import calibrate as calibrate_module
from iris_pipeline.evaluation.calibrate import (
    ROWS,
    UNFAMILIAR_SCALES,
    CalibrationData,
    calibrate,
    unfamiliar_showings,
)
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import one_shot
from iris_pipeline.prediction.predict_split import Experiment, tasks_shown_otherwise
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import prepare_reference
from iris_pipeline.search.pose import POSES, turned_plan
from iris_pipeline.search.showing import Showing
from preprocessing.adapters import find_cases
from preprocessing.orientation import UPRIGHT
from preprocessing.spec import DatasetSpec
from preprocessing.store import Store
from preprocessing.volume import Volume, read_labels


def test_unfamiliar_showings_are_other_scales_and_then_other_poses() -> None:
    found = unfamiliar_showings("liver_ct", 6)
    assert found == unfamiliar_showings("liver_ct", 6) and found[:2] == unfamiliar_showings("liver_ct", 2)
    assert found[0].pose == UPRIGHT and all(each.pose in POSES[1:] for each in found[1:])
    scales = {each.scale for each in found}
    assert scales <= set(UNFAMILIAR_SCALES) and len(scales) > 1 and len({each.pose for each in found}) > 3
    assert found != unfamiliar_showings("spleen_ct", 6), "each dataset has its own"
    assert unfamiliar_showings("liver_ct", 0) == []


@pytest.mark.parametrize(("axes", "scale"), [(UPRIGHT, 1.5), ("LIP", 0.8)])
def test_tasks_in_a_pose_and_at_a_scale_that_are_asked_for(
    tiny_store: Store, tiny_raw: Any, axes: str, scale: float
) -> None:
    """The task is that of the drawn reference on this grid, and the query of the same subject never its reference."""
    loaded = loaded_with(
        GreyModel(width=0.45), plans={"tiny": tiny_store.plan}, state=RunState(1, 1.0, 0, {"split": "paper"})
    )
    raw = {case.id: case for case in find_cases(tiny_raw.dataset, tiny_raw.spec)}
    experiment = Experiment(showing=Showing(axes, scale, 0.0))
    train = ["s2_a", "s2_b"]  # one subject, so that the reference is one of the two
    task_of = tasks_shown_otherwise(loaded, tiny_store, raw, train, experiment, InferenceOptions())
    query = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    task = task_of(InputCase("s3_a", None, "s3"), query)
    z, y, x = (scale * edge for edge in tiny_store.plan.spacing_mm)
    plan = turned_plan(tiny_store.plan.model_copy(update={"spacing_mm": (z, y, x)}), axes)
    assert task.grey is None
    assert task.pose.axes == axes and task.spacing_mm == pytest.approx(plan.spacing_mm)
    expected = [
        one_shot(
            loaded.model,
            prepare_reference(raw[name], plan, tiny_store.manifest.classes),
            plan,
            model_hash=loaded.model_hash,
        )
        for name in train
    ]
    # Who is asked beside it is read on the same grid: the store's arrays lie on another.
    witnesses = stored_witnesses(loaded, tiny_store, train, InferenceOptions(), count=2, raw=raw)
    asked = witnesses(InputCase("s3_a", None, "s3"), task)
    assert len(asked) == 2 and {witness.pose.axes for witness in asked} == {axes}
    for witness in asked:
        assert any(torch.equal(witness.tokens[0], one.tokens[0]) for one in expected)
    assert any(
        all(torch.equal(mine, its) for mine, its in zip(task.tokens, one.tokens, strict=True))
        for one in expected
    )

    weighed = replace(experiment, showing=Showing(axes, scale, 2.0))
    found = tasks_shown_otherwise(loaded, tiny_store, raw, train, weighed, InferenceOptions())
    evidence = found(InputCase("s3_a", None, "s3"), query).grey
    assert evidence is not None and set(evidence.weights.tolist()) == {2.0}, (
        "grey values count as they are asked to"
    )


def test_a_store_that_was_planned_anew_is_not_asked(tiny_store: Store) -> None:
    """Its images lie on another grid than the bank's tokens."""
    other = tiny_store.plan.model_copy(update={"spacing_mm": (9.0, 9.0, 9.0)})
    for plan, asked in ((tiny_store.plan, True), (other, False)):
        loaded = loaded_with(
            GreyModel(width=0.45), plans={"tiny": plan}, state=RunState(1, 1.0, 0, {"split": "paper"})
        )
        witnesses = bank_witnesses(loaded, tiny_store.folder, InferenceOptions())
        assert (witnesses is not no_witnesses) == asked


class Calibrated:
    """Copies of the tiny dataset and its store, whose one validation case s1_a is calibrated on."""

    def __init__(self, folder: Path, spec: DatasetSpec) -> None:
        self.folder, self.spec = folder, spec
        store = Store.open(folder / "store")
        self.train = store.manifest.splits["paper"]["train"]
        self.loaded = loaded_with(
            GreyModel(width=0.45), plans={"tiny": store.plan}, state=RunState(1, 1.0, 0, {"split": "paper"})
        )

    def run(self, run: str = "run", at_hand: bool = True, **options: Any) -> tuple[list[float], list[str]]:
        """The true Dice of its masks, and what is said. at_hand: whether the raw files are there."""
        raw = {case.id: case for case in find_cases(self.folder / "raw", self.spec) if at_hand}
        data = CalibrationData(Store.open(self.folder / "store"), raw)
        found, notes = calibrate(
            self.loaded,
            self.folder / run,
            [data],
            [Experiment("one-shot")],
            **({"unfamiliar": 0, "progress": False} | options),
        )
        return found, notes  # type: ignore[return-value]

    def rows(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / "run" / ROWS).rglob("*.json")}

    def correct(self, case: str) -> None:
        """The label of a raw case: its left organ is somewhere else."""
        path = self.folder / "raw" / "labelsTr" / f"{case}.nii.gz"
        labels = read_labels(path)
        array = np.where(labels.array == 1, 0, labels.array)
        array[:, :, :4] = 1
        save(path, array.astype(np.uint8), labels.affine)


@pytest.fixture
def place(tiny_raw: Any, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibrated:
    shutil.copytree(tiny_raw.dataset, tmp_path / "raw")
    shutil.copytree(tiny_store.folder, tmp_path / "store")
    # One validation case is too little to fit anything to: what would be fitted is handed back.
    monkeypatch.setattr(calibrate_module, "fit", lambda _signs, truth, _cases, **_more: list(truth))
    return Calibrated(tmp_path, tiny_raw.spec)


ANEW = "Rows made anew, as a scan or a label behind them has changed since: {}."


def test_a_corrected_label_is_noticed(place: Calibrated) -> None:
    first, notes = place.run()
    assert len(first) == 3 and notes == []
    before = place.rows()
    assert place.run() == (first, []) and place.rows() == before
    place.correct("s1_a")
    again, notes = place.run()
    assert notes == [ANEW.format(1)] and again[0] < first[0] - 0.1 and again[1:] == first[1:]
    assert place.run("fresh") == (again, [])
    assert place.run() == (again, []), "and it is kept in its turn"


def test_references_that_have_changed_are_noticed(place: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    """As usual they come from the store, in other poses and at other scales from the raw files."""
    row = {"left": {"signs": {"windows": 1.0}, "dice": 0.5}}
    monkeypatch.setattr(calibrate_module, "_row", lambda *_: row)
    monkeypatch.setattr(calibrate_module, "_sources", lambda *_: (None, None))
    assert place.run(unfamiliar=2)[1] == [] == place.run(unfamiliar=2)[1]
    place.correct(place.train[0])
    assert place.run(unfamiliar=2)[1] == [ANEW.format(2)], "the store is as it was"
    record = place.folder / "store" / "cases" / f"{place.train[0]}.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"source_digest": "0123456789abcdef"}))
    assert place.run(unfamiliar=2)[1] == [ANEW.format(3)]
    place.correct(place.train[1])
    place.correct("s1_a")
    assert place.run(unfamiliar=2, at_hand=False)[1] == [], "without the raw files nothing can be compared"
    assert place.run(unfamiliar=2)[1] == [ANEW.format(3)]


def test_rows_that_tell_nothing_of_their_files_are_taken(place: Calibrated) -> None:
    first, _ = place.run()
    ((name, text),) = place.rows().items()
    (path,) = (place.folder / "run" / ROWS).rglob(name)
    older = json.loads(text)
    del older["made_from"]
    older["classes"]["left"]["dice"] = 0.25
    path.write_text(json.dumps(older))
    place.correct("s1_a")
    taken, notes = place.run()
    assert taken == [0.25, *first[1:]] and json.loads(path.read_text()) == older
    assert notes == [
        "Rows of a former version, which tell nothing of their files, taken as they are (--overwrite: anew): 1."
    ]
    anew, notes = place.run(overwrite=True)
    assert notes == [] and anew == place.run("fresh")[0] and anew[0] < first[0] - 0.1
    path.write_text("{}")
    (note,) = place.run()[1]
    assert note.endswith(f"{name} is no row of a calibration that this version reads: take it away.")
