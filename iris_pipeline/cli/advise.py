"""iris_advise: which references help, which hurt, how many are enough."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iris_pipeline.cli._common import at_least_one, choose_device, not_negative, run
from iris_pipeline.cli._models import add_device_options, add_model_options, autocast_of, load_run
from iris_pipeline.cli._references import add_channel_option, reference_files
from iris_pipeline.cli._showing import add_showing_options, showing_of
from iris_pipeline.evaluation.advisor import advise, plan_trials, run_trials
from iris_pipeline.inference.pool import people_of
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.pages.advice_page import add_strategies, write_advice
from iris_pipeline.prediction.query_tasks import try_strategies
from iris_pipeline.prediction.rivals import check_rivals, comparison_text
from iris_pipeline.provenance import made_by
from iris_pipeline.scans.references import Candidate, embed_files
from preprocessing.errors import PredictionError
from preprocessing.runtime.files import hindrance
from preprocessing.runtime.paths import Root


def advise_main(argv: list[str] | None = None) -> int:
    """`iris_advise -r REFS`; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_advise",
        description="Segment each labelled reference from the others, to see which help, which hurt, and how many are "
        "enough.",
    )
    parser.add_argument("-r", required=True, metavar="REFS", help="folder with images/ and labels/")
    parser.add_argument(
        "-o", default="advice", metavar="FOLDER", help="folder for advice.csv, .md and .png (default: advice)"
    )
    parser.add_argument(
        "--draws",
        type=at_least_one,
        default=3,
        metavar="N",
        help="ensembles drawn for each number of references (default: 3)",
    )
    parser.add_argument(
        "--compare-strategies",
        action="store_true",
        help="also compare ensemble, tuning and refining on references left out in turn; takes minutes for each",
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        metavar="N",
        help="most steps of the compared tuning (60) and refining (120)",
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="seed for these draws")
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        help="overlap of windows (default: 0.25, faster than in prediction)",
    )
    parser.add_argument(
        "--modality", choices=["CT", "MR", "PET"], help="modality of the references (default: guessed)"
    )
    add_channel_option(parser)
    add_showing_options(parser)
    add_model_options(parser)
    add_device_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _advise_command(arguments, made_by("iris_advise", argv)))


def _advise_command(arguments: argparse.Namespace, line: str) -> int:
    if arguments.steps and not arguments.compare_strategies:
        raise PredictionError("--steps goes with --compare-strategies: add it, or leave --steps out.")
    if why := hindrance(Path(arguments.o)):
        raise PredictionError(
            f"-o is a folder for the advice; {arguments.o} cannot be one ({why}): give another -o."
        )
    device = choose_device(arguments.device)
    loaded, _ = load_run(arguments, Root.resolve(arguments.root), device)
    given = reference_files(
        [arguments.r],
        modality=arguments.modality,
        channel=arguments.reference_channel,
        subject_pattern=arguments.subject_pattern,
    )
    files = given.files
    options = InferenceOptions(
        overlap=arguments.overlap, device=device, autocast=autocast_of(arguments.precision, device)
    )

    def check(drawn: Sequence[Candidate]) -> None:
        """Before the minutes of a search and of encoding."""
        if arguments.compare_strategies:
            check_rivals(drawn)
        plan_trials({each.id: each.subject for each in drawn}, arguments.draws, arguments.seed)

    embedded = embed_files(
        loaded,
        files,
        options,
        modality=arguments.modality,
        showing=showing_of(arguments),
        check=check,
        progress=True,
    )
    pool = sorted(embedded.pool, key=lambda reference: reference.id)
    subjects = people_of(pool)
    planned = plan_trials(subjects, arguments.draws, arguments.seed)
    print(f"{len(subjects)} references, {len(planned)} trials; each reference is encoded once.")
    memory = Path(arguments.o) / "trials.json"
    trials = run_trials(loaded, embedded.pool, embedded.prepare, planned, options, memory=memory)
    advice = advise(trials, list(subjects), list(files.classes))
    write_advice(Path(arguments.o), trials, advice, list(subjects), list(files.classes), line)
    print("\n".join(advice.lines))
    print(f"Written: {arguments.o}: advice.csv, advice.md, advice.png.")
    if arguments.compare_strategies:
        attempts = try_strategies(
            loaded,
            pool,
            list(files.classes),
            options,
            prepare=embedded.prepare,
            tuning=TuningSettings(steps=arguments.steps, seed=arguments.seed),
            progress=True,
        )
        add_strategies(Path(arguments.o), advice, attempts, line)
        print(comparison_text(attempts))
        print(f"Written: {arguments.o}: advice.md with the strategies, strategies.csv.")
    given.raise_for_refused()
    return 0
