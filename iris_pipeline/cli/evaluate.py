"""iris_evaluate: predictions against truth."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from iris_pipeline.cli._common import at_least_one, not_negative, run
from iris_pipeline.cli._outputs import tell_agreement
from iris_pipeline.evaluation.evaluate import (
    Evaluation,
    TruthCase,
    dataset_spec,
    evaluate_folder,
    measure_options,
    method_origin,
    read_origin,
    truth_cases,
)
from iris_pipeline.measures.rows import BASELINE_STRATEGY, Origin, write_rows
from iris_pipeline.provenance import made_by
from iris_pipeline.tables.measure_tables import measures_table
from iris_pipeline.tables.result_tables import EVALUATION, dataset_table, frame_of
from iris_pipeline.tables.table_format import to_markdown
from preprocessing.adapters import find_cases
from preprocessing.errors import EvaluationError, IrisError, SpecError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option, add_root_option
from preprocessing.runtime.parallel import default_workers
from preprocessing.runtime.paths import Root
from preprocessing.sources.class_names import read_class_names, read_values
from preprocessing.spec import DatasetSpec
from preprocessing.store import open_stores


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iris_evaluate",
        description="Compare predicted label maps with the truth: Dice, IoU, NSD, HD95, ASSD, volume error and "
        "lesions, per case and class.",
    )
    parser.add_argument(
        "-p", required=True, metavar="PRED", help="folder of predictions, or a run with predictions/"
    )
    parser.add_argument(
        "-g",
        metavar="TRUTH",
        help="folder of label maps (default: the raw labels of the dataset). Class names come from classes.json "
        "or dataset.json in it or above it, or else from the dataset",
    )
    parser.add_argument("-d", type=stored_name, metavar="NAME", help="the dataset (default: what PRED says)")
    parser.add_argument(
        "--split", metavar="SPLIT", help="only the cases of this split (default: what PRED says)"
    )
    parser.add_argument(
        "--part", choices=["test", "validation"], default="test", help="part of --split (default: test)"
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="PRED comes from another tool: the name of its rows in the tables (test part of -d's split)",
    )
    parser.add_argument(
        "--strategy", metavar="NAME", help="with --method: what the tool did (default: other-tool)"
    )
    parser.add_argument(
        "--references",
        type=at_least_one,
        metavar="K",
        help="with --method: number of labelled cases it was given",
    )
    parser.add_argument(
        "--draw",
        type=not_negative,
        metavar="N",
        help="with --method: the seed, as in iris_predict --draw",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="JSON file that names the label values in PRED (default: classes.json or dataset.json inside PRED)",
    )
    parser.add_argument("--cases", nargs="+", metavar="ID", help="only these cases")
    parser.add_argument(
        "-o",
        metavar="FILE",
        help="CSV file to write (default: in the run's evaluation/, or PRED/evaluation.csv)",
    )
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="processes (default: one per core)"
    )
    add_root_option(parser)
    add_raw_option(parser)
    return parser


def evaluate_main(argv: list[str] | None = None) -> int:
    """`iris_evaluate -p PRED [-g TRUTH]`; returns the exit status, 1 if a case could not be scored."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _evaluate_parser().parse_args(argv)
    return run(lambda: _evaluate_command(arguments, made_by("iris_evaluate", argv)))


def _evaluate_command(arguments: argparse.Namespace, line: str) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    folders = _prediction_folders(arguments, root)
    if len(folders) > 1 and (arguments.g or arguments.o):
        raise EvaluationError(
            f"-g and -o go with one folder of predictions, and {arguments.p} has {len(folders)}: name one of "
            "them."
        )
    failed = 0
    for folder in folders:
        try:
            evaluation, origin, out = _evaluate_one(folder, arguments, root, line)
        except IrisError as error:
            if len(folders) == 1:
                raise
            # One dataset of a run that cannot be compared must not hide the others.
            print(f"{folder}: {error}", file=sys.stderr)
            failed += 1
            continue
        _tell(evaluation, origin, out, line)
        tell_agreement(folder, evaluation.rows, out)
        failed += len(evaluation.failures)
    if failed:
        raise EvaluationError(
            f"{failed} could not be scored, as told above; the scores of the others are written."
        )
    return 0


def _evaluate_one(
    folder: Path, arguments: argparse.Namespace, root: Root, line: str
) -> tuple[Evaluation, Origin, Path]:
    """Score one folder and write its rows; in a run's folder the baseline's rows too."""
    if not folder.is_dir():
        raise EvaluationError(f"Predictions are a folder of label maps, and {folder} is none: check -p.")
    origin = _origin(folder, arguments)
    spec = _spec(origin.dataset, root, needed=arguments.d is not None or arguments.g is None)
    truths, truth_classes = _truth(arguments, spec, root)
    if arguments.split:
        origin = replace(origin, split=f"{arguments.split}/{arguments.part}")
    truths = _asked_for(truths, origin, arguments, root)
    evaluation = evaluate_folder(
        folder,
        truths,
        origin,
        classes=_named_values(arguments.classes),
        measures=measure_options(spec),
        truth_classes=truth_classes,
        partly_labelled=spec is not None and spec.partly_labelled,
        workers=min(arguments.workers, max(1, len(truths) // 4)),
    )
    # results/<run>/predictions/<dataset>/<strategy>: the run's folder is three levels up.
    whole = folder if len(folder.parts) > 3 else folder.resolve()
    run_folder = root.results / origin.run if arguments.method else whole.parents[2] if origin.run else None
    if arguments.o:
        out = Path(arguments.o)
    elif run_folder:
        out = run_folder / EVALUATION / f"{origin.dataset}__{origin.strategy}.csv"
        write_rows(out.with_name(f"{origin.dataset}__{BASELINE_STRATEGY}.csv"), evaluation.baseline, line)
    else:
        out = folder / "evaluation.csv"
    write_rows(out, evaluation.rows, line)
    return evaluation, origin, out


def _origin(folder: Path, arguments: argparse.Namespace) -> Origin:
    """What the folder says of its masks, or with --method the options."""
    origin = read_origin(folder)
    origin = replace(origin, dataset=arguments.d or origin.dataset)
    if arguments.method:
        return method_origin(
            arguments.method,
            origin.dataset,
            arguments.split,
            arguments.part,
            strategy=arguments.strategy,
            references=arguments.references,
            draw=arguments.draw,
        )
    if arguments.strategy or arguments.references is not None or arguments.draw is not None:
        raise EvaluationError(
            "--strategy, --references and --draw tell of another tool's masks: give its name with --method; ours say "
            "it themselves."
        )
    return origin


def _asked_for(
    truths: list[TruthCase], origin: Origin, arguments: argparse.Namespace, root: Root
) -> list[TruthCase]:
    """Those that --cases names, else those of the origin's split, else all."""
    of_split = _split_cases(origin, root)
    wanted = arguments.cases or of_split
    if wanted is None:
        return truths
    absent = sorted(set(wanted) - {truth.id for truth in truths})
    if absent:
        raise EvaluationError(f"There is no truth for {', '.join(absent)}: check --cases, --split and -g.")
    foreign = sorted(set(wanted) - set(of_split)) if of_split is not None else []
    if foreign:  # a case that trained, in a row that says test
        whose, remedy = (
            ("A run", "") if not arguments.method else ("A method", ", or leave --method out and give -g")
        )
        raise EvaluationError(
            f"{whose}'s row holds cases of {origin.split} alone, and of {origin.dataset} it has no "
            f"{', '.join(foreign[:5])}: name others with --cases{remedy}."
        )
    return [truth for truth in truths if truth.id in wanted]


def _named_values(path: str | None) -> dict[str, int] | None:
    """Class name -> value from --classes; None without it: the predictions' own folder tells."""
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise EvaluationError(
            f'--classes takes a JSON file as in {{"liver": 1}}, and {file} is none: check it.'
        )
    return read_values(file)


def _prediction_folders(arguments: argparse.Namespace, root: Root) -> list[Path]:
    """-p itself, or every <dataset>/<strategy> in the predictions/ of the run it names, of -d only."""
    given = Path(arguments.p).expanduser()
    if arguments.method:
        return [given]
    # The run's name goes first, as in iris_predict -m: a folder of the same name may stand in the current one.
    candidates = [
        folder for folder in (root.results / arguments.p, given) if (folder / "predictions").is_dir()
    ]
    if not candidates:
        return [given]
    run_folder = candidates[0]
    folders = sorted(path for path in run_folder.glob(f"predictions/{arguments.d or '*'}/*") if path.is_dir())
    if not folders:
        raise EvaluationError(
            f"{run_folder} holds no predictions to evaluate: run iris_predict --split first."
        )
    return folders


def _spec(name: str, root: Root, needed: bool) -> DatasetSpec | None:
    """The dataset's specification; a folder of somebody's own with -g needs none."""
    if not name:
        if needed:
            raise EvaluationError(
                "The truth is needed: give its folder with -g, or the dataset's name with -d."
            )
        return None
    try:
        return dataset_spec(name, root.preprocessed)
    except SpecError:
        if needed:
            raise
        return None


def _truth(
    arguments: argparse.Namespace, spec: DatasetSpec | None, root: Root
) -> tuple[list[TruthCase], dict[str, int] | None]:
    """The label files and what their values mean (None: the same as in the predictions)."""
    if arguments.g:
        folder = Path(arguments.g).expanduser()
        truths = truth_cases(folder)
        if spec is None:
            return truths, _own_classes(folder)
        # Labels of the dataset itself mean what its specification says, whatever lies beside them.
        raw = spec.raw_folder(root.raw).resolve()
        own = None if folder.resolve().is_relative_to(raw) else _own_classes(folder)
        truths = [replace(truth, subject=_subject(spec, truth.id)) for truth in truths]
        return truths, own or spec.classes
    assert spec is not None
    cases = find_cases(spec.raw_folder(root.raw), spec)
    return [TruthCase(c.id, c.labels, c.subject) for c in cases if c.labels is not None], spec.classes


def _own_classes(folder: Path) -> dict[str, int] | None:
    """What a folder of label maps, or the one above it, says of their values; None where neither does."""
    return read_class_names(folder) or read_class_names(folder.parent)


def _subject(spec: DatasetSpec, case: str) -> str:
    """The person of a case; a scan from elsewhere, whose name the dataset's pattern does not fit, is one by itself."""
    try:
        return spec.subject_of(case)
    except SpecError:
        return case


def _split_cases(origin: Origin, root: Root) -> list[str] | None:
    """The ids of the origin's split, from the store's manifest; None without a split."""
    if not origin.split:
        return None
    name, _, part = origin.split.partition("/")
    splits = open_stores(root.preprocessed, [origin.dataset])[origin.dataset].manifest.splits
    if part not in splits.get(name, {}):
        raise EvaluationError(
            f"{origin.dataset} has the splits {', '.join(splits)}; got '{origin.split}': check --split."
        )
    return splits[name][part]


def _tell(evaluation: Evaluation, origin: Origin, out: Path, line: str) -> None:
    rows = pd.concat([frame_of(evaluation.rows), frame_of(evaluation.baseline)], ignore_index=True)
    for table in (dataset_table(rows, origin.dataset), measures_table(rows, origin.dataset)):
        if table is not None:
            title = table.title if origin.dataset else f"{origin.strategy}{table.title}"
            print(to_markdown(replace(table, title=title), line))
    for note in evaluation.notes:
        print(f"Note: {note}")
    for case, reason in evaluation.failures.items():
        print(f"{case}: {reason}", file=sys.stderr)
    print(f"Written: {out}")
