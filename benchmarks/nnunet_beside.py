"""nnU-Net on the same cases and splits as ours, with a budget of processor time, and its masks in our tables.

    python benchmarks/nnunet_beside.py msd_hippocampus acdc_mini --nnunet ENV/bin --cpu-minutes 12

It runs the README's commands, dataset by dataset: iris_export_nnunet, nnUNetv2_plan_and_preprocess, nnUNetv2_train
(3d_fullres, fold 0, which is our train and validation part), nnUNetv2_predict on our test part, iris_evaluate --method.
The one departure from its defaults is the end of training (`nnunet_trainers/`): a budget instead of 1000 epochs of
250 iterations. What is done is skipped, so that a stopped run goes on; OUT/beside.log keeps what the commands said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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

    @property
    def out(self) -> Path:
        return self.root / "nnunet"

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net is configured by variables of the environment and by nothing else."""
        folders = {
            f"nnUNet_{name}": str(self.out / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")
        }
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


def run_dataset(beside: Beside, name: str, device: str) -> None:
    """All steps of one dataset; those whose result is there are skipped."""
    root = ["--root", str(beside.root), *(["--raw", str(beside.raw)] if beside.raw else [])]
    beside.call("iris_export_nnunet", "-d", name, *root)
    found = sorted((beside.out / "nnUNet_raw").glob(f"Dataset???_{name}"))
    if len(found) != 1:
        raise BesideError(f"iris_export_nnunet should have made one Dataset???_{name}; found {len(found)}.")
    folder = found[0].name
    number = folder[len("Dataset") : len("Dataset") + 3]
    preprocessed = beside.out / "nnUNet_preprocessed" / folder
    cases = {path.name.removesuffix(".nii.gz") for path in (found[0] / "labelsTr").glob("*.nii.gz")}
    ready = {path.stem for path in (preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl")}
    if not cases <= ready:  # a stopped run may have left some of them
        arguments = ("-d", number, "-c", "3d_fullres", "--verify_dataset_integrity", "-np", "1")
        beside.call("nnUNetv2_plan_and_preprocess", *arguments)
    model = beside.out / "nnUNet_results" / folder / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"
    if not (model / "checkpoint_final.pth").is_file():
        # Validation on whole scans after the training is not part of the budget, nor needed.
        beside.call("nnUNetv2_train", number, "3d_fullres", "0", "-tr", TRAINER, "-device", device)
    masks = beside.out / "masks" / name
    tests = {path.name.replace("_0000", "") for path in (found[0] / "imagesTs").glob("*.nii.gz")}
    if not tests <= {path.name for path in masks.glob("*.nii.gz")}:
        chosen = ("-d", number, "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-device", device)
        where = ("-i", str(found[0] / "imagesTs"), "-o", str(masks), "-npp", "1", "-nps", "1")
        beside.call("nnUNetv2_predict", *chosen, *where, *(() if beside.tta else ("--disable_tta",)))
    print(beside.call("iris_evaluate", "--method", "nnU-Net", "-p", str(masks), "-d", name, *root))
    logs = sorted(model.glob("training_log_*.txt"))
    for line in logs[-1].read_text(encoding="utf-8").splitlines() if logs else ():
        if "Budget used" in line:
            print(f"  {name}: {line.split(': ', 1)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME", help="datasets with a finished store")
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnU-Net's programs, ENV/bin")
    parser.add_argument(
        "--cpu-minutes", type=float, required=True, help="processor time of training, a dataset"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="folder of raw/, preprocessed/, results/")
    parser.add_argument("--raw", type=Path, help="folder of the raw datasets (default: raw/ under the root)")
    parser.add_argument("--tta", action="store_true", help="mirror in prediction, as is nnU-Net's default")
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
    beside = Beside(nnunet, given.root.resolve(), raw, given.cpu_minutes, given.tta)
    failed = []
    for name in given.datasets:
        print(f"{name}:", flush=True)
        try:
            run_dataset(beside, name, given.device)
        except BesideError as error:  # one dataset that fails must not cost the others
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        print(f"Not finished: {', '.join(failed)}.", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
