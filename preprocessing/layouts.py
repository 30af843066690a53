"""Where a layout's files lie: the validated form of the keys `files:` and `quirks:` of a specification.

A layout is a way to keep scans; each has its own keys, all of them data, so that a new dataset needs a YAML
file and no code. Every key is documented in dataset_specs/README.md. Spacings are (z,y,x) in mm.
"""

from __future__ import annotations

import difflib
import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from preprocessing.grid_types import Triple
from preprocessing.patterns import placeholders

Patterns = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]


class Files(BaseModel):
    """What every layout knows. `top`: what the download's own folder is called, e.g. ACDC/database.

    where: named part of a pattern -> regular expression of what it may stand for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: Patterns = ()
    where: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rules_are_expressions(self) -> Files:
        for name, rule in self.where.items():
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"where.{name}: '{rule}' is no regular expression ({error})") from None
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those by which the top folder is known."""
        return ()


class FolderFiles(Files):
    """imagesTr/ and labelsTr/. `channel`: of nnU-Net's image files that end in _0000, _0001, ..., or in one 4D file."""

    channel: int | None = Field(default=None, ge=0, le=9999)

    @property
    def patterns(self) -> tuple[str, ...]:
        return ("imagesTr/*",)


class _Pairs(Files):
    image: Patterns = Field(min_length=1)
    case: str = "{case}"

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.image

    def named(self) -> dict[str, tuple[str, ...]]:
        """Key -> the patterns that must tell which case they belong to."""
        return {"image": self.image}

    def given(self) -> set[str]:
        """Named parts of the case id that do not come from a path."""
        return set()

    @model_validator(mode="after")
    def _every_pattern_tells_the_case(self) -> _Pairs:
        if not placeholders(self.case):
            raise ValueError(f"case: '{self.case}' needs a named part such as {{case}}")
        needed = placeholders(self.case) - self.given()
        for key, patterns in self.named().items():
            for pattern in patterns:
                if not needed <= placeholders(pattern):
                    parts = ", ".join(f"{{{name}}}" for name in sorted(needed))
                    raise ValueError(f"{key}: '{pattern}' must hold {parts}, of which the case id is made")
        return self


class PairFiles(_Pairs):
    """One image file and one label file a case, or by {class} in `labels` one mask file a class.

    numbered: {number} is the place of this part among its like. subject: the named parts that are the person.
    """

    labels: Patterns = Field(min_length=1)
    numbered: str | None = None
    subject: str | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        return (*self.image, *self.labels)

    def named(self) -> dict[str, tuple[str, ...]]:
        return {"image": self.image, "labels": self.labels}

    def given(self) -> set[str]:
        return {"number"} if self.numbered else set()

    @model_validator(mode="after")
    def _person_and_class_are_told(self) -> PairFiles:
        wanted = placeholders(self.subject or "")
        if self.subject and not (wanted and wanted <= placeholders(self.case)):
            raise ValueError(f"subject: '{self.subject}' is made of named parts of case: '{self.case}'")
        of_class = ["{class}" in pattern for pattern in self.labels]
        if (any(of_class) and not all(of_class)) or any("{class}" in pattern for pattern in self.image):
            raise ValueError("{class} stands in all patterns of labels or in none, and never in image")
        return self


class FrameFiles(_Pairs):
    """Frames of a series in time. Which are labelled says a table (one row a subject) or a file a subject.

    frames: the columns or keys with their numbers. first: the number of the first frame, 0 or 1.
    """

    labels: Patterns = Field(min_length=1)
    frames: tuple[str, ...] = Field(min_length=1)
    first: Literal[0, 1] = 0
    table: Patterns = ()
    key: str = ""
    info: Patterns = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        return (*self.image, *self.labels)

    def named(self) -> dict[str, tuple[str, ...]]:
        return {"image": self.image, "labels": self.labels, "info": self.info}

    def given(self) -> set[str]:
        return {"frame", "phase"}

    @model_validator(mode="after")
    def _one_place_names_the_frames(self) -> FrameFiles:
        if bool(self.table) == bool(self.info) or bool(self.table) != bool(self.key):
            raise ValueError("give either table and key (one table for all), or info (a file a subject)")
        if self.table and "case" not in placeholders(self.case):
            raise ValueError(f"case: '{self.case}' needs {{case}}, which the column '{self.key}' holds")
        return self


class SeriesVolume(BaseModel):
    """image: folder of a DICOM series; masks: of its PNG masks; masks_of: of the series they were drawn on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    masks: str
    masks_of: str | None = None


class SeriesFiles(Files):
    """DICOM series with PNG masks. volumes: name -> its folders. greys: class -> the grey values (low, high]."""

    volumes: dict[str, SeriesVolume] = Field(min_length=1)
    greys: dict[str, tuple[int, int]] = Field(min_length=1)
    case: str = "{case}_{volume}"

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(volume.image for volume in self.volumes.values())

    @model_validator(mode="after")
    def _parts_agree(self) -> SeriesFiles:
        needed = placeholders(self.case) - {"volume"}
        for name, volume in self.volumes.items():
            for pattern in (volume.image, volume.masks, volume.masks_of or volume.image):
                if placeholders(pattern) != needed or not needed:
                    parts = ", ".join(f"{{{part}}}" for part in sorted(needed)) or "{case}"
                    raise ValueError(f"volumes.{name}: '{pattern}' must hold {parts} and no other named part")
        bounds = sorted(self.greys.values())
        overlap = any(high > low for (_, high), (low, _) in pairwise(bounds))
        if overlap or any(not 0 <= low < high <= 255 for low, high in bounds):
            raise ValueError(
                f"greys are ranges [low, high] inside 0..255 that do not overlap, not {self.greys}"
            )
        return self


class MapFiles(_Pairs):
    """One probability map a class. above: a voxel whose largest probability is not above it is background."""

    maps: dict[str, Patterns] = Field(min_length=1)
    above: float = Field(default=0.0, ge=0, lt=1)

    @property
    def patterns(self) -> tuple[str, ...]:
        return (*self.image, *(pattern for patterns in self.maps.values() for pattern in patterns))

    def named(self) -> dict[str, tuple[str, ...]]:
        return {"image": self.image} | {f"maps.{name}": each for name, each in self.maps.items()}


FORMS: dict[str, type[Files]] = {
    "msd": FolderFiles,
    "files": PairFiles,
    "frames": FrameFiles,
    "dicom_png": SeriesFiles,
    "probability_maps": MapFiles,
}


class Quirks(BaseModel):
    """What the files of a dataset are known to get wrong, and what is done about it.

    values: value in the file -> the value it means. ignored_values become background. label_grid: what to do
    where a label map lies on another grid: refuse it, resample it, or take the image's place for its own.
    sides_between: a class between the two of `sides`, which are told apart by where they lie. spacing_mm: case ->
    the spacing (z,y,x) that its header should hold. doubtful_spacing_mm: a placeholder that is kept and named.
    volume_ml: class -> (least, most) in one case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: dict[int, int] = Field(default_factory=dict)
    ignored_values: tuple[int, ...] = ()
    label_grid: Literal["same", "resample", "image"] = "same"
    sides_between: str | None = None
    nearest_rotation: bool = False
    spacing_mm: dict[str, Triple] = Field(default_factory=dict)
    doubtful_spacing_mm: Triple | None = None
    volume_ml: dict[str, tuple[float, float]] = Field(default_factory=dict)


def parse_files(layout: str, content: dict[str, Any]) -> Files:
    """The `files:` block of a layout. ValueError, one sentence, where it is not valid or the layout unknown."""
    if layout not in FORMS:
        raise ValueError(f"layout '{layout}' is unknown: known are {', '.join(sorted(FORMS))}")
    form = FORMS[layout]
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise ValueError("; ".join(_finding(item, form) for item in error.errors())) from None


def _finding(item: Any, form: type[Files]) -> str:
    key = ".".join(["files", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), form.model_fields, n=1)
        return f"key '{key}' is unknown" + (f" (did you mean '{near[0]}'?)" if near else "")
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}"
    return f"{key}: {item['msg']}, not {item['input']!r}"
