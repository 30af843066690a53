"""What options, folders, headers and the references themselves tell is refused before any network runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import UNSEARCHED, load, save
from test_cli_predict import write_run
from test_cli_tasks import COARSE, references

from iris_pipeline.cli.advise import advise_main
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.cli.tasks import encode_main
from iris_pipeline.model import Iris
from iris_pipeline.prediction.own_queries import refuse_own_queries
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import Candidate
from preprocessing.errors import ReferenceCaseError
from preprocessing.findings import image_hash
from preprocessing.sources.source import FileSource
from preprocessing.store import Store
from preprocessing.volume import read_volume

OWN = "A reference is never its own query"


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_run(root / "results" / "run", tiny_store, 0, "2026-01-01 10:00:00")
    return root


@pytest.fixture
def refs(tiny_raw: Any, tmp_path: Path) -> Path:
    return references(tmp_path / "refs", tiny_raw.dataset, ["s1_a", "s4_a"])


@pytest.fixture
def scan(tiny_raw: Any) -> str:
    return str(tiny_raw.dataset / "imagesTr" / "s3_a.nii.gz")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From its call on, whatever runs the network fails."""

    def forbid() -> None:
        def run(*_: Any) -> None:
            raise AssertionError("the network ran")

        monkeypatch.setattr(Iris, "encode_image", run)

    return forbid


def renamed(refs: Path, case: str, folder: Path) -> Path:
    """A copy of a reference of another name, format and orientation: x reversed."""
    image, affine = load(refs / "images" / f"{case}.nii.gz")
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = image.shape[2] - 1
    return save(folder / f"new_{case}.nii", image[:, :, ::-1].copy(), affine @ flip)


@pytest.mark.parametrize("strategy", ["ensemble", "tuning", "image-retrieval"])
def test_references_as_the_only_scans_are_refused_before_the_search(
    root: Path, refs: Path, tmp_path: Path, no_network: Any, strategy: str, capsys: Any
) -> None:
    no_network()
    scans, out = tmp_path / "in", tmp_path / "out"
    predict = ["-i", str(scans), "-o", str(out), "-r", str(refs), "--root", str(root), "--strategy", strategy]
    renamed(refs, "s1_a", scans)
    assert predict_main(predict) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"Error: {OWN}, and the scan to segment is one of the references (new_s1_a is s1_a): give other scans, or "
        "take them out of the references."
    )
    shutil.copy(refs / "images" / "s4_a.nii.gz", scans)
    assert predict_main(predict) == 1
    assert (
        "each of the 2 scans to segment is one of the references (new_s1_a is s1_a, s4_a): give other scans"
        in (capsys.readouterr().err)
    )
    assert not out.exists()


def test_a_task_of_its_own_scan_is_refused_without_the_network(
    root: Path, refs: Path, tmp_path: Path, no_network: Any, capsys: Any
) -> None:
    task = str(tmp_path / "x.task")
    assert encode_main(["-r", str(refs), "-o", task, "--root", str(root), *UNSEARCHED]) == 0
    no_network()
    own = str(renamed(refs, "s4_a", tmp_path))
    assert predict_main(["-i", own, "-o", str(tmp_path / "out"), "-t", task, "--root", str(root)]) == 1
    assert f"Case 'new_s4_a' could not be segmented: {OWN}" in capsys.readouterr().err


def test_a_reference_that_was_not_drawn_is_a_scan_like_others(
    root: Path, refs: Path, tmp_path: Path, capsys: Any
) -> None:
    plain = ["--root", str(root), "-r", str(refs), *UNSEARCHED, *COARSE, "-k", "1", "--looks", "1"]
    statuses = {}
    for case in ("s1_a", "s4_a"):
        own = str(refs / "images" / f"{case}.nii.gz")
        statuses[case] = predict_main(["-i", own, "-o", str(tmp_path / case), *plain])
    assert sorted(statuses.values()) == [0, 1], "one of the two was drawn"
    assert OWN in capsys.readouterr().err


def test_scans_are_read_up_to_the_first_that_is_no_reference(tiny_raw: Any, tmp_path: Path) -> None:
    paths = [tiny_raw.dataset / "imagesTr" / f"{case}.nii.gz" for case in ("s1_a", "s2_a", "s4_a")]
    cases = [InputCase(path.name, FileSource(path)) for path in paths]
    drawn = [
        Candidate(str(number), str(number), frozenset(), image_hash(read_volume(path)))
        for number, path in enumerate(paths)
        if number != 1
    ]
    refuse_own_queries(cases, drawn)
    refuse_own_queries([cases[0], InputCase("gone", None)], drawn)
    refuse_own_queries([cases[0], InputCase("torn", FileSource(tmp_path / "torn.nii"))], drawn)
    refuse_own_queries(cases[:1], [Candidate("of unknown content", "", frozenset())])
    with pytest.raises(
        ReferenceCaseError, match=r"each of the 2 scans .* \(s1_a.nii.gz is 0, s4_a.nii.gz is 2\)"
    ):
        refuse_own_queries([cases[0], cases[2]], drawn)


@pytest.mark.parametrize("strategy", ["ensemble", "image-retrieval"])
def test_corrected_references_are_refused_before_they_are_encoded(
    root: Path, refs: Path, scan: str, tmp_path: Path, no_network: Any, strategy: str, capsys: Any
) -> None:
    out, other = tmp_path / "out", "object-retrieval"
    earlier = str(Path(scan).with_name("s2_a.nii.gz"))
    common = ["-o", str(out), "-r", str(refs), "--root", str(root), *UNSEARCHED, *COARSE, "--looks", "1"]
    assert predict_main(["-i", earlier, *common, "--strategy", strategy]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.nii.gz")}
    assert len(before) == 1
    capsys.readouterr()
    no_network()
    predict = ["-i", scan, *common]
    assert predict_main([*predict, "--strategy", other]) == 1
    assert "were made otherwise" in capsys.readouterr().err
    names = (refs / "classes.json").read_text(encoding="utf-8")
    (refs / "classes.json").write_text(names.replace("left", "liver"), encoding="utf-8")
    assert predict_main([*predict, "--strategy", strategy]) == 1
    assert "were made otherwise (see predict.json there)" in capsys.readouterr().err
    (refs / "classes.json").write_text(names, encoding="utf-8")
    labels, affine = load(refs / "labels" / "s1_a.nii.gz")
    labels[labels == 5] = 0
    save(refs / "labels" / "s1_a.nii.gz", labels.astype(np.uint8), affine)
    for options, sentence in (
        ([], f"those in {out.resolve()} were made otherwise (see predict.json there): give another -o, or"),
        (["--overwrite"], f"those of others in {out.resolve()} (s2_a) were made otherwise"),
    ):
        assert predict_main([*predict, "--strategy", strategy, *options]) == 1
        told = capsys.readouterr()
        assert sentence in told.err and "Task: " not in told.out
    assert {path: path.read_bytes() for path in out.rglob("*.nii.gz")} == before


def test_a_place_that_cannot_be_written_is_told_before_the_search(
    root: Path, refs: Path, scan: str, tmp_path: Path, no_network: Any, capsys: Any
) -> None:
    no_network()
    note, given = tmp_path / "note.txt", ["-r", str(refs), "--root", str(root)]
    note.write_text("no folder", encoding="utf-8")
    assert predict_main(["-i", scan, "-o", str(note), *given]) == 1
    assert f"{note} cannot be written (" in capsys.readouterr().err
    for place, why in (
        (tmp_path, "it is a folder"),
        (note / "x" / "liver.task", f"{note} is no folder"),
    ):
        assert encode_main(["-o", str(place), *given]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"Error: A task is written to a file, such as liver.task; {place} cannot be one ({why}): choose another -o."
        )
    assert advise_main(["-o", str(note), *given]) == 1
    assert f"{note} is no folder" in capsys.readouterr().err
    assert note.read_text(encoding="utf-8") == "no folder"


def test_a_scan_is_not_replaced_by_a_task(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        encode_main(["-r", "refs", "-o", "liver.nii.gz"])
    assert (
        "-o is the task file to write, such as liver.task, not a scan; got liver.nii.gz"
        in capsys.readouterr().err
    )
