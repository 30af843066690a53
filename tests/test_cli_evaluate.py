"""iris_evaluate, iris_tables, iris_report as commands: what they write and print, and when they fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyRaw
from scans import save

from iris_pipeline.cli.evaluate import evaluate_main
from iris_pipeline.cli.report import report_main
from iris_pipeline.cli.tables import tables_main
from iris_pipeline.tables.result_tables import read_rows
from preprocessing.store import Store
from preprocessing.volume import read_labels


class Place:
    """A root folder with the tiny dataset, its store and a run whose masks are the truth, of the test split."""

    def __init__(self, folder: Path, raw: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        (folder / "raw").symlink_to(raw)
        (folder / "preprocessed").symlink_to(store.folder.parent)
        self.test = store.manifest.splits["paper"]["test"]
        self.labels = folder / "raw" / "tiny" / "labelsTr"
        for strategy in ("one-shot", "bank"):
            self.predict("night", strategy, self.test)

    def predict(self, run: str, strategy: str, cases: list[str], part: str = "test") -> Path:
        out = self.folder / "results" / run / "predictions" / "tiny" / strategy
        out.mkdir(parents=True)
        for case in cases:
            shutil.copy(self.labels / f"{case}.nii.gz", out)
        made_from = {"dataset": "tiny", "split": "paper", "part": part, "strategy": strategy}
        (out / "predict.json").write_text(json.dumps({"schema_version": 1, "made_from": made_from}))
        (out / "classes.json").write_text(json.dumps(self.store.manifest.classes))
        return out

    def masks(self, strategy: str) -> Path:
        return self.folder / "results" / "night" / "predictions" / "tiny" / strategy

    def rows(self, strategy: str) -> Path:
        return self.folder / "results" / "night" / "evaluation" / f"tiny__{strategy}.csv"


@pytest.fixture
def place(tiny_raw, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("IRIS_ROOT", str(tmp_path))
    return Place(tmp_path, tiny_raw.root, tiny_store)


def test_a_run_from_rows_to_tables_to_a_page(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main(["-p", "night"]) == 0
    said = capsys.readouterr().out
    assert "| night    | paper/test | one-shot " in said and "everything is foreground" in said
    assert "Made by `iris_evaluate -p night` at " in said
    for strategy in ("one-shot", "bank"):
        frame = read_rows(place.rows(strategy))
        assert set(frame["case"]) == set(place.test)
        assert frame["dice"].dropna().eq(1.0).all() and len(frame) == 3 * len(place.test)
        assert set(frame["subject"]) == {place.store.entry(case).subject for case in place.test}
        assert set(frame["split"]) == {"paper/test"} and set(frame["run"]) == {"night"}
    case, name = place.test[0], "left"
    truth = read_labels(place.labels / f"{case}.nii.gz").array
    voxels = int((truth == 1).sum())
    baseline = read_rows(place.rows("everything-foreground")).set_index(["case", "class"])
    assert baseline.loc[(case, name), "dice"] == pytest.approx(2 * voxels / (truth.size + voxels), abs=1e-6)

    assert tables_main([]) == 0
    said = capsys.readouterr().out
    page = place.folder / "results" / "tables.md"
    assert page.read_text(encoding="utf-8") in said and f"Written: {page}" in said
    assert "Made by `iris_tables` at " in page.read_text(encoding="utf-8") and "| 1.000 " in page.read_text(
        encoding="utf-8"
    )

    assert report_main(["night"]) == 0
    said = capsys.readouterr().out
    assert f"Written: {place.folder / 'results' / 'night' / 'report.html'}" in said
    html = (place.folder / "results" / "night" / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/webp") == 3 * min(3, len(place.test))
    assert "<code>iris_report night</code>" in html

    picture = place.folder / "one.png"
    assert report_main(["night", "--picture", str(picture), "-d", place.store.manifest.dataset]) == 0
    said = capsys.readouterr().out
    assert f"Written: {picture} (" in said and "one-shot: mean Dice 1.000)" in said
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert report_main(["night", "--picture", "one.png"]) == 1
    assert "name it with -d" in capsys.readouterr().err
    assert report_main(["night", "--picture", "one.png", "-d", "mars"]) == 1
    assert "run 'night' has none for dataset 'mars'" in capsys.readouterr().err


def test_a_picture_of_a_validation_case_is_called_no_test_case(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.predict("noon", "bank_validation", place.store.manifest.splits["paper"]["validation"], "validation")
    for run, says in (("night", "scans, test case "), ("noon", "scans, case ")):
        assert evaluate_main(["-p", run]) == 0
        assert report_main([run, "--picture", str(place.folder / "one.png"), "-d", "tiny"]) == 0
        assert says in capsys.readouterr().out


def test_a_folder_named_as_the_run_does_not_hide_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "night").mkdir()
    monkeypatch.chdir(tmp_path)
    assert evaluate_main(["-p", "night", "--root", str(place.folder)]) == 0
    assert "| night    | paper/test | one-shot " in capsys.readouterr().out


def test_missing_and_shifted_predictions_fail_the_command_but_not_the_others(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = list(place.store.manifest.splits["paper"]["train"])
    out = place.predict("evening", "one-shot", cases, "train")
    gone, moved = cases[0], cases[1]
    (out / f"{gone}.nii.gz").unlink()
    labels = read_labels(out / f"{moved}.nii.gz")
    affine = labels.affine.copy()
    affine[:3, 3] += 9.0
    save(out / f"{moved}.nii.gz", labels.array, affine)
    status = evaluate_main(["-p", str(out), "--cases", *cases])
    said = capsys.readouterr()
    assert status == 1
    lines = said.err.splitlines()
    assert any(line.startswith(f"{gone}: There is no prediction for this case") for line in lines)
    assert any(line.startswith(f"{moved}: Prediction and truth must lie on one grid") for line in lines)
    assert lines[-1] == "Error: 2 could not be scored, as told above; the scores of the others are written."
    frame = read_rows(place.folder / "results" / "evening" / "evaluation" / "tiny__one-shot.csv")
    assert set(frame.loc[frame["predicted_voxels"].isna(), "case"]) == {gone, moved}
    assert frame.loc[~frame["case"].isin([gone, moved]), "dice"].dropna().eq(1.0).all()
    assert "6 WITHOUT A USABLE PREDICTION" in said.out


def test_the_split_says_what_is_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.masks("bank") / f"{place.test[0]}.nii.gz").unlink()
    assert evaluate_main(["-p", "night"]) == 1
    assert f"{place.test[0]}: There is no prediction" in capsys.readouterr().err
    assert read_rows(place.rows("one-shot"))["dice"].dropna().eq(1.0).all(), "the other strategy is whole"


def test_folders_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, truth = tmp_path / "masks", tmp_path / "truth"
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, :2] = 3  # 12 voxels
    save(truth / "scan.nii.gz", labels, np.eye(4))
    labels[0, 1] = 0
    save(masks / "scan.nii.gz", labels, np.eye(4))
    assert evaluate_main(["-p", str(masks), "-g", str(truth)]) == 1
    assert "need their class names" in capsys.readouterr().err
    (masks / "classes.json").write_text('{"cyst": 3}')
    assert evaluate_main(["-p", str(masks), "-g", str(truth)]) == 0
    frame = read_rows(masks / "evaluation.csv")
    assert frame["dice"].tolist() == [pytest.approx(2 * 6 / 18, abs=1e-6)]
    assert evaluate_main(["-p", str(masks), "-g", str(truth), "-o", str(tmp_path / "mine.csv")]) == 0
    assert read_rows(tmp_path / "mine.csv").equals(frame)
    assert "everything is foreground" in capsys.readouterr().out


def test_tables_of_ones_own_folder_bear_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, :2] = 3
    for folder in ("masks", "truth"):
        save(tmp_path / folder / "scan.nii.gz", labels, np.eye(4))
    (tmp_path / "masks" / "classes.json").write_text('{"cyst": 3}')
    for more in ([], ["-o", str(tmp_path / "mine.csv")]):
        assert evaluate_main(["-p", str(tmp_path / "masks"), "-g", str(tmp_path / "truth"), *more]) == 0
        said = capsys.readouterr().out
        assert "## masks\n" in said and "## masks, all measures\n" in said


def test_a_method_is_scored_on_its_split_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A train case in a row that says test would be a lie in every table."""
    train = place.store.manifest.splits["paper"]["train"][0]
    arguments = ["--method", "theirs", "-p", str(place.masks("bank")), "-d", "tiny", "--cases"]
    assert evaluate_main([*arguments, train]) == 1
    assert f"holds cases of paper/test alone, and of tiny it has no {train}" in capsys.readouterr().err
    assert evaluate_main([*arguments, place.test[0]]) == 0


@pytest.mark.parametrize(
    "place_named", [["-p", "night"], ["-p", "{masks}"], ["-p", "{masks}", "-o", "rows.csv"]]
)
def test_a_runs_row_takes_no_case_that_trained(
    place: Place, place_named: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.folder)
    train = place.store.manifest.splits["paper"]["train"][0]
    shutil.copy(place.labels / f"{train}.nii.gz", place.masks("bank"))
    arguments = [each.replace("{masks}", str(place.masks("bank"))) for each in place_named]
    assert evaluate_main([*arguments, "--cases", place.test[0], train]) == 1
    says = f"A run's row holds cases of paper/test alone, and of tiny it has no {train}: name others with --cases."
    assert says in capsys.readouterr().err
    assert not place.rows("bank").exists() and not Path("rows.csv").exists()
    assert evaluate_main([*arguments, "--cases", place.test[0]]) == 0


def test_truth_by_a_datasets_name(place: Place) -> None:
    """-d names the values of the truth, and -g may be any folder of its labels."""
    arguments = ["-p", str(place.masks("bank")), "-d", "tiny", "-g", str(place.labels)]
    assert evaluate_main([*arguments, "-o", str(place.folder / "rows.csv")]) == 0
    frame = read_rows(place.folder / "rows.csv")
    assert set(frame["class"]) == {"left", "right", "core"} and set(frame["case"]) == set(place.test)


@pytest.mark.parametrize(("classes_in", "more"), [("truth", []), ("hospital", []), ("truth", ["-d", "tiny"])])
def test_truth_from_elsewhere_is_read_by_its_own_numbers(
    place: Place, classes_in: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks say whose classes they bear; the truth beside them is another hospital's, as are its cases' names."""
    masks, truth = place.folder / "hospital" / "masks", place.folder / "hospital" / "truth"
    source = read_labels(place.labels / "s1_a.nii.gz")
    save(masks / "hosp_01.nii.gz", source.array, source.affine)
    (masks / "classes.json").write_text(json.dumps(place.store.manifest.classes))
    (masks / "predict.json").write_text(json.dumps({"made_from": {"dataset": "tiny", "strategy": "bank"}}))
    theirs = np.array([0, 2, 1, 0, 0, 7], np.uint8)[source.array]  # left, right and core by other values
    save(truth / "hosp_01.nii.gz", theirs, source.affine)
    folder = {"truth": truth, "hospital": truth.parent}[classes_in]
    (folder / "classes.json").write_text(json.dumps({"left": 2, "right": 1, "core": 7}))
    assert evaluate_main(["-p", str(masks), "-g", str(truth), *more]) == 0
    frame = read_rows(masks / "evaluation.csv")
    assert dict(zip(frame["class"], frame["dice"], strict=True)) == {"left": 1.0, "right": 1.0, "core": 1.0}
    assert set(frame["subject"]) == {"hosp_01"} and set(frame["dataset"]) == {"tiny"}
    (folder / "classes.json").unlink()  # by the dataset's values, then: 7 is none of them
    assert evaluate_main(["-p", str(masks), "-g", str(truth), *more]) == 1
    assert (
        "hosp_01: The truth holds the value 7, but its classes are 1 left, 2 right" in capsys.readouterr().err
    )


def test_labels_of_the_dataset_itself_are_read_by_its_specification(
    place: Place, tiny_raw: TinyRaw, tmp_path: Path
) -> None:
    """A dataset.json of the download may call the classes otherwise."""
    raw = tmp_path / "other" / "tiny"
    shutil.copytree(tiny_raw.dataset, raw)
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "c": 5}}))
    arguments = ["-p", str(place.masks("bank")), "-g", str(raw / "labelsTr"), "--raw", str(raw.parent)]
    assert evaluate_main([*arguments, "-o", str(tmp_path / "rows.csv")]) == 0
    frame = read_rows(tmp_path / "rows.csv")
    assert set(frame["class"]) == {"left", "right", "core"} and frame["dice"].dropna().eq(1.0).all()
    assert set(frame["subject"]) == {place.store.entry(case).subject for case in place.test}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "no_run"], "no_run is none: check -p"),
        (["-p", "night", "-o", "x.csv"], "-g and -o go with one folder of predictions, and night has 2"),
        (["-p", "night", "-d", "elsewhere"], "holds no predictions to evaluate"),
        (["-p", "{masks}", "-d", "tinny"], "Unknown dataset 'tinny'"),
        (["-p", "{masks}", "--cases", "s9_a"], "There is no truth for s9_a"),
        (["-p", "{masks}", "--split", "7"], "tiny has the splits paper, 0, 1, 2, 3, 4, all; got '7/test'"),
        (["-p", "{masks}", "-g", "{masks}/gone"], "gone is none: check -g"),
    ],
)
def test_one_sentence_for_each_mistake(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    filled = [argument.replace("{masks}", str(place.masks("bank"))) for argument in arguments]
    assert evaluate_main(filled) == 1
    error = capsys.readouterr().err
    assert says in error and error.startswith("Error: ") and error.count("\n") == 1


def test_a_folder_that_nothing_is_known_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "masks").mkdir()
    assert evaluate_main(["-p", str(tmp_path / "masks")]) == 1
    assert "The truth is needed: give its folder with -g" in capsys.readouterr().err


def test_tables_and_reports_need_an_evaluation(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables_main([]) == 1
    assert "run iris_evaluate first" in capsys.readouterr().err
    assert report_main(["night"]) == 1
    assert "'night' is no evaluated run" in capsys.readouterr().err
    (masks := place.masks("bank") / "mine").mkdir()
    (masks / "predict.json").write_text("{}")
    assert report_main([str(masks)]) == 1
    assert capsys.readouterr().err == (
        f"Error: A page is of an evaluated run, and '{masks}' holds masks of iris_predict: `iris_view {masks} -i IN` "
        "shows them over the scans in IN.\n"
    )
