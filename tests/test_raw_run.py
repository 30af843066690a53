"""All nineteen downloads side by side: found by their own names, stored in one run, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw_trees import CHANNELS, TREES, Truth, write_tree

from iris_pipeline.cli.prepare import datasets_main, plan_and_preprocess_main
from preprocessing.adapters import find_cases
from preprocessing.check import check_dataset, dataset_folder
from preprocessing.choose import choose_specs
from preprocessing.errors import RawDataError
from preprocessing.fingerprint import load_fingerprint
from preprocessing.spec import load_spec
from preprocessing.store import Store

NAMES = sorted(TREES)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Truth]]]:
    root = tmp_path_factory.mktemp("raw")
    return root, {name: write_tree(name, root) for name in NAMES}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are not killed by a signal here")
def test_all_in_one_run_killed_once_gives_the_same_bytes(
    downloads: tuple[Path, dict[str, dict[str, Truth]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, truths = downloads
    options = ["-d", "all", "--raw", str(raw), "--crop", "32", "32", "32", "--workers", "1", "--quiet"]
    assert plan_and_preprocess_main([*options, "--root", str(tmp_path / "whole")]) == 0
    assert "refused" not in capsys.readouterr().out.replace("0 refused", "")
    command = [sys.executable, "-m", "preprocessing.run", *options, "--root", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stores, limit = tmp_path / "out" / "preprocessed", time.monotonic() + 300
    while not list(stores.glob("bcv/cases/*.json")):
        assert process.poll() is None and time.monotonic() < limit, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = sorted(path.parent.name for path in stores.glob("*/manifest.json"))
    assert 0 < len(finished) < len(NAMES)
    assert plan_and_preprocess_main([*options, "--root", str(tmp_path / "out")]) == 0
    whole = contents(tmp_path / "whole" / "preprocessed")
    assert contents(stores) == whole and len([n for n in whole if n.endswith("manifest.json")]) == 19
    for name in NAMES:
        store = Store.open(stores / name)
        assert not store.manifest.refused
        for case in load_fingerprint(stores / name).cases:
            truth = truths[name][case.id]
            drawn = {each: (truth.labels == value).sum() for each, value in store.manifest.classes.items()}
            if truth.exact or name == "lits":
                assert {each: found.voxels for each, found in case.classes.items()} == drawn
        assert {entry.id: entry.subject for entry in store.manifest.cases} == {
            case: truth.subject for case, truth in truths[name].items()
        }
        for entry in store.manifest.cases:
            assert set(entry.classes) == set(store.manifest.classes)
            assert bool(truths[name][entry.id].why) == bool(entry.why)
            # what the manifest counts is what was drawn: box by box, in millilitres
            drawn = truths[name][entry.id].labels
            native_ml = float(abs(voxel_ml(store, entry.id)))
            for class_name, found in entry.classes.items():
                expected = (drawn == store.manifest.classes[class_name]).sum() * native_ml
                assert found.ml == pytest.approx(expected, rel=0.1), (name, entry.id, class_name)


def voxel_ml(store: Store, case: str) -> float:
    """Of a voxel of the raw scan, from the field of view: the store keeps it."""
    entry = store.entry(case)
    share = [
        s * edge / n for s, edge, n in zip(entry.shape, entry.spacing_mm, entry.native_shape, strict=True)
    ]
    return share[0] * share[1] * share[2] / 1000


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log"
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_download_may_be_named_contained_or_the_folder_itself(
    name: str, downloads: tuple[Path, dict[str, dict[str, Truth]]], tmp_path: Path
) -> None:
    raw, truths = downloads
    spec, top = load_spec(name), TREES[name][0]
    ids = sorted(truths[name])
    assert [case.id for case in find_cases(spec.raw_folder(raw), spec)] == ids
    first, _, _ = top.partition("/")
    (tmp_path / "contains" / name).mkdir(parents=True)
    (tmp_path / "contains" / name / first).symlink_to(raw / first)
    (tmp_path / "is").mkdir()
    (tmp_path / "is" / name).symlink_to(raw / top)
    for place in ("contains", "is"):
        root = tmp_path / place
        assert spec.raw_folder(root) == root / name
        assert [case.id for case in find_cases(spec.raw_folder(root), spec)] == ids
        assert [each.name for each in choose_specs(["all"], root)] == [name]
    # RAW of iris_check: the download's own folder
    assert [case.id for case in find_cases(dataset_folder(raw / top, spec), spec)] == ids
    empty = tmp_path / "empty" / name
    empty.mkdir(parents=True)
    with pytest.raises(RawDataError, match="holds no image"):
        find_cases(empty, spec)


@pytest.mark.parametrize(
    ("name", "unpacked"), [("bcv", "RawData"), ("chaos_mr", "Train_Sets"), ("lits", "LiTS")]
)
def test_an_archive_is_found_as_it_unpacks(
    name: str, unpacked: str, downloads: tuple[Path, dict[str, dict[str, Truth]]], tmp_path: Path
) -> None:
    """RawData.zip and CHAOS_Train_Sets.zip make no folder of their archive's name, LiTS none called data."""
    (tmp_path / unpacked).symlink_to(downloads[0] / TREES[name][0])
    spec = load_spec(name)
    assert spec.raw_folder(tmp_path) == tmp_path / unpacked
    assert [case.id for case in find_cases(spec.raw_folder(tmp_path), spec)] == sorted(downloads[1][name])
    assert [each.name for each in choose_specs(["all"], tmp_path)] == [name]


def test_an_empty_folder_of_the_name_hides_no_download(
    downloads: tuple[Path, dict[str, dict[str, Truth]]], tmp_path: Path
) -> None:
    (tmp_path / "RawData").symlink_to(downloads[0] / "Abdomen" / "RawData")
    (tmp_path / "bcv").mkdir()
    assert load_spec("bcv").raw_folder(tmp_path) == tmp_path / "RawData"
    assert load_spec("lits").raw_folder(tmp_path) == tmp_path / "lits"


def test_a_known_placeholder_is_told_once(downloads: tuple[Path, dict[str, dict[str, Truth]]]) -> None:
    spec = load_spec("lits")
    report = check_dataset(spec.raw_folder(downloads[0]), spec, workers=1, progress=False).report
    told = {case.id: case.why for case in report.cases if case.why}
    doubted = [case for case, why in told.items() if "placeholder" in why]
    assert doubted == ["volume-28"] and told["volume-28"].count("1 x 1 x 1 mm") == 1


def test_datasets_are_listed_with_what_is_found(
    downloads: tuple[Path, dict[str, dict[str, Truth]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, truths = downloads
    assert datasets_main(["--root", str(tmp_path), "--raw", str(raw)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in NAMES:
        expected = load_spec(name).expected_cases
        assert f" {len(truths[name])} of {expected} " in lines[name], lines[name]
    assert " - " in lines["msd_hippocampus"]


def test_studies_of_a_patient_are_numbered_by_date(
    downloads: tuple[Path, dict[str, dict[str, Truth]]],
) -> None:
    """The later one would come first by name: 09-22-2005 stands before 12-05-2003."""
    spec = load_spec("autopet")
    cases = [case for case in find_cases(spec.raw_folder(downloads[0]), spec) if case.id.endswith("_1")]
    assert len(cases) == 1 and cases[0].image.files[0].parent.name.startswith("09-22-2005")
    assert cases[0].labels is not None and cases[0].labels.files[0].parent == cases[0].image.files[0].parent


def test_nobody_of_ivdm3seg_is_on_two_sides(downloads: tuple[Path, dict[str, dict[str, Truth]]]) -> None:
    """The same people in four datasets: who tests in one trains in none, whichever two scans are one person's."""
    from preprocessing.splits import make_splits

    raw, _ = downloads
    sides: dict[str, set[str]] = {}
    for channel in CHANNELS:
        spec = load_spec(f"csi_{channel}")
        cases = {case.id: case.subject for case in find_cases(spec.raw_folder(raw), spec)}
        for split in make_splits(spec, cases).values():
            for part, ids in split.items():
                for case in ids:
                    if part != "validation":
                        sides.setdefault(spec.subject_of(case), set()).add(part)
    assert sides == {"group1": {"train"}, "group3": {"train"}, "group4": {"test"}}
