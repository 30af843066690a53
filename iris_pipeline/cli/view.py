"""iris_view: Scroll through scans with truth and prediction in the browser; only this computer can open the pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from iris_pipeline.pages.view import find_predictions, make_gallery
from iris_pipeline.pages.view_server import address_of, make_server, write_page
from preprocessing.nnunet import stored_name
from preprocessing.runtime.options import add_raw_option, add_root_option, ending
from preprocessing.runtime.paths import Root


def view_main(argv: list[str] | None = None) -> int:
    """`iris_view OUT`: serves the viewer until Ctrl-C, or writes a page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="iris_view", description=__doc__.partition(": ")[2])
    parser.add_argument("out", metavar="OUT", help="a folder of iris_predict, or a run under results/")
    parser.add_argument(
        "-d",
        type=stored_name,
        metavar="DATASET",
        help="with a run: its dataset (default: the one the predictions are of)",
    )
    parser.add_argument("--strategy", metavar="NAME", help="with a run: the strategy (one-shot, bank, ...)")
    parser.add_argument("-i", metavar="IN", help="the scans (default: the raw files of the dataset)")
    parser.add_argument("-g", metavar="TRUTH", help="label maps (default: the raw files of the dataset)")
    parser.add_argument("--cases", nargs="+", metavar="ID", help="only these cases")
    parser.add_argument(
        "--port", type=_port, default=0, help="port of the local server (default: a free one)"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="instead of serving, write one page with the viewer and the --cases (default: worst, median, best)",
    )
    add_root_option(parser)
    add_raw_option(parser)
    arguments = parser.parse_args(argv)
    return ending(lambda: _view_command(arguments))


def _view_command(arguments: argparse.Namespace) -> int:
    root = Root.resolve(arguments.root, arguments.raw)
    folder = find_predictions(arguments.out, root, arguments.d, arguments.strategy)
    gallery = make_gallery(
        folder,
        root,
        images=Path(arguments.i).expanduser() if arguments.i else None,
        truth=Path(arguments.g).expanduser() if arguments.g else None,
        dataset=arguments.d,
        cases=arguments.cases,
    )
    for note in gallery.notes:
        print(f"Note: {note}")
    if arguments.html:
        size = write_page(gallery, Path(arguments.html), arguments.cases)
        print(
            f"Written: {arguments.html} ({size / 1e6:.1f} MB); it holds the scans, so keep it as you keep them."
        )
        return 0
    with make_server(gallery, arguments.port) as server:
        count = len(gallery.cases)
        print(
            f"{count} case{'s' * (count != 1)} at {address_of(server)} (this machine only); Ctrl-C ends it.",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded.")
    return 0


def _port(text: str) -> int:
    """For argparse: a port that a program may take."""
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"takes a port from 0 to 65535, not '{text}'")
    return number
