"""House rules that nobody wants to check by eye: file lengths, no pickle, no stray print, one version."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dataset_specs", "preprocessing", "iris_pipeline")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAX_LINES = 400
PICKLE_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "cloudpickle"}
# After a quote, a blank or a bracket, so that neither an address nor a relative path matches.
ABSOLUTE_PATH = re.compile(
    r"""(?:^|[\s"'`(=])(/(?:home|root|work|tmp|mnt|opt|usr/local|Users|data|scratch)/|[A-Z]:\\)"""
)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> list[Path]:
    """Every text file of the repository that a person wrote."""
    kept = [*python_files(*PACKAGES, "benchmarks", "tests"), *(ROOT / "dataset_specs").glob("*.yaml")]
    kept += [*ROOT.glob("*.md"), *(ROOT / "dataset_specs").glob("*.md"), *(ROOT / "results").glob("*.md")]
    kept += [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")]
    return sorted(kept)


def pickle_uses(tree: ast.AST) -> Iterator[str]:
    """What could load or write a pickle: modules that do, torch.load, torch.save, allow_pickle=True."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PICKLE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLE_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "torch.save"}:
            yield ast.unparse(node)
        elif (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            yield "allow_pickle"


def is_command(node: ast.stmt) -> bool:
    """Code of a command: `main`, what takes parsed arguments, and the `if __name__ == "__main__"` part."""
    if isinstance(node, ast.FunctionDef):
        takes = {ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation}
        return node.name == "main" or "argparse.Namespace" in takes
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def prints(tree: ast.Module) -> list[int]:
    """Lines of print calls outside the code of commands."""
    return [
        child.lineno
        for node in tree.body
        if not is_command(node)
        for child in ast.walk(node)
        if isinstance(child, ast.Call) and ast.unparse(child.func) == "print"
    ]


def requirement_name(line: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    return re.sub(r"[-_.]+", "-", name.group()).lower() if name else ""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {requirement_name(name): release for name, release in pairs}


def test_files_can_be_held_in_the_head() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PACKAGES, "benchmarks", "tests")
    }
    assert len(lengths) > 20, "the files were not found"
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not too_long, f"at most {MAX_LINES} lines a file; split {too_long}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("torch.load(path)", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("np.load(path, allow_pickle=False)", []),
        ("json.load(file)", []),
    ],
)
def test_pickle_is_seen(code: str, found: list[str]) -> None:
    assert list(pickle_uses(ast.parse(code))) == found


def test_no_pickle_is_read_or_written() -> None:
    uses = {
        path.name: list(pickle_uses(ast.parse(path.read_text("utf-8")))) for path in python_files(*PACKAGES)
    }
    assert not {name: found for name, found in uses.items() if found}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('open("/home/me/scan.nii.gz")', True),
        ("see /tmp/out for it", True),
        ("folder = C:\\scans", True),
        ("./imagesTr/case.nii.gz", False),
        ("https://example.org/data/set", False),
        ("images/ + labels/", False),
    ],
)
def test_absolute_paths_are_seen(text: str, matches: bool) -> None:
    assert bool(ABSOLUTE_PATH.search(text)) == matches


def test_no_absolute_paths() -> None:
    files = [path for path in text_files() if path != Path(__file__).resolve()]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ABSOLUTE_PATH.search(line)
    ]
    assert len(files) > 40, "the files were not found"
    assert not found, "\n".join(found)


def test_no_module_takes_the_callers_matplotlib() -> None:
    """Choosing a backend, or pyplot's, at import would end the figures of the notebook that imports us."""
    files = python_files("preprocessing", "iris_pipeline")
    found = [
        path.name for path in files if re.search(r"pyplot import|matplotlib\.use\(", path.read_text("utf-8"))
    ]
    found += [
        path.name for path in files if re.search(r"import (matplotlib\.)?pyplot", path.read_text("utf-8"))
    ]
    assert not found


def test_only_the_command_line_prints() -> None:
    code = "def main():\n print(1)\ndef other():\n print(2)\ndef do(a: argparse.Namespace):\n print(3)\n"
    assert prints(ast.parse(code)) == [4]
    command_line = ("iris_pipeline/cli/", "iris_pipeline/demo.py", "preprocessing/runtime/options.py")
    library = [
        path
        for path in python_files(*PACKAGES)
        if not path.relative_to(ROOT).as_posix().startswith(command_line)
    ]
    found = {path.name: prints(ast.parse(path.read_text(encoding="utf-8"))) for path in library}
    assert not {name: lines for name, lines in found.items() if lines}


def test_versions_agree() -> None:
    import iris_pipeline

    project = PYPROJECT["project"]
    assert version("iris-pipeline") == project["version"] == iris_pipeline.__version__
    # A heading "Unreleased" may stand above it.
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None and newest.group(1) == project["version"]


def test_one_python_version_everywhere() -> None:
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert "(3, 11)" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_to_what_it_asks_for() -> None:
    from packaging.requirements import Requirement

    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = [Requirement(line) for line in project["dependencies"] + extras]
    pinned = pins()
    for requirement in wanted:
        release = pinned.get(requirement_name(requirement.name))
        assert release is not None, f"constraints.txt has no line for {requirement.name}"
        assert release in requirement.specifier, (
            f"constraints.txt pins {release}, pyproject says {requirement}"
        )
    assert pinned["torch"] == "2.13.0"  # without a local tag: the CPU and the CUDA build both fit
    assert not [name for name, release in pinned.items() if "+" in release or "/" in release]
    assert not {"torchvision", "timm", "nnunetv2"} & set(pinned), "they replace torch"


def test_every_package_is_installed() -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in python_files(*PACKAGES)
        if path.name == "__init__.py"
    }
    chosen = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    assert chosen.pop("namespaces") is False, "a folder of data is no package"
    assert on_disk == set(find_packages(str(ROOT), **chosen))


@pytest.mark.parametrize(("script", "target"), sorted(PYPROJECT["project"]["scripts"].items()))
def test_console_scripts_lead_somewhere(script: str, target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), f"{script} -> {target}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "dataset_specs/README.md"])
def test_pages_name_commands_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\biris_[a-z_]+\b", text)) - {"iris_pipeline"}
    assert named <= set(PYPROJECT["project"]["scripts"]), f"{page} names commands that do not exist"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets
    for module in set(re.findall(r"python -m ((?:preprocessing|iris_pipeline)[\w.]*)", text)):
        assert importlib.util.find_spec(module) is not None, f"{page}: no module {module}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dataset_specs/README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    gone = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not gone, f"{page} links to {gone}, which are not there"
