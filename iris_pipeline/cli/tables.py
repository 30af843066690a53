"""iris_tables: tables of all runs. iris_benchmark: what a model costs on this machine, for one of these tables."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import load_model
from iris_pipeline.cli._common import at_least_one, choose_device, run
from iris_pipeline.cli._models import find_run
from iris_pipeline.model import SIZES, build_iris
from iris_pipeline.provenance import command_line, made_by, revision
from iris_pipeline.tables.efficiency import (
    CLASSES,
    EDGE_VOXELS,
    FOLDER,
    QUERIES,
    efficiency_table,
    measure_efficiency,
    read_measurements,
)
from iris_pipeline.tables.report_tables import all_tables
from iris_pipeline.tables.table_format import to_markdown, write_tables
from preprocessing.runtime.files import save_json
from preprocessing.runtime.options import add_root_option
from preprocessing.runtime.paths import Root


def tables_main(argv: list[str] | None = None) -> int:
    """`iris_tables`: the evaluations of all runs, or of those named, as results/tables.md, CSV and LaTeX files."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_tables",
        description="Result tables of all runs in a folder, as Markdown, CSV and LaTeX.",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="only these runs (default: all that were evaluated)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="paired test of two rows, each RUN or RUN/STRATEGY, subject by subject; can be repeated",
    )
    parser.add_argument(
        "--results", metavar="FOLDER", help="folder that holds the runs (default: results/ under the root)"
    )
    parser.add_argument(
        "-o", metavar="OUT", help="folder for tables.md and tables/ (default: the folder of the runs)"
    )
    add_root_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _tables_command(arguments, made_by("iris_tables", argv)))


def _tables_command(arguments: argparse.Namespace, line: str) -> int:
    root = Root.resolve(arguments.root)
    if arguments.results:
        root = replace(root, results=Path(arguments.results).expanduser())
    tables = all_tables(root, arguments.runs or None, arguments.compare)
    out = Path(arguments.o) if arguments.o else root.results
    out.mkdir(parents=True, exist_ok=True)
    page = write_tables(tables, out, line)
    print(page.read_text(encoding="utf-8"))
    print(f"Written: {page} and {len(tables)} tables as CSV and LaTeX in {page.parent / 'tables'}")
    return 0


def benchmark_main(argv: list[str] | None = None) -> int:
    """`iris_benchmark`: seconds, memory and parameters of a model, kept under results/efficiency."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_benchmark",
        description="Seconds and memory for 10 queries, 1 reference and 15 classes on this machine (the paper's Table "
        "3), kept for iris_tables.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-m", "--model", metavar="RUN", help="a run under results/ or its path")
    which.add_argument(
        "--size",
        choices=list(SIZES),
        help="instead of a run, an untrained network of this size (it takes the same time)",
    )
    parser.add_argument("--queries", type=at_least_one, default=QUERIES, help="default: %(default)s")
    parser.add_argument("--classes", type=at_least_one, default=CLASSES, help="default: %(default)s")
    parser.add_argument(
        "--edge",
        type=at_least_one,
        default=EDGE_VOXELS,
        help="voxels along a cube's edge (default: %(default)s)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32", help="default: %(default)s")
    add_root_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _benchmark_command(arguments, command_line("iris_benchmark", argv)))


def _benchmark_command(arguments: argparse.Namespace, command: str) -> int:
    root = Root.resolve(arguments.root)
    device = choose_device(arguments.device)
    if arguments.size:
        model, name = build_iris(arguments.size, seed=0), f"Iris {arguments.size}"
    else:
        folder = find_run(root.results, arguments.model)
        model, name = load_model(folder).model, folder.resolve().name
    code = revision()
    measured = measure_efficiency(
        model,
        name,
        queries=arguments.queries,
        classes=arguments.classes,
        edge_voxels=arguments.edge,
        device=device,
        autocast=arguments.precision == "bf16",
        code=code,
        command=command,
    )
    path = Path(root.results) / FOLDER / measured.file_name
    save_json(path, measured)
    table = efficiency_table([measured])
    assert table is not None
    print(to_markdown(table, f"Made by `{command}` at {code}."))
    print(
        f"Written: {path}; iris_tables sets it beside the {len(read_measurements(path.parent))} measured so far."
    )
    return 0
