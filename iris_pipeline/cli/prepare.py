"""iris_check, iris_datasets, iris_plan_and_preprocess: from raw scans to the unified store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iris_pipeline.cli._common import run
from preprocessing.adapters import find_cases
from preprocessing.check import Checked, check_dataset, dataset_folder, summarise
from preprocessing.choose import own_specs
from preprocessing.errors import IrisError
from preprocessing.plan import MANIFEST
from preprocessing.run import known_specs, run_stages
from preprocessing.runtime.files import json_text, refusal, save_json
from preprocessing.runtime.options import (
    DATASETS_HELP,
    add_plan_options,
    add_raw_option,
    add_root_option,
    add_speed_options,
    add_store_options,
)
from preprocessing.runtime.paths import Root
from preprocessing.spec import DatasetSpec, list_specs, load_spec
from preprocessing.store import Store


def check_main(argv: Sequence[str] | None = None) -> int:
    """Read every raw file and change nothing: one verdict per case (ok, repaired, refused) and the reason."""
    parser = argparse.ArgumentParser(prog="iris_check", description=check_main.__doc__)
    parser.add_argument("raw", metavar="RAW", help="folder of the raw datasets, or of the one dataset")
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="NAME", help=DATASETS_HELP)
    parser.add_argument(
        "--json", metavar="FILE", help="write the verdicts as JSON too ('-': print only the JSON)"
    )
    add_speed_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _check(arguments))


def datasets_main(argv: Sequence[str] | None = None) -> int:
    """List the datasets that have a specification, and whether they are under raw/ and in the store."""
    parser = argparse.ArgumentParser(prog="iris_datasets", description=datasets_main.__doc__)
    add_root_option(parser)
    add_raw_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _datasets(Root.resolve(arguments.root, arguments.raw)))


def plan_and_preprocess_main(argv: Sequence[str] | None = None) -> int:
    """Plan and preprocess datasets. Continues where it was stopped; exit status 1 if a case was refused."""
    parser = argparse.ArgumentParser(
        prog="iris_plan_and_preprocess", description=plan_and_preprocess_main.__doc__
    )
    add_store_options(parser)
    add_plan_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: run_stages(arguments))


def _check(arguments: argparse.Namespace) -> int:
    raw_root = Path(arguments.raw)
    checked: list[Checked] = []
    specs, unknown = known_specs(arguments.datasets, raw_root)
    failures = [str(error) for error in unknown]
    for spec in specs:
        try:
            folder = dataset_folder(raw_root, spec)
            found = check_dataset(folder, spec, workers=arguments.workers, progress=not arguments.quiet)
        except BrokenPipeError:  # nobody reads what we say any more: this ends the command, not one dataset
            raise
        except (IrisError, OSError) as error:  # of this dataset; the others are checked all the same
            failures.append(refusal(error, f"Dataset {spec.name}"))
            continue
        checked.append(found)
        if arguments.json != "-":
            print(found.report.text(), flush=True)
    summary = summarise(checked, failures)
    if arguments.json == "-":
        print(json_text(summary), end="")
    else:
        for remark in summary.remarks:
            print(f"remark: {remark}")
        if arguments.json:
            save_json(Path(arguments.json), summary)
    for failure in failures:
        print(f"Error: {failure}", file=sys.stderr)
    return int(not summary.usable)


def _datasets(root: Root) -> int:
    rows = [("name", "role", "modality", "classes", "raw", "store")]
    specs = {name: load_spec(name) for name in list_specs()}
    broken = []
    for name, path in own_specs(root.raw).items():
        try:
            specs[name] = load_spec(path)
        except IrisError as error:  # one file that cannot be read hides none of the others
            broken.append(str(error))
    # A dataset of one's own has its specification in its store.
    own = {path.parent.name for path in root.preprocessed.glob(f"*/{MANIFEST}")} - set(specs)
    specs |= {name: Store.open(root.preprocessed / name).manifest.spec for name in sorted(own)}
    for name, spec in specs.items():
        raw = _found(spec, root.raw)
        folder = root.preprocessed / name
        store = "finished" if (folder / MANIFEST).is_file() else "unfinished" if folder.is_dir() else "-"
        rows.append((name, spec.role, spec.modality, str(len(spec.classes)), raw, store))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if root.raw.is_dir():
        claimed = {*specs, *(top.partition("/")[0] for spec in specs.values() for top in spec.raw_files.top)}
        strangers = sorted({path.name for path in root.raw.iterdir() if path.is_dir()} - claimed)
        if strangers:
            print(f"Under {root.raw} without a specification: {', '.join(strangers)}.")
    for sentence in broken:
        print(f"Error: {sentence}", file=sys.stderr)
    return int(bool(broken))


def _found(spec: DatasetSpec, raw_root: Path) -> str:
    """How many cases lie under raw/, and how many there should be (iris_check says what is wrong); nothing is read."""
    folder = spec.raw_folder(raw_root)
    if not folder.is_dir():
        return "-"
    try:
        count = len(find_cases(folder, spec))
    except IrisError:
        count = 0
    return str(count) if spec.expected_cases is None else f"{count} of {spec.expected_cases}"
