"""Peak memory and time of predicting one large scan with many classes, and both as ratios to the naive way.

A scan of soft blobs is drawn (512 x 512 x 400 voxels by default), an untrained network of `--size` and a task of
random tokens are written, and `iris_predict` segments the scan in a process of its own, whose peak memory the system
tells. The naive way, all classes on the scan's own grid at once in float32, is run beside it on a smaller scan where
it fits, again each in a process of its own. Arrays are [D,H,W] = (z,y,x).

    python benchmarks/large_volume.py                       # the large scan, then the ratios on the small one
    python benchmarks/large_volume.py --spacing 1.5 --window 96
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from iris_pipeline.checkpoints.checkpoint import RunState, load_model, save_checkpoint
from iris_pipeline.checkpoints.memory_bank import MemoryBank
from iris_pipeline.cli.predict import predict_main
from iris_pipeline.inference.sliding_window import segment_volume
from iris_pipeline.model import build_iris
from iris_pipeline.tasks.task import TaskEmbedding
from iris_pipeline.tasks.task_file import load_task, save_task
from preprocessing.normalise import Normalisation
from preprocessing.volume import Volume, read_volume, write_volume

SPACING_MM = (1.0, 0.8, 0.8)  # of the drawn scans (z,y,x)


def draw_scan(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    """A scan like a CT: air outside an ellipse, soft structures inside, noise; int16 HU."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=tuple(max(2, n // 16) for n in shape))
    inside = np.add.outer(np.linspace(-1.2, 1.2, shape[1]) ** 2, np.linspace(-1.1, 1.1, shape[2]) ** 2) < 1
    scan = np.empty(shape, np.int16)
    for z in range(shape[0]):  # plane by plane: the drawing itself is not to be the peak
        at = z / max(1, shape[0] - 1) * (coarse.shape[0] - 1)
        low = min(int(at), coarse.shape[0] - 2)
        plane = coarse[low] * (1 - at + low) + coarse[low + 1] * (at - low)
        tissue = ndimage.zoom(plane, np.divide(shape[1:], plane.shape), order=1)
        scan[z] = np.where(inside, 40 + 120 * tissue, -1000) + rng.normal(0, 8, shape[1:])
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    write_volume(path, Volume(scan, affine))


def write_model(folder: Path, size: str) -> None:
    """An untrained network as a run folder: its speed and memory are those of a trained one."""
    model = build_iris(size, seed=0).eval()
    save_checkpoint(folder / "checkpoint", model, MemoryBank(), RunState(0, 0.0, 0), plans={}, specs={})


def write_task(path: Path, run: Path, classes: int, spacing_mm: float, window: int) -> None:
    """A task of random tokens."""
    loaded = load_model(run)
    config = loaded.config
    generator = torch.Generator().manual_seed(1)
    tokens = tuple(
        torch.randn(1, classes, config.context_tokens + 1, config.widths[level], generator=generator)
        for level in config.task_levels
    )
    task = TaskEmbedding(
        class_names=tuple(f"class_{k + 1}" for k in range(classes)),
        tokens=tokens,
        spacing_mm=(spacing_mm,) * 3,
        patch_size=(window,) * 3,
        normalisation=Normalisation.for_modality("CT"),
        intensity_offset=0.0,
        modality="CT",
        references=1,
        model_hash=loaded.model_hash,
        made_by="benchmark",
    )
    save_task(path, task)


def predict_naively(folder: Path, scan: str, overlap: float) -> None:
    """Read, prepare, all classes on the scan's own grid in float32, argmax, write."""
    task, loaded = load_task(folder / "random.task"), load_model(folder / "run")
    image = read_volume(folder / scan)
    prepared = task.prepare(image)
    scores = segment_volume(loaded.model, prepared.image, task, overlap=overlap, progress=True)
    native = np.stack([prepared.trace.undo_scores(each) for each in scores])
    values = np.array(task.class_values, np.uint8)
    labels = np.where(native.max(axis=0) > 0.5, values[native.argmax(axis=0)], 0).astype(np.uint8)
    write_volume(folder / "naive" / scan, Volume(labels, image.affine, image.header))


def run_child(way: str, folder: Path, scan: str, overlap: float) -> None:
    """What a child process does; it leaves its time and peak memory behind."""
    started = time.perf_counter()
    if way == "naive":
        predict_naively(folder, scan, overlap)
    else:
        task, out = str(folder / "random.task"), str(folder / "streamed")
        arguments = ["-i", str(folder / scan), "-o", out, "-t", task, "-m", str(folder / "run")]
        if predict_main([*arguments, "--overlap", str(overlap), "--device", "cpu"]) != 0:
            raise SystemExit("iris_predict failed")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers = {"seconds": time.perf_counter() - started, "peak_gb": peak_kib * 1024 / 1e9}
    (folder / f"{way}_{scan}.json").write_text(json.dumps(numbers), encoding="utf-8")


def measure(way: str, folder: Path, scan: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--child", way, "--folder", str(folder), "--scan", scan]
    subprocess.run([*command, "--overlap", str(arguments.overlap)], check=True)
    return json.loads((folder / f"{way}_{scan}.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(400, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--small-shape", type=int, nargs=3, default=(120, 192, 192), metavar=("Z", "Y", "X"))
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--size", default="small")
    parser.add_argument("--spacing", type=float, default=3.0, help="of the task, mm")
    parser.add_argument("--window", type=int, default=64, help="edge of the network's window, voxels")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--child", choices=["naive", "streamed"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, arguments.folder, arguments.scan, arguments.overlap)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_scan(folder / "large.nii.gz", tuple(arguments.shape), seed=0)
        draw_scan(folder / "small.nii.gz", tuple(arguments.small_shape), seed=1)
        write_model(folder / "run", arguments.size)
        task = folder / "random.task"
        write_task(task, folder / "run", arguments.classes, arguments.spacing, arguments.window)
        large = measure("streamed", folder, "large.nii.gz", arguments)
        streamed = measure("streamed", folder, "small.nii.gz", arguments)
        naive = measure("naive", folder, "small.nii.gz", arguments)
        same = read_volume(folder / "streamed" / "small.nii.gz").array
        same = same == read_volume(folder / "naive" / "small.nii.gz").array
    shape, small = ("x".join(map(str, s)) for s in (arguments.shape, arguments.small_shape))
    what = f"{arguments.classes} classes, {arguments.size}, {arguments.spacing:g} mm, {torch.get_num_threads()} threads"
    print(f"{shape}, {what}: peak {large['peak_gb']:.2f} GB, {large['seconds']:.0f} s")
    print(
        f"{small}, as a ratio to the naive way: memory {streamed['peak_gb'] / naive['peak_gb']:.2f} "
        f"({streamed['peak_gb']:.2f} of {naive['peak_gb']:.2f} GB), time "
        f"{streamed['seconds'] / naive['seconds']:.2f} ({streamed['seconds']:.0f} of {naive['seconds']:.0f} s), "
        f"voxels labelled alike {same.mean():.6f}"
    )


if __name__ == "__main__":
    main()
