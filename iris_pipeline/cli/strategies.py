"""iris_strategies: predict test cases with every strategy, several numbers of references and several draws of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.cli._common import at_least_one, choose_device, not_negative, run
from iris_pipeline.cli._models import (
    add_device_options,
    add_model_options,
    autocast_of,
    load_run,
    results_folder,
)
from iris_pipeline.cli._showing import add_showing_options, check_showing, showing_of
from iris_pipeline.cli._splits import experiment_name, raw_cases
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.predict_split import Experiment, most_references, predict_split
from iris_pipeline.prediction.query_tasks import BEST, DESCENDING, STRATEGIES
from iris_pipeline.search.kept_showings import kept_showings
from preprocessing.errors import IrisError, PredictionError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option
from preprocessing.runtime.paths import Root
from preprocessing.runtime.progress import Bar, say
from preprocessing.store import Store, open_stores


@dataclass(frozen=True)
class Job:
    """One row of a table to be: a dataset and what is tried on it."""

    dataset: str
    experiment: Experiment


def plan_jobs(
    datasets: Sequence[str],
    strategies: Sequence[str],
    counts: Sequence[int],
    draws: Sequence[int],
    known: Sequence[str],
) -> list[Job]:
    """Every sensible combination, the cheap ones first: the bank once and for `known` datasets only, one-shot with one
    reference, ensembles and retrieval with two or more, as of one they are the one-shot.
    """
    jobs = []
    for strategy in sorted(strategies, key=STRATEGIES.index):
        if strategy == "bank":
            jobs += [Job(dataset, Experiment("bank")) for dataset in datasets if dataset in known]
            continue
        several = [count for count in counts if strategy in DESCENDING or count > 1]
        wanted = [1] if strategy == "one-shot" else several
        jobs += [
            Job(dataset, Experiment(strategy, count, draw))
            for count in wanted
            for draw in draws
            for dataset in datasets
        ]
    return jobs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iris_strategies",
        description=__doc__,
        epilog="Rows that are already there are skipped, so a stopped run continues. Afterwards: iris_evaluate -p "
        "RUN, then iris_tables.",
    )
    parser.add_argument(
        "-d",
        type=stored_name,
        nargs="+",
        metavar="NAME",
        help="preprocessed datasets (default: all, including held-out ones)",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=[strategy for strategy in STRATEGIES if strategy != BEST],
        metavar="STRATEGY",
        help=f"default: all but '{BEST}', which first compares three of them on references left out in turn",
    )
    parser.add_argument(
        "-k",
        nargs="+",
        type=at_least_one,
        default=[1, 3, 5],
        metavar="N",
        help="numbers of references (default: 1 3 5)",
    )
    parser.add_argument(
        "--draws",
        nargs="+",
        type=not_negative,
        default=[0, 1, 2],
        metavar="SEED",
        help="seeds for drawing the references (default: 0 1 2)",
    )
    parser.add_argument("--split", default="paper", metavar="SPLIT")
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument("--skip-air", action="store_true", help="as in iris_predict")
    parser.add_argument("--overlap", type=float, default=InferenceOptions.overlap, help="as in iris_predict")
    parser.add_argument("--overwrite", action="store_true", help="make rows again that are already there")
    parser.add_argument("--one-pass", action="store_true", help="as in iris_predict")
    add_raw_option(parser)
    add_showing_options(parser)
    add_model_options(parser)
    add_device_options(parser)
    return parser


def strategies_main(argv: list[str] | None = None) -> int:
    """Console script; returns the exit status, 1 if something could not be segmented."""
    arguments = _parser().parse_args(argv)
    return run(lambda: _command(arguments))


def _command(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    device = choose_device(arguments.device)
    options = InferenceOptions(
        overlap=arguments.overlap,
        device=device,
        autocast=autocast_of(arguments.precision, device),
        skip="air" if arguments.skip_air else "never",
        one_pass=arguments.one_pass,
    )
    loaded, folder = load_run(arguments, root, device, options.autocast)
    folder = results_folder(folder, root)
    stores = open_stores(root.preprocessed, arguments.d)
    check_showing(showing_of(arguments), stores.values(), arguments.strategies)
    jobs = plan_jobs(list(stores), arguments.strategies, arguments.k, arguments.draws, list(loaded.plans))
    cache = EmbeddingCache(showings=kept_showings(folder, arguments.overwrite))
    problems = 0
    with Bar(jobs, unit="row", dynamic_ncols=True) as bar:
        for job in bar:
            name = experiment_name(job.experiment, arguments.part, numbered=True)
            bar.set_postfix_str(f"{job.dataset} {name}")
            out = folder / "predictions" / job.dataset / name
            try:
                problems += _run_job(job, loaded, stores[job.dataset], arguments, root, out, options, cache)
            except IrisError as error:  # one row that cannot be made must not cost the others
                say(f"{job.dataset} {name}: {error}")
                problems += 1
    print(f"{len(jobs)} rows; next: iris_evaluate -p {folder.name}, then iris_tables.")
    if problems:
        raise PredictionError(
            f"{problems} rows or cases could not be made; the lines above say which and why."
        )
    return 0


def _run_job(
    job: Job,
    loaded: LoadedModel,
    store: Store,
    arguments: argparse.Namespace,
    root: Root,
    out: Path,
    options: InferenceOptions,
    cache: EmbeddingCache,
) -> int:
    """Segment one row's cases; returns how many could not be."""
    most = most_references(store, arguments.split)
    if job.experiment.count > most:
        say(
            f"{job.dataset}: {job.experiment.strategy} with {job.experiment.count} references is left out, a query "
            f"has {most} of other subjects."
        )
        return 0
    verdicts = predict_split(
        loaded,
        store,
        raw_cases(root, store),
        replace(job.experiment, showing=showing_of(arguments)),
        split=arguments.split,
        part=arguments.part,
        out=out,
        options=options,
        cache=cache,
        overwrite=arguments.overwrite,
        progress=False,
    )
    for verdict in verdicts:
        if verdict.status == "refused":
            say(f"{job.dataset} {verdict.id}: {verdict.why}")
    return sum(verdict.status == "refused" for verdict in verdicts)


if __name__ == "__main__":
    raise SystemExit(strategies_main())
