"""What the pages tell a user to type exists: options, and the headings that links lead to."""

from __future__ import annotations

import importlib
import re
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]
PAGES = ["README.md", "results/README.md", "iris_pipeline/weights/README.md", "dataset_specs/README.md"]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OF_OTHERS = {"--extra-index-url", "--verify_dataset_integrity"}
"""pip's and nnU-Net's"""


@lru_cache
def options_of(program: str) -> frozenset[str]:
    """The long options that a program's --help names."""
    module, function = PROGRAMS[program].split(":")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(
            "argparse.ArgumentParser._print_message", lambda _self, text, _file=None: said.append(text)
        )
        with pytest.raises(SystemExit):
            getattr(importlib.import_module(module), function)(["--help"])
    return frozenset(OPTION.findall("".join(said)))


def commands(text: str) -> list[str]:
    """The command lines of a page's fenced blocks, those that go on after a backslash as one."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in joined.splitlines() if line.startswith("iris_")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_they_are_shown_with(page: str) -> None:
    for line in commands((ROOT / page).read_text(encoding="utf-8")):
        unknown = set(OPTION.findall(line)) - options_of(line.split()[0])
        assert not unknown, f"{page}: '{line}' has {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("page", PAGES)
def test_options_in_prose_are_those_of_a_command(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    beside = set(OPTION.findall((ROOT / "benchmarks/nnunet_beside.py").read_text(encoding="utf-8")))
    known = OF_OTHERS.union(beside, *(options_of(program) for program in PROGRAMS))
    assert set(OPTION.findall(text)) <= known


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_to_headings_lead_to_one(page: str) -> None:
    """GitHub's rule: lower case, what is no letter, digit, hyphen or underscore dropped, spaces as hyphens."""
    text = (ROOT / page).read_text(encoding="utf-8")
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    there = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    wanted = set(re.findall(r"\]\(#([^)\s]+)\)", re.sub(r"\s*\n\s*", " ", text)))
    assert wanted <= there
