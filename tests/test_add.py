"""iris_add: somebody's folder becomes a dataset that goes by its name, and not a byte of the folder changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_scenes import write_dicom
from test_check import snapshot

from iris_pipeline.cli import add
from iris_pipeline.cli.add import add_main
from iris_pipeline.cli.prepare import check_main, datasets_main, plan_and_preprocess_main
from preprocessing.adding.add import Wishes, propose, write_spec
from preprocessing.adding.survey import survey_folder
from preprocessing.choose import choose_specs
from preprocessing.errors import SpecError
from preprocessing.spec import load_spec
from preprocessing.store import Store

FEW = ["--workers", "1", "--quiet"]
SHAPE = (20, 18, 12)  # x, y, z


def save(path: Path, array_xyz: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz, np.diag([2.0, 2.0, 3.0, 1.0])), path)


def grey(seed: int, low: int = -1000, high: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, SHAPE).astype(np.int16)


def box(x: slice, value: int = 1) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[x, 4:12, 3:9] = value
    return array


def organs(folder: Path, cases: int = 4) -> Path:
    """CT with a mask file a class, as TotalSegmentator writes them; one case lacks the spleen."""
    for number in range(cases):
        place = folder / f"s{number:04}"
        save(place / "ct.nii.gz", grey(number))
        save(place / "segmentations" / "kidney_left.nii.gz", box(slice(2, 6)))
        save(place / "segmentations" / "kidney_right.nii.gz", box(slice(14, 18)))
        if number != 1:
            save(place / "segmentations" / "spleen.nii.gz", box(slice(7, 10)))
    return folder


def pairs(folder: Path, values: tuple[int, ...] = (1, 2)) -> Path:
    """MR pairs side by side, two visits of each of three people."""
    for person in range(3):
        for visit in (1, 2):
            labels = np.zeros(SHAPE, np.uint8)
            for index, value in enumerate(values):
                labels |= box(slice(3 + 5 * index, 6 + 5 * index), value)
            save(folder / f"P{person}_visit{visit}.nii.gz", grey(10 * person + visit, 0, 900))
            save(folder / f"P{person}_visit{visit}_seg.nii.gz", labels)
    return folder


def test_from_a_folder_to_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = organs(tmp_path / "Our Kidneys"), tmp_path / "root"
    before = snapshot(folder)
    assert add_main([str(folder), "--root", str(root), "--yes", *FEW]) == 0
    told = capsys.readouterr().out
    assert snapshot(folder) == before
    for line in (
        "  images    {case}/ct.nii.gz",
        "  masks     {case}/segmentations/{class}.nii.gz",
        "  cases     4 images with masks, s0000 to s0003",
        "  name      our_kidneys  (the folder's name)",
        "  modality  CT  (grey values go down to -1000, as air does in HU)",
        "  classes   kidney_left=1 kidney_right=2 spleen=3  (the names of the mask files)",
        "  subjects  -  (each case is one subject)",
        "  sides     left: kidney_left; right: kidney_right  (the names of the classes)",
        "  labels    partly labelled  (some cases lack the mask file of a class, which is then unknown there)",
        f"Written: {root / 'raw' / 'our_kidneys.yaml'}",
        "our_kidneys: 4 ok, 0 repaired, 0 refused",
        f"Next: iris_plan_and_preprocess -d our_kidneys --policy fit --root {root}",
    ):
        assert line in told.splitlines()
    spec = load_spec(root / "raw" / "our_kidneys.yaml")
    assert spec.raw == str(folder) and spec.role == "upstream" and spec.partly_labelled

    command = ["-d", "our_kidneys", "--root", str(root), "--policy", "fit", "--crop", "16", "16", "16", *FEW]
    assert plan_and_preprocess_main(command) == 0
    store = Store.open(root / "preprocessed" / "our_kidneys")
    assert [entry.id for entry in store.manifest.cases] == ["s0000", "s0001", "s0002", "s0003"]
    assert store.manifest.classes == {"kidney_left": 1, "kidney_right": 2, "spleen": 3}
    assert "spleen" not in store.entry("s0001").classes
    assert store.manifest.spec.raw_folder(root / "raw") == folder, "evaluation and pictures find the scans"
    assert snapshot(folder) == before


def test_the_name_is_known_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = organs(tmp_path / "scans"), tmp_path / "root"
    assert add_main([str(folder), "--root", str(root), "--name", "mine", "--yes", *FEW]) == 0
    raw = root / "raw"
    assert [spec.name for spec in choose_specs(["all"], raw)] == ["mine"]
    assert check_main([str(raw), "-d", "mine", *FEW]) == 0
    assert check_main([str(folder), "-d", str(raw / "mine.yaml"), *FEW]) == 0
    capsys.readouterr()
    assert datasets_main(["--root", str(root)]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert rows["mine"] == ["upstream", "CT", "3", "4", "-"]
    with pytest.raises(SpecError, match=r"Unknown dataset 'mime': known are .*mine.*; did you mean 'mine'\?"):
        choose_specs(["mime"], raw)


def test_dicom_series_with_a_mask_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    for case in ("P1", "P2", "P3"):
        array = np.abs(grey(ord(case[1]), 0, 900))
        write_dicom(
            folder / case / "T1", array, np.diag([2.0, 2.0, 3.0, 1.0]), [f"IM-{z}" for z in range(1, 13)]
        )
        save(folder / case / "tumour.nii.gz", box(slice(3, 9)))
    for path in folder.glob("P2/T1/*.dcm"):  # as archives and CDs name them
        path.rename(path.with_name(path.stem.replace("-", "00")))
    assert add_main([str(folder), "--root", str(tmp_path / "root"), "--yes", *FEW]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "  images    {case}/T1" in told and "  masks     {case}/tumour.nii.gz" in told
    assert (
        "  modality  MR  ('T1' says so)" in told
        and "  classes   tumour=1  (the name of the mask files)" in told
    )
    assert "study: 3 ok, 0 repaired, 0 refused" in told


def test_refused_cases_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = organs(tmp_path / "scans")
    for side, x in (("left", slice(14, 18)), ("right", slice(2, 6))):
        save(folder / "s0002" / "segmentations" / f"kidney_{side}.nii.gz", box(x))
    assert add_main([str(folder), "--root", str(tmp_path / "root"), "--yes", *FEW]) == 1
    told = capsys.readouterr().out
    assert "scans: 3 ok, 0 repaired, 1 refused" in told and "'kidney_left' lies 24 mm to the right" in told
    assert "Next: iris_plan_and_preprocess -d scans" in told


def test_what_is_refused_as_a_whole_is_to_be_mended_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = organs(tmp_path / "scans"), tmp_path / "root"
    for case in range(4):
        for side, x in (("left", slice(14, 18)), ("right", slice(2, 6))):
            save(folder / f"s000{case}" / "segmentations" / f"kidney_{side}.nii.gz", box(x))
    assert add_main([str(folder), "--root", str(root), "--yes", *FEW]) == 1
    told = capsys.readouterr().out
    raw = root / "raw"
    assert (
        f"Next: mend {raw / 'scans.yaml'} or the scans by what the verdicts say, then iris_check {raw} -d scans"
        in told
    )
    assert "iris_plan_and_preprocess" not in told


def test_label_values_names_and_people(tmp_path: Path) -> None:
    folder, raw = pairs(tmp_path / "study"), tmp_path / "raw"
    survey = survey_folder(folder, workers=1, progress=False)
    proposal = propose(survey, Wishes(), raw)
    assert proposal.spec.classes == {"label_1": 1, "label_2": 2} and proposal.spec.modality == "MR"
    assert proposal.reasons["classes"] == "the values in the label maps; no file names them"
    assert proposal.reasons["subjects"].startswith("3 subjects in 6 cases")
    assert [proposal.spec.subject_of(case) for case in survey.ids] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    wished = Wishes("heart", "PET", {"left": 1, "right": 2}, "", "held-out")
    spec = propose(survey, wished, raw).spec
    assert (spec.name, spec.modality, spec.role, spec.subject_pattern) == ("heart", "PET", "held-out", None)
    assert spec.classes == {"left": 1, "right": 2} and spec.sides == {"left": ("left",), "right": ("right",)}
    (folder / "dataset.json").write_text(
        json.dumps({"name": "Study", "labels": {"background": 0, "liver": 2}, "channel_names": {"0": "T2"}})
    )
    told = propose(survey_folder(folder, workers=1, progress=False), Wishes(), raw)
    assert told.spec.classes == {"liver": 2, "label_1": 1} and told.spec.title == "Study"
    assert (
        told.reasons["classes"] == "as the JSON file beside the scans names them, and values it does not name"
    )


def test_one_value_takes_the_name_of_its_files(tmp_path: Path) -> None:
    for case in ("a", "b"):
        save(tmp_path / case / "scan.nii.gz", grey(ord(case)))
        save(tmp_path / case / "lung_tumour_mask.nii.gz", box(slice(2, 5), 255))
    proposal = propose(survey_folder(tmp_path, workers=1, progress=False), Wishes(), tmp_path / "raw")
    assert proposal.spec.classes == {"lung_tumour": 255}


def test_nothing_is_overwritten_or_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = pairs(tmp_path / "study"), tmp_path / "root"
    command = [str(folder), "--root", str(root), "--yes", *FEW]
    assert add_main(command) == 0
    written = (root / "raw" / "study.yaml").read_bytes()
    assert add_main([*command, "--modality", "PET"]) == 1
    assert "study.yaml exists already: give another --name, or --overwrite" in capsys.readouterr().err
    assert (root / "raw" / "study.yaml").read_bytes() == written
    assert add_main([*command, "--modality", "PET", "--overwrite"]) == 0
    assert load_spec(root / "raw" / "study.yaml").modality == "PET"
    assert add_main([*command, "--name", "lits"]) == 1
    assert "'lits' is a dataset of the package already" in capsys.readouterr().err
    (root / "raw" / "taken").mkdir()
    assert add_main([*command, "--name", "taken"]) == 1
    assert "taken holds other scans of that name already" in capsys.readouterr().err
    assert add_main([str(folder), "--root", str(folder / "work"), "--yes", *FEW]) == 1
    assert "Nothing is written into the folder of the scans" in capsys.readouterr().err
    assert not (folder / "work").exists()


@pytest.mark.parametrize("name", ["all", "upstream", "held-out", "phantom"])
def test_words_of_d_are_no_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = pairs(tmp_path / name), tmp_path / "root"
    sentence = f"Error: '{name}' stands for several datasets behind -d: give another --name.\n"
    assert add_main([str(folder), "--root", str(root), "--yes", *FEW]) == 1
    assert capsys.readouterr() == ("", sentence) and not root.exists()
    survey = survey_folder(folder, workers=1, progress=False)
    with pytest.raises(SpecError, match="stands for several datasets behind -d"):
        write_spec(propose(survey, Wishes(), root / "raw"), folder, root / "raw")


def test_a_taken_name_is_asked_for_again(
    tmp_path: Path, terminal: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = pairs(tmp_path / "phantom"), tmp_path / "root"
    terminal += ["", "lits", "mine", "", "", "", "y"]
    assert add_main([str(folder), "--root", str(root), *FEW]) == 0
    assert [path.name for path in (root / "raw").iterdir()] == ["mine.yaml"]
    told = capsys.readouterr().out
    assert "'phantom' stands for several datasets" in told and "'lits' is a dataset of the package" in told


def test_a_folder_under_raw_needs_no_address(tmp_path: Path) -> None:
    organs(tmp_path / "raw" / "here")
    assert add_main([str(tmp_path / "raw" / "here"), "--root", str(tmp_path), "--yes", *FEW]) == 0
    assert load_spec(tmp_path / "raw" / "here.yaml").raw is None
    assert check_main([str(tmp_path / "raw"), "-d", "here", *FEW]) == 0


def test_without_a_terminal_guesses_are_shown_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pairs(tmp_path / "study")
    assert add_main([str(folder), "--root", str(tmp_path / "root"), *FEW]) == 1
    said = capsys.readouterr()
    assert "  modality  MR" in said.out
    assert said.err.startswith("Error: Nothing was written, since nobody can be asked here: add --yes")
    assert not (tmp_path / "root").exists()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Answers, the first first; the questions are kept behind them."""
    answers: list[str] = []
    monkeypatch.setattr(add.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
    yield answers
    assert not answers, "a question was not asked"


def test_the_guesses_can_be_corrected_by_answers(
    tmp_path: Path, terminal: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = pairs(tmp_path / "study"), tmp_path / "root"
    terminal += ["hearts", "mri", "pet", "left", "'left atrium=1' wall=2", "-", ""]
    assert add_main([str(folder), "--root", str(root), *FEW]) == 0
    spec = load_spec(root / "raw" / "hearts.yaml")
    assert (spec.modality, spec.classes) == ("PET", {"left atrium": 1, "wall": 2})
    assert spec.subject_pattern is None
    assert "such as liver=1 tumour=2; got 'left'." in capsys.readouterr().out


def test_enter_keeps_the_guesses_and_no_writes_nothing(
    tmp_path: Path, terminal: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = organs(tmp_path / "scans"), tmp_path / "root"
    terminal += ["", "", "", "", "n"]
    assert add_main([str(folder), "--root", str(root), *FEW]) == 1
    assert capsys.readouterr().out.endswith("Nothing was written.\n") and not root.exists()
    terminal += ["", "", "", "", "y"]
    assert add_main([str(folder), "--root", str(root), *FEW]) == 0
    assert load_spec(root / "raw" / "scans.yaml").classes == {
        "kidney_left": 1,
        "kidney_right": 2,
        "spleen": 3,
    }


def test_the_end_of_the_answers_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(question: str) -> str:
        raise EOFError

    monkeypatch.setattr(add.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ended)
    assert add_main([str(pairs(tmp_path / "study")), "--root", str(tmp_path / "root"), *FEW]) == 1
    assert capsys.readouterr().out.endswith("Nothing was written.\n") and not (tmp_path / "root").exists()


def test_wrong_options_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pairs(tmp_path / "study")
    command = [str(folder), "--root", str(tmp_path / "root"), "--yes", *FEW]
    for options, says in (
        (["--classes", "liver"], "Classes are given as NAME=VALUE, each name once"),
        (["--classes", "liver=1", "spleen=1"], "classes: two classes have the same value"),
        (["--name", "Mine!"], "a name has lower-case letters"),
        (["--subject-pattern", "(P"], "is no regular expression"),
    ):
        assert add_main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert says in error and error.startswith("Error: ") and error.count("\n") == 1


def test_a_broken_specification_hides_none_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    (raw / "fine").mkdir(parents=True)
    (raw / "fine.yaml").write_text(
        "name: fine\ntitle: Fine\nmodality: MR\nrole: upstream\nsource: own\nlicence: own\nclasses: {a: 1}\n"
    )
    (raw / "torn.yaml").write_text("name: torn\nclasses: [\n")
    broken: list[SpecError] = []
    assert [spec.name for spec in choose_specs(["all"], raw, broken)] == ["fine"]
    assert len(broken) == 1 and "torn.yaml" in str(broken[0])
    with pytest.raises(SpecError, match=r"torn\.yaml"):
        choose_specs(["all"], raw)
    assert datasets_main(["--root", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "fine " in captured.out and captured.err.startswith("Error: ") and "torn.yaml" in captured.err
    assert captured.err.count("\n") == 1
