"""The export for nnU-Net read back: grids, renumbered labels, splits, and what happens when it is run again."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TinyRaw

from iris_pipeline.cli.evaluate import evaluate_main
from iris_pipeline.cli.export import export_nnunet_main
from iris_pipeline.nnunet import export as module
from iris_pipeline.nnunet.export import (
    RECORD,
    consecutive_values,
    dataset_json,
    dataset_name,
    export_dataset,
    nnunet_splits,
)
from iris_pipeline.tables.result_tables import read_rows
from preprocessing.adapters import Case, find_cases
from preprocessing.errors import ExportError, LabelValueError, LockError
from preprocessing.run import plan_and_preprocess
from preprocessing.runtime.lock import only_run_in
from preprocessing.sources.mending import nearest_rotation
from preprocessing.spec import load_spec
from preprocessing.store import Store
from preprocessing.volume import Volume, read_volume, write_volume

FOLDER = "Dataset501_tiny"


@pytest.fixture
def place(tiny_raw, tiny_store: Store, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    (tmp_path / "raw").symlink_to(tiny_raw.root)
    (tmp_path / "preprocessed").symlink_to(tiny_store.folder.parent)
    return tmp_path


def export(place: Path, store: Store, **options: object):  # type: ignore[no-untyped-def]
    cases = find_cases(place / "raw" / "tiny", store.manifest.spec)
    return export_dataset(store, cases, place / "out", workers=1, progress=False, **options)  # type: ignore[arg-type]


def stored_anew(place: Path, store: Store) -> tuple[Store, list[Case]]:
    """The store and the cases of place/own/tiny, whose files are others than those of the store at hand."""
    (place / "own" / "tiny.yaml").write_text(store.manifest.spec.model_dump_json(), encoding="utf-8")
    plan_and_preprocess(
        place / "own", place / "stores", ["tiny"], crop=(32, 32, 32), workers=1, progress=False
    )
    made = Store.open(place / "stores" / "tiny")
    return made, find_cases(place / "own" / "tiny", made.manifest.spec)


def test_read_back(place: Path, tiny_store: Store) -> None:
    done = export(place, tiny_store)
    paper = tiny_store.manifest.splits["paper"]
    assert (done.dataset, done.written, done.skipped) == (FOLDER, 5, 0)
    assert done.values == {"left": 1, "right": 2, "core": 3}
    raw = place / "out" / "nnUNet_raw" / FOLDER
    training = sorted(paper["train"] + paper["validation"])
    assert sorted(path.name for path in (raw / "imagesTr").iterdir()) == [
        f"{c}_0000.nii.gz" for c in training
    ]
    assert sorted(path.name for path in (raw / "labelsTr").iterdir()) == [f"{c}.nii.gz" for c in training]
    assert [path.name for path in (raw / "imagesTs").iterdir()] == [f"{c}_0000.nii.gz" for c in paper["test"]]
    for case in training:
        source = place / "raw" / "tiny"
        assert (raw / "imagesTr" / f"{case}_0000.nii.gz").read_bytes() == (
            source / "imagesTr" / f"{case}.nii.gz"
        ).read_bytes()
        image = nib.load(raw / "imagesTr" / f"{case}_0000.nii.gz")
        labels = nib.load(raw / "labelsTr" / f"{case}.nii.gz")
        ours = np.asarray(nib.load(source / "labelsTr" / f"{case}.nii.gz").dataobj)
        theirs = np.asarray(labels.dataobj)
        assert theirs.dtype == np.uint8 and set(np.unique(theirs)) <= {0, 1, 2, 3}
        assert np.array_equal(theirs, np.select([ours == 1, ours == 2, ours == 5], [1, 2, 3], 0))
        assert np.array_equal(labels.affine, image.affine)
    described = json.loads((raw / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "left": 1, "right": 2, "core": 3}
    assert described["channel_names"] == {"0": "MRI"} and described["file_ending"] == ".nii.gz"
    assert described["numTraining"] == len(training) == len(list((raw / "labelsTr").iterdir()))
    splits = json.loads((place / "out" / "nnUNet_preprocessed" / FOLDER / "splits_final.json").read_text())
    assert splits == nnunet_splits(tiny_store.manifest.splits)
    assert len(splits) == 6 and splits[0] == {"train": paper["train"], "val": paper["validation"]}
    for fold, part in enumerate(splits[1:]):
        ours = tiny_store.manifest.splits[str(fold)]
        assert part == {"train": ours["train"], "val": ours["validation"]}
        assert not set(part["train"] + part["val"]) & set(paper["test"])
    assert not [path for path in raw.rglob("*") if "part" in path.name or "tmp" in path.name]


def test_a_run_that_was_broken_off_is_finished(place: Path, tiny_store: Store) -> None:
    done = export(place, tiny_store)
    case = tiny_store.manifest.splits["paper"]["train"][0]
    (done.raw / "labelsTr" / f"{case}.nii.gz").unlink()
    (done.raw / "dataset.json").unlink()
    kept = done.raw / "labelsTr" / f"{tiny_store.manifest.splits['paper']['train'][1]}.nii.gz"
    before = kept.stat().st_mtime_ns
    again = export(place, tiny_store)
    assert (again.written, again.skipped, again.dataset) == (1, 4, FOLDER)
    assert (done.raw / "dataset.json").is_file() and kept.stat().st_mtime_ns == before
    assert export(place, tiny_store, overwrite=True).written == 5


def test_an_export_of_something_else_is_not_mixed_with(place: Path, tiny_store: Store) -> None:
    done = export(place, tiny_store)
    record = json.loads((done.raw / RECORD).read_text())
    record["made_from"]["splits"] = "another"
    (done.raw / RECORD).write_text(json.dumps(record))
    with pytest.raises(ExportError, match="was made from other scans, classes or splits.*--overwrite"):
        export(place, tiny_store)
    assert export(place, tiny_store, overwrite=True).written == 5


def test_an_overwriting_run_that_is_broken_off_keeps_no_former_scan(
    place: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export(place, tiny_store)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(module, "_export_case", killed)
        with pytest.raises(KeyboardInterrupt):
            export(place, tiny_store, overwrite=True)
    leftover = done.raw / "labelsTr" / ".s1_a.nii.gz.7.part.nii.gz"
    leftover.write_bytes(b"half a file of a killed writer, which nnU-Net would take for a case")
    again = export(place, tiny_store)
    assert (again.written, again.skipped) == (5, 0) and not leftover.exists()


def test_one_export_at_a_time(place: Path, tiny_store: Store) -> None:
    done = export(place, tiny_store)
    with (
        only_run_in(done.raw, "wait"),
        pytest.raises(LockError, match="Another run works in .*wait until it has"),
    ):
        export(place, tiny_store)
    assert (done.raw / "dataset.json").is_file() and not (done.raw / ".lock").exists()
    empty = place / "out" / "nnUNet_raw" / "Dataset502_tiny_from_s1_a"
    empty.mkdir()
    (empty / ".lock").write_text("a killed run that had just begun")
    assert export(place, held_out(tiny_store), references=["s1_a"]).raw == empty


def test_other_formats_become_nifti_on_their_own_grid(place: Path, tiny_store: Store) -> None:
    raw = place / "own" / "tiny"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
        for path in (place / "raw" / "tiny" / folder).iterdir():
            (raw / folder / path.name).symlink_to(path)
    case = tiny_store.manifest.splits["paper"]["train"][0]
    (raw / "imagesTr" / f"{case}.nii.gz").unlink()
    volume = read_volume(place / "raw" / "tiny" / "imagesTr" / f"{case}.nii.gz")
    write_volume(raw / "imagesTr" / f"{case}.nii", Volume(volume.array[None][0], volume.affine))
    store, cases = stored_anew(place, tiny_store)
    done = export_dataset(store, cases, place / "out", workers=1, progress=False)
    back = read_volume(done.raw / "imagesTr" / f"{case}_0000.nii.gz")
    assert np.array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)


def test_a_plain_file_named_gz_is_compressed(place: Path, tiny_store: Store) -> None:
    """Our reader takes it, nnU-Net's does not: it is written anew, with the same voxels in the same place."""
    raw = place / "own" / "tiny"
    shutil.copytree(place / "raw" / "tiny", raw)
    case = tiny_store.manifest.splits["paper"]["train"][0]
    path = raw / "imagesTr" / f"{case}.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    store, cases = stored_anew(place, tiny_store)
    done = export_dataset(store, cases, place / "out", workers=1, progress=False)
    made = done.raw / "imagesTr" / f"{case}_0000.nii.gz"
    assert done.written == 5 and made.read_bytes()[:2] == b"\x1f\x8b"
    back, source = nib.load(made), nib.load(place / "raw" / "tiny" / "imagesTr" / f"{case}.nii.gz")
    assert np.array_equal(np.asarray(back.dataobj), np.asarray(source.dataobj))
    assert np.array_equal(back.affine, source.affine)


def test_what_cannot_be_exported(place: Path, tiny_store: Store) -> None:
    cases = find_cases(place / "raw" / "tiny", tiny_store.manifest.spec)
    gone = tiny_store.manifest.splits["paper"]["test"][0]
    with pytest.raises(ExportError, match=f"The raw scan or label of {gone} is not there"):
        export_dataset(tiny_store, [case for case in cases if case.id != gone], place / "out", progress=False)
    held_out = {name: {"train": [], "validation": [], "test": []} for name in tiny_store.manifest.splits}
    manifest = tiny_store.manifest.model_copy(update={"splits": held_out, "role": "held-out"})
    with pytest.raises(ExportError, match=r"tiny \(held-out\) has no train case"):
        export_dataset(Store(tiny_store.folder, manifest), cases, place / "out", progress=False)


def test_values_and_description() -> None:
    assert consecutive_values({"b": 9, "a": 200, "c": 1}) == {"c": 1, "b": 2, "a": 3}
    described = dataset_json(load_spec("openkbp"), {"brainstem": 1}, 12)
    assert described["channel_names"] == {"0": "CT"} and described["licence"]


def test_there_and_back_by_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nnU-Net's predictions carry its own label values and its dataset.json: both are undone by name."""
    root = ["--root", str(place)]
    assert export_nnunet_main(["-d", "Tiny", "--workers", "1", *root]) == 0, (
        "a raw folder's spelling is known"
    )
    said = capsys.readouterr().out
    assert "Dataset501_tiny: " in said and "Labels: 1 left, 2 right, 3 core" in said
    raw = place / "nnunet" / "nnUNet_raw" / FOLDER
    predictions = place / "nnunet" / "predictions"
    predictions.mkdir()
    for path in (raw / "labelsTs").iterdir():
        (predictions / path.name).write_bytes(path.read_bytes())
    arguments = ["--method", "nnU-Net", "-p", str(predictions), "-d", "tiny", *root]
    assert evaluate_main(arguments) == 1
    assert "need their class names" in capsys.readouterr().err
    assert evaluate_main([*arguments, "--classes", str(raw / "dataset.json")]) == 0
    (predictions / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    assert evaluate_main(arguments) == 0
    assert "| nnU-Net  | paper/test | other-tool " in capsys.readouterr().out
    frame = read_rows(place / "results" / "nnU-Net" / "evaluation" / "tiny__other-tool.csv")
    assert set(frame["class"]) == {"left", "right", "core"} and frame["dice"].dropna().eq(1.0).all()
    assert set(frame["run"]) == {"nnU-Net"} and set(frame["split"]) == {"paper/test"}


def held_out(store: Store) -> Store:
    """The same store as a held-out one: everybody is test."""
    everybody = sorted(entry.id for entry in store.manifest.cases)
    splits = {name: {"train": [], "validation": [], "test": everybody} for name in store.manifest.splits}
    return Store(store.folder, store.manifest.model_copy(update={"splits": splits, "role": "held-out"}))


def test_references_alone_train(place: Path, tiny_store: Store) -> None:
    """nnU-Net gets what ours is shown: fold 0 is the references, and nobody of them is tested."""
    store = held_out(tiny_store)
    subjects = {entry.id: entry.subject for entry in store.manifest.cases}
    shown = sorted(subjects)[:2]
    done = export(place, store, references=shown[::-1])
    assert done.dataset == f"Dataset501_tiny_from_{'_'.join(shown)}"
    expected = [case for case in sorted(subjects) if subjects[case] not in {subjects[each] for each in shown}]
    assert expected and sorted(done.split["test"]) == expected
    names = {
        folder: sorted(p.name for p in (done.raw / folder).iterdir()) for folder in ("labelsTr", "labelsTs")
    }
    assert names["labelsTr"] == [f"{case}.nii.gz" for case in shown]
    assert names["labelsTs"] == [f"{case}.nii.gz" for case in expected]
    assert json.loads(done.splits.read_text()) == [{"train": shown, "val": shown}]
    assert json.loads((done.raw / "dataset.json").read_text())["numTraining"] == 2
    assert export(place, store, references=[*shown, shown[0]]).dataset == done.dataset, (
        "no matter in which order"
    )
    assert export(place, store, references=shown[:1]).dataset == f"Dataset502_tiny_from_{shown[0]}"


def test_references_that_cannot_be(place: Path, tiny_store: Store) -> None:
    with pytest.raises(ExportError, match="nobody is none: name some of "):
        export(place, tiny_store, references=["nobody"])
    tested = tiny_store.manifest.splits["paper"]["test"][0]
    with pytest.raises(ExportError, match=f"{tested} is of the test part.*train part"):
        export(place, tiny_store, references=[tested])
    store = held_out(tiny_store)
    everybody = [entry.id for entry in store.manifest.cases]
    with pytest.raises(ExportError, match="No test case of dataset tiny is of another subject"):
        export(place, store, references=everybody)


def test_rows_of_a_tool_that_was_shown_references(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--strategy, --references and --draw name the row as ours are named, and are another tool's alone."""
    root = ["--root", str(place)]
    assert export_nnunet_main(["-d", "tiny", "--workers", "1", *root]) == 0
    raw = place / "nnunet" / "nnUNet_raw" / FOLDER
    of_three = ["--strategy", "trained", "--references", "3", "--draw", "0"]
    files = ["-p", str(raw / "labelsTs"), "-d", "tiny", "--classes", str(raw / "dataset.json"), *root]
    assert evaluate_main(["--method", "nnU-Net", *of_three, *files]) == 0
    frame = read_rows(place / "results" / "nnU-Net" / "evaluation" / "tiny__trained_k3_draw0.csv")
    assert set(frame["base"]) == {"trained"} and set(frame["references"]) == {3} and set(frame["draw"]) == {0}
    capsys.readouterr()
    assert evaluate_main([*of_three, *files]) == 1
    assert "tell of another tool's masks: give its name with --method" in capsys.readouterr().err
    assert evaluate_main(["--method", "nnU-Net", "--draw", "3", *files]) == 1
    assert "add --references, how many" in capsys.readouterr().err
    assert evaluate_main(["--method", "nnU-Net", "--strategy", "trained", "--references", "3", *files]) == 0
    assert "/evaluation/tiny__trained_k3.csv" in capsys.readouterr().out, "picked by hand: no draw"
    assert evaluate_main(["--method", "nnU-Net", "--strategy", "a/b", *files]) == 1
    assert "--strategy becomes the name of a folder or file under results/" in capsys.readouterr().err


def test_folders_of_many_references_keep_a_short_name() -> None:
    many = [f"sub-{number:04}_ses-01_T1w" for number in range(14)]
    assert dataset_name("liver", many[:2]) == "liver_from_sub_0000_ses_01_T1w_sub_0001_ses_01_T1w"
    long = dataset_name("liver", many)
    assert len(long) < 60 and long.startswith("liver_from_14_references_")
    assert long == dataset_name("liver", [*many[::-1], many[0]]) != dataset_name("liver", many[1:])


def test_who_is_tested_is_told(place: Path, tiny_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    case = tiny_store.manifest.splits["paper"]["train"][0]
    tests = " ".join(tiny_store.manifest.splits["paper"]["test"])
    assert (
        export_nnunet_main(["-d", "tiny", "--references", case, "--workers", "1", "--root", str(place)]) == 0
    )
    assert f"--strategy trained --references 1 --cases {tests}" in capsys.readouterr().out


def test_raw_files_that_changed_since_are_refused(place: Path, tiny_store: Store) -> None:
    """A class drawn anew under another value would silently become background, and the test part another truth."""
    raw = place / "own" / "tiny"
    shutil.copytree(place / "raw" / "tiny", raw)
    path = raw / "labelsTr" / "s3_a.nii.gz"
    labels = nib.load(path)
    voxels = np.asarray(labels.dataobj)
    nib.save(nib.Nifti1Image(np.where(voxels == 5, 7, voxels).astype(np.uint8), labels.affine), path)
    cases = find_cases(raw, tiny_store.manifest.spec)
    changed = "The raw scan or label of s3_a changed since the store was made: run iris_plan_and_preprocess -d tiny ag"
    with pytest.raises(ExportError, match=changed):
        export_dataset(tiny_store, cases, place / "out", workers=1, progress=False)
    assert not (place / "out").exists()
    (place / "copy").mkdir()
    shutil.copytree(tiny_store.folder, place / "copy" / "tiny")
    (place / "copy" / "tiny" / "cases" / "s3_a.json").unlink()  # nothing tells what it was made of
    untold = Store.open(place / "copy" / "tiny")
    with pytest.raises(LabelValueError, match=r"s3_a\.nii\.gz holds unknown label values \(7\)"):
        export_dataset(untold, cases, place / "out", workers=1, progress=False)


def test_skewed_axes_become_the_nearest_that_itk_reads(
    place: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(
        "ITK_NIFTI_SFORM_PERMISSIVE", raising=False
    )  # with which we read, and nnU-Net does not
    raw = place / "own" / "tiny"
    shutil.copytree(place / "raw" / "tiny", raw)
    case = tiny_store.manifest.splits["paper"]["train"][0]
    for part in ("imagesTr", "labelsTr"):
        image = nib.load(raw / part / f"{case}.nii.gz")
        voxels = np.asarray(image.dataobj)
        affine = image.affine @ np.array([[1, 0.02, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        nib.save(nib.Nifti1Image(voxels, affine), raw / part / f"{case}.nii.gz")
    store, cases = stored_anew(place, tiny_store)
    assert "not orthonormal" in store.entry(case).why
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(raw / "imagesTr" / f"{case}.nii.gz"))
    done = export_dataset(store, cases, place / "out", workers=1, progress=False)
    source = nib.load(raw / "imagesTr" / f"{case}.nii.gz")
    for made in (
        done.raw / "imagesTr" / f"{case}_0000.nii.gz",
        done.raw / "labelsTr" / f"{case}.nii.gz",
    ):
        assert sitk.ReadImage(str(made)).GetSize() == source.shape
        written = nib.load(made)
        expected, degrees = nearest_rotation(source.affine, source.shape[::-1])
        assert 0 < degrees < 2
        np.testing.assert_allclose(written.affine, expected, atol=1e-4)
    image = nib.load(done.raw / "imagesTr" / f"{case}_0000.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(source.dataobj))


def test_a_fold_without_validation_and_what_is_partly_labelled_are_said(
    place: Path, tiny_raw: TinyRaw, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_raw.dataset, place / "own" / "tiny")
    lists = {"validation_subjects": [], "test_subjects": []}
    spec = tiny_raw.spec.model_dump(mode="json") | {"split": lists, "partly_labelled": True}
    (place / "own" / "tiny.yaml").write_text(json.dumps(spec), encoding="utf-8")
    (place / "root").mkdir()
    (place / "root" / "raw").symlink_to(place / "own")
    stores = place / "root" / "preprocessed"
    plan_and_preprocess(place / "own", stores, ["tiny"], crop=(32, 32, 32), workers=1, progress=False)
    assert export_nnunet_main(["-d", "tiny", "--workers", "1", "--root", str(place / "root")]) == 0
    said = capsys.readouterr().out
    assert (
        "Note: no validation case in fold 0: since nnU-Net needs some, its training cases validate it" in said
    )
    assert (
        "Note: tiny is partly labelled: a class that a case lacks is unknown there, but nnU-Net will learn"
        in said
    )
    folds = json.loads(
        (place / "root" / "nnunet" / "nnUNet_preprocessed" / FOLDER / "splits_final.json").read_text()
    )
    assert folds[0] == {"train": sorted(tiny_raw.cases), "val": sorted(tiny_raw.cases)}
