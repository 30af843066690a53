"""Specifications: what is accepted, what is refused and with which sentence; the real ones agree with the brief."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from iris_pipeline import paper
from preprocessing.choose import choose_specs, own_specs
from preprocessing.errors import SpecError
from preprocessing.spec import list_specs, load_spec, parse_spec

AT_HAND = {"msd_hippocampus", "acdc_mini", "la2018", "chaos_t2", "ibsr18", "openkbp", "sts_pet", "sts_t1"}
AT_HAND_HELD_OUT = {"mscmr", "sts_ct", "lung_mr"}
# of the paper: its Table 1 and its Table 2
TABLE_1 = {"amos_ct", "amos_mr", "autopet", "bcv", "brain", "chaos_mr", "kits19", "lits", "mnms"}
TABLE_1 |= {"structseg_headneck", "structseg_thorax", "csi_wat"}
TABLE_2 = {"acdc", "segthor", "csi_inn", "csi_opp", "csi_fat", "msd_pancreas", "pelvic"}
GOOD = {
    "name": "x",
    "title": "X",
    "modality": "MR",
    "role": "upstream",
    "source": "here",
    "licence": "none",
    "classes": {"a": 1, "b": 3},
}


def spec_of(**changes: object) -> str:
    return yaml.safe_dump(GOOD | changes)


def test_the_defaults_are_filled_in() -> None:
    spec = parse_spec(spec_of(), "x.yaml")
    assert (spec.layout, spec.intensity_offset, spec.partly_labelled, spec.split.seed) == (
        "msd",
        0.0,
        False,
        0,
    )
    assert spec.people == "x"
    assert spec.subject_of("case_7") == "case_7"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clases": {"a": 1}}, r"x\.yaml is not valid: key 'clases' is unknown \(did you mean 'classes'\?\)"),
        ({"split": {"sed": 1}}, r"key 'split\.sed' is unknown \(did you mean 'seed'\?\)"),
        ({"modality": "US"}, "modality: Input should be 'CT', 'MR' or 'PET', not 'US'"),
        ({"role": "test"}, "role: Input should be 'upstream', 'held-out' or 'phantom'"),
        ({"classes": {"a": 1, "b": 1}}, "classes: two classes have the same value"),
        (
            {"classes": {"a": 0}},
            r"classes: class values are 1 to 255 \(0 is the background\), not \{'a': 0\}",
        ),
        ({"classes": {"a": 256}}, "class values are 1 to 255"),
        ({"classes": {}}, "at least one class is needed"),
        ({"name": "My Data"}, "lower-case letters"),
        ({"subject_pattern": "p([0-9]+)"}, r"needs a group \(\?P<subject>"),
        ({"subject_pattern": "p(?P<subject>"}, "is no regular expression"),
        ({"sides": {"left": ["c"]}}, r"sides names \['c'\], which are not among the classes"),
        ({"lesions": ["c"]}, r"lesions names \['c'\], which are not among the classes"),
        ({"tolerance_mm": {"c": 1}}, r"tolerance_mm names \['c'\], which are not among the classes"),
        ({"tolerance_mm": 0}, r"tolerance_mm is in millimetres above 0, not 0\.0"),
        ({"tolerance_mm": {"a": -1}}, r"tolerance_mm is in millimetres above 0, not \{'a': -1\.0\}"),
        ({"spacing_mm": [1, 0, 1]}, "spacings are millimetres above 0"),
        ({"split": {"test_subjects": ["1"]}}, "given together or not at all"),
        ({"split": {"test_subjects": ["1"], "validation_subjects": ["1"]}}, r"subjects \['1'\] stand in"),
        ({"split": {"folds": [["1"], ["1"], [], [], []]}}, "5 disjoint lists"),
        ({"split": {"folds": [["1"]]}}, "5 disjoint lists"),
        (
            {"layout": "zip"},
            "layout 'zip' is unknown: known are dicom_png, files, frames, msd, probability_maps",
        ),
        ({"files": {"tops": "a"}}, r"key 'files\.tops' is unknown \(did you mean 'top'\?\)"),
        ({"layout": "files", "files": {"image": "{case}.nii"}}, r"key 'files\.labels' is missing"),
        (
            {"layout": "files", "files": {"image": "{case}.nii", "labels": "mask.nii"}},
            r"labels: 'mask\.nii' must hold \{case\}, of which the case id is made",
        ),
        (
            {"layout": "files", "files": {"image": "{n}", "labels": "{n}", "case": "x"}},
            r"case: 'x' needs a named part such as \{case\}",
        ),
        ({"files": {"where": {"case": "("}}}, r"where\.case: '\(' is no regular expression"),
        (
            {"layout": "frames", "files": {"image": "{case}", "labels": "{case}", "frames": ["ED"]}},
            r"give either table and key \(one table for all\), or info \(a file a subject\)",
        ),
        (
            {
                "layout": "frames",
                "files": {
                    "image": "{p}",
                    "labels": "{p}",
                    "frames": "ED",
                    "table": "t",
                    "key": "k",
                    "case": "{p}",
                },
            },
            r"files\.frames: Input should be a valid tuple",
        ),
        (
            {
                "layout": "frames",
                "files": {
                    "image": "{p}",
                    "labels": "{p}",
                    "frames": ["ED"],
                    "table": "t",
                    "key": "k",
                    "case": "{p}",
                },
            },
            r"case: '\{p\}' needs \{case\}, which the column 'k' holds",
        ),
        (
            {"layout": "probability_maps", "files": {"image": "{case}", "maps": {"c": "{case}_c"}}},
            r"name \['c'\], which are not among the classes",
        ),
        (
            {
                "layout": "dicom_png",
                "files": {
                    "volumes": {"t1": {"image": "{case}/a", "masks": "{case}/b"}},
                    "greys": {"a": [10, 20], "b": [15, 30]},
                },
            },
            r"greys are ranges \[low, high\] inside 0\.\.255 that do not overlap",
        ),
        (
            {
                "layout": "dicom_png",
                "files": {"volumes": {"t1": {"image": "{case}/a", "masks": "b"}}, "greys": {"a": [10, 20]}},
            },
            r"volumes\.t1: 'b' must hold \{case\} and no other named part",
        ),
        ({"quirks": {"value": {255: 1}}}, r"key 'quirks\.value' is unknown \(did you mean 'values'\?\)"),
        ({"quirks": {"sides_between": "a"}}, "sides_between needs one class under sides.left and one under"),
        ({"quirks": {"volume_ml": {"heart": [1, 2]}}}, r"name \['heart'\], which are not among the classes"),
        ({"paper_classes": ["c"]}, r"name \['c'\], which are not among the classes"),
        ({"subject_group": "people"}, "a shared subject_group needs the lists of split"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as caught:
        parse_spec(spec_of(**changes), "x.yaml")
    assert "\n" not in str(caught.value)


def test_the_raw_folder_may_lie_elsewhere(tmp_path: Path) -> None:
    """A relative one counts from the specification; a folder of that name under raw/ goes before it."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.yaml").write_text(spec_of(name="x", raw="../scans/x"), encoding="utf-8")
    spec = load_spec(raw / "x.yaml")
    assert spec.raw_folder(raw).resolve() == tmp_path / "scans" / "x"
    assert load_spec(raw / "x.yaml").model_copy(update={"raw": None}).raw_folder(raw) == raw / "x"
    (raw / "x").mkdir()
    assert spec.raw_folder(raw) == raw / "x"


def test_specifications_beside_the_raw_datasets_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(spec_of(name="mine"), encoding="utf-8")
    assert own_specs(tmp_path) == {"mine": tmp_path / "mine.yaml"}
    assert choose_specs(["mine"], tmp_path) == [load_spec(tmp_path / "mine.yaml")]
    with pytest.raises(SpecError, match="'all' fits no dataset under"):
        choose_specs(["all"], tmp_path)
    (tmp_path / "mine").mkdir()
    assert [spec.name for spec in choose_specs(["all"], tmp_path)] == ["mine"]
    (tmp_path / "other.yaml").write_text(spec_of(name="mine"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"other\.yaml names itself 'mine': rename one of them"):
        choose_specs(["other"], tmp_path)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SpecError, match="key 'classes' is missing"):
        parse_spec(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "classes"}), "x.yaml")


def test_a_key_given_twice_and_broken_yaml_are_refused() -> None:
    with pytest.raises(SpecError, match="key a is given twice"):
        parse_spec(spec_of() + "split: {}\n" + "sides:\n  left: [a]\n  ? a\n  : 1\n  a: 2\n", "x.yaml")
    with pytest.raises(SpecError, match=r"x\.yaml is no valid YAML"):
        parse_spec("name: [", "x.yaml")
    with pytest.raises(SpecError, match="must hold keys and values"):
        parse_spec("- a\n", "x.yaml")


def test_an_unquoted_subject_number_is_refused_and_not_read_as_octal() -> None:
    text = spec_of() + "split:\n  test_subjects: [012]\n  validation_subjects: ['003']\n"
    with pytest.raises(SpecError, match=r"split\.test_subjects\.0: Input should be a valid string, not 10"):
        parse_spec(text, "x.yaml")


def test_tolerances_are_for_all_classes_or_for_some() -> None:
    assert parse_spec(spec_of(), "x.yaml").tolerance_of("a") == 2.0
    assert parse_spec(spec_of(tolerance_mm=3), "x.yaml").tolerance_of("b") == 3.0
    some = parse_spec(spec_of(tolerance_mm={"a": 1.5}, lesions=["b"]), "x.yaml")
    assert (some.tolerance_of("a"), some.tolerance_of("b"), some.lesions) == (1.5, 2.0, ("b",))


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        SpecError, match=r"Unknown dataset 'hipocampus': known are acdc, acdc_mini, .*'msd_hippocampus'\?"
    ):
        load_spec("hipocampus")
    with pytest.raises(SpecError, match=r"nowhere\.yaml does not exist"):
        load_spec("nowhere.yaml")


def test_the_subject_is_taken_from_the_case_id() -> None:
    assert load_spec("acdc_mini").subject_of("patient023_frame09") == "patient023"
    assert load_spec("sts_ct").subject_of("STS_012") == "012"
    with pytest.raises(SpecError, match="does not match the case 'x_1'"):
        load_spec("acdc_mini").subject_of("x_1")


def test_words_stand_for_the_datasets_that_are_there(tmp_path: Path) -> None:
    for name in ("sts_ct", "la2018", "ibsr18", "unknown_folder"):
        (tmp_path / name).mkdir()
    names = {
        word: [spec.name for spec in choose_specs([word], tmp_path)]
        for word in ("all", "upstream", "held-out")
    }
    assert names == {
        "all": ["ibsr18", "la2018", "sts_ct"],
        "upstream": ["ibsr18", "la2018"],
        "held-out": ["sts_ct"],
    }
    assert [spec.name for spec in choose_specs(["la2018", "upstream"], tmp_path)] == ["la2018", "ibsr18"]
    with pytest.raises(SpecError, match="'phantom' fits no dataset under"):
        choose_specs(["phantom"], tmp_path)


def test_every_specification_in_the_package_is_valid() -> None:
    specs = {name: load_spec(name) for name in list_specs()}
    assert {name for name, spec in specs.items() if spec.role == "upstream"} == AT_HAND | TABLE_1
    assert {name for name, spec in specs.items() if spec.role == "held-out"} == AT_HAND_HELD_OUT | TABLE_2
    assert specs["openkbp"].intensity_offset == -1000 and specs["openkbp"].partly_labelled
    assert specs["acdc_mini"].classes["LV cavity"] == 3 and specs["mscmr"].classes["LV cavity"] == 2


def test_the_papers_datasets_fill_its_columns_and_say_where_they_come_from() -> None:
    for number, names in ((1, TABLE_1), (2, TABLE_2)):
        specs = [load_spec(name) for name in names]
        columns = paper.columns_of(number)
        assert sorted(str(spec.paper_column) for spec in specs) == sorted(columns)
        for spec in specs:
            assert spec.year and spec.citation and spec.expected_cases and spec.source and spec.licence
    reported = {name: load_spec(name).paper_classes for name in TABLE_1 | TABLE_2}
    assert {name: classes for name, classes in reported.items() if classes} == {
        "kits19": ("tumour",),
        "lits": ("tumour",),
        "msd_pancreas": ("cancer",),
    }


def test_the_authors_lists_are_whole() -> None:
    """Train, validation and test as published, by subject; AMOS and M&Ms have fewer or more subjects than scans."""
    counts = {"bcv": (1, 6), "amos_ct": (5, 100), "amos_mr": (2, 20), "structseg_thorax": (2, 10)}
    counts |= {"structseg_headneck": (1, 10), "lits": (6, 26), "kits19": (9, 42), "chaos_mr": (1, 4)}
    counts |= {"mnms": (7, 170), "brain": (5, 43), "autopet": (18, 199)}
    for name, (validation, test) in counts.items():
        split = load_spec(name).split
        assert len(split.validation_subjects or ()) == validation, name
        assert len(split.test_subjects or ()) == test, name
    # the authors list one of this patient's studies for validation, another for test
    assert "PETCT_b5923963ac" in (load_spec("autopet").split.test_subjects or ())
    assert "PETCT_b5923963ac" not in (load_spec("autopet").split.validation_subjects or ())


def test_datasets_with_the_same_people_name_each_other() -> None:
    specs = {name: load_spec(name) for name in list_specs()}
    pairs = {(name, other) for name, spec in specs.items() for other in spec.overlaps}
    assert pairs == {
        ("acdc", "acdc_mini"),
        ("acdc_mini", "acdc"),
        ("chaos_mr", "chaos_t2"),
        ("chaos_t2", "chaos_mr"),
    }


def test_lists_of_people_in_a_file_beside_the_specification(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(spec_of(split={"file": "x.json"}))
    (tmp_path / "x.json").write_text('{"train": ["a"], "validation": ["b"], "test": ["c"]}')
    split = load_spec(tmp_path / "x.yaml").split
    assert (split.validation_subjects, split.test_subjects) == (("b",), ("c",))
    for content in ('{"train": ["a"], "validation": ["b"], "test": ["a"]}', '{"test": []}', "no JSON", "[]"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(
            SpecError, match=r"split\.file names a JSON file beside it that holds the lists train, va"
        ):
            load_spec(tmp_path / "x.yaml")
    (tmp_path / "x.json").unlink()
    with pytest.raises(SpecError, match=r"instead of lists in the YAML; 'x\.json' is none"):
        load_spec(tmp_path / "x.yaml")


def test_cases_of_one_person_can_be_listed() -> None:
    spec = parse_spec(spec_of(subjects={"ann": ["01", "09"]}), "x.yaml")
    assert [spec.subject_of(case) for case in ("01", "09", "02")] == ["ann", "ann", "02"]
    with pytest.raises(SpecError, match=r"subjects lists the cases \['01'\] under two people"):
        parse_spec(spec_of(subjects={"ann": ["01"], "bob": ["01"]}), "x.yaml")


@pytest.mark.parametrize("name", sorted(AT_HAND | AT_HAND_HELD_OUT))
def test_the_specification_agrees_with_the_real_dataset(name: str, shared_data: Path) -> None:
    import json

    spec = load_spec(name)
    given = json.loads((shared_data / name / "dataset.json").read_text(encoding="utf-8"))
    assert set(spec.classes.values()) == set(given["labels"].values()) - {0}
    assert spec.expected_cases == given["numCases"]
    assert (spec.role, spec.modality) == (given["role"], given["modality"])
    simplified = {value: label.lower()[:2] for label, value in given["labels"].items() if value}
    ours = {value: label.lower().replace(" ", "")[:2] for label, value in spec.classes.items()}
    if name not in ("openkbp",):  # there the spelling was made British and side and organ were parted
        assert ours == simplified
