"""Options that every stage's command has, and the mains of `python -m preprocessing.fingerprint`, `.plan`, `.run`.

`iris_plan_and_preprocess` is the three in a row, with the same options, bars, resume and verdicts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preprocessing.errors import IrisError, RawDataError
from preprocessing.fingerprint import LOG, fingerprint_dataset, load_fingerprint
from preprocessing.parallel import default_workers
from preprocessing.paths import Root
from preprocessing.plan import make_plan
from preprocessing.run import CaseVerdict, choose_specs, plan_and_preprocess, settle_plan

DATASETS_HELP = "names, YAML files, or: all, upstream, held-out, phantom (those with a folder under raw/)"


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """-d, --root, --raw, --workers, --quiet: where and how much at once."""
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="NAME", help=DATASETS_HELP)
    parser.add_argument("--root", help="root folder (default: IRIS_ROOT, else the current folder)")
    parser.add_argument("--raw", help="folder of the raw datasets (default: ROOT/raw)")
    parser.add_argument(
        "--workers", type=_at_least_one, default=default_workers(), help="processes (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """--policy, --crop, --overwrite: what the plan is made for."""
    parser.add_argument(
        "--policy",
        choices=["paper", "fit"],
        default="paper",
        help="paper: 1.5 mm, finer for small objects; fit: objects fit the crop (default: %(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=3,
        default=(64, 64, 64),
        metavar=("Z", "Y", "X"),
        help="largest patch, multiples of 16 (default: 64 64 64)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a store that was made by another plan"
    )


def run_stages(arguments: argparse.Namespace) -> int:
    """All three stages; prints the verdicts; 0 where no case was refused, else 1."""
    root = Root.resolve(arguments.root, arguments.raw)
    verdicts = plan_and_preprocess(
        root.raw,
        root.preprocessed,
        arguments.datasets,
        policy=arguments.policy,
        crop=tuple(arguments.crop),
        workers=arguments.workers,
        progress=not arguments.quiet,
        overwrite=arguments.overwrite,
    )
    print(verdict_text(verdicts))
    print(f"Stores and logs: {root.preprocessed}/<dataset>/ ({LOG})")
    return 1 if any(verdict.verdict == "refused" for verdict in verdicts) else 0


def verdict_text(verdicts: Sequence[CaseVerdict]) -> str:
    """One line a dataset with the counts, then one line for each case that is not simply ok."""
    lines = []
    for dataset in dict.fromkeys(verdict.dataset for verdict in verdicts):
        of_dataset = [verdict for verdict in verdicts if verdict.dataset == dataset]
        counts = {
            word: sum(verdict.verdict == word for verdict in of_dataset)
            for word in ("ok", "repaired", "refused")
        }
        lines.append(f"{dataset}: " + ", ".join(f"{number} {word}" for word, number in counts.items()))
        lines += [f"  {v.case}: {v.verdict}: {v.why}" for v in of_dataset if v.verdict != "ok" or v.why]
    return "\n".join(lines)


def fingerprint_stage(argv: Sequence[str] | None = None) -> int:
    """`python -m preprocessing.fingerprint`: measure the raw cases; 1 where one was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.fingerprint", description=fingerprint_stage.__doc__
    )
    add_store_options(parser)
    return _ending(parser, argv, _fingerprint)


def plan_stage(argv: Sequence[str] | None = None) -> int:
    """`python -m preprocessing.plan`: make plan.json from the fingerprints that are there, and say why."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.plan", description=plan_stage.__doc__)
    add_store_options(parser)
    add_plan_options(parser)
    return _ending(parser, argv, _plan)


def run_stage(argv: Sequence[str] | None = None) -> int:
    """`python -m preprocessing.run`: what is missing of fingerprint, plan and store, in a row."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.run", description=run_stage.__doc__)
    add_store_options(parser)
    add_plan_options(parser)
    return _ending(parser, argv, run_stages)


def _fingerprint(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    verdicts = []
    for spec in choose_specs(arguments.datasets, root.raw):
        fingerprint = fingerprint_dataset(
            root.raw / spec.name,
            spec,
            root.preprocessed / spec.name,
            workers=arguments.workers,
            progress=not arguments.quiet,
        )
        verdicts += [CaseVerdict(spec.name, case.id, case.verdict, case.why) for case in fingerprint.cases]
    print(verdict_text(verdicts))
    return 1 if any(verdict.verdict == "refused" for verdict in verdicts) else 0


def _plan(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    for spec in choose_specs(arguments.datasets, root.raw):
        folder = root.preprocessed / spec.name
        if not Path(folder).is_dir():
            raise RawDataError(
                f"{folder} has no fingerprint: run python -m preprocessing.fingerprint -d {spec.name}."
            )
        plan = make_plan(load_fingerprint(folder), spec, arguments.policy, tuple(arguments.crop))
        settle_plan(folder, plan, arguments.overwrite)
        print("\n  ".join([f"{spec.name}:", *plan.reasons]))
    return 0


def _ending(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, function: Callable[[argparse.Namespace], int]
) -> int:
    arguments: Any = parser.parse_args(argv)
    try:
        return function(arguments)
    except IrisError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1 process, not {number}")
    return number
