"""What the commands that take references share: their options, which of these go together, and what came of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from iris_pipeline.cli._common import at_least_one, not_negative
from iris_pipeline.cli._showing import add_showing_options, showing_of
from iris_pipeline.inference.tuning import TuningSettings
from iris_pipeline.prediction.query_tasks import TUNABLE
from iris_pipeline.scans.references import ReferenceFiles, find_references, reference_pair
from iris_pipeline.scans.screening import references_told, screen_references, with_people
from iris_pipeline.search.pose import SEARCH
from iris_pipeline.search.showing import SEARCHED, Showing
from iris_pipeline.tasks.grey import weights_of
from iris_pipeline.tasks.task import TaskEmbedding, Tuned
from preprocessing.errors import PredictionError, RawDataError, ReferenceCaseError, TaskError
from preprocessing.orientation import UPRIGHT
from preprocessing.spec import Modality


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-k",
        "--references",
        type=at_least_one,
        metavar="N",
        help="draw N of the references (default: all of -r; 5 with -d)",
    )
    parser.add_argument(
        "--draw",
        "--seed",
        dest="seed",
        type=not_negative,
        metavar="SEED",
        help="seed for drawing references and for tuning (default: 0)",
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        metavar="N",
        help="most steps of tuning and refining (default: 60; refining 120)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="learning rate of the tokens in tuning and refining (default: 0.03)",
    )
    parser.add_argument(
        "--modality", choices=["CT", "MR", "PET"], help="modality of the references of -r (default: guessed)"
    )
    add_channel_option(parser)
    add_showing_options(parser)


def add_channel_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference-channel",
        metavar="C",
        help="channel of the references of -r, if they have several: its number (from 0) or its name",
    )
    parser.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="regular expression that finds the person in the name of each reference of -r, by a group "
        "(?P<subject>...); '' means that each is one person (default: guessed, and printed)",
    )


@dataclass(frozen=True)
class GivenReferences:
    """The usable references of -r; refused: id -> why not, told already, and an error at the command's end."""

    files: ReferenceFiles
    refused: Mapping[str, str]

    def raise_for_refused(self) -> None:
        """ReferenceCaseError naming them, after the work is done: a nightly job must not overlook one."""
        if self.refused:
            raise ReferenceCaseError(
                f"{len(self.refused)} of {len(self.refused) + len(self.files.cases)} references could not be used "
                f"({', '.join(self.refused)}), as told above; the results are made from the others: mend "
                "or remove them."
            )


def reference_files(
    paths: Sequence[str],
    count: int | None = None,
    modality: Modality | None = None,
    channel: str | None = None,
    subject_pattern: str | None = None,
) -> GivenReferences:
    """-r FOLDER, or -r IMAGE LABEL; a reference that cannot be used is told and left out.

    count: -k; channel: --reference-channel; subject_pattern: --subject-pattern.
    """
    if len(paths) > 2:
        raise RawDataError(
            f"-r takes one folder of references, or one image and its label file; got {len(paths)} paths."
        )
    image, *labels = map(Path, paths)
    files = reference_pair(image, labels[0], channel) if labels else find_references(image, channel)
    if files.told:
        print(files.told)
    if files.unpaired:
        print(f"Left out, for want of an image or a label file: {', '.join(files.unpaired)}.")
    usable, refused = screen_references(with_people(files, subject_pattern), modality)
    if told := references_told(usable):
        print(told)
    for name, why in refused.items():
        print(f"Reference '{name}' is left out: {why}", file=sys.stderr)
    if count is not None and count > len(usable.cases):
        print(
            f"Note: -k asks for {count} references and there are {len(usable.cases)}; all of them are used."
        )
    return GivenReferences(usable, refused)


def given_references(arguments: argparse.Namespace) -> GivenReferences:
    """`reference_files` by the options of -r."""
    return reference_files(
        arguments.r,
        arguments.references,
        arguments.modality,
        arguments.reference_channel,
        arguments.subject_pattern,
    )


_OF_GRID = ("--pose", "--scale", "--tones")
_OF_REFERENCES = (*_OF_GRID, "--grey")
_OF_SHOWING = (*_OF_REFERENCES, "--looks")
_OF_FILES = ("--modality", "--reference-channel", "--subject-pattern")
"""tell of files of references, which -r alone takes"""


def check_fit(arguments: argparse.Namespace, strategy: str | None) -> None:
    """Raises for an option that would have no say in how the task is made: it is not to be lost in silence.

    Which options have one follows from where the task comes from: -t, -r, --like, the bank or the store (-d).
    """
    said = _said(arguments)
    task_given, like, split = (getattr(arguments, name, None) for name in ("t", "like", "split"))
    if strategy == "bank" and (task_given or arguments.r):
        raise TaskError("The memory bank serves datasets: --strategy bank goes with -d, not with -t or -r.")
    if strategy and task_given:
        raise TaskError("A task file has its strategy in it: leave --strategy out with -t.")
    if task_given and said:
        raise PredictionError(
            f"A task file is used as it was made: {', '.join(said)} {'goes' if len(said) == 1 else 'go'} with "
            "references (-r), or with iris_encode."
        )
    if like:
        _refuse(said, ("--modality", *_OF_GRID), "--like takes modality, pose, scale and tones of its task")
    elif not arguments.r and strategy in (None, "bank"):
        # --confidence asks references of the store, which the seed draws
        drawn = ("-k",) if getattr(arguments, "confidence", False) else ("-k", "--draw")
        _refuse(said, (*drawn, *_OF_FILES, *_OF_REFERENCES), "The memory bank takes no references")
    elif not arguments.r:
        # of a split, a held-out dataset's references are shown in any pose and scale (`check_showing`)
        _refuse(
            said,
            _OF_FILES if split else (*_OF_FILES, *_OF_SHOWING),
            "References of -d are taken as they are in the store",
        )
    if strategy == "one-shot" and arguments.references not in (None, 1):
        raise PredictionError(
            f"One-shot takes one reference; got -k {arguments.references}: leave -k out (--draw says which), or take "
            "ensemble for several."
        )
    fits = {
        "--steps": TUNABLE,
        "--learning-rate": TUNABLE,
        "--top": ("object-retrieval",),
    }
    for name in said:
        if name in fits and strategy not in fits[name]:
            raise PredictionError(
                f"{name} goes with --strategy {' or '.join(fits[name])}; got "
                f"{f'--strategy {strategy}' if strategy else 'no --strategy'}: add it, or leave {name} out."
            )


def _said(arguments: argparse.Namespace) -> list[str]:
    """The options on references that were given, as far as they say something else than the defaults."""
    given = {
        "-k": arguments.references,
        "--draw": arguments.seed,
        "--modality": arguments.modality,
        "--reference-channel": arguments.reference_channel,
        "--subject-pattern": arguments.subject_pattern,
        "--pose": None if arguments.pose == SEARCH else arguments.pose,
        "--scale": None if arguments.scale == SEARCH else arguments.scale,
        "--grey": None if arguments.grey == SEARCH else arguments.grey,
        "--looks": None if arguments.looks == SEARCHED.looks else arguments.looks,
        "--tones": None if arguments.tones == SEARCHED.tones else arguments.tones,
        "--steps": arguments.steps,
        "--learning-rate": arguments.learning_rate,
        "--top": getattr(arguments, "top", None),
    }
    return [name for name, value in given.items() if value is not None]


def _refuse(said: Sequence[str], useless: Sequence[str], why: str) -> None:
    """PredictionError where one of the options that are said is useless."""
    lost = [name for name in said if name in useless]
    if lost:
        raise PredictionError(
            f"{why}: {', '.join(lost)} would change nothing; leave {'it' if len(lost) == 1 else 'them'} out."
        )


class Encoding(TypedDict):
    """How references become a task: arguments of `encode_files` and `file_tasks`."""

    count: int | None
    seed: int
    modality: Modality | None
    showing: Showing
    tuning: TuningSettings


def encoding_of(arguments: argparse.Namespace) -> Encoding:
    """What the options say of it."""
    return Encoding(
        count=arguments.references,
        seed=arguments.seed or 0,
        modality=arguments.modality,
        showing=showing_of(arguments),
        tuning=tuning_settings(arguments),
    )


def tuning_settings(arguments: argparse.Namespace) -> TuningSettings:
    """What --steps and --learning-rate say, else the defaults."""
    given = {"steps": arguments.steps, "learning_rate": arguments.learning_rate, "seed": arguments.seed}
    return TuningSettings(**{name: value for name, value in given.items() if value is not None})


def tell_task(task: TaskEmbedding, arguments: argparse.Namespace, classes: Iterable[str]) -> None:
    """What references became, and what they do not show."""
    guessed = "" if arguments.modality else " (guessed: --modality says it better)"
    print(f"Task: {summary(task)}; modality {task.modality}{guessed}.")
    for record in task.tuned:
        print(f"Tuned: {tuned_text(record)}.")
    absent = [name for name in classes if name not in task.class_names]
    if absent:
        print(f"Warning: no reference shows {', '.join(absent)}; the task is without.")


def tell_better(strategy: str, files: ReferenceFiles) -> None:
    """What else there is, after a strategy that learns nothing from its references."""
    if strategy not in ("one-shot", "ensemble"):
        return
    tip = "refining learns from the references, for minutes"
    if len({case.subject for case in files.cases}) > 1:
        tip = "best tries on the references, each left out in turn, whether learning from them helps"
    print(f"Where the masks disappoint: --strategy {tip}.")


def tuned_text(record: Tuned) -> str:
    if record.steps == 0:
        judged = f"loss {record.loss_before:.3f} on the {record.judged_by}"
        return f"at {record.view}, not at all, too little would be gained ({judged})"
    return (
        f"at {record.view}, {record.steps} steps of {record.learning_rate:g}, loss {record.loss_before:.3f} -> "
        f"{record.loss:.3f} on the {record.judged_by}"
    )


def summary(task: TaskEmbedding) -> str:
    spacing = " x ".join(f"{s:g}" for s in task.spacing_mm)
    source = (
        f"{task.references} reference{'s' * (task.references != 1)}" if task.references else "the memory bank"
    )
    fewer = [
        f"{name} from {count}"
        for name, count in zip(task.class_names, task.class_references, strict=True)
        if count < task.references
    ]
    source += f" ({', '.join(fewer)})" if fewer else ""
    pose = "" if task.pose.axes == UPRIGHT else f", pose {task.pose.axes}"
    weights = weights_of(task.grey, task.class_names)
    grey = ", grey values weighed " + ", ".join(f"{n} {w:g}" for n, w in weights.items()) if weights else ""
    often = "a second look at unusual scans" if any(task.usual) else "two looks"
    looks = f", {often}" if task.surroundings else ""
    tones = f", in {task.normalisation.tones.told}" if task.normalisation.tones is not None else ""
    return f"{', '.join(task.class_names)} from {source} at {spacing} mm{pose}{tones}{grey}{looks}"
