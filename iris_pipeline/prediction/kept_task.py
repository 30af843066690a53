"""The task that references became, kept beside the masks: a rerun over further scans does not make it again.

Making it takes minutes, a search for pose and scale or steps of tuning, and a nightly job would pay them for nothing.
The file's name says from what it was made; what is asked for otherwise makes another one. It is a task file like any,
for -t.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from iris_pipeline import __version__
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.scans.references import ReferenceFiles
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.errors import TaskError
from preprocessing.fingerprint import case_digest
from preprocessing.runtime.files import text_digest

KEPT = re.compile(r"references-[0-9a-f]{12}\.task")


def request_name(model_hash: str, files: ReferenceFiles, options: InferenceOptions, **asked: object) -> str:
    """references-<12 hex digits>.task: over the content of the references and all that a task depends on.

    asked: how they become one, the arguments of `encode_files`. Where the references lie has no say, and neither have
    device and precision: "auto" may choose others tomorrow, and the results would be called made otherwise.
    """
    machine = InferenceOptions()
    same = replace(options, device=machine.device, autocast=machine.autocast, batch_size=machine.batch_size)
    said: list[object] = [__version__, model_hash, sorted(asked.items()), same, *_content_of(files)]
    return f"references-{text_digest(repr(said))[:12]}.task"


def references_digest(files: ReferenceFiles) -> str:
    """Over the content of the references: by whatever precision they are encoded, and wherever they lie, it is one."""
    return text_digest(repr(_content_of(files)))


def contents_digest(files: ReferenceFiles) -> str:
    """Over the content of the references alone: neither their names nor their order, people and classes count."""
    return text_digest(" ".join(sorted(case_digest(case) for case in files.cases)))


def _content_of(files: ReferenceFiles) -> list[object]:
    return [list(files.classes.items()), *((c.id, c.subject, case_digest(c)) for c in files.cases)]


def kept_task(path: Path) -> TaskEmbedding | None:
    """The task that is kept at `path`; None where there is none, or one that cannot be read."""
    try:
        return load_task(path) if path.is_file() else None
    except TaskError:
        return None


def keep_task(path: Path, task: TaskEmbedding) -> None:
    """Keep it at `path`, in the place of those that were kept beside it. Only where the folder is this run's."""
    save_task(path, task)
    for other in path.parent.iterdir():
        if KEPT.fullmatch(other.name) and other.name != path.name:
            other.unlink(missing_ok=True)
