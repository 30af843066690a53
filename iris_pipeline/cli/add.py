"""iris_add: a folder of one's own images and masks becomes a dataset that goes by its name."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from iris_pipeline.cli._common import run
from preprocessing.adding.add import Proposal, Wishes, propose, write_spec
from preprocessing.adding.survey import Survey, survey_folder
from preprocessing.check import check_dataset
from preprocessing.choose import refuse_taken_name
from preprocessing.errors import SpecError
from preprocessing.guess import guess_name
from preprocessing.runtime.options import add_raw_option, add_root_option, add_speed_options
from preprocessing.runtime.paths import Root
from preprocessing.spec import Modality, Role

MODALITIES = get_args(Modality)


def add_main(argv: Sequence[str] | None = None) -> int:
    """Turn a folder of images and masks into a dataset: its specification is guessed, confirmed and written.

    Nothing in the folder is changed or moved.
    """
    parser = argparse.ArgumentParser(prog="iris_add", description=add_main.__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="images and masks, in any common arrangement")
    parser.add_argument("--name", help="name of the dataset (default: the folder's)")
    parser.add_argument("--modality", choices=MODALITIES, help="modality of the images (default: guessed)")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME=VALUE",
        help="what the label values mean, such as liver=1 tumour=2",
    )
    parser.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="regular expression that finds the person in a case's name, by a group (?P<subject>...); '' means "
        "that each case is one person",
    )
    parser.add_argument(
        "--images", metavar="PATTERN", help="where the images are, such as 'scans/{case}.nii.gz'"
    )
    parser.add_argument(
        "--labels",
        metavar="PATTERN",
        help="where the masks are, such as 'masks/{case}_seg.nii.gz'; with {class} for one mask per class",
    )
    parser.add_argument(
        "--role", choices=("upstream", "held-out"), default="upstream", help="default: upstream"
    )
    parser.add_argument("--yes", action="store_true", help="accept all guesses without asking")
    parser.add_argument("--overwrite", action="store_true", help="replace a specification of that name")
    add_root_option(parser)
    add_raw_option(parser)
    add_speed_options(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _add(arguments), "Interrupted; run the same command again.")


def _add(arguments: argparse.Namespace) -> int:
    folder, root = Path(arguments.folder).expanduser(), Root.resolve(arguments.root, arguments.raw)
    role: Role = arguments.role
    wishes = Wishes(
        name=arguments.name,
        modality=arguments.modality,
        classes=_classes(arguments.classes) if arguments.classes else None,
        subject_pattern=arguments.subject_pattern,
        role=role,
    )
    speed = {"workers": arguments.workers, "progress": not arguments.quiet}
    if wishes.name or arguments.yes:  # else it can still be changed when it is asked for
        refuse_taken_name(wishes.name or guess_name(folder))
    if not arguments.quiet:
        print(f"Looking for images and masks in {folder} ...", file=sys.stderr)
    survey = survey_folder(folder, arguments.images, arguments.labels, **speed)
    proposal = propose(survey, wishes, root.raw)
    print(_shown(survey, proposal))
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise SpecError(
                "Nothing was written, since nobody can be asked here: add --yes to take what is shown, or say what "
                "is wrong with --name, --modality, --classes, --subject-pattern, --images and --labels."
            )
        try:
            proposal = propose(survey, _ask(wishes, proposal), root.raw)
            agreed = input("Write this specification? [Y/n] ").strip().lower() in ("", "y", "yes")
        except EOFError:  # the end of the input (Ctrl-D) is no consent
            agreed = False
        if not agreed:
            print("Nothing was written.")
            return 1
    path = write_spec(proposal, folder, root.raw, arguments.overwrite)
    print(f"Written: {path}")
    spec = proposal.spec
    checked = check_dataset(spec.raw_folder(root.raw), spec, **speed)
    print(checked.report.text())
    if checked.report.counts["refused"] < len(checked.report.cases):
        print(f"Next: {_next_command(spec.name, arguments)}")
    else:
        print(
            f"Next: mend {path} or the scans by what the verdicts say, then {_check_command(spec.name, root)}"
        )
    return int(not checked.report.usable)


def _shown(survey: Survey, proposal: Proposal) -> str:
    """Every guess with its reason, then what else was noticed."""
    spec, why = proposal.spec, proposal.reasons
    files = spec.files
    lines = {
        "images": (_listed(files["image"]), ""),
        "masks": (_listed(files["labels"]), ""),
        "cases": (f"{len(survey.ids)} images with masks, {survey.ids[0]} to {survey.ids[-1]}", ""),
        "name": (spec.name, why["name"]),
        "modality": (spec.modality, why["modality"]),
        "classes": (_written(spec.classes), why["classes"]),
        "subjects": (spec.subject_pattern or files.get("subject") or "-", why["subjects"]),
    }
    if spec.sides:
        lines["sides"] = (
            f"left: {', '.join(spec.sides['left'])}; right: {', '.join(spec.sides['right'])}",
            "the names of the classes",
        )
    if spec.intensity_offset:
        lines["offset"] = (f"{spec.intensity_offset:g} HU", why["intensity_offset"])
    if spec.partly_labelled:
        lines["labels"] = ("partly labelled", why["partly_labelled"])
    told = [f"  {key:<9} {value}" + f"  ({reason})" * bool(reason) for key, (value, reason) in lines.items()]
    return "\n".join([f"{survey.folder}:", *told, *(f"  remark: {remark}" for remark in survey.remarks)])


def _ask(wishes: Wishes, proposal: Proposal) -> Wishes:
    """One question for each guess; Enter keeps it, and what cannot be understood is asked again."""
    spec = proposal.spec
    print("Enter keeps what stands in brackets.")
    name = _ask_name(spec.name)
    modality = input(f"Modality, {', '.join(MODALITIES)} [{spec.modality}]: ").strip().upper()
    while modality and modality not in MODALITIES:
        modality = input(f"One of {', '.join(MODALITIES)} [{spec.modality}]: ").strip().upper()
    classes: Mapping[str, int] | None = None
    while classes is None:
        answer = input(f"Classes [{_written(spec.classes)}]: ").strip()
        try:
            classes = _classes(shlex.split(answer)) if answer else spec.classes
        except (SpecError, ValueError) as error:
            print(error)
    if "subject" not in spec.files:
        shown = spec.subject_pattern or "none: each case is one person"
        pattern = input(f"Pattern of the subject ('-': none) [{shown}]: ").strip()
        if pattern:
            wishes = replace(wishes, subject_pattern="" if pattern == "-" else pattern)
    if modality:
        wishes = replace(wishes, modality=next(each for each in MODALITIES if each == modality))
    return replace(wishes, name=name, classes=classes)


def _ask_name(guess: str) -> str:
    while True:
        name = input(f"Name [{guess}]: ").strip() or guess
        try:
            refuse_taken_name(name)
            return name
        except SpecError as error:
            print(error)


def _classes(texts: Sequence[str]) -> dict[str, int]:
    """["liver=1", "tumour=2"] -> {"liver": 1, "tumour": 2}; SpecError for anything else."""
    classes: dict[str, int] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not value.isdecimal() or name in classes:
            raise SpecError(
                f"Classes are given as NAME=VALUE, each name once, such as liver=1 tumour=2; got '{text}'."
            )
        classes[name] = int(value)
    return classes


def _written(classes: Mapping[str, int]) -> str:
    return " ".join(shlex.quote(f"{name}={value}") for name, value in classes.items())


def _listed(patterns: str | Sequence[str]) -> str:
    return patterns if isinstance(patterns, str) else " or ".join(patterns)


def _check_command(name: str, root: Root) -> str:
    return shlex.join(["iris_check", str(root.raw), "-d", name])


def _next_command(name: str, arguments: argparse.Namespace) -> str:
    words = ["iris_plan_and_preprocess", "-d", name, "--policy", "fit"]
    for option in ("root", "raw"):
        value = getattr(arguments, option)
        words += [f"--{option}", value] if value else []
    return shlex.join(words)
