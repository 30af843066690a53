"""Fingerprint: measured values against hand-made scans, one verdict a case, and a resume that reads nothing twice."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TinyRaw

from preprocessing import fingerprint as module
from preprocessing.adapters import Case
from preprocessing.errors import RawDataError
from preprocessing.fingerprint import (
    Fingerprint,
    fingerprint_dataset,
    load_fingerprint,
    measure_case,
    verdict_text,
    verdicts_of,
)
from preprocessing.layouts import Quirks
from preprocessing.sources.source import FileSource
from preprocessing.spec import DatasetSpec
from preprocessing.volume import Volume

GREY = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
SPEC = DatasetSpec(
    name="x", title="", modality="CT", role="upstream", source="", licence="", classes={"a": 2, "b": 3}
)


def save(path: Path, array_xyz: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz, affine), path)
    return path


def hand_made(folder: Path) -> Case:
    """6 x 5 x 4 voxels (x,y,z) of 1 x 2 x 3 mm, stored LPS; class a is 2 x 3 x 1 voxels, one value is 100."""
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    image = np.zeros((6, 5, 4), np.int16)
    image[5, 4, 3] = 100
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 0:3, 2] = 2
    return Case(
        "c",
        "c",
        FileSource(save(folder / "i.nii.gz", image, affine)),
        FileSource(save(folder / "l.nii.gz", labels, affine)),
        "CT",
    )


def test_the_measures_of_a_hand_made_case(tmp_path: Path) -> None:
    found = measure_case(hand_made(tmp_path), SPEC.model_copy(update={"intensity_offset": -10.0}))
    assert (found.verdict, found.why, found.orientation) == ("ok", "", "LPS")
    assert (found.shape, found.spacing_mm) == ((4, 5, 6), (3.0, 2.0, 1.0))
    assert set(found.classes) == {"a"}
    assert found.classes["a"].voxels == 6
    assert found.classes["a"].ml == pytest.approx(6 * 6 / 1000)
    assert found.classes["a"].extent_mm == (3.0, 6.0, 2.0)
    assert (found.intensity["minimum"], found.intensity["maximum"], found.intensity["p50"]) == (-10, 90, -10)
    assert found.intensity["mean"] == pytest.approx(100 / 120 - 10, abs=1e-4)
    assert found.intensity["sd"] == pytest.approx(np.std([100] + [0] * 119), abs=1e-3)


def test_percentiles_are_those_of_all_voxels(tmp_path: Path) -> None:
    image = FileSource(save(tmp_path / "i.nii.gz", GREY, np.eye(4)))
    labels = FileSource(save(tmp_path / "l.nii.gz", np.full((4, 4, 4), 2, np.uint8), np.eye(4)))
    found = measure_case(Case("c", "c", image, labels, "CT"), SPEC).intensity
    expected = {"p0.5": 0.315, "p2": 1.26, "p50": 31.5, "p98": 61.74, "p99.5": 62.685}  # of 0, 1, ..., 63
    assert {name: value for name, value in found.items() if name[0] == "p"} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("least", "most", "usable"), [(0.03, 0.04, True), (0.04, 1, False), (0, 0.03, False)]
)
def test_a_class_of_a_volume_that_its_organ_cannot_have_is_refused(
    tmp_path: Path, least: float, most: float, usable: bool
) -> None:
    bounds = SPEC.quirks.model_copy(update={"volume_ml": {"a": (least, most), "b": (5.0, 6.0)}})
    found = measure_case(hand_made(tmp_path), SPEC.model_copy(update={"quirks": bounds}))
    assert found.accepted == usable
    if not usable:
        assert found.why.startswith(f"'a' of dataset x has {least:g} to {most:g} ml, but 0.036 ml in case c")


def test_a_case_whose_sides_are_swapped_is_refused(tmp_path: Path) -> None:
    case = hand_made(tmp_path)
    assert isinstance(case.labels, FileSource)
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1, 0, 2], labels[5, 0, 2] = 2, 3  # x runs to the left: b lies 4 mm further left than a
    save(case.labels.path, labels, np.diag([-1.0, -2.0, 3.0, 1.0]))
    right, wrong = (
        measure_case(case, SPEC.model_copy(update={"sides": {"left": (left,), "right": (other,)}}))
        for left, other in (("b", "a"), ("a", "b"))
    )
    assert right.accepted and not wrong.accepted
    assert "'a' lies 4 mm to the right of 'b'" in wrong.why


@dataclass(frozen=True)
class Doubtful(FileSource):
    """A file about which something was mended and something looks odd."""

    whose: str = ""

    def _told(self, volume: Volume) -> Volume:
        return replace(volume, repairs=(f"{self.whose} mended",), doubts=(f"{self.whose} odd",))

    def read_image(self) -> Volume:
        return self._told(super().read_image())

    def read_labels(self) -> Volume:
        return self._told(super().read_labels())


def test_what_was_mended_and_what_looks_odd_is_told_of_image_and_labels(tmp_path: Path) -> None:
    case = hand_made(tmp_path)
    assert isinstance(case.image, FileSource) and isinstance(case.labels, FileSource)
    image, labels = (
        Doubtful(each.path, whose=whose) for each, whose in ((case.image, "i"), (case.labels, "l"))
    )
    found = measure_case(replace(case, image=image, labels=labels), SPEC)
    assert (found.verdict, found.why) == ("repaired", "i mended; l mended; i odd; l odd")


def test_millilitres_under_a_tilted_gantry(tmp_path: Path) -> None:
    case = hand_made(tmp_path)
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    affine[:3, 2] = 0, 3 * np.sin(np.deg2rad(20)), 3 * np.cos(np.deg2rad(20))
    for source in (case.image, case.labels):
        assert isinstance(source, FileSource)
        save(source.path, np.asarray(nib.load(source.path).dataobj), affine)
    found = measure_case(case, SPEC)
    assert found.spacing_mm == (3.0, 2.0, 1.0)
    assert found.classes["a"].ml == pytest.approx(6 * 6 / 1000 * np.cos(np.deg2rad(20)), abs=1e-4)
    assert "degrees off" in found.why


def test_axes_are_those_of_ras_whatever_the_file_stores(tmp_path: Path) -> None:
    """Stored with z first (codes SAR): the same box of voxels must get the same extents in (z,y,x)."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 3.0, 2.0, 1.0, 1.0
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[2:3, 0:3, 1:3] = 2
    case = Case(
        "c",
        "c",
        FileSource(save(tmp_path / "i.nii.gz", np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)),
        FileSource(save(tmp_path / "l.nii.gz", labels, affine)),
        "CT",
    )
    found = measure_case(case, SPEC)
    assert (found.orientation, found.shape, found.spacing_mm) == ("SAR", (4, 5, 6), (3.0, 2.0, 1.0))
    assert found.classes["a"].extent_mm == (3.0, 6.0, 2.0)


def bad_cases(folder: Path) -> dict[str, tuple[Case, str]]:
    """Name -> (case, what the verdict must say)."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    image = save(folder / "ok.nii.gz", GREY, affine)
    labels = save(folder / "ok_l.nii.gz", np.full((4, 4, 4), 2, np.uint8), affine)
    small = save(folder / "small.nii.gz", np.full((4, 4, 3), 2, np.uint8), affine)
    moved = save(folder / "moved.nii.gz", np.full((4, 4, 4), 2, np.uint8), affine + np.eye(4, k=3) * 7)
    value = save(folder / "value.nii.gz", np.full((4, 4, 4), 9, np.uint8), affine)
    infinite = save(folder / "nan.nii.gz", np.full((4, 4, 4), np.nan, np.float32), affine)
    half = folder / "half.nii.gz"
    half.write_bytes(image.read_bytes()[: len(image.read_bytes()) // 2])
    text = folder / "text.nii.gz"
    text.write_bytes(gzip.compress(b"no scan at all"))

    def case(image: Path, labels: Path | None) -> Case:
        return Case("c", "c", FileSource(image), FileSource(labels) if labels else None, "CT")

    return {
        "no label": (case(image, None), r"Case c has an image \(ok\.nii\.gz\) but no label file"),
        "no image": (case(folder / "gone.nii.gz", labels), r"gone\.nii\.gz does not exist"),
        "shape": (case(image, small), "same grid"),
        "place": (case(image, moved), "same grid"),
        "value": (
            case(image, value),
            r"unknown label values \(9\): dataset x allows 0 \(background\), 2 \(a\), 3 \(b\)",
        ),
        "nan": (case(infinite, labels), "not finite"),
        "half a gzip": (case(half, labels), r"half\.nii\.gz cannot be read"),
        "no NIfTI": (case(text, labels), r"text\.nii\.gz cannot be read"),
    }


@pytest.mark.parametrize(
    "name", ["no label", "no image", "shape", "place", "value", "nan", "half a gzip", "no NIfTI"]
)
def test_a_bad_case_is_refused_with_one_sentence(name: str, tmp_path: Path) -> None:
    import re

    case, sentence = bad_cases(tmp_path)[name]
    found = measure_case(case, SPEC)
    assert (found.verdict, found.classes) == ("refused", {})
    assert re.search(sentence, found.why), found.why
    assert "\n" not in found.why


def test_a_tiny_difference_of_headers_is_repaired_and_an_empty_label_is_said(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    image = save(tmp_path / "i.nii.gz", GREY, affine)
    near = save(tmp_path / "l.nii.gz", np.full((4, 4, 4), 3, np.uint8), affine + np.eye(4, k=3) * 0.01)
    found = measure_case(Case("c", "c", FileSource(image), FileSource(near), "CT"), SPEC)
    assert found.verdict == "repaired" and "0.01 mm" in found.why
    empty = save(tmp_path / "e.nii.gz", np.zeros((4, 4, 4), np.uint8), affine)
    found = measure_case(Case("c", "c", FileSource(image), FileSource(empty), "CT"), SPEC)
    assert (found.verdict, found.why) == ("ok", "no class of the specification has a voxel")


def test_the_dataset_is_written_and_read_back(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    assert [case.id for case in made.cases] == list(tiny_raw.cases)
    assert [case.orientation for case in made.cases] == ["RAS", "LPS", "PIR", "ASL", "LAI"]
    assert {case.shape for case in made.cases} == {(16, 34, 40)}
    assert all(np.allclose(case.spacing_mm, (3.0, 1.4, 1.2), atol=1e-5) for case in made.cases)
    assert "core" not in made.cases[4].classes and "core" in made.cases[3].classes
    assert load_fingerprint(tmp_path) == made
    assert not (tmp_path / module.PARTIAL).exists()


def test_nothing_is_read_twice_unless_it_changed(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    read: list[str] = []
    real = module._measure_readable

    def counted(case: Case, spec: DatasetSpec, digest: str, reference: bool) -> module.CasePrint:
        read.append(case.id)
        return real(case, spec, digest, reference)

    monkeypatch.setattr(module, "_measure_readable", counted)
    assert fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False) == first
    assert read == []
    other = tiny_raw.spec.model_copy(update={"classes": {"left": 1, "right": 2, "middle": 5}})
    changed = fingerprint_dataset(tiny_raw.dataset, other, tmp_path, workers=1, progress=False)
    assert read == list(tiny_raw.cases)
    assert "middle" in changed.cases[0].classes


@pytest.mark.parametrize("kept", ["finished", "broken off"])
@pytest.mark.parametrize(
    "change",
    [
        {"subject_pattern": "_(?P<subject>[a-z])$"},
        {"intensity_offset": -1000.0},
        {"sides": {"left": ("right",), "right": ("left",)}},
        {"quirks": Quirks(volume_ml={"core": (100.0, 200.0)})},
    ],
    ids=["subjects", "offset", "sides", "volumes"],
)
def test_by_another_specification_cases_are_what_they_are_when_measured_for_the_first_time(
    tiny_raw: TinyRaw, tmp_path: Path, change: dict[str, object], kept: str
) -> None:
    other = tiny_raw.spec.model_copy(update=change)
    fresh = fingerprint_dataset(tiny_raw.dataset, other, workers=1, progress=False)
    former = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    if kept == "broken off":
        (tmp_path / module.FILE).unlink()
        lines = [former.spec_digest, *(case.model_dump_json() for case in former.cases)]
        (tmp_path / module.PARTIAL).write_text("\n".join(lines) + "\n", encoding="utf-8")
    again = fingerprint_dataset(tiny_raw.dataset, other, tmp_path, workers=1, progress=False)
    assert again == fresh and again.cases != former.cases


def test_cases_are_in_the_order_of_their_ids_whichever_is_measured_first(
    tiny_raw: TinyRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "parallel_map", lambda function, jobs, *_: map(function, reversed(jobs)))
    made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, progress=False)
    assert [case.id for case in made.cases] == list(tiny_raw.cases)


def test_a_broken_run_goes_on_where_it_stopped(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fingerprint_dataset(
        tiny_raw.dataset, tiny_raw.spec, tmp_path / "whole", workers=1, progress=False
    )
    real, read = module._measure_readable, []

    def breaking(case: Case, spec: DatasetSpec, digest: str, reference: bool) -> module.CasePrint:
        read.append(case.id)
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(case, spec, digest, reference)

    monkeypatch.setattr(module, "_measure_readable", breaking)
    with pytest.raises(KeyboardInterrupt):
        fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path / "x", workers=1, progress=False)
    partial = tmp_path / "x" / module.PARTIAL
    assert not (tmp_path / "x" / module.FILE).exists()
    partial.write_text(
        partial.read_text(encoding="utf-8") + '{"id": "s3_a", "cut', encoding="utf-8"
    )  # killed while writing
    assert (
        fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path / "x", workers=1, progress=False)
        == whole
    )
    assert read == ["s1_a", "s2_a", "s2_b", "s2_b", "s3_a", "s4_a"]
    whole_bytes = (tmp_path / "whole" / module.FILE).read_bytes()
    assert (tmp_path / "x" / module.FILE).read_bytes() == whole_bytes


def test_a_partial_file_cut_inside_a_letter_is_resumed(tiny_raw: TinyRaw, tmp_path: Path) -> None:
    whole = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, workers=1, progress=False)
    cut = (whole.spec_digest + '\n{"id":"s1_ü').encode()[:-1]  # of the two bytes of ü one was written
    (tmp_path / module.PARTIAL).write_bytes(cut)
    made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    assert made == whole and load_fingerprint(tmp_path) == whole


@pytest.mark.parametrize("part", ["image", "labels"])
def test_a_file_that_may_not_be_read_costs_its_case_alone(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """As with mode 000; and once it may be read the case is taken up."""
    closed = tiny_raw.dataset / ("imagesTr" if part == "image" else "labelsTr") / "s2_a.nii.gz"
    real = Path.open

    def refusing(path: Path, *how: object, **more: object) -> object:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as shut:
        shut.setattr(Path, "open", refusing)
        made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    verdicts = {each.case: each for each in verdicts_of(made)}
    assert [case for case, each in verdicts.items() if each.verdict == "refused"] == ["s2_a"]
    assert verdicts["s2_a"].why.startswith(f"{closed} cannot be read or written (Permission denied): mend")
    again = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    assert [case.verdict for case in again.cases] == ["ok"] * 5


@pytest.mark.parametrize("where", ["while reading", "while measuring"])
def test_want_of_memory_is_no_damage_and_is_not_kept(
    tiny_raw: TinyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    read: list[str] = []
    real_array, real_measure = nib.arrayproxy.ArrayProxy.__array__, module.check_grey_values

    def short_array(proxy: nib.arrayproxy.ArrayProxy, *how: object) -> np.ndarray:
        read.append("")
        if len(read) == 3:  # the second case's image
            raise MemoryError
        return real_array(proxy, *how)

    def short_measure(array: np.ndarray, name: str) -> None:
        if "s2_a" in name:
            raise MemoryError
        real_measure(array, name)

    with monkeypatch.context() as tight:
        if where == "while reading":
            tight.setattr(nib.arrayproxy.ArrayProxy, "__array__", short_array)
        else:
            tight.setattr(module, "check_grey_values", short_measure)
        made = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    assert [case.verdict for case in made.cases] == ["ok", "refused", "ok", "ok", "ok"]
    who = f"{tiny_raw.dataset / 'imagesTr' / 's2_a.nii.gz'}" if where == "while reading" else "Case s2_a"
    assert (
        made.cases[1].why.startswith(f"{who} needs more memory than is free")
        and "\n" not in made.cases[1].why
    )
    assert "fewer --workers, then run again" in made.cases[1].why and "damaged" not in made.cases[1].why
    again = fingerprint_dataset(tiny_raw.dataset, tiny_raw.spec, tmp_path, workers=1, progress=False)
    assert [case.verdict for case in again.cases] == ["ok"] * 5


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / module.FILE).write_text(json.dumps({"schema_version": 99}), encoding="utf-8")
    with pytest.raises(
        RawDataError, match=r"fingerprint\.json has schema version 99, this version reads 2: run iris_"
    ):
        load_fingerprint(tmp_path)
    (tmp_path / module.FILE).write_text("{", encoding="utf-8")
    with pytest.raises(RawDataError, match=r"is no valid JSON"):
        load_fingerprint(tmp_path)


def test_the_text_counts_and_names(tmp_path: Path) -> None:
    good = measure_case(hand_made(tmp_path), SPEC)
    bad = good.model_copy(update={"id": "d", "verdict": "refused", "why": "It is broken."})
    text = verdict_text(verdicts_of(Fingerprint(dataset="x", spec_digest="", cases=(good, bad))))
    assert text == "x: 1 ok, 0 repaired, 1 refused\n  d: refused: It is broken."
