"""A mask is skipped where it is of the scan that is given, and made anew where another one bears the name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from grey_scans import BLOCKS, cases_of, grey_task, write_scans
from scans import affine_of, load, paint, save
from stub_model import loaded_with

import iris_pipeline.scans.former_masks as former_masks
import iris_pipeline.scans.kept_scans as kept_scans
from iris_pipeline.confidence.calibration import Judgement, judgements_in
from iris_pipeline.prediction.predict import Verdict, predict_folder
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.kept_scans import KeptScan, KeptScans, scan_of
from iris_pipeline.scans.outputs import Outputs
from iris_pipeline.scans.volumes import TABLE as VOLUMES
from iris_pipeline.scans.volumes import volumes_in
from preprocessing.sources.source import FileSource, RefusedSource

ANEW = "the former mask was of another scan or channel and is made anew."
TAKEN_AWAY = " The former mask, of another scan or channel, was taken away."
STAYS_OF_FORMER = " The mask that is there stays; it is of the former scan."
STAYS = " The mask that is there stays; it may be of another scan."
IMAGE, LABELS = paint((12, 40, 34), BLOCKS)
MODEL, TASK = grey_task(IMAGE, LABELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read to know a scan."""
    names: list[str] = []
    digest = kept_scans.file_digest

    def noted(files: list[Path]) -> str:
        names.extend(file.name for file in files)
        return digest(files)

    monkeypatch.setattr(kept_scans, "file_digest", noted)
    return names


def predict(folder: Path, cases: list[InputCase] | None = None, **more: Any) -> list[Verdict]:
    a_and_b = [case for case in cases_of(folder) if case.id in "ab"]
    return predict_folder(loaded_with(MODEL), TASK, cases or a_and_b, folder / "out", progress=False, **more)


def test_a_scan_that_was_replaced_is_segmented_anew_and_it_is_said(folder: Path, read: list[str]) -> None:
    assert [v.status for v in predict(folder)] == ["done", "done"] and read == ["a.nii.gz", "b.nii.gz"]
    other, labels = paint((14, 44, 30), {1: np.s_[1:4, 5:15, 8:20], 2: np.s_[6:12, 20:36, 6:24]})
    save(folder / "in" / "a.nii.gz", other, affine_of("RAS", (3.0, 1.0, 1.0)))
    verdicts = predict(folder)
    assert [(v.status, v.why) for v in verdicts] == [
        ("done", ANEW),
        ("skipped", "the result exists; --overwrite makes it anew."),
    ]
    assert np.array_equal(load(folder / "out" / "a.nii.gz")[0], labels)
    assert read == ["a.nii.gz", "b.nii.gz", "a.nii.gz"], "of files that look as before nothing is read"
    assert [v.status for v in predict(folder)] == ["skipped", "skipped"]
    assert f"a: done: {ANEW}" in (folder / "out" / "predict.log").read_text(encoding="utf-8")


def test_volumes_are_those_of_the_masks_that_are_there(folder: Path) -> None:
    predict(folder)

    def told(case: str) -> dict[str, tuple[int, float]]:
        rows = volumes_in(folder / "out").rows()
        return {each.class_name: (each.voxels, each.ml) for each in rows if each.case == case}

    def counted(case: str) -> dict[str, tuple[int, float]]:
        labels, affine = load(folder / "out" / f"{case}.nii.gz")
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        return {
            name: (int((labels == value).sum()), pytest.approx((labels == value).sum() * ml, abs=1e-3))
            for name, value in TASK.classes.items()
        }

    first = told("a")
    assert (
        first == counted("a")
        and told("b") == counted("b")
        and all(voxels > 0 for voxels, _ in first.values())
    )
    other, _ = paint((14, 44, 30), {1: np.s_[1:4, 5:15, 8:20], 2: np.s_[6:12, 20:36, 6:24]})
    save(folder / "in" / "a.nii.gz", other, affine_of("RAS", (3.0, 1.0, 1.0)))
    predict(folder)
    assert told("a") == counted("a") != first
    (folder / "out" / VOLUMES).unlink()  # masks of a version that kept none
    assert [v.status for v in predict(folder)] == ["skipped", "skipped"]
    assert told("a") == counted("a") and told("b") == counted("b")
    (folder / "in" / "a.nii.gz").write_bytes(b"half a scan")
    (folder / "out" / "a.nii.gz").unlink()
    assert [v.status for v in predict(folder)] == ["refused", "skipped"]
    assert told("a") == {} and told("b") == counted("b"), "no mask, no volume"


def test_a_corrected_header_is_another_scan(folder: Path) -> None:
    predict(folder)
    path = folder / "in" / "a.nii.gz"
    save(path, IMAGE, affine_of("RAS", (3.0, 1.0, 1.0), degrees=20.0))
    assert [v.status for v in predict(folder)] == ["done", "skipped"]
    assert np.allclose(load(folder / "out" / "a.nii.gz")[1], nib.load(path).affine, atol=1e-5)


def test_a_copied_scan_is_the_same_and_read_once(folder: Path, read: list[str]) -> None:
    predict(folder)
    shutil.copytree(folder / "in", folder / "moved")
    moved = [InputCase(name, FileSource(folder / "moved" / f"{name}.nii.gz")) for name in "ab"]
    read.clear()
    for _ in range(2):
        assert [v.status for v in predict(folder, moved)] == ["skipped", "skipped"]
    assert read == ["a.nii.gz", "b.nii.gz"], "the second time they look as they did"


def test_another_scan_of_equal_size_and_date_is_noticed(tmp_path: Path) -> None:
    """As of archives in which every file is of 1970."""
    source, other = tmp_path / "a.nii", tmp_path / "other.nii"
    for path, grey in ((source, 1.0), (other, 2.0)):
        save(path, IMAGE * grey, np.eye(4))
        os.utime(path, (0, 0))
    known = scan_of(FileSource(source))
    assert known is not None and scan_of(FileSource(source), known) is known
    os.replace(other, source)
    assert source.stat().st_mtime == 0
    now = scan_of(FileSource(source), known)
    assert now is not None and now.content != known.content


def test_another_channel_is_another_scan(tmp_path: Path) -> None:
    both = np.stack([IMAGE, IMAGE[:, ::-1]], axis=-1).transpose(2, 1, 0, 3)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(both, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "in" / "p.nii.gz")
    for channel, expected in ((0, LABELS), (1, LABELS[:, ::-1])):
        case = InputCase("p", FileSource(tmp_path / "in" / "p.nii.gz", channel))
        assert [v.status for v in predict(tmp_path, [case])] == ["done"]
        assert np.array_equal(load(tmp_path / "out" / "p.nii.gz")[0], expected)
        assert [v.status for v in predict(tmp_path, [case])] == ["skipped"]


def test_a_mask_stays_until_the_scan_that_replaces_its_own_can_be_read(folder: Path) -> None:
    """An upload that goes on is half a file, and one that made its room before is all zeros."""
    out, path = folder / "out", folder / "in" / "a.nii.gz"
    predict(folder, outputs=Outputs(per_class=True))
    judgements_in(out).write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    mask, volumes, first = ((each.read_bytes()) for each in (out / "a.nii.gz", out / VOLUMES, path))
    zeros = save(folder / "zeros.nii.gz", np.zeros_like(IMAGE), np.eye(4)).read_bytes()
    for content, told in ((first[:200], "a.nii.gz cannot be read"), (zeros, "the grey value 0 in every")):
        path.write_bytes(content)
        a, b = predict(folder)
        assert (a.status, b.status) == ("refused", "skipped")
        assert told in a.why and a.why.endswith(STAYS_OF_FORMER)
        assert (out / "a.nii.gz").read_bytes() == mask and (out / VOLUMES).read_bytes() == volumes
        assert (out / "per_class" / "a").is_dir()
        assert [each.case for each in judgements_in(out).rows()] == ["a", "b"]
    path.write_bytes(first)
    assert [v.status for v in predict(folder)] == ["skipped", "skipped"], "the scan of before is back"
    other, labels = paint((14, 44, 30), {1: np.s_[1:4, 5:15, 8:20], 2: np.s_[6:12, 20:36, 6:24]})
    save(path, other, affine_of("RAS", (3.0, 1.0, 1.0)))
    a, _ = predict(folder)
    assert (a.status, a.why) == ("done", ANEW)
    assert np.array_equal(load(out / "a.nii.gz")[0], labels)


def test_a_mask_of_another_scan_does_not_stay_where_the_new_one_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(folder, outputs=Outputs(per_class=True))
    judgements_in(folder / "out").write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    save(folder / "in" / "a.nii.gz", IMAGE * 2, affine_of("RAS", (3.0, 1.0, 1.0)))

    def fails(*_: Any) -> None:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as during:
        during.setattr("iris_pipeline.prediction.predict.segment_scan", fails)
        a, b = predict(folder)
    assert (a.status, b.status) == ("refused", "skipped")
    assert a.why == f"RuntimeError: no memory left (where, says predict.log).{TAKEN_AWAY}"
    assert not (folder / "out" / "a.nii.gz").exists() and not (folder / "out" / "per_class" / "a").exists()
    assert [each.case for each in judgements_in(folder / "out").rows()] == ["b"]
    assert [v.status for v in predict(folder)] == ["done", "skipped"]


def test_masks_made_anew_without_a_judge_lose_the_former_ones_judgements(folder: Path) -> None:
    predict(folder)
    table = judgements_in(folder / "out")
    table.write([Judgement(name, "class_0", 0.9, False, {}) for name in "ab"])
    assert [v.status for v in predict(folder, cases_of(folder)[:1], overwrite=True)] == ["done"]
    assert [each.case for each in table.rows()] == ["b"]
    (folder / "out" / "confidence.csv").write_text("case,mine\na,1\n")  # no business of who judges nothing
    save(folder / "in" / "a.nii.gz", IMAGE * 2, affine_of("RAS", (3.0, 1.0, 1.0)))
    assert [v.status for v in predict(folder)] == ["done", "skipped"]
    assert [v.status for v in predict(folder, overwrite=True)] == ["done", "done"]
    assert (folder / "out" / "confidence.csv").read_text() == "case,mine\na,1\n"


def test_a_mask_does_not_count_where_its_scan_cannot_be_told(folder: Path, read: list[str]) -> None:
    """Two files of one name, or one that cannot be read: a new folder refuses them, a former mask hid that."""
    predict(folder)
    read.clear()
    masks = [(folder / "out" / f"{name}.nii.gz").read_bytes() for name in "ab"]
    (folder / "in" / "a.nii.gz").unlink()
    two = RefusedSource((folder / "in" / "b.nii.gz", folder / "in" / "b.mha"), "Each case has one file.")
    verdicts = [*predict(folder, [InputCase("b", two), InputCase("a", None)]), predict(folder)[0]]
    assert [v.status for v in verdicts] == ["refused"] * 3
    assert verdicts[0].why == f"Each case has one file.{STAYS}"
    assert verdicts[1].why == f"The raw file of case 'a' is not there: put it back.{STAYS}"
    assert "a.nii.gz does not exist" in verdicts[2].why and verdicts[2].why.endswith(STAYS)
    assert [(folder / "out" / f"{name}.nii.gz").read_bytes() for name in "ab"] == masks and not read


def test_files_of_a_series_that_cannot_be_read_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else beside the slices: they become voxels, and yet nobody could tell tomorrow whether they changed."""
    monkeypatch.setattr(former_masks, "scan_of", lambda *_: None)
    assert "not every file of " in predict(folder)[0].why
    assert not (folder / "out" / "a.nii.gz").exists()


@pytest.mark.parametrize(
    "text", [None, "", "[1]", '{"schema_version": 2, "scans": {"a": {"new": 1}}}', '{"schema_version": 1}']
)
def test_a_mask_without_an_entry_is_entered_by_its_grid(
    folder: Path, read: list[str], text: str | None
) -> None:
    """Of a version that kept none, of a lost or garbled file, or of another version."""
    predict(folder)
    kept = (folder / "out" / "scans.json").read_bytes()
    if text is None:
        (folder / "out" / "scans.json").unlink()
    else:
        (folder / "out" / "scans.json").write_text(text)
    save(folder / "in" / "b.nii.gz", IMAGE, affine_of("RAS", (3.0, 1.0, 1.0)))  # was oblique
    a, b = predict(folder)
    assert a.status == "skipped" and "lies on the scan's grid (scans.json did not say which scan" in a.why
    assert (b.status, b.why) == (
        "done",
        "the former mask was on another grid than the scan's and is made anew.",
    )
    said = json.loads((folder / "out" / "scans.json").read_text(encoding="utf-8"))["scans"]
    assert said["a"] == json.loads(kept)["scans"]["a"] and said["b"] != json.loads(kept)["scans"]["b"]
    read.clear()
    assert [v.why for v in predict(folder)] == ["the result exists; --overwrite makes it anew."] * 2
    assert not read, "only once"
    save(folder / "in" / "a.nii.gz", IMAGE * 2, affine_of("RAS", (3.0, 1.0, 1.0)))
    a, _ = predict(folder)
    assert (a.status, a.why) == ("done", ANEW)


def test_a_scan_that_cannot_be_read_is_not_entered(folder: Path) -> None:
    predict(folder)
    (folder / "out" / "scans.json").unlink()
    (folder / "in" / "a.nii.gz").write_bytes(b"half a scan")
    a, _ = predict(folder)
    assert a.status == "refused" and "a.nii.gz cannot be read" in a.why and a.why.endswith(STAYS)
    assert (folder / "out" / "a.nii.gz").exists() and KeptScans(folder / "out").known("a") is None


def test_masks_of_classes_never_outlive_their_scan(folder: Path) -> None:
    """Made with --per-class, made anew without: those of another shape passed for this label map's."""
    a = cases_of(folder)[:1]
    predict(folder, a, outputs=Outputs(per_class=True))
    other, labels = paint((14, 44, 30), {1: np.s_[1:4, 5:15, 8:20], 2: np.s_[6:12, 20:36, 6:24]})
    save(folder / "in" / "a.nii.gz", other, affine_of("RAS", (3.0, 1.0, 1.0)))
    assert [v.status for v in predict(folder, a, overwrite=True)] == ["done"]
    assert not (folder / "out" / "per_class" / "a").exists()
    assert [v.status for v in predict(folder, a, outputs=Outputs(per_class=True))] == ["done"]
    mask = load(folder / "out" / "per_class" / "a" / "class_1.nii.gz")[0]
    assert np.array_equal(mask == 1, labels == 2)
    # of the same scan, what is there stays there
    assert [v.status for v in predict(folder, a, outputs=Outputs(probabilities=True))] == ["done"]
    assert [v.status for v in predict(folder, a, outputs=Outputs(True, True))] == ["skipped"]


def test_the_slices_of_a_series_are_the_scan_and_what_lies_below_is_not(tmp_path: Path) -> None:
    series = tmp_path / "p1"
    (series / "below").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "below/other.dcm", ".DS_Store"):
        (series / name).write_bytes(name.encode())
    known = scan_of(FileSource(series))
    for name in (".DS_Store", "below/other.dcm"):
        (series / name).write_bytes(b"changed")
    assert scan_of(FileSource(series), known) is known
    (series / "2.dcm").write_bytes(b"changed")
    now = scan_of(FileSource(series), known)
    assert known is not None and now is not None and now.content != known.content


def test_scans_are_kept_from_call_to_call(tmp_path: Path) -> None:
    kept = KeptScans(tmp_path)
    kept.keep("b", KeptScan("1", "2"))
    kept.keep("a", KeptScan("3", "4"))
    assert KeptScans(tmp_path).known("b") == KeptScan("1", "2") and kept.known("c") is None
    said = json.loads((tmp_path / "scans.json").read_text(encoding="utf-8"))
    assert said == {
        "schema_version": 1,
        "scans": {"a": {"content": "3", "seen": "4"}, "b": {"content": "1", "seen": "2"}},
    }


def test_a_mask_that_a_new_name_leaves_behind_is_named(folder: Path) -> None:
    """As where a second series comes and p1 is p1_a by then: p1.nii.gz stays, and nobody would know whose it is."""
    predict(folder)
    (folder / "in" / "a.nii.gz").rename(folder / "in" / "a_1.nii.gz")
    renamed = InputCase("a_1", FileSource(folder / "in" / "a_1.nii.gz"))
    others = [case for case in cases_of(folder) if case.id == "b"]
    told = "a.nii.gz is of the same scan, and no input is called a: where a_1 is its new name, take it away."
    assert [(v.status, v.why) for v in predict(folder, [renamed, *others])] == [
        ("done", told),
        ("skipped", "the result exists; --overwrite makes it anew."),
    ]
    (again,) = predict(folder, [renamed])
    assert again.why == f"the result exists; --overwrite makes it anew. {told}"
    copy = InputCase("a", FileSource(shutil.copy(folder / "in" / "a_1.nii.gz", folder / "in" / "a.nii.gz")))
    assert [v.why for v in predict(folder, [copy, renamed])] == [
        "the result exists; --overwrite makes it anew."
    ] * 2
    (folder / "out" / "a.nii.gz").unlink()
    (again,) = predict(folder, [renamed])
    assert again.why == "the result exists; --overwrite makes it anew.", "there is no such mask any more"
