"""Where a number comes from: the command that was typed and the state of the code that ran."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from iris_pipeline import __version__

CODE = ("dataset_specs", "preprocessing", "iris_pipeline")
SOURCE_ROOT = Path(__file__).resolve().parents[1]


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command as it can be typed again, in the shell's quoting, without the machine's own folders in it.

    An absolute path under the current folder becomes relative to it; of any other only the last part stays.
    """
    return shlex.join([program, *(_without_machine(argument) for argument in arguments)])


def without_machine(command: str) -> str:
    """A command line as it was logged, with absolute paths shortened as in `command_line`."""
    return re.sub(r"(?:^|(?<=[\s'\"=]))/[^\s'\"]+", lambda found: _without_machine(found.group()), command)


def revision(folder: Path = SOURCE_ROOT) -> str:
    """`commit <git describe>` of the code in `folder`, or the package's version where git does not know it.

    "with uncommitted changes" follows where a file of the code itself is changed or new; results are not
    code.
    """
    # Installed into a virtual environment, the package may lie inside a repository that is not its own.
    if _git(folder, "ls-files", "--error-unmatch", *(f"{name}/__init__.py" for name in CODE)) is None:
        return f"iris-pipeline {__version__}"
    described = _git(folder, "describe", "--always", "--tags")
    if not described:
        return f"iris-pipeline {__version__}"
    changed = _git(folder, "status", "--porcelain", "--", *CODE)
    return f"commit {described}" + (" with uncommitted changes" if changed else "")


def made_by(program: str, arguments: Sequence[str]) -> str:
    """The line under every table: the command and the code's state."""
    return f"Made by `{command_line(program, arguments)}` at {revision()}."


def _without_machine(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    try:
        short = str(path.relative_to(Path.cwd()))
    except ValueError:
        short = os.path.join("...", path.name)
    return f"{option}{equals}{short}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git, no repository or no such file."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
