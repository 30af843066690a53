"""The small .task file that carries a task: safetensors with its metadata as JSON.

Tokens are float32, each level [1,K,m+1,C_l]. A file holds no image: it can be shared where images may not be.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from iris_pipeline.tasks.grey import GreyEvidence
from iris_pipeline.tasks.task import Deviation, Surroundings, TaskEmbedding, Tuned
from iris_pipeline.tasks.voxel_head import VoxelHead
from preprocessing.errors import TaskError
from preprocessing.normalise import Normalisation
from preprocessing.orientation import Pose
from preprocessing.runtime.files import hindrance, write_bytes
from preprocessing.spec import Modality

SCHEMA_VERSION = 8
"""2: references per class, records of tuning; 3: tokens of the wide view; 4: pose; 5: tuning of the wide view, heads;
6: grey evidence; 7: surroundings; 8: what of these is usual"""
_METADATA_KEY = "iris_task"
"""one key only: safetensors writes several in random order, and equal tasks are equal bytes"""


class _Metadata(BaseModel):
    """What a .task file says beside its tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    class_names: tuple[str, ...]
    class_values: tuple[int, ...]
    levels: int
    wide_levels: int
    has_head: bool
    has_grey: bool
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    normalisation: Normalisation
    intensity_offset: float
    modality: Modality
    pose: Pose
    references: int
    model_hash: str
    made_by: str
    created: str
    reference_hashes: tuple[str, ...]
    class_references: tuple[int, ...]
    tuned: tuple[Tuned, ...]
    largest_pieces: tuple[float, ...]
    surroundings: tuple[Surroundings, ...]
    usual: Deviation


_COUNTED = ("schema_version", "levels", "wide_levels", "has_head", "has_grey")


_HEAD = ("head.inner", "head.inner_bias", "head.outer", "head.outer_bias")
_GREY = ("grey.ratios", "grey.weights")


def check_task_path(path: Path | str) -> None:
    """TaskError where no task file can be written to `path`, as far as folders tell, before minutes are spent."""
    path = Path(path)
    why = "it is a folder" if path.is_dir() else hindrance(path.parent)
    if why:
        raise TaskError(
            f"A task is written to a file, such as liver.task; {path} cannot be one ({why}): choose another -o."
        )


def save_task(path: Path | str, task: TaskEmbedding) -> None:
    """Write a .task file: safetensors, float32 tokens, JSON metadata. Equal tasks give equal bytes."""
    path = Path(path)
    values = {name: getattr(task, name) for name in _Metadata.model_fields if name not in _COUNTED}
    metadata = _Metadata(
        schema_version=SCHEMA_VERSION,
        levels=len(task.tokens),
        wide_levels=len(task.wide_tokens),
        has_head=task.head is not None,
        has_grey=task.grey is not None,
        **values,
    )
    tensors = {f"tokens.{i}": t for i, t in enumerate(task.tokens)}
    tensors |= {f"wide_tokens.{i}": t for i, t in enumerate(task.wide_tokens)}
    if task.head is not None:
        tensors |= dict(zip(_HEAD, task.head.parts, strict=True))
    if task.grey is not None:
        tensors |= dict(zip(_GREY, task.grey.parts, strict=True))
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    content = save(tensors, metadata={_METADATA_KEY: metadata.model_dump_json()})
    try:
        write_bytes(path, content)
    except OSError as error:
        raise TaskError(
            f"The task cannot be written to {path} ({error.strerror}); choose another -o."
        ) from None


def load_task(path: Path | str, expected_model_hash: str | None = None) -> TaskEmbedding:
    """Read a .task file; TaskError if it is missing, damaged, of another schema or of another model."""
    path = Path(path)
    if path.is_dir():
        raise TaskError(
            f"A task is a file that iris_encode made; {path} is a folder: references go with -r, or iris_encode -r."
        )
    if not path.is_file():
        raise TaskError(f"There is no task file {path}; make one with iris_encode -r REFS -o {path.name}.")
    try:
        path.open("rb").close()  # safetensors says of what it may not read that it is not there
    except OSError as error:
        raise TaskError(
            f"The task file {path} cannot be read ({error.strerror}): mend its permissions."
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise TaskError(
            f"{path} is not a readable task file ({error}); make it again with iris_encode."
        ) from None
    if text is None:
        raise TaskError(f"{path} is a safetensors file but no task file; task files are made by iris_encode.")
    metadata = _parse(path, text)
    names = [f"tokens.{i}" for i in range(metadata.levels)]
    wide = [f"wide_tokens.{i}" for i in range(metadata.wide_levels)]
    head = _HEAD if metadata.has_head else ()
    grey = _GREY if metadata.has_grey else ()
    if set(tensors) != {*names, *wide, *head, *grey}:
        raise TaskError(
            f"{path} should hold {', '.join([*names, *wide, *head, *grey])} and holds {', '.join(sorted(tensors))}; "
            "encode it again."
        )
    values = {name: getattr(metadata, name) for name in _Metadata.model_fields if name not in _COUNTED}
    task = TaskEmbedding(
        tokens=tuple(tensors[name] for name in names),
        wide_tokens=tuple(tensors[name] for name in wide),
        head=VoxelHead(*(tensors[name] for name in head)) if head else None,
        grey=GreyEvidence(*(tensors[name] for name in grey)) if grey else None,
        **values,
    )
    if expected_model_hash is not None:
        task.check_model(expected_model_hash)
    return task


def _parse(path: Path, text: str) -> _Metadata:
    """The metadata of a .task file; its version comes first, lest a newer file be called damaged."""
    try:
        version = _Version.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise TaskError(
                f"This version reads task files of schema {SCHEMA_VERSION}; {path} is of schema {version}: "
                "use the version that wrote it, or encode the references again."
            )
        return _Metadata.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise TaskError(
            f"{path} has unreadable metadata ({where}: {problem['msg']}); encode it again."
        ) from None


class _Version(BaseModel):
    schema_version: int
