"""A run that is killed, or whose folder vanishes, leaves nothing that the next run takes for what it is not."""

from __future__ import annotations

import errno
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from grey_scans import BLOCKS, cases_of, grey_task, write_scans
from scans import affine_of, load, paint, save
from stub_model import GreyModel, loaded_with
from torch import Tensor

import iris_pipeline.prediction.predict as module
from iris_pipeline.confidence.calibration import Judgement, judgements_in
from iris_pipeline.prediction.predict import Verdict, predict_folder
from iris_pipeline.scans.outputs import Outputs
from iris_pipeline.scans.volumes import volumes_in
from preprocessing.errors import LockError

IMAGE, LABELS = paint((12, 40, 34), BLOCKS)
MODEL, TASK = grey_task(IMAGE, LABELS)
DAMAGED = "the former mask was damaged and is made anew."


class KilledError(BaseException):
    """Ends a run at once, as SIGKILL or a power cut does: nothing is cleared up for it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


def predict(folder: Path, model: GreyModel = MODEL, names: str = "ab", **more: Any) -> list[Verdict]:
    cases = [case for case in cases_of(folder) if case.id in names]
    return predict_folder(loaded_with(model), TASK, cases, folder / "out", progress=False, **more)


def replace_a(folder: Path) -> np.ndarray:
    """Another scan under the name a, on the same grid; its labels."""
    other, labels = paint((12, 40, 34), {1: np.s_[1:4, 5:15, 8:20], 2: np.s_[6:11, 20:36, 6:24]})
    save(folder / "in" / "a.nii.gz", other, affine_of("RAS", (3.0, 1.0, 1.0)))
    return labels


@pytest.mark.parametrize("step", ["write_result", "volumes"])
def test_a_mask_of_a_killed_run_never_passes_for_another_scans(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed just behind the label map, before anything else was written; then another scan gets the name."""
    real = module.write_result

    def killed(*given: Any) -> None:
        real(*given)
        raise KilledError

    with monkeypatch.context() as during, pytest.raises(KilledError):
        during.setattr(module, "write_result", killed)
        predict(folder)
    assert (folder / "out" / "a.nii.gz").exists() and not (folder / "out" / "volumes.csv").exists()
    if step == "volumes":  # a rerun finds all as it should be
        assert [v.status for v in predict(folder)] == ["skipped", "done"]
        assert {row.case for row in volumes_in(folder / "out").rows()} == {"a", "b"}
    labels = replace_a(folder)
    assert predict(folder)[0].status == "done"
    assert np.array_equal(load(folder / "out" / "a.nii.gz")[0], labels)


def test_a_former_mask_is_never_entered_as_the_new_scans(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where the new scan was entered and its mask not yet written."""
    predict(folder)
    (folder / "out" / "scans.json").unlink()
    labels = replace_a(folder)

    def killed(scans: module.KeptScans, *given: Any) -> None:
        keep(scans, *given)
        raise KilledError

    keep = module.KeptScans.keep
    with monkeypatch.context() as during, pytest.raises(KilledError):
        during.setattr(module.KeptScans, "keep", killed)
        predict(folder, overwrite=True)
    assert not list((folder / "out").glob("a.nii.gz")) and (folder / "out" / "scans.json").exists()
    assert predict(folder)[0].status == "done"
    assert np.array_equal(load(folder / "out" / "a.nii.gz")[0], labels)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "checksum"])
def test_a_damaged_mask_is_made_anew(folder: Path, damage: str, kept: bool) -> None:
    """kept: whether its volumes still are. Flipped bits behind a sound header are found where all is read."""
    predict(folder)
    path = folder / "out" / "a.nii.gz"
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "text": b"no mask",
        "checksum": whole[:-8] + bytes(4) + whole[-4:],
    }[damage]
    path.write_bytes(broken)
    if not kept:
        (folder / "out" / "volumes.csv").unlink()
    a, b = predict(folder)
    assert b.status == "skipped"
    if damage == "checksum" and kept:
        assert a.status == "skipped"
        return
    assert (a.status, a.why) == ("done", DAMAGED) and path.read_bytes() == whole
    assert [v.status for v in predict(folder)] == ["skipped"] * 2
    assert {row.case for row in volumes_in(folder / "out").rows()} == {"a", "b"}


def test_a_damaged_mask_of_a_class_is_made_anew(folder: Path) -> None:
    wanted = Outputs(per_class=True)
    predict(folder, outputs=wanted)
    path = folder / "out" / "per_class" / "a" / "class_0.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert [v.status for v in predict(folder)] == ["skipped"] * 2, "nobody asked for it"
    assert [v.status for v in predict(folder, outputs=wanted)] == ["done", "skipped"]
    assert [v.status for v in predict(folder, outputs=wanted)] == ["skipped"] * 2


def test_a_mask_that_another_tool_packed_in_parts_is_whole(folder: Path) -> None:
    """As some do; the last part then tells its own length only, and all is read."""
    predict(folder)
    path = folder / "out" / "a.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert [v.status for v in predict(folder)] == ["skipped"] * 2


def test_no_line_speaks_of_a_mask_that_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "out"
    predict(folder)
    judgements_in(out).write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    replace_a(folder)

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as during, pytest.raises(KilledError):
        during.setattr(module, "remove_result", killed)
        predict(folder)
    told = [{row.case for row in table.rows()} for table in (volumes_in(out), judgements_in(out))]
    assert told == [{"b"}, {"b"}], "before the mask goes"
    (out / "b.nii.gz").rename(folder / "archived.nii.gz")
    (folder / "in" / "b.nii.gz").write_bytes(b"half a scan")
    assert [v.status for v in predict(folder)] == ["done", "refused"]
    told = [{row.case for row in table.rows()} for table in (volumes_in(out), judgements_in(out))]
    assert told == [{"a"}, set()]


def test_judgements_stay_where_the_mask_is_made_anew_for_what_lies_beside_it(folder: Path) -> None:
    predict(folder)
    judgements_in(folder / "out").write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    assert [v.status for v in predict(folder, outputs=Outputs(per_class=True))] == ["done"] * 2
    assert [row.case for row in judgements_in(folder / "out").rows()] == ["a", "b"]


def test_what_killed_runs_left_half_written_is_swept(folder: Path) -> None:
    out = folder / "out"
    predict(folder, outputs=Outputs(per_class=True))
    left = [".a.nii.gz.15828.part.nii.gz", ".volumes.csv.15701.tmp", "per_class/a/.c.nii.gz.9.part.nii.gz"]
    others = [".notes.tmp", ".mine.part.nii.gz", "part.nii.gz.txt"]
    for name in [*left, *others]:
        (out / name).write_bytes(b"half")
    assert [v.status for v in predict(folder)] == ["skipped"] * 2
    assert not any((out / name).exists() for name in left)
    assert all((out / name).exists() for name in others), "what nobody here writes is left alone"


def files_of(out: Path) -> dict[str, bytes]:
    """All that lies in a folder of results but its log, by name."""
    paths = [path for path in out.rglob("*") if path.name != "predict.log"]
    return {str(path.relative_to(out)): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.mark.parametrize(
    ("which", "wish"),
    [
        (".a.nii.gz.*", {"overwrite": True}),
        ("a/.class_1.nii.gz.*", {"overwrite": True}),
        ("a/.class_1.nii.gz.*", {"outputs": Outputs(probabilities=True)}),
    ],
)
def test_a_full_disk_costs_no_result_that_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: str, wish: dict[str, Any]
) -> None:
    """Whichever file of a case meets it: masks, volumes and judgements stay, of the new files nothing does."""
    out, wish = folder / "out", {"outputs": Outputs(per_class=True), **wish}
    predict(folder, outputs=Outputs(per_class=True))
    judgements_in(out).write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    before, writes = files_of(out), nib.save

    def full(image: nib.Nifti1Image, path: Path) -> None:
        writes(image, path)
        if path.match(which):
            path.write_bytes(b"half")
            raise OSError(errno.EFBIG, "File too large")

    with monkeypatch.context() as during:
        during.setattr(nib, "save", full)
        (a,) = predict(folder, names="a", **wish)
    assert a.status == "refused" and a.why.endswith(
        ".nii.gz cannot be read or written (File too large): mend its permissions, or make room where the disk is "
        "full, then run again. The mask that is there stays."
    )
    after = files_of(out)
    assert after.pop("probabilities", b"") == b"" and after == before
    assert [v.status for v in predict(folder, names="a", **wish)] == ["done"]
    assert not [name for name in files_of(out) if "/." in f"/{name}"]


def test_a_killed_run_that_wrote_other_kinds_leaves_no_empty_folders(folder: Path) -> None:
    """They would say that this kind was made, and that it is to be made again with the mask."""
    predict(folder)
    half = folder / "out" / "probabilities" / "a" / ".class_0.nii.gz.9.part.nii.gz"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    predict(folder)
    assert not half.parent.exists()


class Moving(GreyModel):
    """Its folder of results goes while it segments."""

    def __init__(self, away: Any) -> None:
        super().__init__(MODEL.width)
        self._away = away

    def segment(self, image: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
        self._away()
        return super().segment(image, tokens)


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "lock"])
def test_a_run_notices_that_its_folder_went(folder: Path, how: str) -> None:
    """Nothing is written where it was: not by a run whose folder is no longer there, and not into another run's."""
    out, calls = folder / "out", []

    def away() -> None:
        if calls:
            return
        calls.append(how)
        if how == "lock":
            (out / ".lock").unlink()
        elif how == "removed":
            shutil.rmtree(out)
        else:
            out.rename(folder / "archived")
        if how == "replaced":
            out.mkdir()
            (out / ".lock").write_text("another run")

    says = rf"^{re.escape(str(out))} is no longer the folder that this run began in.*then run again\.$"
    with pytest.raises(LockError, match=says):
        predict(folder, Moving(away))
    if how in ("moved", "removed"):
        assert not out.exists()
    elif how == "replaced":
        assert [path.name for path in out.iterdir()] == [".lock"], "the other run's lock is its own"
    assert not list(out.glob("*.nii.gz"))
    assert (
        json.loads((folder / "archived" / "predict.json").read_text())["made_from"] if how == "moved" else 1
    )
    assert [v.status for v in predict(folder)] == ["done"] * 2


def test_a_folder_that_went_while_a_case_failed_is_not_made_anew(folder: Path) -> None:
    def away() -> None:
        (folder / "out").rename(folder / "archived")
        raise OSError("and the model breaks")

    with pytest.raises(LockError, match="no longer the folder that this run began in"):
        predict(folder, Moving(away))
    assert not (folder / "out").exists()
