"""Patterns of paths: what they find, what they tell, and where a download's own folder is."""

from __future__ import annotations

from pathlib import Path

from preprocessing.patterns import fill, find, finds_any, placeholders, settle_top


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(folder: Path, *patterns: str, **where: str) -> list[tuple[str, dict[str, str]]]:
    matches = find(folder, patterns, where)
    return [(match.path.relative_to(folder).as_posix(), dict(match.names)) for match in matches]


def test_a_named_part_is_the_same_wherever_it_stands(tmp_path: Path) -> None:
    touch(tmp_path, "01/01_inn.nii", "01/01_wat.nii", "02/01_inn.nii", "02/02_inn.nii.gz", "label/01_inn.nii")
    assert found(tmp_path, "{case}/{case}_inn.nii*") == [
        ("01/01_inn.nii", {"case": "01"}),
        ("02/02_inn.nii.gz", {"case": "02"}),
    ]
    assert found(tmp_path, "{a}/{b}_{b}.nii") == []


def test_wildcards_are_the_shells_and_points_are_points(tmp_path: Path) -> None:
    touch(tmp_path, "A1-Labels.nii", "A1_Labels.nii", "A1xLabels.nii", "A1_Labels,nii", "B2_Labels.nii.gz")
    assert [path for path, _ in found(tmp_path, "{case}[_-]Labels.nii")] == ["A1-Labels.nii", "A1_Labels.nii"]
    assert [path for path, _ in found(tmp_path, "{case}[!_-]Labels.nii")] == ["A1xLabels.nii"]
    assert [path for path, _ in found(tmp_path, "?1_Labels*")] == ["A1_Labels,nii", "A1_Labels.nii"]


def test_rules_tell_what_a_part_may_be(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/amos_0507.nii.gz", "imagesTr/amos_0410.nii.gz", "imagesVa/amos_0600.nii.gz")
    touch(tmp_path, "imagesTs/amos_0599.nii.gz")
    assert found(tmp_path, "images{part}/{case}.nii*", part="Tr|Va", case="amos_0[5-9][0-9]{2}") == [
        ("imagesTr/amos_0507.nii.gz", {"part": "Tr", "case": "amos_0507"}),
        ("imagesVa/amos_0600.nii.gz", {"part": "Va", "case": "amos_0600"}),
    ]


def test_shadows_and_packed_folders_are_not_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.nii", "a/._x.nii", "__MACOSX/x.nii", ".hidden/x.nii", "a/.DS_Store")
    assert found(tmp_path, "{folder}/{case}") == [("a/x.nii", {"folder": "a", "case": "x.nii"})]
    assert not finds_any(tmp_path / "nowhere", ["{case}"])


def test_the_top_is_the_folder_its_parent_or_what_contains_it(tmp_path: Path) -> None:
    touch(tmp_path, "raw/ACDC/database/training/patient001/Info.cfg")
    top, whole = ["ACDC/database"], tmp_path / "raw/ACDC/database"
    patterns = ["training/{case}/Info.cfg"]
    for folder in (tmp_path / "raw", tmp_path / "raw/ACDC", whole):
        assert settle_top(folder, top, patterns, {}) == whole
    assert settle_top(tmp_path / "raw", ["Other"], patterns, {}) == tmp_path / "raw"


def test_names_are_listed_and_put_in() -> None:
    assert placeholders("{a}/{b_c}_{a}.nii") == {"a", "b_c"}
    assert fill("{patient}_{number}", {"patient": "P1", "number": "0", "study": "x"}) == "P1_0"
