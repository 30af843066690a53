"""iris_calibrate: what iris_predict --confidence says, fitted to a run's validation cases, kept with the model."""

from __future__ import annotations

import argparse

from iris_pipeline.checkpoints.shipped import is_shipped
from iris_pipeline.cli._common import at_least_one, choose_device, not_negative, run
from iris_pipeline.cli._models import add_device_options, add_model_options, autocast_of, load_run
from iris_pipeline.cli._splits import stored_raw_cases
from iris_pipeline.confidence.calibration import REVIEW_BELOW, save_calibration
from iris_pipeline.evaluation.calibrate import UNFAMILIAR, CalibrationData, calibrate
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.predict_split import DEFAULT_REFERENCES, Experiment
from preprocessing.errors import CheckpointError, TaskError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option
from preprocessing.runtime.paths import Root
from preprocessing.store import open_stores

STRATEGIES = ("one-shot", "ensemble", "bank")


def calibrate_main(argv: list[str] | None = None) -> int:
    """`iris_calibrate -m RUN`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="iris_calibrate",
        description="Fit the expected Dice of iris_predict --confidence to the validation cases of a run, and store it "
        "with the model.",
    )
    add_model_options(parser)
    parser.add_argument(
        "-d", type=stored_name, nargs="+", metavar="NAME", help="datasets (default: all that the model knows)"
    )
    add_raw_option(parser)
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=list(STRATEGIES),
        help="strategies to calibrate (default: all three)",
    )
    parser.add_argument(
        "--draws",
        type=at_least_one,
        default=2,
        metavar="N",
        help="number of draws of the one-shot reference (default: 2)",
    )
    parser.add_argument(
        "--cases", type=at_least_one, default=6, metavar="N", help="most cases per dataset (default: 6)"
    )
    parser.add_argument(
        "--unfamiliar",
        type=not_negative,
        default=UNFAMILIAR,
        metavar="N",
        help="how many further poses and scales each case is also shown in, so that the fit sees bad masks, too "
        f"(default: {UNFAMILIAR})",
    )
    parser.add_argument(
        "--review-below",
        type=float,
        default=REVIEW_BELOW,
        metavar="DICE",
        help="Dice below which the report counts a mask for review (default: 0.7)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="make all rows again (default: only rows that are missing or whose scans or labels have changed)",
    )
    add_device_options(parser)
    arguments = parser.parse_args(argv)
    return run(
        lambda: _calibrate_command(arguments),
        "Stopped: the same command goes on from the cases that are done.",
    )


def _calibrate_command(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    device = choose_device(arguments.device)
    loaded, folder = load_run(arguments, root, device)
    if is_shipped(folder):
        raise CheckpointError(
            "Confidence is kept with the model, and the package is not written to: copy "
            f"{folder} to {root.results / folder.name / 'checkpoint'} first."
        )
    names = arguments.d or list(loaded.plans)
    unknown = sorted(set(names) - set(loaded.plans))
    if unknown or not names:
        raise TaskError(
            f"Confidence is calibrated on datasets that the model was trained on ({', '.join(loaded.plans)}); got "
            f"{', '.join(unknown) or 'none'}: name some of them with -d."
        )
    datasets = []
    for store in open_stores(root.preprocessed, names).values():
        raw = {case.id: case for case in stored_raw_cases(root, store)}
        datasets.append(CalibrationData(store, raw))
    experiments = []
    for strategy in arguments.strategies:
        draws = range(arguments.draws if strategy == "one-shot" else 1)
        experiments += [Experiment(strategy, DEFAULT_REFERENCES, seed) for seed in draws]
    calibration, notes = calibrate(
        loaded,
        folder,
        datasets,
        experiments,
        most_cases=arguments.cases,
        unfamiliar=arguments.unfamiliar,
        options=InferenceOptions(device=device, autocast=autocast_of(arguments.precision, device)),
        review_below=arguments.review_below,
        overwrite=arguments.overwrite,
    )
    for note in notes:
        print(f"Note: {note}")
    for line in calibration.lines:
        shown = zip(line.signs, line.weights, strict=True)
        print(
            f"  {line.masks} masks: {line.intercept:.3f}"
            + "".join(f" {weight:+.3f} {name}" for name, weight in shown if weight)
        )
    print("The Dice to expect, by the signs that are known (each in its standard deviations), is above.")
    print(f"Confidence on people it was not fitted on: {calibration.agreement.sentence()}.")
    if calibration.agreement_of_all is not None:
        print(f"With what was shown in unfamiliar ways: {calibration.agreement_of_all.sentence()}.")
    print(f"Written: {save_calibration(folder, calibration)}")
    return 0
