"""The task that references became, kept beside the masks: a rerun over further scans does not make it again.

Making it takes minutes, a search for pose and scale or steps of tuning, and a nightly job would pay them for nothing.
The file's name says from what it was made; what is asked for otherwise makes another one. It is a task file like any,
for -t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from iris_pipeline import __version__
from iris_pipeline.references import ReferenceFiles
from iris_pipeline.sliding_window import InferenceOptions
from iris_pipeline.task import TaskEmbedding
from iris_pipeline.task_file import load_task, save_task
from preprocessing.errors import TaskError
from preprocessing.files import file_digest


def request_name(model_hash: str, files: ReferenceFiles, options: InferenceOptions, **asked: object) -> str:
    """references-<12 hex digits>.task: over the content of the references and all that a task depends on.

    asked: how they become one, the arguments of `encode_files`. Device and precision have no say: "auto" may choose
    others tomorrow, and the results would be called made otherwise.
    """
    machine = InferenceOptions()
    same = replace(options, device=machine.device, autocast=machine.autocast, batch_size=machine.batch_size)
    said: list[object] = [__version__, model_hash, sorted(asked.items()), same, list(files.classes.items())]
    for case in files.cases:
        said += [case.id, case.subject, str(case.image), str(case.labels)]
        said += [file_digest(source.files) for source in (case.image, case.labels) if source is not None]
    return f"references-{hashlib.sha256(repr(said).encode()).hexdigest()[:12]}.task"


def kept_task(path: Path, make: Callable[[], TaskEmbedding]) -> tuple[TaskEmbedding, bool]:
    """The task that is kept at `path`, or the one that `make` makes, which is kept there in the place of others; and
    whether it was there. A file that cannot be read is made anew.
    """
    if path.is_file():
        try:
            return load_task(path), True
        except TaskError:
            pass
    save_task(path, make())
    for other in path.parent.glob("references-*.task"):
        if other.name != path.name:
            other.unlink()
    return load_task(path), False
