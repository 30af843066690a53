"""Small file helpers: JSON with a schema version, atomic writes, digests, a plain log, what the system refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from preprocessing.errors import IrisError

Model = TypeVar("Model", bound=BaseModel)
UNUSABLE = (IrisError, OSError, MemoryError)
"""What reading one case may raise without costing the others; `refusal` says it in a sentence."""
FULL = (errno.ENOSPC, errno.EDQUOT)
UNNAMED = (*FULL, errno.EFBIG, errno.EIO)  # what writing to an open file meets: the system names no path then
LONGEST_NAME = 255  # bytes, of nearly all file systems
UNFINISHED = re.compile(r"\.\d+(\.tmp|\.part\.nii(\.gz)?)$")
"""How names of `replaced` end: the number of a process, and an ending that nobody else gives."""


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename: a reader never meets half a file."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def hindrance(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not be there yet: a phrase; "" where nothing tells of it."""
    folder = folder.absolute()
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


@contextmanager
def replaced(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """A hidden name beside `path` to write to, of this process alone; it is renamed to `path` at the end, and removed
    where writing failed. The folder is made. ending: of that name, for writers that choose the format by it.

    An OSError about it names `path`, which is what its reader knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_hidden(path.name, f".{os.getpid()}{ending}"))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in UNNAMED):
            error.filename = str(path)
        raise
    finally:
        discard(temporary)


def _hidden(name: str, ending: str) -> str:
    """`.<name><ending>`, the name cut where that is longer than names may be: the final one may just fit."""
    whole = f".{name}{ending}"
    if len(os.fsencode(whole)) <= LONGEST_NAME:
        return whole
    ending = f".{text_digest(name)}{ending}"  # names of one beginning stay apart
    kept = os.fsencode(name)[: LONGEST_NAME - 1 - len(os.fsencode(ending))]
    return f".{kept.decode('utf-8', 'ignore')}{ending}"


def is_unfinished(path: Path) -> bool:
    """Whether a name is one of `replaced`, of a file that is being written or that a killed writer left."""
    return path.name.startswith(".") and bool(UNFINISHED.search(path.name))


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what killed writers of files of these names (a pattern) left of `replaced`, volumes among them.

    Only where nobody else writes now.
    """
    for path in folder.glob(f".{names}.*.*"):
        if is_unfinished(path):
            path.unlink()


def discard(path: Path) -> None:
    """Remove a file if it is there; where that fails, what made it unwanted is the error to be told."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Lists, mappings and plain values as indented JSON; the same content always gives the same bytes."""
    write_text(path, _json_text(content))


def _json_text(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def save_json(path: Path, model: BaseModel) -> None:
    """The same for a model."""
    write_text(path, json_text(model))


def json_text(model: BaseModel) -> str:
    """What `save_json` writes."""
    return _json_text(model.model_dump(mode="json"))


def load_json(path: Path, kind: type[Model], error: type[IrisError], remedy: str) -> Model:
    """What `save_json` wrote.

    `error`, one sentence, where it is missing, broken or of another schema version.
    """
    if not path.is_file():
        raise error(f"{path} does not exist: {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise error(f"{path} is no valid JSON: {remedy}.") from None
    known = kind.model_fields["schema_version"].default
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != known:
        raise error(f"{path} has schema version {found}, this version reads {known}: {remedy}.")
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise error(f"{path} is not valid at '{where}' ({first['msg']}): {remedy}.") from None


def text_digest(text: str) -> str:
    """A short digest of a text, to notice that it changed; file names in it need not be UTF-8."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def file_digest(paths: Iterable[Path | None]) -> str:
    """A short digest of the files' bytes (of all files inside a folder). A missing file counts as empty."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        inside = sorted(path.rglob("*")) if path is not None and path.is_dir() else [path]
        for file in inside:
            digest.update(b"|")
            if file is not None and file.is_file():
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()


def refusal(error: BaseException, whose: str) -> str:
    """One sentence on why something of `whose` (a case, a dataset) cannot be used: `error` is one of UNUSABLE."""
    if isinstance(error, MemoryError):
        return (
            f"{whose} needs more memory than is free: make some free or give fewer --workers, then run again; its "
            "files may be sound."
        )
    if isinstance(error, OSError):
        place = error.filename or f"A file of {whose[:1].lower() + whose[1:]}"
        remedy = "mend its permissions, or make room where the disk is full, then run again"
        if error.errno in FULL:
            remedy = "make room on its disk, then run again"
        elif error.errno == errno.ENAMETOOLONG:
            remedy = "give the scan a shorter name, then run again"
        return f"{place} cannot be read or written ({error.strerror or error}): {remedy}."
    return str(error)


def append_log(path: Path, text: str) -> None:
    """One line with the time behind `path`; the folder is made. What is no UTF-8 (a file's name) is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(f"{datetime.now().isoformat(timespec='seconds')} {text}\n")


def plain_name(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 become `\\xfc` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if unspeakable(name) else name


def unspeakable(name: str) -> bool:
    """Whether a name or path has bytes that are no text by the file system's encoding: no table can hold it."""
    return any("\udc80" <= letter <= "\udcff" for letter in name)


def utf8_problem(name: str) -> str:
    """What is wrong with such a name and what to do, for the end of a sentence."""
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return "is no UTF-8: rename it"
    return "has letters that this locale lacks: set LC_ALL=C.UTF-8 or PYTHONUTF8=1, or rename it"
