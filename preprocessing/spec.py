"""DatasetSpec: what a dataset is, read from dataset_specs/<name>.yaml and validated.

A specification says what no file of the dataset says by itself: which value is which class, who is one
person, what the grey values mean and which cases may be trained on. Every key is documented in
dataset_specs/README.md.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from preprocessing.errors import SpecError
from preprocessing.layouts import Files, Quirks, parse_files
from preprocessing.patterns import finds_any, settle_top

Modality = Literal["CT", "MR", "PET"]
Role = Literal["upstream", "held-out", "phantom"]
FOLDS = 5
DEFAULT_TOLERANCE_MM = 2.0
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class SplitSpec(BaseModel):
    """How subjects are divided. With lists the lists decide; without them a 75/5/20 draw from `seed` does.

    `folds` (five lists of subjects, none of them a test subject) is needed only where the same people are in
    several datasets and must therefore lie in the same fold of each. loose_folds: the lists may overlap, and who is
    in none of them trains in every fold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    validation_subjects: tuple[str, ...] | None = None
    test_subjects: tuple[str, ...] | None = None
    folds: tuple[tuple[str, ...], ...] | None = None
    loose_folds: bool = False

    @model_validator(mode="after")
    def _lists_are_disjoint(self) -> SplitSpec:
        if (self.validation_subjects is None) != (self.test_subjects is None):
            raise ValueError("validation_subjects and test_subjects are given together or not at all")
        test = set(self.test_subjects or ())
        both = sorted(test & set(self.validation_subjects or ()))
        if both:
            raise ValueError(f"subjects {both} stand in validation_subjects and in test_subjects")
        if self.folds is not None:
            flat = [subject for fold in self.folds for subject in fold]
            repeated = len(flat) != len(set(flat)) and not self.loose_folds
            if len(self.folds) != FOLDS or repeated or test & set(flat):
                raise ValueError(f"folds must be {FOLDS} disjoint lists without test subjects")
        return self


class DatasetSpec(BaseModel):
    """One dataset. `spacing_mm` is (z,y,x) in mm; `intensity_offset` is added to every grey value.

    raw: the folder of the scans where it is not raw/<name>. guesses: what nobody said and iris_check tells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    year: int | None = None
    modality: Modality
    role: Role
    raw: str | None = None
    layout: str = "msd"
    files: dict[str, Any] = Field(default_factory=dict)
    quirks: Quirks = Field(default_factory=Quirks)
    source: str
    licence: str
    citation: str = ""
    remarks: str = ""
    guesses: tuple[str, ...] = ()
    classes: dict[str, int]
    subject_pattern: str | None = None
    subjects: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    subject_group: str = ""
    overlaps: tuple[str, ...] = ()
    intensity_offset: float = 0.0
    partly_labelled: bool = False
    split: SplitSpec = Field(default_factory=SplitSpec)
    expected_cases: int | None = Field(default=None, ge=1)
    sides: dict[Literal["left", "right"], tuple[str, ...]] = Field(default_factory=dict)
    tolerance_mm: float | dict[str, float] = DEFAULT_TOLERANCE_MM
    lesions: tuple[str, ...] = ()
    paper_column: str | None = None
    paper_classes: tuple[str, ...] = ()
    spacing_mm: tuple[float, float, float] | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"a name has lower-case letters, digits, '_' and '-' only, not '{value}'")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: dict[str, int]) -> dict[str, int]:
        if not value:
            raise ValueError("at least one class is needed")
        if len(set(value.values())) != len(value):
            raise ValueError("two classes have the same value")
        wrong = {name: number for name, number in value.items() if not 1 <= number <= 255}
        if wrong:
            raise ValueError(f"class values are 1 to 255 (0 is the background), not {wrong}")
        return value

    @field_validator("subject_pattern")
    @classmethod
    def _pattern_names_the_subject(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"'{value}' is no regular expression ({error})") from None
            if "subject" not in groups:
                raise ValueError(f"'{value}' needs a group (?P<subject>...)")
        return value

    @field_validator("spacing_mm")
    @classmethod
    def _spacing_is_positive(
        cls, value: tuple[float, float, float] | None
    ) -> tuple[float, float, float] | None:
        if value is not None and min(value) <= 0:
            raise ValueError(f"spacings are millimetres above 0, not {value}")
        return value

    @model_validator(mode="after")
    def _sides_are_classes(self) -> DatasetSpec:
        unknown = sorted({name for names in self.sides.values() for name in names} - set(self.classes))
        if unknown:
            raise ValueError(f"sides names {unknown}, which are not among the classes")
        return self

    @model_validator(mode="after")
    def _metrics_are_of_classes(self) -> DatasetSpec:
        named = self.tolerance_mm if isinstance(self.tolerance_mm, dict) else {}
        for key, names in (("tolerance_mm", set(named)), ("lesions", set(self.lesions))):
            unknown = sorted(names - set(self.classes))
            if unknown:
                raise ValueError(f"{key} names {unknown}, which are not among the classes")
        values = list(named.values()) if named else [self.tolerance_mm]
        if not all(isinstance(value, float) and 0 < value < math.inf for value in values):
            raise ValueError(f"tolerance_mm is in millimetres above 0, not {self.tolerance_mm}")
        return self

    @model_validator(mode="after")
    def _files_fit_the_layout(self) -> DatasetSpec:
        form = parse_files(self.layout, self.files)
        greys: dict[str, Any] = getattr(form, "greys", {}) or getattr(form, "maps", {})
        named = {
            *greys,
            *self.paper_classes,
            *self.quirks.volume_ml,
            *filter(None, [self.quirks.sides_between]),
        }
        unknown = sorted(named - set(self.classes))
        if unknown:
            raise ValueError(
                f"files, quirks or paper_classes name {unknown}, which are not among the classes"
            )
        pair = [self.sides.get("left", ()), self.sides.get("right", ())]
        if self.quirks.sides_between and [len(names) for names in pair] != [1, 1]:
            raise ValueError(
                "quirks.sides_between needs one class under sides.left and one under sides.right"
            )
        return self

    @model_validator(mode="after")
    def _nobody_is_two_people(self) -> DatasetSpec:
        cases = [case for listed in self.subjects.values() for case in listed]
        twice = sorted({case for case in cases if cases.count(case) > 1})
        if twice:
            raise ValueError(f"subjects lists the cases {twice} under two people")
        return self

    @model_validator(mode="after")
    def _shared_people_have_lists(self) -> DatasetSpec:
        # A draw of one dataset knows nothing of the others: the same person could train here and test there.
        lists = self.split.test_subjects is not None and self.split.folds is not None
        if self.people != self.name and self.role != "held-out" and not lists:
            raise ValueError("a shared subject_group needs the lists of split: validation, test and folds")
        return self

    @property
    def people(self) -> str:
        """The namespace of the subject ids: datasets with the same one share people."""
        return self.subject_group or self.name

    def tolerance_of(self, class_name: str) -> float:
        """How far (mm) a predicted surface may lie from the true one and still count as right."""
        if isinstance(self.tolerance_mm, dict):
            return self.tolerance_mm.get(class_name, DEFAULT_TOLERANCE_MM)
        return self.tolerance_mm

    @property
    def raw_files(self) -> Files:
        """The key `files`, in the form of the layout."""
        return parse_files(self.layout, self.files)

    def raw_folder(self, raw_root: Path) -> Path:
        """Where the scans are: <raw_root>/<name>, else the download's own folder there, else the key `raw`.

        So `raw/amos22` serves amos_ct and amos_mr alike. <raw_root>/<name> where there is none of them.
        """
        beside, form = raw_root / self.name, self.raw_files
        filled = finds_any(self.settled_folder(beside), form.patterns, form.where)
        places = () if filled else [raw_root / top for top in form.top]  # an empty folder hides no download
        told = beside if self.raw is None or beside.is_dir() else Path(self.raw)
        return next((place for place in places if finds_any(place, form.patterns, form.where)), told)

    def settled_folder(self, raw: Path) -> Path:
        """The folder from which the patterns count: `raw`, or what the download is called inside it."""
        form = self.raw_files
        return settle_top(raw, form.top, form.patterns, form.where)

    def subject_of(self, case_id: str) -> str:
        """The person a case belongs to. SpecError where `subject_pattern` does not match the id."""
        listed = next((person for person, cases in self.subjects.items() if case_id in cases), None)
        if listed is not None:
            return listed
        if self.subject_pattern is None:
            return case_id
        match = re.search(self.subject_pattern, case_id)
        if match is None:
            raise SpecError(
                f"subject_pattern '{self.subject_pattern}' of dataset {self.name} does not match the case "
                f"'{case_id}': make the pattern fit every case id."
            )
        return match.group("subject")


def list_specs() -> list[str]:
    """Names of the specifications inside the package, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("dataset_specs").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_spec(name_or_path: str | Path) -> DatasetSpec:
    """The specification of that name, or the YAML file at that path. SpecError where it is not valid."""
    text_form = str(name_or_path)
    if text_form.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise SpecError(f"The specification {path} does not exist: give a YAML file or a dataset's name.")
        spec = parse_spec(path.read_text(encoding="utf-8"), str(path), path.parent)
        # A relative folder counts from the specification, wherever the command is called.
        told = None if spec.raw is None else str(path.parent.absolute() / Path(spec.raw).expanduser())
        return spec.model_copy(update={"raw": told})
    known = list_specs()
    if text_form not in known:
        raise SpecError(unknown_name(text_form, known))
    inside = resources.files("dataset_specs")
    text = (inside / f"{text_form}.yaml").read_text(encoding="utf-8")
    spec = parse_spec(text, f"dataset_specs/{text_form}.yaml", inside)
    return named(spec, Path("dataset_specs", f"{text_form}.yaml"))


def named(spec: DatasetSpec, path: Path) -> DatasetSpec:
    if spec.name != path.stem:
        raise SpecError(
            f"A specification has the name of its file, but {path} names itself '{spec.name}': rename one of them."
        )
    return spec


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The sentence for a dataset name nobody knows, with the nearest one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "give one of these names or the path of a YAML file."
    return f"Unknown dataset '{name}': known are {', '.join(names) or 'none'}; {hint}"


def parse_spec(text: str, where: str, folder: Traversable | None = None) -> DatasetSpec:
    """YAML text -> DatasetSpec. `where` names the text in the error's sentence, `folder` holds its split file."""
    try:
        content: Any = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{where} is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise SpecError(f"{where} must hold keys and values (see dataset_specs/README.md), not {content!r}.")
    if isinstance(content.get("split"), dict) and "file" in content["split"]:
        content["split"] = _split_lists(content["split"], where, folder)
    return validated(content, where)


def validated(content: dict[str, Any], where: str) -> DatasetSpec:
    try:
        return DatasetSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{where} is not valid: {_sentence(error)}") from None


def _split_lists(split: dict[str, Any], where: str, folder: Traversable | None) -> dict[str, Any]:
    """`file:` replaced by the lists of subjects that the JSON file beside the specification holds."""
    rest = {key: value for key, value in split.items() if key != "file"}
    parts = ("train", "validation", "test")
    lists: Any = None
    if folder is not None:
        with suppress(OSError, ValueError):
            lists = json.loads(folder.joinpath(*str(split["file"]).split("/")).read_text(encoding="utf-8"))
    valid = isinstance(lists, dict) and set(lists) == set(parts)
    valid = valid and all(isinstance(listed, list) for listed in lists.values())
    people = [str(person) for part in parts for person in lists[part]] if valid else []
    if not valid or len(people) != len(set(people)) or rest.keys() & {"validation_subjects", "test_subjects"}:
        raise SpecError(
            f"{where}: split.file names a JSON file beside it that holds the lists {', '.join(parts)}, nobody in "
            f"two of them, and stands instead of lists in the YAML; '{split['file']}' is none."
        )
    return rest | {f"{part}_subjects": lists[part] for part in parts[1:]}


def _sentence(error: ValidationError) -> str:
    """All of pydantic's findings in one sentence, with the nearest known key for a misspelt one."""
    parts = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            blocks = {"split": SplitSpec.model_fields, "quirks": Quirks.model_fields}
            fields = blocks.get(str(item["loc"][0]), DatasetSpec.model_fields)
            near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1)
            parts.append(f"key '{key}' is unknown" + (f" (did you mean '{near[0]}'?)" if near else ""))
        elif item["type"] == "missing":
            parts.append(f"key '{key}' is missing")
        elif item["type"] == "value_error":
            parts.append((f"{key}: " if key else "") + str(item["ctx"]["error"]))
        else:
            parts.append(f"{key}: {item['msg']}, not {item['input']!r}")
    return "; ".join(parts) + " (the keys are described in dataset_specs/README.md)."


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"key {', '.join(twice)} is given twice")
        return super().construct_mapping(node, deep=deep)
