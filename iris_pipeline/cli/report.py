"""iris_report: one page about a run, or a picture of a case. iris_embeddings: what a model makes of each class."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from iris_pipeline.cli._common import at_least_one, choose_device, run
from iris_pipeline.pages.browser import Screen, picture_page
from iris_pipeline.pages.embedding_map import FILE as NEAREST_FILE
from iris_pipeline.pages.embedding_map import embedding_map, write_nearest
from iris_pipeline.pages.embeddings import CASES_PER_DATASET, FILE, run_embeddings
from iris_pipeline.pages.report import write_picture, write_report
from iris_pipeline.provenance import made_by
from iris_pipeline.scans.inbox import RECORD
from iris_pipeline.tables.result_tables import EVALUATION
from preprocessing.errors import EvaluationError
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option, add_root_option
from preprocessing.runtime.paths import Root

SCREENS = {"desktop": Screen(1280, 900), "phone": Screen(390, 844, scale=2.0, phone=True)}


def report_main(argv: list[str] | None = None) -> int:
    """`iris_report RUN`: one HTML page about a run, pictures included."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_report",
        description="Make one HTML page about a run: tables, figures, pictures of its cases and the map of its tasks.",
    )
    parser.add_argument("run", metavar="RUN", help="a run under results/, or its folder")
    parser.add_argument(
        "-o", metavar="FILE", help="the page to write (default: report.html in the run's folder)"
    )
    parser.add_argument(
        "--strategy", metavar="NAME", help="strategy whose masks are shown (default: one-shot if it is there)"
    )
    parser.add_argument(
        "--screenshot",
        metavar="FILE",
        help="also make a picture of the page (.png); needs Chromium or Chrome",
    )
    parser.add_argument(
        "--screen", choices=list(SCREENS), default="desktop", help="with --screenshot: screen size"
    )
    parser.add_argument("--dark", action="store_true", help="with --screenshot: dark colours")
    parser.add_argument(
        "--at",
        metavar="ID",
        default="",
        help="with --screenshot: start at this part, e.g. a dataset, or embeddings",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="instead of the page, make a picture of one case of -d (.png, .pdf)"
    )
    parser.add_argument("-d", type=stored_name, metavar="DATASET", help="with --picture: the dataset")
    parser.add_argument("--case", metavar="ID", help="with --picture: the case (default: the median case)")
    add_root_option(parser)
    add_raw_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _report_command(arguments, made_by("iris_report", argv)))


def _report_command(arguments: argparse.Namespace, line: str) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    folder = _run_folder(arguments.run, root)
    if arguments.picture:
        if not arguments.d:
            raise EvaluationError("A picture shows a case of one dataset: name it with -d.")
        picture = Path(arguments.picture)
        title = write_picture(
            folder, root, arguments.d, picture, strategy=arguments.strategy, case=arguments.case
        )
        print(f"Written: {picture} ({title})")
        return 0
    out = Path(arguments.o) if arguments.o else None
    path, left_out = write_report(folder, root, line, out=out, strategy=arguments.strategy)
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    print(f"Written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if arguments.screenshot:
        screenshot = Path(arguments.screenshot)
        chosen = SCREENS[arguments.screen]
        screen = Screen(chosen.width, chosen.height, chosen.scale, arguments.dark, chosen.phone)
        picture_page(path, screenshot, screen, part=arguments.at)
        print(f"Written: {screenshot}")
    return 0


def embeddings_main(argv: list[str] | None = None) -> int:
    """`iris_embeddings RUN`: task embeddings of every class, and each one's nearest in another dataset."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="iris_embeddings",
        description="Compare how a model encodes each class: does the same organ in two datasets get similar vectors?",
    )
    parser.add_argument("run", metavar="RUN", help="a trained run under results/, or its folder")
    parser.add_argument(
        "--cases",
        type=at_least_one,
        default=CASES_PER_DATASET,
        metavar="N",
        help="number of references per dataset (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing references")
    parser.add_argument("--overwrite", action="store_true", help="encode again what is already there")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add_root_option(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: _embeddings_command(arguments, made_by("iris_embeddings", argv)))


def _embeddings_command(arguments: argparse.Namespace, line: str) -> int:
    root = Root.resolve(arguments.root)
    named = root.results / arguments.run
    folder = named if named.is_dir() else Path(arguments.run).expanduser()
    made = run_embeddings(
        folder,
        root.preprocessed,
        cases=arguments.cases,
        seed=arguments.seed,
        device=choose_device(arguments.device),
        overwrite=arguments.overwrite,
    )
    found = embedding_map(made, arguments.seed)
    write_nearest(folder / NEAREST_FILE, found, line)
    for row in found.nearest.to_dict("records"):
        near = ""
        if isinstance(row["nearest class"], str):
            near = f" -> {row['nearest class']} ({row['nearest dataset']}), cosine {row['cosine']:.3f}, "
            near += f"anatomy: {row['relation']}"
        print(f"{row['class']} ({row['dataset']}){near}")
    for sentence in (found.classes.sentence, found.cases.sentence, *found.notes):
        print(sentence)
    print(f"Written: {folder / NEAREST_FILE}; vectors in {folder / FILE}")
    return 0


def _run_folder(name: str, root: Root) -> Path:
    """A run under results/ by name, or the folder itself."""
    for folder in (root.results / name, Path(name).expanduser()):
        if (folder / EVALUATION).is_dir():
            return folder if folder.name else folder.resolve()  # "." has no name
    if (Path(name).expanduser() / RECORD).is_file():
        raise EvaluationError(
            f"A page is of an evaluated run, and '{name}' holds masks of iris_predict: `iris_view {name} -i IN` shows "
            "them over the scans in IN."
        )
    known = ", ".join(sorted(path.parent.name for path in root.results.glob(f"*/{EVALUATION}"))) or "none"
    raise EvaluationError(f"'{name}' is no evaluated run; under {root.results} there are: {known}.")
