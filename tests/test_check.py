"""iris_check's report: a verdict a case and its reason, remarks on the whole, leaks, and not a byte changed."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TinyRaw

from iris_pipeline.cli.prepare import check_main
from preprocessing.check import Checked, check_dataset, dataset_folder, summarise
from preprocessing.spec import DatasetSpec

FEW = ["--workers", "1", "--quiet"]
SPEC = {
    "name": "made",
    "title": "Hand-made volumes",
    "modality": "CT",
    "role": "upstream",
    "source": "tests/test_check.py",
    "licence": "Apache-2.0",
    "classes": {"left lung": 1, "right lung": 2},
    "sides": {"left": ["left lung"], "right": ["right lung"]},
}
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def checked(raw: Path, spec: DatasetSpec) -> Checked:
    return check_dataset(raw, spec, workers=1, progress=False)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def write_case(
    raw: Path,
    case: str,
    grey: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    affine: np.ndarray = AFFINE,
    label_affine: np.ndarray | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """10 x 8 x 6 voxels (x,y,z): noise that differs from case to case, left lung at x index 1, right at 8."""
    if grey is None:
        seed = sum(map(ord, case))
        grey = np.random.default_rng(seed).integers(-1000, 1000, (10, 8, 6)).astype(np.int16)
    if labels is None:
        labels = np.zeros(grey.shape, np.uint8)
        labels[1, 2:6, 1:5], labels[8, 2:6, 1:5] = 1, 2
    image = nib.Nifti1Image(grey, affine)
    mask = nib.Nifti1Image(labels, affine if label_affine is None else label_affine)
    for folder, each in (("imagesTr", image), ("labelsTr", mask)):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        nib.save(each, raw / folder / f"{case}.nii.gz")
    return image, mask


def test_a_sound_dataset_has_no_remarks_and_is_not_touched(tiny_raw: TinyRaw) -> None:
    before = snapshot(tiny_raw.root)
    report = checked(tiny_raw.dataset, tiny_raw.spec).report
    assert snapshot(tiny_raw.root) == before
    assert report.counts == {"ok": 5, "repaired": 0, "refused": 0}
    assert report.remarks == () and report.usable
    assert report.text().splitlines() == [
        "tiny: 5 ok, 0 repaired, 0 refused",
        "  note: The files' first, second and third axis run to ASL in 1, LAI in 1, LPS in 1, PIR in 1, RAS in 1 "
        "cases; all are turned to RAS.",
        "  note: 5 cases (frames, studies, sequences) of 4 subjects: split by subject.",
    ]
    first = report.cases[0]
    assert (first.id, first.subject, first.shape, first.orientation) == ("s1_a", "s1", (16, 34, 40), "RAS")
    assert set(first.voxels) == {"left", "right", "core"}
    assert {case.part for case in report.cases} == {"train", "validation", "test"}


def moved(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = millimetres
    return affine


def test_every_verdict_by_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One case for each thing that can be found; the report says which, and why, and the exit status is 1."""
    raw = tmp_path / "raw" / "made"
    for case in ("fine1", "fine2", "fine3", "fine4"):
        write_case(raw, case)
    swapped = np.zeros((10, 8, 6), np.uint8)
    swapped[1, 2:6, 1:5], swapped[8, 2:6, 1:5] = 2, 1
    write_case(raw, "swapped", labels=swapped)
    write_case(raw, "near", label_affine=moved(0.4))
    write_case(raw, "far", label_affine=moved(1.5))
    flipped = AFFINE @ np.diag([1.0, -1.0, 1.0, 1.0])
    write_case(raw, "flipped", label_affine=flipped)
    write_case(raw, "smaller", labels=np.ones((10, 8, 5), np.uint8))
    write_case(raw, "value", labels=np.full((10, 8, 6), 7, np.uint8))
    write_case(raw, "half", labels=np.full((10, 8, 6), 0.5, np.float32))
    write_case(raw, "empty", labels=np.zeros((10, 8, 6), np.uint8))
    write_case(raw, "constant", grey=np.full((10, 8, 6), -1000, np.int16))
    nan = np.arange(480, dtype=np.float32).reshape(10, 8, 6)
    nan[0, 0, :3] = np.nan
    write_case(raw, "nan", grey=nan)
    write_case(raw, "metres", affine=np.diag([0.0002, 0.0002, 0.0005, 1.0]))
    write_case(raw, "lost", affine=np.eye(4))
    skewed = AFFINE.copy()
    skewed[1, 2] = 1.0
    write_case(raw, "skewed", affine=skewed)
    image, mask = write_case(raw, "forms")
    for folder, each in (("imagesTr", image), ("labelsTr", mask)):
        each.set_qform(np.diag([-2.0, -2.0, 5.0, 1.0]), 1)
        each.set_sform(AFFINE, 1)
        nib.save(each, raw / folder / "forms.nii.gz")
    write_case(raw, "alone")
    (raw / "labelsTr" / "alone.nii.gz").unlink()
    write_case(raw, "torn")
    whole = (raw / "imagesTr" / "torn.nii.gz").read_bytes()
    (raw / "imagesTr" / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    spec = tmp_path / "made.yaml"
    spec.write_text(json.dumps(SPEC), encoding="utf-8")  # JSON is YAML

    before = snapshot(raw)
    assert check_main([str(raw), "-d", str(spec), "--json", str(tmp_path / "out.json"), *FEW]) == 1
    assert snapshot(raw) == before
    text = capsys.readouterr().out
    assert text.startswith("made: 6 ok, 3 repaired, 11 refused\n")
    expected = {
        "swapped": r"refused: Left classes lie on the patient's left of their partners, but in \S+swapped\.nii\.gz "
        r"'left lung' lies 14 mm to the right of 'right lung'",
        "near": r"repaired: the label's corners lie up to 0\.4 mm from the image's, whose geometry is used",
        "far": r"refused: .* a corner of the label lies 0\.8 voxels \(1\.5 mm\) from the image's",
        "flipped": r"refused: .* a corner of the label lies 14\.0 voxels \(28\.0 mm\) from the image's \(its axes run "
        r"R,P,S, the image's R,A,S\)",
        "smaller": r"refused: .* the image has 6 x 8 x 10 voxels and the label 5 x 8 x 10",
        "value": r"refused: \S+value\.nii\.gz holds unknown label values \(7\): dataset made allows 0 \(background\), "
        r"1 \(left lung\), 2 \(right lung\)",
        "half": r"refused: Label maps hold whole numbers, but \S+half\.nii\.gz holds others",
        "empty": r"ok: no class of the specification has a voxel",
        "constant": r"refused: \S+constant\.nii\.gz holds the grey value -1000 in every voxel",
        "nan": r"refused: \S+nan\.nii\.gz holds values that are not finite \(3 of 480 voxels\)",
        "metres": r"refused: The longest edge of a scan is 1 to 3000 mm, but \S+metres\.nii\.gz is "
        r"0\.003 x 0\.0016 x 0\.002 mm",
        "lost": r"ok: the spacing is exactly 1 x 1 x 1 mm, unlike most cases here",
        "skewed": r"repaired: the direction cosines are not orthonormal \(11 degrees off\)",
        "forms": r"repaired: qform and sform lie \d+\.\d mm apart at a corner; the sform is used",
        "alone": r"refused: Case alone has an image \(alone\.nii\.gz\) but no label file",
        "torn": r"refused: \S+torn\.nii\.gz cannot be read",
    }
    lines = {line.split(":")[0].strip(): line.partition(": ")[2] for line in text.splitlines()[1:]}
    assert lines.keys() == expected.keys(), "cases about which there is nothing to say are not listed"
    for case, sentence in expected.items():
        assert re.match(sentence, lines[case]), lines[case]
    summary = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert summary["datasets"][0]["counts"] == {"ok": 6, "repaired": 3, "refused": 11}
    told = {case["id"]: f"{case['verdict']}: {case['why']}" for case in summary["datasets"][0]["cases"]}
    assert {case: told[case] for case in lines} == lines and told["fine1"] == "ok: "


def test_remarks_on_the_whole(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    raw = tmp_path / "tiny"
    shutil.copytree(tiny_raw.dataset, raw)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(raw / folder / "s3_a.nii.gz", raw / folder / "s9_a.nii.gz")
    (raw / "labelsTr" / "s1_a.nii.gz").unlink()
    (raw / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "left", "2": "right"}}))
    classes = tiny_raw.spec.classes | {"spleen": 6}
    split = {"test_subjects": ["s77"], "validation_subjects": ["s1"]}
    spec = type(tiny_raw.spec).model_validate(
        tiny_raw.spec.model_dump() | {"classes": classes, "split": split}
    )
    report = checked(raw, spec).report
    assert not report.usable
    assert report.remarks == (
        "6 cases were found, the specification expects 5.",
        "No usable case holds spleen.",
        "The split lists subjects that are not there: s77.",
        "The cases s3_a, s9_a are one image under several subjects: keep one.",
        "dataset.json has the label values [1, 2], the specification [1, 2, 5, 6].",
    )
    assert "  s1_a: refused: Case s1_a has an image (s1_a.nii.gz) but no label file" in report.text()
    assert report.cases[0].shape is None and report.cases[0].content == ""


def test_a_copy_is_found_however_it_is_stored(tmp_path: Path) -> None:
    """Compressed anew, as float, turned over and under another name: no byte is the same, every voxel is."""
    raw = tmp_path / "made"
    for case in ("a", "b", "c"):
        image, mask = write_case(raw, case)
    for folder, each in (("imagesTr", image), ("labelsTr", mask)):
        turned = each.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
        stored = nib.Nifti1Image(np.asarray(turned.dataobj).astype(np.float32), turned.affine)
        path = raw / folder / "z.nii.gz"
        nib.save(stored, path)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    report = checked(raw, DatasetSpec.model_validate(SPEC)).report
    assert report.counts["refused"] == 0
    (remark,) = report.remarks
    assert remark.startswith("The cases c, z are one image under several subjects")


def test_datasets_that_are_used_together_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scan in both, and one person who trains in the one and tests in the other."""
    root = tmp_path / "raw"
    lists = {"validation_subjects": ["p2"], "folds": [["p1"], ["p2"], ["p3"], ["p4"], []]}
    for name, test in (("one", ["p5"]), ("two", ["p1"])):
        folds = [[each for each in fold if each not in test] for fold in lists["folds"]]
        split = {
            "validation_subjects": ["p2"],
            "test_subjects": test,
            "folds": [*folds[:4], ["p5"] if name == "two" else []],
        }
        content = SPEC | {"name": name, "subject_group": "clinic", "split": split}
        (root / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")
        for person in ("p1", "p2", "p3", "p4", "p5"):
            grey = np.random.default_rng(sum(map(ord, name + person))).integers(0, 999, (10, 8, 6))
            write_case(root / name, person, grey=grey.astype(np.int16))
    shutil.copy(root / "one/imagesTr/p3.nii.gz", root / "two/imagesTr/p4.nii.gz")
    out = tmp_path / "out.json"
    assert check_main([str(root), "-d", "one", "two", "--json", str(out), *FEW]) == 0
    remarks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("remark: ")]
    assert remarks[0] == "remark: The cases one/p3, two/p4 are one image under several subjects: keep one."
    told = "the same people train in one and test in two (p1): list the same subjects under split in both."
    assert any(line.endswith(told) and "paper" in line for line in remarks)
    assert any("the same people test in one and train in two (p5)" in line for line in remarks)
    assert [f"remark: {each}" for each in json.loads(out.read_text(encoding="utf-8"))["remarks"]] == remarks


def test_a_split_that_lacks_somebody_is_said_not_raised(tmp_path: Path) -> None:
    raw = tmp_path / "made"
    for case in ("a", "b", "c"):
        write_case(raw, case)
    lists = {"test_subjects": ["a"], "validation_subjects": ["b"], "folds": [["b"], [], [], [], []]}
    report = checked(raw, DatasetSpec.model_validate(SPEC | {"split": lists})).report
    assert report.usable and report.cases[0].part == ""
    assert any("The folds of dataset made lack the subjects c" in remark for remark in report.remarks)


def test_a_summary_is_usable_only_without_errors(tiny_raw: TinyRaw) -> None:
    found = checked(tiny_raw.dataset, tiny_raw.spec)
    assert summarise([found]).usable
    assert not summarise([found], ["There is no dataset."]).usable


def test_raw_may_be_the_dataset_itself(tiny_raw: TinyRaw) -> None:
    other = tiny_raw.spec.model_copy(update={"name": "other"})
    assert dataset_folder(tiny_raw.root, tiny_raw.spec) == tiny_raw.dataset
    assert dataset_folder(tiny_raw.dataset, tiny_raw.spec) == tiny_raw.dataset
    assert dataset_folder(tiny_raw.root, other) == tiny_raw.root / "other"


def test_a_partly_labelled_dataset_says_what_an_absent_class_means(tiny_raw: TinyRaw) -> None:
    notes = checked(tiny_raw.dataset, tiny_raw.spec.model_copy(update={"partly_labelled": True})).report.notes
    assert (
        notes[-1]
        == "A class without a voxel in a case is unknown there and not background (partly_labelled)."
    )


def test_ct_without_air_is_remarked_upon(tmp_path: Path) -> None:
    """Stored with 1024 added: soft tissue would be taken for bone."""
    raw = tmp_path / "made"
    write_case(raw, "a")
    for case in ("b", "c"):
        grey = np.random.default_rng(sum(map(ord, case))).integers(-1000, 1000, (10, 8, 6)) + 1024
        write_case(raw, case, grey=grey.astype(np.int16))
    (remark,) = checked(raw, DatasetSpec.model_validate(SPEC)).report.remarks
    assert remark.startswith("2 of 3 CT scans have no value below 0 HU (b, c): were 1024 or 1000 added?")
    for other in ({"modality": "MR"}, {"intensity_offset": -1024.0}):
        assert checked(raw, DatasetSpec.model_validate(SPEC | other)).report.remarks == ()


def test_what_was_guessed_is_noted(tiny_raw: TinyRaw) -> None:
    spec = tiny_raw.spec.model_copy(update={"guesses": ("Guessed: who is who.",)})
    assert checked(tiny_raw.dataset, spec).report.notes[-1] == "Guessed: who is who."
