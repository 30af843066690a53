"""nnU-Net on the same cases and splits as ours, with a budget of processor time, and its masks in our tables.

    python benchmarks/nnunet_beside.py msd_hippocampus acdc_mini --nnunet ENV/bin --cpu-minutes 12

It runs the README's commands, dataset by dataset: iris_export_nnunet, nnUNetv2_plan_and_preprocess, nnUNetv2_train
(3d_fullres, fold 0, which is our train and validation part), nnUNetv2_predict on our test part, iris_evaluate --method.

    ... lung_mr mscmr --references 3 --draws 0 ...       trained on the references that ours is shown, and nothing else
    ... mscmr --trained-on acdc_mini ...                 trained on one dataset, tested on another of the same classes

    ... acdc_mini --gpu-memory 2 ...                     planned for 2 GB: smaller patches, more steps in a budget

Departures from its defaults: a budget instead of 1000 epochs of 250 iterations, short epochs, one thread
(`nnunet_trainers/`); no mirroring in prediction without `--tta`; and, where asked for, `--gpu-memory`, its
planner's own option (`-gpu_memory_target`), as a step of a patch that fills 8 GB takes one core half a minute.

Every query has references of other subjects, so that a held-out dataset takes several trainings a draw; the budget
is that of each. What is done is skipped, so that a stopped run goes on; OUT/beside.log keeps what the commands said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iris_pipeline.cli._common import at_least_one
from iris_pipeline.nnunet.export import dataset_name
from iris_pipeline.prediction.predict_split import reference_ids
from iris_pipeline.scans.references import candidates_of, draw_references
from preprocessing.adapters import find_cases
from preprocessing.errors import IrisError
from preprocessing.runtime.paths import Root
from preprocessing.store import open_stores
from preprocessing.volume import write_volume

TRAINER = "nnUNetTrainerCpuMinutes"
TRAINERS = Path(__file__).resolve().parent / "nnunet_trainers"


class BesideError(Exception):
    """A command that failed, in one sentence."""


@dataclass(frozen=True)
class Beside:
    """Where things are: nnU-Net's programs, ours, and the root with raw/, preprocessed/ and results/."""

    nnunet: Path
    root: Path
    raw: Path | None
    minutes: float
    tta: bool
    device: str
    gpu_memory: float | None = None  # GB, that its planner fills; None: its default

    @property
    def plans(self) -> str:
        """The name of the plans; nnU-Net keeps preprocessed cases and models apart by it."""
        return "nnUNetPlans" if self.gpu_memory is None else f"nnUNetPlans_{self.gpu_memory:g}GB"

    @property
    def model(self) -> tuple[str, ...]:
        """Which network of a dataset, and where it runs, as training and prediction are told alike."""
        return ("-p", self.plans, "-tr", TRAINER, "-device", self.device)

    @property
    def ending(self) -> str:
        """What tells masks of other plans, or mirrored ones, apart."""
        planned = "" if self.gpu_memory is None else f"_{self.gpu_memory:g}GB"
        return f"{planned}{'_tta' if self.tta else ''}"

    @property
    def out(self) -> Path:
        return self.root / "nnunet"

    @property
    def results(self) -> Path:
        """A folder for each budget, as for the masks: what another one made is not taken for it."""
        return self.out / f"nnUNet_results_{self.minutes:g}_minutes"

    @property
    def masks(self) -> Path:
        return self.out / f"masks_{self.minutes:g}_minutes{self.ending}"

    @property
    def method(self) -> str:
        """The name of its rows: what one budget made must not stand beside what another made as if it were one; nor
        what was mirrored in prediction, or planned for less memory, beside what was not."""
        return f"nnU-Net_{self.minutes:g}_min{self.ending}"

    @property
    def our_folders(self) -> list[str]:
        return ["--root", str(self.root), *(["--raw", str(self.raw)] if self.raw else [])]

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net is configured by variables of the environment and by nothing else."""
        folders = {f"nnUNet_{name}": str(self.out / f"nnUNet_{name}") for name in ("raw", "preprocessed")}
        folders["nnUNet_results"] = str(self.results)
        ours = {"nnUNet_extTrainer": str(TRAINERS), "NNUNET_CPU_MINUTES": str(self.minutes)}
        one_core = {"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        return {**os.environ, **folders, **ours, **one_core}

    def call(self, program: str, *arguments: str) -> str:
        """Run a program of nnU-Net's or, where it begins with iris_, of ours; its output."""
        # Augmentation in the training process itself, so that the budget counts it; planning wants at least 1.
        workers = {"nnUNet_n_proc_DA": "0"} if program == "nnUNetv2_train" else {}
        place = Path(sys.executable).parent if program.startswith("iris_") else self.nnunet
        self.out.mkdir(parents=True, exist_ok=True)
        print(f"  {program} {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [str(place / program), *arguments],
            env={**self.environment, **workers},
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        with (self.out / "beside.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {program} {' '.join(arguments)}\n{done.stdout}\n")
        if done.returncode:
            raise BesideError(
                f"{program} ended with status {done.returncode}; {self.out / 'beside.log'} says why."
            )
        return done.stdout


@dataclass(frozen=True)
class Exported:
    """A dataset of nnU-Net's that iris_export_nnunet made."""

    raw: Path

    @property
    def folder(self) -> str:
        return self.raw.name

    @property
    def number(self) -> str:
        return self.folder[len("Dataset") :][:3]


def prepare(beside: Beside, name: str, references: Sequence[str] = ()) -> Exported:
    """Export, fingerprint, plan and preprocess a dataset, or a few cases of one."""
    shown = ("--references", *references) if references else ()
    beside.call("iris_export_nnunet", "-d", name, *shown, *beside.our_folders)
    ending = dataset_name(name, references)
    found = sorted((beside.out / "nnUNet_raw").glob(f"Dataset???_{ending}"))
    if len(found) != 1:
        raise BesideError(f"iris_export_nnunet should have made one Dataset???_{ending}; found {len(found)}.")
    exported = Exported(found[0])
    cases = {path.name.removesuffix(".nii.gz") for path in (exported.raw / "labelsTr").glob("*.nii.gz")}
    preprocessed = beside.out / "nnUNet_preprocessed" / exported.folder
    ready = {path.stem for path in (preprocessed / f"{beside.plans}_3d_fullres").glob("*.pkl")}
    if not cases <= ready:  # a stopped run may have left some of them
        arguments = ("-d", exported.number, "-c", "3d_fullres", "--verify_dataset_integrity", "-np", "1")
        planned = ("-gpu_memory_target", f"{beside.gpu_memory:g}", "-overwrite_plans_name", beside.plans)
        beside.call("nnUNetv2_plan_and_preprocess", *arguments, *(planned if beside.gpu_memory else ()))
    return exported


def train(beside: Beside, exported: Exported) -> str:
    """Train fold 0 to the end of the budget, unless that was done; what was done with it, in nnU-Net's words."""
    model = beside.results / exported.folder / f"{TRAINER}__{beside.plans}__3d_fullres" / "fold_0"
    if not (model / "checkpoint_final.pth").is_file():
        beside.call("nnUNetv2_train", exported.number, "3d_fullres", "0", *beside.model)
    for log in sorted(model.glob("training_log_*.txt"), reverse=True):
        for line in log.read_text(encoding="utf-8").splitlines():
            if "Budget used" in line:
                return line.split(": ", 1)[1]
    return "trained before, by a run whose log is gone"


def predict(beside: Beside, exported: Exported, images: Path, masks: Path) -> None:
    """Masks of all images in a folder of nnU-Net's form; nothing is done where all are there."""
    wanted = {path.name.replace("_0000", "") for path in images.glob("*.nii.gz")}
    if wanted <= {path.name for path in masks.glob("*.nii.gz")}:
        return
    chosen = ("-d", exported.number, "-c", "3d_fullres", "-f", "0", *beside.model)
    where = ("-i", str(images), "-o", str(masks), "-npp", "1", "-nps", "1")
    beside.call("nnUNetv2_predict", *chosen, *where, *(() if beside.tta else ("--disable_tta",)))


def evaluate(beside: Beside, name: str, masks: Path, *how: str) -> None:
    """The masks' rows in our tables, under a method that says the budget."""
    place = ("-p", str(masks), "-d", name)
    print(beside.call("iris_evaluate", "--method", beside.method, *how, *place, *beside.our_folders))


def run_dataset(beside: Beside, name: str) -> None:
    """Trained on the dataset's train part, tested on its test part."""
    exported = prepare(beside, name)
    print(f"  {name}: {train(beside, exported)}", flush=True)
    masks = beside.masks / name
    predict(beside, exported, exported.raw / "imagesTs", masks)
    evaluate(beside, name, masks)


def run_references(beside: Beside, name: str, count: int, draw: int) -> None:
    """Trained on the references that ours is shown, once for every set of queries that share them."""
    masks = beside.masks / f"{name}_k{count}_draw{draw}"
    for number, (references, queries) in enumerate(reference_groups(beside, name, count, draw).items()):
        exported = prepare(beside, name, references)
        print(f"  {name} from {', '.join(references)}: {train(beside, exported)}", flush=True)
        images = masks.parent / f"{masks.name}_images" / str(number)
        images.mkdir(parents=True, exist_ok=True)
        for query in queries:
            link = images / f"{query}_0000.nii.gz"
            if not link.exists():
                link.symlink_to(exported.raw / "imagesTs" / link.name)
        predict(beside, exported, images, masks)
    evaluate(beside, name, masks, "--strategy", "trained", "--references", str(count), "--draw", str(draw))


def reference_groups(beside: Beside, name: str, count: int, draw: int) -> dict[tuple[str, ...], list[str]]:
    """References -> the queries that have them: those of `iris_predict --split` with the same draw."""
    store = open_stores(beside.root / "preprocessed", [name])[name]
    subjects = {entry.id: entry.subject for entry in store.manifest.cases}
    candidates = candidates_of(store, reference_ids(store, "paper"))
    groups: dict[tuple[str, ...], list[str]] = {}
    for query in store.manifest.splits["paper"]["test"]:
        draws = draw_references(candidates, list(store.manifest.classes), count, draw, {subjects[query]})
        groups.setdefault(tuple(sorted(each.id for each in draws)), []).append(query)
    return groups


def run_elsewhere(beside: Beside, source: str, name: str) -> None:
    """Trained on one dataset and applied to another one that has classes of the same names."""
    store = open_stores(beside.root / "preprocessed", [name])[name]
    if source in store.manifest.spec.overlaps:
        raise BesideError(f"People of {name} are also in {source}: train on a dataset without them.")
    exported = prepare(beside, source)
    print(f"  {source}: {train(beside, exported)}", flush=True)
    folders = Root.resolve(str(beside.root), str(beside.raw) if beside.raw else None)
    cases = find_cases(store.manifest.spec.raw_folder(folders.raw), store.manifest.spec)
    images = beside.masks / f"{name}_images"
    images.mkdir(parents=True, exist_ok=True)
    for case in cases:
        path = images / f"{case.id}_0000.nii.gz"
        if case.id in store.manifest.splits["paper"]["test"] and not path.is_file():
            write_volume(path, case.image.read_image())
    masks = beside.masks / f"{name}_by_{source}"
    predict(beside, exported, images, masks)
    evaluate(beside, name, masks, "--strategy", f"trained-on-{source}")


def positive_number(text: str) -> float:
    """For argparse: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"takes a number above 0, not '{text}'")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME", help="datasets with a finished store")
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnU-Net's programs, ENV/bin")
    parser.add_argument(
        "--cpu-minutes", type=positive_number, required=True, help="processor time of training, a dataset"
    )
    few = parser.add_mutually_exclusive_group()
    few.add_argument(
        "--references",
        type=at_least_one,
        metavar="K",
        help="train on K drawn references of each dataset alone",
    )
    few.add_argument("--trained-on", metavar="NAME", help="train on this dataset, test on the others named")
    parser.add_argument(
        "--draws", type=int, nargs="+", default=[0], metavar="N", help="of --references (default: 0)"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder of raw/, preprocessed/, results/")
    parser.add_argument("--raw", type=Path, help="folder of the raw datasets (default: raw/ under the root)")
    parser.add_argument("--tta", action="store_true", help="mirror in prediction, as is nnU-Net's default")
    parser.add_argument(
        "--gpu-memory",
        type=positive_number,
        metavar="GB",
        help="memory of a GPU that patch and batch are planned for (default: nnU-Net's, 8); less for a CPU",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    if not (given.nnunet / "nnUNetv2_train").is_file():
        print(
            f"--nnunet is the folder that holds nnUNetv2_train, and {given.nnunet} does not: install nnunetv2 in an "
            "environment of its own and name its bin folder.",
            file=sys.stderr,
        )
        return 1
    raw = given.raw.resolve() if given.raw else None
    # The environment's own folder, not where its python really lies: a link is resolved one step too far.
    nnunet = Path(os.path.abspath(given.nnunet))
    beside = Beside(
        nnunet, given.root.resolve(), raw, given.cpu_minutes, given.tta, given.device, given.gpu_memory
    )
    jobs: list[tuple[str, Callable[[], None]]] = []
    for name in given.datasets:
        if given.references:
            for draw in given.draws:
                job = partial(run_references, beside, name, given.references, draw)
                jobs.append((f"{name}, {given.references} references, draw {draw}", job))
        elif given.trained_on:
            jobs.append(
                (f"{given.trained_on} on {name}", partial(run_elsewhere, beside, given.trained_on, name))
            )
        else:
            jobs.append((name, partial(run_dataset, beside, name)))
    failed = []
    for title, job in jobs:
        print(f"{title}:", flush=True)
        try:
            job()
        except (BesideError, IrisError) as error:  # one dataset that fails must not cost the others
            print(f"{title}: {error}", file=sys.stderr, flush=True)
            failed.append(title)
    if failed:
        print(f"Not finished: {'; '.join(failed)}.", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
