"""The arrows between modules go one way: every import is drawn from the syntax trees and checked.

ORDER lists all modules from the bottom to the top: a module may import what stands above it in the list, and
nothing that stands below. A new module has to be put into the list, at the place its author means.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dataset_specs", "preprocessing", "iris_pipeline")

ORDER = (
    "dataset_specs",
    # raw folder -> unified store; knows files, geometry, intensities, and no network
    "preprocessing",
    "preprocessing.errors",
    "preprocessing.grid_types",
    "preprocessing.paths",
    "preprocessing.files",
    "preprocessing.lock",
    "preprocessing.progress",
    "preprocessing.parallel",
    "preprocessing.options",
    "preprocessing.patterns",
    "preprocessing.layouts",
    "preprocessing.spec",
    "preprocessing.splits",
    "preprocessing.itk_files",
    "preprocessing.nifti_files",
    "preprocessing.slicer",
    "preprocessing.volume",
    "preprocessing.whole",
    "preprocessing.scan_paths",
    "preprocessing.source",
    "preprocessing.class_names",
    "preprocessing.source_kinds",
    "preprocessing.orientation",
    "preprocessing.geometry",
    "preprocessing.tones",
    "preprocessing.normalise",
    "preprocessing.case",
    "preprocessing.mending",
    "preprocessing.masks",
    "preprocessing.findings",
    "preprocessing.guess",
    "preprocessing.adapters.base",
    "preprocessing.adapters.msd",
    "preprocessing.adapters.files",
    "preprocessing.adapters.frames",
    "preprocessing.adapters.dicom_png",
    "preprocessing.adapters.probability_maps",
    "preprocessing.adapters.quirks",
    "preprocessing.adapters",
    "preprocessing.nnunet",
    "preprocessing.choose",
    "preprocessing.fingerprint",
    "preprocessing.plan",
    "preprocessing.store",
    "preprocessing.run",
    "preprocessing.leaks",
    "preprocessing.check",
    "preprocessing.name_words",
    "preprocessing.generalise",
    "preprocessing.discover",
    "preprocessing.survey",
    "preprocessing.add",
    "preprocessing.phantom_anatomy",
    "preprocessing.phantoms",
    # unified store -> model -> masks -> tables
    "iris_pipeline",
    "iris_pipeline.memory",
    "iris_pipeline.paper",
    "iris_pipeline.provenance",
    "iris_pipeline.metrics",
    "iris_pipeline.surfaces",
    "iris_pipeline.lesions",
    "iris_pipeline.class_scores",
    "iris_pipeline.rows",
    "iris_pipeline.augment",
    "iris_pipeline.crops",
    "iris_pipeline.halved",
    "iris_pipeline.grey_ratios",
    "iris_pipeline.tone_curves",
    "iris_pipeline.made_tones",
    "iris_pipeline.synthetic",
    "iris_pipeline.shapes",
    "iris_pipeline.episode",
    "iris_pipeline.made_episodes",
    "iris_pipeline.episode_config",
    "iris_pipeline.reference_crops",
    "iris_pipeline.episodes",
    "iris_pipeline.model.volume_ops",
    "iris_pipeline.model.blocks",
    "iris_pipeline.model.encoder",
    "iris_pipeline.model.task_encoder",
    "iris_pipeline.model.mask_decoder",
    "iris_pipeline.model.iris",
    "iris_pipeline.model",
    "iris_pipeline.pieces",
    "iris_pipeline.voxel_head",
    "iris_pipeline.grey",
    "iris_pipeline.task",
    "iris_pipeline.task_file",
    "iris_pipeline.losses",
    "iris_pipeline.memory_bank",
    "iris_pipeline.optim",
    "iris_pipeline.precision",
    "iris_pipeline.trained_cases",
    "iris_pipeline.checkpoint",
    "iris_pipeline.shipped",
    "iris_pipeline.averaged",
    "iris_pipeline.not_trained",
    "iris_pipeline.run_log",
    "iris_pipeline.interrupt",
    "iris_pipeline.curriculum",
    "iris_pipeline.train_settings",
    "iris_pipeline.groups",
    "iris_pipeline.weight_mean",
    "iris_pipeline.train_start",
    "iris_pipeline.train",
    "iris_pipeline.sliding_window",
    "iris_pipeline.focus",
    "iris_pipeline.strategies",
    "iris_pipeline.examples",
    "iris_pipeline.pool",
    "iris_pipeline.pose",
    "iris_pipeline.trial",
    "iris_pipeline.grey_weights",
    "iris_pipeline.second_look",
    "iris_pipeline.toning",
    "iris_pipeline.showing",
    "iris_pipeline.kept_showings",
    "iris_pipeline.inbox",
    "iris_pipeline.inputs",
    "iris_pipeline.kept_scans",
    "iris_pipeline.reference_layout",
    "iris_pipeline.references",
    "iris_pipeline.own_queries",
    "iris_pipeline.screening",
    "iris_pipeline.native",
    "iris_pipeline.scan",
    "iris_pipeline.outputs",
    "iris_pipeline.former_masks",
    "iris_pipeline.case_table",
    "iris_pipeline.case_report",
    "iris_pipeline.volumes",
    "iris_pipeline.confidence_fit",
    "iris_pipeline.confidence",
    "iris_pipeline.mask_tables",
    "iris_pipeline.made_from",
    "iris_pipeline.predict",
    "iris_pipeline.retrieval",
    "iris_pipeline.disagreement",
    "iris_pipeline.judging",
    "iris_pipeline.bank_tasks",
    "iris_pipeline.tuning",
    "iris_pipeline.rivals",
    "iris_pipeline.query_tasks",
    "iris_pipeline.kept_task",
    "iris_pipeline.arrays",
    "iris_pipeline.api",
    "iris_pipeline.advisor",
    "iris_pipeline.advice_page",
    "iris_pipeline.predict_split",
    "iris_pipeline.evaluate",
    "iris_pipeline.calibrate",
    "iris_pipeline.run_facts",
    "iris_pipeline.table_format",
    "iris_pipeline.uncertainty",
    "iris_pipeline.tables",
    "iris_pipeline.confidence_table",
    "iris_pipeline.measure_tables",
    "iris_pipeline.comparisons",
    "iris_pipeline.role_tables",
    "iris_pipeline.ablations",
    "iris_pipeline.left_out",
    "iris_pipeline.efficiency",
    "iris_pipeline.paper_tables",
    "iris_pipeline.report_tables",
    "iris_pipeline.nnunet_folders",
    "iris_pipeline.nnunet_export",
    "iris_pipeline.browser",
    "iris_pipeline.pages",
    "iris_pipeline.anatomy",
    "iris_pipeline.embeddings",
    "iris_pipeline.embedding_map",
    "iris_pipeline.overlays",
    "iris_pipeline.layers",
    "iris_pipeline.figures",
    "iris_pipeline.intake",
    "iris_pipeline.report_parts",
    "iris_pipeline.report",
    "iris_pipeline.view",
    "iris_pipeline.view_server",
    "iris_pipeline.cli",
    "iris_pipeline.cli._common",
    "iris_pipeline.cli.prepare",
    "iris_pipeline.cli.add",
    "iris_pipeline.cli._showing",
    "iris_pipeline.cli._models",
    "iris_pipeline.cli._references",
    "iris_pipeline.cli._training",
    "iris_pipeline.cli.train",
    "iris_pipeline.cli._outputs",
    "iris_pipeline.cli._splits",
    "iris_pipeline.cli._from_store",
    "iris_pipeline.cli._from_files",
    "iris_pipeline.cli.predict",
    "iris_pipeline.cli.strategies",
    "iris_pipeline.cli.calibrate",
    "iris_pipeline.cli.tasks",
    "iris_pipeline.cli.advise",
    "iris_pipeline.cli.evaluate",
    "iris_pipeline.cli.tables",
    "iris_pipeline.cli.export",
    "iris_pipeline.cli.report",
    "iris_pipeline.cli.view",
    "iris_pipeline.demo",
)

Arrow = tuple[str, str]


def module_names(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """Dotted name -> file of every module under the packages."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path, packages: tuple[str, ...] = PACKAGES) -> list[Arrow]:
    """(importing module, imported module) of every import statement, wherever in the file it stands.

    Left out: the part below `if __name__ == "__main__"`, where the module is a script and stands on top.
    """
    modules = module_names(root, packages)
    drawn = set()
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not is_script_part(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                drawn |= {(name, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, base]).strip(".")
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    drawn.add((name, whole if whole in modules else base))
    return sorted(drawn)


def is_script_part(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def upward(drawn: list[Arrow], order: tuple[str, ...]) -> list[str]:
    """One sentence for each arrow that does not point from a later module of the order to an earlier one."""
    place = {name: index for index, name in enumerate(order)}
    top = {name.split(".")[0] for name in order}
    sentences = []
    for source, target in drawn:
        if target.split(".")[0] not in top or source == target:
            continue
        if source not in place or target not in place:
            missing = source if source not in place else target
            sentences.append(
                f"{missing} (in the arrow {source} -> {target}) has no place in ORDER; give it one"
            )
        elif place[target] > place[source]:
            sentences.append(f"{source} imports {target}, which stands above it; move the shared part down")
    return sentences


def foreign(drawn: list[Arrow], prefix: str) -> set[str]:
    """Top names outside the standard library and the project that modules under `prefix` import."""
    inside = {target for source, target in drawn if source == prefix or source.startswith(prefix + ".")}
    return {name.split(".")[0] for name in inside} - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.fixture(scope="module")
def drawn() -> list[Arrow]:
    return arrows(ROOT)


def test_every_arrow_points_down(drawn: list[Arrow]) -> None:
    assert len(drawn) > 50, "the imports were not found"
    assert not upward(drawn, ORDER), "\n".join(upward(drawn, ORDER))


def test_order_and_disk_name_the_same_modules() -> None:
    on_disk = set(module_names(ROOT))
    assert on_disk == set(ORDER), (
        f"on disk only: {sorted(on_disk - set(ORDER))}; in ORDER only: {sorted(set(ORDER) - on_disk)}"
    )


def test_model_knows_torch_only(drawn: list[Arrow]) -> None:
    assert foreign(drawn, "iris_pipeline.model") == {"torch"}
    own = {
        target
        for source, target in drawn
        if source.startswith("iris_pipeline.model") and target.split(".")[0] in PACKAGES
    }
    strangers = {
        name for name in own if not name.startswith("iris_pipeline.model") and name != "preprocessing.errors"
    }
    assert not strangers, (
        f"iris_pipeline.model imports {sorted(strangers)}; it may see torch and the errors only"
    )


def test_preprocessing_knows_no_network(drawn: list[Arrow]) -> None:
    allowed = {"numpy", "scipy", "nibabel", "PIL", "SimpleITK", "blosc2", "pydantic", "yaml", "tqdm"}
    strangers = foreign(drawn, "preprocessing") - allowed
    assert not strangers, f"preprocessing imports {sorted(strangers)}; allowed are {sorted(allowed)}"


def test_nobody_imports_the_command_line(drawn: list[Arrow]) -> None:
    cli = "iris_pipeline.cli"
    callers = {source for source, target in drawn if target.startswith(cli) and not source.startswith(cli)}
    assert not callers, f"{sorted(callers)} import {cli}, which stands on top"


def test_the_checker_sees_an_upward_import_a_relative_one_and_a_stranger(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "attic").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    script = "if __name__ == '__main__':\n    from house import attic\n"
    (package / "cellar.py").write_text("def late():\n    from house.roof import tiles\n" + script)
    (package / "roof.py").write_text("import numpy as np\nfrom house import cellar\nfrom . import attic\n")
    (package / "attic" / "__init__.py").write_text("from ..roof import tiles\n")
    drawn = arrows(tmp_path, ("house",))
    assert drawn == [
        ("house.attic", "house.roof"),
        ("house.cellar", "house.roof"),
        ("house.roof", "house.attic"),
        ("house.roof", "house.cellar"),
        ("house.roof", "numpy"),
    ]
    assert upward(drawn, ("house", "house.cellar", "house.attic", "house.roof")) == [
        "house.attic imports house.roof, which stands above it; move the shared part down",
        "house.cellar imports house.roof, which stands above it; move the shared part down",
    ]
    assert upward(drawn, ("house", "house.cellar", "house.roof")) == [
        "house.attic (in the arrow house.attic -> house.roof) has no place in ORDER; give it one",
        "house.cellar imports house.roof, which stands above it; move the shared part down",
        "house.attic (in the arrow house.roof -> house.attic) has no place in ORDER; give it one",
    ]
    assert foreign(drawn, "house") - {"house"} == {"numpy"}
