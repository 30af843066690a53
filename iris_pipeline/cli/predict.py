"""iris_predict: scans -> label maps, with a task file, with references, or with what a model remembers."""

from __future__ import annotations

import argparse
from pathlib import Path

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.cli._common import at_least_one, choose_device, run
from iris_pipeline.cli._from_files import predict_from_files
from iris_pipeline.cli._from_store import experiment_of, predict_from_store
from iris_pipeline.cli._models import (
    add_device_options,
    add_model_options,
    autocast_of,
    load_run,
    results_folder,
)
from iris_pipeline.cli._outputs import add_output_options, tell_judgements, wishes_of
from iris_pipeline.cli._references import (
    GivenReferences,
    add_reference_options,
    check_fit,
    given_references,
    summary,
)
from iris_pipeline.cli._showing import check_showing
from iris_pipeline.cli._splits import experiment_name, raw_cases
from iris_pipeline.confidence import judging
from iris_pipeline.inference.pool import EmbeddingCache
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.prediction.bank_tasks import bank_task
from iris_pipeline.prediction.made_from import check_out
from iris_pipeline.prediction.predict import Verdict, predict_folder, raise_for_refused
from iris_pipeline.prediction.predict_split import predict_split
from iris_pipeline.prediction.query_tasks import STRATEGIES
from iris_pipeline.scans.case_report import failure_told
from iris_pipeline.scans.inputs import find_inputs
from iris_pipeline.search.kept_showings import kept_showings
from iris_pipeline.tasks.task_file import load_task
from iris_pipeline.training.interrupt import TerminatedAsInterrupted
from preprocessing.errors import TaskError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option
from preprocessing.runtime.paths import Root
from preprocessing.store import open_stores
from preprocessing.volume import is_image_path


def predict_main(argv: list[str] | None = None) -> int:
    """`iris_predict -i IN -o OUT`; returns the exit status, 1 if a case could not be segmented."""
    parser = argparse.ArgumentParser(
        prog="iris_predict",
        description="Segment scans: with a task file (-t), with labelled references (-r), or with what a model "
        "remembers (-d).",
        epilog="Exit status: 0 all scans are done, now or before; 1 a scan, a reference or the call was refused, or "
        "something went wrong, and a sentence says what; 2 options that do not exist or go together; 130 and 143 "
        "interrupted by Ctrl-C or SIGTERM. What became of each scan stands in OUT/report.csv. Run again: finished"
        " masks are skipped. A mask is made again if its file is damaged, or if another scan or channel now has "
        "its name; OUT/scans.json records which scan each mask is of (without that file, a mask on its scan's "
        "grid is assumed to match). If a scan cannot be read or has two files, or the disk is full, the case is "
        "refused and its old mask stays; the mask of a former scan is removed only when the new scan has been "
        "read.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-i",
        metavar="IN",
        help="a scan, a folder of scans (also with nnU-Net's names), a DICOM series, or a folder with DICOM "
        "series",
    )
    parser.add_argument(
        "--channel",
        metavar="C",
        help="channel of the scans of -i, if they have several: its number (from 0) or its name",
    )
    what.add_argument(
        "--split", metavar="SPLIT", help="instead of -i: this split of dataset -d, from the raw files"
    )
    parser.add_argument("--part", choices=["test", "validation"], help="part of --split (default: test)")
    parser.add_argument(
        "-o",
        metavar="OUT",
        help="folder for the results (with --split, default: results/<run>/predictions/...)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-t", nargs="+", metavar="FILE", help="one or several task files made by iris_encode")
    how.add_argument(
        "-r",
        nargs="+",
        metavar="REFS",
        help="folder with images/ and labels/; or IMAGE and LABEL; or IMAGE and a folder of its masks",
    )
    how.add_argument(
        "-d",
        type=stored_name,
        metavar="DATASET",
        help="dataset from the model's memory bank, or whose references are used (default: the only one the "
        "model knows)",
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="how the references become a task (default: bank with -d; one-shot with one reference, ensemble "
        "with several)",
    )
    parser.add_argument(
        "--top",
        type=at_least_one,
        metavar="N",
        help="object-retrieval: number of references from which each class is taken",
    )
    add_model_options(parser)
    add_raw_option(parser)
    add_reference_options(parser)
    add_device_options(parser)
    parser.add_argument(
        "--weights",
        choices=["gaussian", "uniform"],
        default="gaussian",
        help="weights of the voxels of a window: gaussian, where a window's middle counts more than its edges, "
        "or all alike, as in the paper (uniform)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.5,
        help="share of a window that its neighbour also covers (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="windows per batch (default: %(default)s)")
    parser.add_argument(
        "--skip-air",
        action="store_true",
        help="windows of air are background, without running the model on them",
    )
    parser.add_argument(
        "--all-pieces",
        action="store_true",
        help="keep all pieces. By default, a class that is one piece in every reference keeps only its largest "
        "piece",
    )
    parser.add_argument(
        "--one-pass",
        action="store_true",
        help="full resolution everywhere. By default, a model trained with --wide looks at half resolution first",
    )
    add_output_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="make results anew that are there")
    parser.set_defaults(left_out=None)  # what -i leaves out, once it is known: for the report
    arguments = parser.parse_args(argv)
    if arguments.i is not None and arguments.o is None:
        parser.error("-o OUT is needed with -i IN")
    if arguments.i is not None and arguments.part is not None:
        parser.error("--part is a part of --split: leave it out with -i IN")
    if arguments.split is not None and arguments.channel is not None:
        parser.error("--channel is of the scans of -i: leave it out with --split SPLIT")
    if arguments.o is not None and is_image_path(Path(arguments.o)):
        parser.error(f"-o is the folder of the results, not a file; got {arguments.o}")
    with TerminatedAsInterrupted() as terminated:
        status = run(lambda: _predict_command(arguments))
    return terminated.status(status)


def _predict_command(arguments: argparse.Namespace) -> int:
    if arguments.split is not None:
        verdicts, given = _predicted(arguments)
    else:
        out = Path(arguments.o)
        with failure_told(out, lambda: arguments.left_out or ()):
            verdicts, given = _predicted(arguments)
        if arguments.confidence:
            tell_judgements(out)
    done, skipped = (sum(v.status == status for v in verdicts) for status in ("done", "skipped"))
    print(f"{done} segmented, {skipped} skipped as already there, {len(verdicts) - done - skipped} refused.")
    raise_for_refused(verdicts)
    if given is not None:
        given.raise_for_refused()
    return 0


def _predicted(arguments: argparse.Namespace) -> tuple[list[Verdict], GivenReferences | None]:
    """What became of each case; the references of -r beside it."""
    root = Root.resolve(arguments.root, arguments.raw)
    device = choose_device(arguments.device)
    options = InferenceOptions(
        overlap=arguments.overlap,
        weighting=arguments.weights,
        batch_size=arguments.batch_size,
        device=device,
        autocast=autocast_of(arguments.precision, device),
        skip="air" if arguments.skip_air else "never",
        all_pieces=arguments.all_pieces,
        one_pass=arguments.one_pass,
    )
    check_fit(arguments, arguments.strategy)
    if arguments.split is not None:
        return _predict_split(arguments, root, options), None
    return _predict_inputs(arguments, root, options)


def _predict_inputs(
    arguments: argparse.Namespace, root: Root, options: InferenceOptions
) -> tuple[list[Verdict], GivenReferences | None]:
    """-i with whatever makes the task; the references of -r beside the verdicts."""
    inputs, notes = find_inputs(Path(arguments.i), arguments.channel)
    arguments.left_out = notes
    for note in notes:
        print(f"Note: {note}")
    loaded, folder = load_run(arguments, root, options.device, options.autocast)
    out = Path(arguments.o)
    print(f"{len(inputs)} scan{'s' * (len(inputs) != 1)} from {arguments.i} to {out}.")
    if arguments.t or arguments.r:
        if arguments.t:
            tasks = [load_task(path, loaded.model_hash) for path in arguments.t]
            for task in tasks:
                print(f"Task: {summary(task)}.")
            wishes = wishes_of(arguments, loaded, folder, options)
            return predict_folder(
                loaded, tasks, inputs, out, options, left_out=arguments.left_out, **wishes
            ), None
        check_out(loaded, inputs, out, options, arguments.overwrite)
        given = given_references(arguments)
        return predict_from_files(arguments, given.files, loaded, folder, inputs, out, options), given
    dataset = _dataset(arguments, loaded)
    if arguments.strategy in (None, "bank"):
        task = bank_task(
            loaded, dataset, judging.store_at_hand(loaded, root.preprocessed / dataset), arguments.looks
        )
        print(f"Task: {summary(task)}.")
        wishes = wishes_of(
            arguments,
            loaded,
            folder,
            options,
            witnesses=lambda: judging.bank_witnesses(
                loaded, root.preprocessed / dataset, options, arguments.seed or 0
            ),
            volumes=lambda calibration: judging.known_volumes(calibration.volumes_ml.get(dataset, {})),
        )
        return predict_folder(loaded, task, inputs, out, options, left_out=arguments.left_out, **wishes), None
    return predict_from_store(arguments, root, loaded, folder, dataset, inputs, out, options), None


def _dataset(arguments: argparse.Namespace, loaded: LoadedModel) -> str:
    """-d, or the one dataset that the model knows."""
    if arguments.d:
        return str(arguments.d)
    if len(loaded.plans) != 1:
        raise TaskError(
            f"The model knows {len(loaded.plans)} datasets ({', '.join(loaded.plans)}): choose one with -d, "
            "or give a task file with -t or references with -r."
        )
    return next(iter(loaded.plans))


def _predict_split(arguments: argparse.Namespace, root: Root, options: InferenceOptions) -> list[Verdict]:
    if arguments.t or arguments.r:
        raise TaskError("--split is a split of a dataset: it goes with -d, not with -t or -r.")
    loaded, folder = load_run(arguments, root, options.device, options.autocast)
    dataset = _dataset(arguments, loaded)
    store = open_stores(root.preprocessed, [dataset])[dataset]
    experiment = experiment_of(arguments, arguments.strategy or "bank")
    check_showing(experiment.showing, [store], [experiment.strategy])
    cases, part = raw_cases(root, store), arguments.part or "test"
    numbered = arguments.references is not None or arguments.seed is not None
    name = experiment_name(experiment, part, numbered)
    results = results_folder(folder, root)
    out = Path(arguments.o) if arguments.o else results / "predictions" / dataset / name
    print(f"{dataset}, {part} part of split '{arguments.split}', {experiment.strategy}, to {out}.")
    held_out = store.manifest.role == "held-out"
    ids = store.manifest.splits.get(arguments.split, {}).get(part if held_out else "train", [])
    wishes = wishes_of(
        arguments,
        loaded,
        folder,
        options,
        witnesses=lambda: judging.stored_witnesses(
            loaded, store, ids, options, experiment.count, experiment.seed, {case.id: case for case in cases}
        ),
        # of a held-out dataset each case would have its own volume among the references'
        volumes=lambda _: judging.known_volumes({} if held_out else judging.stored_volumes(store, ids)),
    )
    verdicts = predict_split(
        loaded,
        store,
        cases,
        experiment,
        split=arguments.split,
        part=part,
        out=out,
        options=options,
        cache=EmbeddingCache(showings=kept_showings(results, arguments.overwrite)),
        **wishes,
    )
    if arguments.confidence:
        tell_judgements(out)
    return verdicts
