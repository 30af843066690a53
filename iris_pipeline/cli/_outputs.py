"""What is written beside the label maps: the options of iris_predict, and what is said of its confidence."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.confidence.calibration import (
    REVIEW_BELOW,
    TABLE,
    Calibration,
    compare_with_truth,
    judgements_in,
    load_calibration,
)
from iris_pipeline.confidence.judging import MaskJudge, Volumes, Witnesses, no_volumes, no_witnesses
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.measures.rows import Row
from iris_pipeline.prediction.predict import Judge
from iris_pipeline.scans.outputs import Outputs
from iris_pipeline.tables.confidence_table import agreement_path
from preprocessing.errors import PredictionError
from preprocessing.runtime.files import save_json


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="also write one mask per class; these may overlap, unlike in the label map",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write the probability of each class, with 8 bits per voxel",
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help=f"write the expected Dice of each mask to {TABLE} (needs iris_calibrate; about twice the time)",
    )
    parser.add_argument(
        "--review-below",
        type=float,
        metavar="DICE",
        help=f"--confidence marks masks with a lower expected Dice (default: {REVIEW_BELOW:g})",
    )


class Wishes(TypedDict):
    """What is to be written: arguments of `predict_cases`, `predict_folder` and `predict_split`."""

    outputs: Outputs
    judge: Judge | None
    overwrite: bool


def wishes_of(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    run_folder: Path,
    options: InferenceOptions,
    *,
    witnesses: Callable[[], Witnesses] = lambda: no_witnesses,
    volumes: Callable[[Calibration], Volumes] = lambda _: no_volumes,
) -> Wishes:
    """What the options say of it. witnesses, volumes: called only for --confidence."""
    return Wishes(
        outputs=Outputs(per_class=arguments.per_class, probabilities=arguments.probabilities),
        judge=_judge_of(arguments, loaded, run_folder, options, witnesses, volumes),
        overwrite=arguments.overwrite,
    )


def _judge_of(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    run_folder: Path,
    options: InferenceOptions,
    witnesses: Callable[[], Witnesses],
    volumes: Callable[[Calibration], Volumes],
) -> Judge | None:
    """The judge that --confidence asks for; PredictionError for --review-below without it."""
    if not arguments.confidence:
        if arguments.review_below is not None:
            raise PredictionError("--review-below is about --confidence: give both or none.")
        return None
    calibration = load_calibration(run_folder, loaded.model_hash)
    return MaskJudge(
        loaded,
        calibration,
        options,
        REVIEW_BELOW if arguments.review_below is None else arguments.review_below,
        witnesses(),
        volumes(calibration),
    )


def tell_judgements(out: Path) -> None:
    """What is to be reviewed."""
    judgements = judgements_in(out).rows()
    marked = [f"{each.case} {each.class_name}" for each in judgements if each.review]
    shown = f": {', '.join(marked[:10])}{', ...' if len(marked) > 10 else ''}" if marked else ""
    print(f"{len(marked)} of {len(judgements)} masks are marked for review in {out / TABLE}{shown}.")


def tell_agreement(predictions: Path, rows: Iterable[Row], out: Path) -> None:
    """Predicted against true Dice where confidence.csv lies beside the predictions; kept as JSON beside the rows."""
    judgements = judgements_in(predictions).rows()
    dice = {(row.case, row.class_name): row.dice for row in rows}
    if all(math.isnan(dice.get((j.case, j.class_name), math.nan)) for j in judgements):
        return
    agreement = compare_with_truth(judgements, dice)
    save_json(agreement_path(out), agreement)
    print(f"Confidence, {agreement.sentence()}.")
