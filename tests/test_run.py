"""The stage runner: bad cases do not stop good ones, a killed run resumes to the same bytes, plans are not mixed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TinyRaw

from preprocessing import run as module
from preprocessing.errors import IrisError, PlanError, RawDataError, SpecError
from preprocessing.fingerprint import CaseVerdict
from preprocessing.run import plan_and_preprocess
from preprocessing.store import Store

CROP = (32, 32, 32)


def prepare(tiny: TinyRaw, raw: Path, out: Path, **options: object) -> list[CaseVerdict]:
    settings: dict = {"crop": CROP, "workers": 1, "progress": False} | options
    return plan_and_preprocess(raw, out, [str(tiny.spec_path)], **settings)


def copy_of(tiny: TinyRaw, folder: Path) -> Path:
    shutil.copytree(tiny.root, folder)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of a store but the log, which holds the time of day."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "preprocess.log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_case_has_a_verdict_and_its_files(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    told: list[list[CaseVerdict]] = []
    verdicts = prepare(tiny_raw, tiny_raw.root, tmp_path, report=told.append)
    assert [(each.case, each.verdict, each.why) for each in verdicts] == [
        (c, "ok", "") for c in tiny_raw.cases
    ]
    assert told == [verdicts]
    files = set(bytes_of(tmp_path / "tiny"))
    cases = {f"cases/{case}{ending}" for case in tiny_raw.cases for ending in (".b2nd", ".seg.b2nd", ".json")}
    assert files == cases | {"fingerprint.json", "plan.json", "manifest.json"}
    log = (tmp_path / "tiny" / "preprocess.log").read_text(encoding="utf-8")
    assert "finer than the paper's" in log and "finished: 5 cases stored, 0 refused" in log


def test_workers_change_no_byte(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    prepare(tiny_raw, tiny_raw.root, tmp_path / "one")
    prepare(tiny_raw, tiny_raw.root, tmp_path / "two", workers=2)
    assert bytes_of(tmp_path / "one" / "tiny") == bytes_of(tmp_path / "two" / "tiny")


def test_bad_cases_are_refused_and_the_others_finished(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = copy_of(tiny_raw, tmp_path / "raw")
    images, labels = raw / "tiny" / "imagesTr", raw / "tiny" / "labelsTr"
    whole = (images / "s1_a.nii.gz").read_bytes()
    (images / "s1_a.nii.gz").write_bytes(whole[: len(whole) // 2])
    good = nib.load(labels / "s2_a.nii.gz")
    strange = np.asarray(good.dataobj).copy()
    strange[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(strange, good.affine), labels / "s2_a.nii.gz")
    good = nib.load(labels / "s3_a.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(good.dataobj)[:-1], good.affine), labels / "s3_a.nii.gz")
    (images / "s4_a.nii.gz").unlink()
    verdicts = {each.case: each for each in prepare(tiny_raw, raw, tmp_path / "out")}
    assert {case: each.verdict for case, each in verdicts.items()} == {
        "s1_a": "refused",
        "s2_a": "refused",
        "s2_b": "ok",
        "s3_a": "refused",
        "s4_a": "refused",
    }
    expected = {
        "s1_a": "s1_a.nii.gz cannot be read",
        "s2_a": "holds unknown label values (7): dataset tiny allows 0 (background), 1 (left), 2 (right), 5 (core)",
        "s3_a": "same grid",
        "s4_a": "s4_a.nii.gz does not exist",
    }
    for case, sentence in expected.items():
        assert sentence in verdicts[case].why and "\n" not in verdicts[case].why
    store = Store.open(tmp_path / "out" / "tiny")
    assert [entry.id for entry in store.manifest.cases] == ["s2_b"]
    assert set(store.manifest.refused) == set(expected)
    with pytest.raises(IrisError, match="Store tiny has no case 's1_a': it was refused: .*cannot be read"):
        store.image("s1_a")
    assert [case for part in store.manifest.splits["paper"].values() for case in part] == ["s2_b"]


def test_a_mended_case_is_taken_up(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = copy_of(tiny_raw, tmp_path / "raw")
    (raw / "tiny" / "labelsTr" / "s2_b.nii.gz").unlink()
    prepare(tiny_raw, raw, tmp_path / "out")
    before = bytes_of(tmp_path / "out" / "tiny" / "cases")
    shutil.copy(tiny_raw.dataset / "labelsTr" / "s2_b.nii.gz", raw / "tiny" / "labelsTr" / "s2_b.nii.gz")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tiny" / "cases").iterdir()}
    prepare(tiny_raw, raw, tmp_path / "out")
    prepare(tiny_raw, tiny_raw.root, tmp_path / "whole")
    assert len(before) == 12
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    assert bytes_of(tmp_path / "out" / "tiny" / "cases") == bytes_of(tmp_path / "whole" / "tiny" / "cases")


def test_a_changed_or_removed_case_leaves_nothing_old(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = copy_of(tiny_raw, tmp_path / "raw")
    prepare(tiny_raw, raw, tmp_path / "out")
    before = bytes_of(tmp_path / "out" / "tiny")
    for folder in ("imagesTr", "labelsTr"):
        (raw / "tiny" / folder / "s4_a.nii.gz").unlink()
    (tmp_path / "out" / "tiny" / "cases" / "@eaDir").mkdir()  # as network disks make it: not ours to remove
    labels = nib.load(raw / "tiny" / "labelsTr" / "s1_a.nii.gz")
    array = np.asarray(labels.dataobj)
    nib.save(nib.Nifti1Image(array * (array != 5), labels.affine), raw / "tiny" / "labelsTr" / "s1_a.nii.gz")
    prepare(tiny_raw, raw, tmp_path / "out")
    after = bytes_of(tmp_path / "out" / "tiny")
    assert {name for name in before if name not in after} == {
        f"cases/s4_a{e}" for e in (".b2nd", ".seg.b2nd", ".json")
    }
    assert after["cases/s1_a.b2nd"] == before["cases/s1_a.b2nd"]
    assert after["cases/s1_a.seg.b2nd"] != before["cases/s1_a.seg.b2nd"]
    store = Store.open(tmp_path / "out" / "tiny")
    assert set(store.entry("s1_a").classes) == {"left", "right"}


def test_a_run_broken_off_resumes_to_the_same_bytes(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tiny_raw, tiny_raw.root, tmp_path / "whole")
    real, begun = module._store_case, []

    def breaking(job: module._Job) -> tuple[str, object]:
        begun.append(job.case.id)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(module, "_store_case", breaking)
    with pytest.raises(KeyboardInterrupt):
        prepare(tiny_raw, tiny_raw.root, tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    assert not (folder / "manifest.json").exists()
    (folder / "cases" / ".s2_b.b2nd.77.tmp").write_bytes(b"half a case")
    (folder / "cases" / "s3_a.b2nd").write_bytes(b"an image without its labels and record")
    prepare(tiny_raw, tiny_raw.root, tmp_path / "out")
    assert begun == ["s1_a", "s2_a", "s2_b", "s2_b", "s3_a", "s4_a"]
    assert bytes_of(folder) == bytes_of(tmp_path / "whole" / "tiny")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are not killed by a signal here")
def test_a_killed_process_resumes_to_the_same_bytes(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    """The real command with two workers, killed (not interrupted) while it writes cases."""
    raw = tmp_path / "raw"
    for folder in ("imagesTr", "labelsTr"):
        (raw / "tiny" / folder).mkdir(parents=True)
        for number in range(6):
            for case in tiny_raw.cases:
                source = tiny_raw.dataset / folder / f"{case}.nii.gz"
                shutil.copy(source, raw / "tiny" / folder / f"{case}{number}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "preprocessing.run", "-d", str(tiny_raw.spec_path), "--raw", str(raw)]
    command += ["--root", str(out), "--crop", "32", "32", "32", "--workers", "2", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    cases, limit = out / "preprocessed" / "tiny" / "cases", time.monotonic() + 300
    while len(list(cases.glob("*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < limit, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cases.parent / "manifest.json").exists()
    time.sleep(0.5)  # the workers notice that their parent is gone
    written = len(list(cases.glob("*.json")))
    assert 3 <= written < 30
    time.sleep(0.3)
    assert len(list(cases.glob("*.json"))) == written
    prepare(tiny_raw, raw, out / "preprocessed")
    prepare(tiny_raw, raw, tmp_path / "whole")
    assert bytes_of(cases.parent) == bytes_of(tmp_path / "whole" / "tiny")


def test_a_store_of_another_plan_is_not_mixed(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    prepare(tiny_raw, tiny_raw.root, tmp_path)
    before = bytes_of(tmp_path / "tiny")
    with pytest.raises(
        PlanError, match=r"is of another plan \(policy paper, 1\.2 x 1\.2 x 1\.2 mm, patch 32 x 32 x 32\)"
    ):
        prepare(tiny_raw, tiny_raw.root, tmp_path, crop=(16, 16, 16))
    assert bytes_of(tmp_path / "tiny") == before
    prepare(tiny_raw, tiny_raw.root, tmp_path, crop=(16, 16, 16), policy="fit", overwrite=True)
    store = Store.open(tmp_path / "tiny")
    assert (store.plan.policy, store.plan.patch_size) == ("fit", (16, 16, 32)), (
        "the network refuses 16 x 16 x 16"
    )
    assert store.entry("s1_a").spacing_mm == pytest.approx(store.plan.spacing_mm, rel=0.05)


def test_unknown_names_and_lost_datasets_do_not_stop_the_others(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    names = ["tinny", "la2018", str(tiny_raw.spec_path)]
    with pytest.raises(SpecError) as caught:
        plan_and_preprocess(tiny_raw.root, tmp_path, names, crop=CROP, workers=1, progress=False)
    first, second = str(caught.value).splitlines()
    assert first.startswith("Unknown dataset 'tinny': known are acdc, acdc_mini, ")
    assert "la2018 of dataset la2018 does not exist: put the scans there" in second
    assert len(Store.open(tmp_path / "tiny").manifest.cases) == 5
    assert not (tmp_path / "la2018").exists()


def test_a_dataset_that_the_system_refuses_does_not_stop_the_others(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw" / "la2018").mkdir(parents=True)
    (tmp_path / "raw" / "tiny").symlink_to(tiny_raw.dataset)
    (tmp_path / "out" / "la2018").mkdir(parents=True)
    real = module.fingerprint_dataset

    def refusing(raw: Path, *more: object, **options: object) -> object:
        if raw.name == "la2018":
            raise PermissionError(13, "Permission denied", str(raw))
        return real(raw, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fingerprint_dataset", refusing)
    names = ["la2018", str(tiny_raw.spec_path)]
    told = f"{tmp_path / 'raw' / 'la2018'} cannot be read or written"
    with pytest.raises(RawDataError, match=rf"^{told} \(Permission denied\): mend its permissions, or"):
        plan_and_preprocess(tmp_path / "raw", tmp_path / "out", names, crop=CROP, workers=1, progress=False)
    assert len(Store.open(tmp_path / "out" / "tiny").manifest.cases) == 5
    log = (tmp_path / "out" / "la2018" / "preprocess.log").read_text(encoding="utf-8")
    assert f"failed: {told} (Permission denied)" in log

    def left(raw: Path, *more: object, **options: object) -> object:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(module, "fingerprint_dataset", left)
    with pytest.raises(BrokenPipeError):
        plan_and_preprocess(tmp_path / "raw", tmp_path / "out", names, crop=CROP, workers=1, progress=False)


def test_want_of_memory_while_storing_refuses_one_case_until_there_is_more(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = module.preprocess_case, []

    def short(*given: object, **options: object) -> object:
        begun.append("")
        if len(begun) == 2:
            raise MemoryError
        return real(*given, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as tight:
        tight.setattr(module, "preprocess_case", short)
        verdicts = prepare(tiny_raw, tiny_raw.root, tmp_path / "out")
    assert [each.verdict for each in verdicts] == ["ok", "refused", "ok", "ok", "ok"]
    assert verdicts[1].why.startswith(
        "Case s2_a needs more memory than is free: make some free or give fewer"
    )
    killed = tmp_path / "out" / "tiny" / ".manifest.json.7.tmp"
    killed.write_text("half", encoding="utf-8")
    prepare(tiny_raw, tiny_raw.root, tmp_path / "out")
    prepare(tiny_raw, tiny_raw.root, tmp_path / "whole")
    assert bytes_of(tmp_path / "out" / "tiny") == bytes_of(tmp_path / "whole" / "tiny")


def test_a_dataset_without_a_usable_case_still_tells_why(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = copy_of(tiny_raw, tmp_path / "raw")
    shutil.rmtree(raw / "tiny" / "labelsTr")
    told: list[CaseVerdict] = []
    with pytest.raises(PlanError, match="No case of dataset tiny can be used, all 5 were refused"):
        prepare(tiny_raw, raw, tmp_path / "out", report=told.extend)
    assert [each.verdict for each in told] == ["refused"] * 5
    assert not (tmp_path / "out" / "tiny" / "manifest.json").exists()


def test_a_renamed_class_is_renamed_in_the_manifest(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    prepare(tiny_raw, tiny_raw.root, tmp_path / "out")
    renamed = tmp_path / "tiny.yaml"
    text = tiny_raw.spec_path.read_text(encoding="utf-8").replace("core: 5", "middle: 5")
    renamed.write_text(text, encoding="utf-8")
    plan_and_preprocess(tiny_raw.root, tmp_path / "out", [str(renamed)], crop=CROP, workers=1, progress=False)
    manifest = Store.open(tmp_path / "out" / "tiny").manifest
    assert manifest.classes == {"left": 1, "right": 2, "middle": 5}
    assert set(manifest.cases[0].classes) == {"left", "right", "middle"}


def test_a_worker_that_dies_is_one_sentence() -> None:
    from preprocessing.runtime.parallel import parallel_map

    with pytest.raises(
        RawDataError, match="A worker process was ended during 'dying', mostly for want of memory"
    ):
        list(parallel_map(os._exit, [1, 1], 2, "dying", progress=False))
