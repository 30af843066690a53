"""The arrows between modules go one way: every import is drawn from the syntax trees and checked.

ORDER lists all modules from the bottom of the house to the top: a module may import what comes before it in the list,
and nothing that comes after. A new module has to be put into the list, at the place its author means.
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
    "preprocessing.runtime",
    "preprocessing.runtime.paths",
    "preprocessing.runtime.files",
    "preprocessing.runtime.lock",
    "preprocessing.runtime.progress",
    "preprocessing.runtime.parallel",
    "preprocessing.runtime.options",
    "preprocessing.patterns",
    "preprocessing.layouts",
    "preprocessing.spec",
    "preprocessing.splits",
    "preprocessing.formats",
    "preprocessing.formats.itk_files",
    "preprocessing.formats.nifti_files",
    "preprocessing.formats.slicer",
    "preprocessing.volume",
    "preprocessing.orientation",
    "preprocessing.geometry",
    "preprocessing.tones",
    "preprocessing.normalise",
    "preprocessing.case",
    "preprocessing.sources",
    "preprocessing.sources.whole",
    "preprocessing.sources.scan_paths",
    "preprocessing.sources.source",
    "preprocessing.sources.class_names",
    "preprocessing.sources.source_kinds",
    "preprocessing.sources.mending",
    "preprocessing.sources.masks",
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
    "preprocessing.adding",
    "preprocessing.adding.name_words",
    "preprocessing.adding.generalise",
    "preprocessing.adding.discover",
    "preprocessing.adding.survey",
    "preprocessing.adding.add",
    "preprocessing.phantom_anatomy",
    "preprocessing.phantoms",
    # unified store -> model -> masks -> tables
    "iris_pipeline",
    "iris_pipeline.memory",
    "iris_pipeline.paper",
    "iris_pipeline.provenance",
    "iris_pipeline.measures",
    "iris_pipeline.measures.metrics",
    "iris_pipeline.measures.surfaces",
    "iris_pipeline.measures.lesions",
    "iris_pipeline.measures.class_scores",
    "iris_pipeline.measures.rows",
    "iris_pipeline.model.volume_ops",
    "iris_pipeline.model.blocks",
    "iris_pipeline.model.encoder",
    "iris_pipeline.model.task_encoder",
    "iris_pipeline.model.mask_decoder",
    "iris_pipeline.model.iris",
    "iris_pipeline.model",
    "iris_pipeline.tasks",
    "iris_pipeline.tasks.grey_ratios",
    "iris_pipeline.tasks.tone_curves",
    "iris_pipeline.tasks.pieces",
    "iris_pipeline.tasks.voxel_head",
    "iris_pipeline.tasks.grey",
    "iris_pipeline.tasks.task",
    "iris_pipeline.tasks.task_file",
    "iris_pipeline.sampling",
    "iris_pipeline.sampling.augment",
    "iris_pipeline.sampling.crops",
    "iris_pipeline.sampling.halved",
    "iris_pipeline.sampling.made_tones",
    "iris_pipeline.sampling.synthetic",
    "iris_pipeline.sampling.shapes",
    "iris_pipeline.sampling.episode",
    "iris_pipeline.sampling.made_episodes",
    "iris_pipeline.sampling.episode_config",
    "iris_pipeline.sampling.reference_crops",
    "iris_pipeline.sampling.episodes",
    "iris_pipeline.checkpoints",
    "iris_pipeline.checkpoints.memory_bank",
    "iris_pipeline.checkpoints.trained_cases",
    "iris_pipeline.checkpoints.checkpoint",
    "iris_pipeline.checkpoints.shipped",
    "iris_pipeline.checkpoints.averaged",
    "iris_pipeline.checkpoints.not_trained",
    "iris_pipeline.training",
    "iris_pipeline.training.losses",
    "iris_pipeline.training.optim",
    "iris_pipeline.training.precision",
    "iris_pipeline.training.run_log",
    "iris_pipeline.training.interrupt",
    "iris_pipeline.training.curriculum",
    "iris_pipeline.training.train_settings",
    "iris_pipeline.training.groups",
    "iris_pipeline.training.weight_mean",
    "iris_pipeline.training.train_start",
    "iris_pipeline.training.train",
    "iris_pipeline.inference",
    "iris_pipeline.inference.sliding_window",
    "iris_pipeline.inference.focus",
    "iris_pipeline.inference.strategies",
    "iris_pipeline.inference.examples",
    "iris_pipeline.inference.pool",
    "iris_pipeline.inference.retrieval",
    "iris_pipeline.inference.tuning",
    "iris_pipeline.search",
    "iris_pipeline.search.pose",
    "iris_pipeline.search.trial",
    "iris_pipeline.search.grey_weights",
    "iris_pipeline.search.second_look",
    "iris_pipeline.search.toning",
    "iris_pipeline.search.showing",
    "iris_pipeline.search.kept_showings",
    "iris_pipeline.scans",
    "iris_pipeline.scans.inbox",
    "iris_pipeline.scans.inputs",
    "iris_pipeline.scans.kept_scans",
    "iris_pipeline.scans.reference_layout",
    "iris_pipeline.scans.references",
    "iris_pipeline.scans.screening",
    "iris_pipeline.scans.native",
    "iris_pipeline.scans.scan",
    "iris_pipeline.scans.outputs",
    "iris_pipeline.scans.former_masks",
    "iris_pipeline.scans.case_table",
    "iris_pipeline.scans.case_report",
    "iris_pipeline.scans.volumes",
    "iris_pipeline.confidence",
    "iris_pipeline.confidence.confidence_fit",
    "iris_pipeline.confidence.calibration",
    "iris_pipeline.confidence.disagreement",
    "iris_pipeline.confidence.judging",
    "iris_pipeline.prediction",
    "iris_pipeline.prediction.own_queries",
    "iris_pipeline.prediction.mask_tables",
    "iris_pipeline.prediction.made_from",
    "iris_pipeline.prediction.predict",
    "iris_pipeline.prediction.bank_tasks",
    "iris_pipeline.prediction.rivals",
    "iris_pipeline.prediction.query_tasks",
    "iris_pipeline.prediction.kept_task",
    "iris_pipeline.prediction.arrays",
    "iris_pipeline.prediction.predict_split",
    "iris_pipeline.evaluation",
    "iris_pipeline.evaluation.advisor",
    "iris_pipeline.evaluation.evaluate",
    "iris_pipeline.evaluation.calibrate",
    "iris_pipeline.tables",
    "iris_pipeline.tables.run_facts",
    "iris_pipeline.tables.table_format",
    "iris_pipeline.tables.uncertainty",
    "iris_pipeline.tables.result_tables",
    "iris_pipeline.tables.confidence_table",
    "iris_pipeline.tables.measure_tables",
    "iris_pipeline.tables.comparisons",
    "iris_pipeline.tables.draws_table",
    "iris_pipeline.tables.role_tables",
    "iris_pipeline.tables.ablations",
    "iris_pipeline.tables.left_out",
    "iris_pipeline.tables.efficiency",
    "iris_pipeline.tables.paper_tables",
    "iris_pipeline.tables.report_tables",
    "iris_pipeline.nnunet",
    "iris_pipeline.nnunet.folders",
    "iris_pipeline.nnunet.export",
    "iris_pipeline.pages",
    "iris_pipeline.pages.advice_page",
    "iris_pipeline.pages.browser",
    "iris_pipeline.pages.environment",
    "iris_pipeline.pages.anatomy",
    "iris_pipeline.pages.embeddings",
    "iris_pipeline.pages.embedding_map",
    "iris_pipeline.pages.overlays",
    "iris_pipeline.pages.layers",
    "iris_pipeline.pages.figures",
    "iris_pipeline.pages.intake",
    "iris_pipeline.pages.report_parts",
    "iris_pipeline.pages.report",
    "iris_pipeline.pages.view",
    "iris_pipeline.pages.view_server",
    "iris_pipeline.api",
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
            sentences.append(
                f"{source} imports {target}, which comes after it in ORDER; move the shared part down"
            )
    return sentences


def scattered(order: tuple[str, ...]) -> list[str]:
    """Packages whose modules do not stand side by side: two such packages could import each other."""
    packages = sorted({name[:dot] for name in order for dot, sign in enumerate(name) if sign == "."})
    found = []
    for package in packages:
        places = [at for at, name in enumerate(order) if name == package or name.startswith(f"{package}.")]
        if places[-1] - places[0] + 1 != len(places):
            found.append(package)
    return found


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


def test_a_package_stands_in_one_piece() -> None:
    assert not scattered(ORDER)
    assert scattered(("a", "a.low", "a.low.x", "a.high", "a.low.y", "b", "a.z")) == ["a", "a.low"]


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
        "house.attic imports house.roof, which comes after it in ORDER; move the shared part down",
        "house.cellar imports house.roof, which comes after it in ORDER; move the shared part down",
    ]
    assert upward(drawn, ("house", "house.cellar", "house.roof")) == [
        "house.attic (in the arrow house.attic -> house.roof) has no place in ORDER; give it one",
        "house.cellar imports house.roof, which comes after it in ORDER; move the shared part down",
        "house.attic (in the arrow house.roof -> house.attic) has no place in ORDER; give it one",
    ]
    assert foreign(drawn, "house") - {"house"} == {"numpy"}
