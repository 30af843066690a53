"""How long an evaluation takes, and how often faster it is than a peer that goes over the full volume.

    python benchmarks/evaluation_speed.py                 # 50 cases x 7 classes, then a part of them by MONAI
    python benchmarks/evaluation_speed.py --ways          # search tree against distance transform, by share of surface

Label maps are drawn: seven ellipsoids with rough surfaces in [D,H,W] = 128 x 192 x 192 voxels of 2.5 x 1.5 x 1.5 mm,
and the same ones moved and roughened otherwise as predictions, a few classes missing. `iris` reads all files, scores
every measure and writes the table, on --workers processes. The peer gets the arrays of --peer-cases cases in memory
and computes Dice, NSD, HD95 and ASSD of every class on the full volume; both rates are per case, ours on one
process and in seconds of CPU, so that a busy machine does not decide the ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

from iris_pipeline.evaluation.evaluate import evaluate_folder, truth_cases
from iris_pipeline.measures import surfaces
from iris_pipeline.measures.rows import Origin, write_rows
from preprocessing.runtime.parallel import default_workers
from preprocessing.volume import Volume, write_volume

SHAPE, SPACING_MM = (128, 192, 192), (2.5, 1.5, 1.5)
CLASSES = {f"organ {number}": number for number in range(1, 8)}
RADII_VOXELS = (
    (34, 60, 50),
    (20, 30, 28),
    (18, 26, 26),
    (12, 16, 40),
    (44, 12, 12),
    (8, 12, 10),
    (24, 24, 20),
)
CENTRES = (
    (64, 80, 60),
    (80, 120, 150),
    (40, 60, 140),
    (30, 140, 90),
    (64, 160, 40),
    (100, 50, 110),
    (96, 96, 96),
)


def draw(seed: int, rough: np.ndarray) -> np.ndarray:
    """uint8 [D,H,W]: the organs, each moved by up to 3 voxels; one in twenty is left out."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    axes = [np.arange(edge, dtype=np.float32) for edge in SHAPE]
    noise = np.roll(rough, tuple(int(each) for each in rng.integers(0, 60, 3)), axis=(0, 1, 2))
    for value, (centre, radii) in enumerate(zip(CENTRES, RADII_VOXELS, strict=True), 1):
        if rng.random() < 0.05:
            continue
        middle = np.array(centre) + rng.uniform(-3, 3, 3)
        parts = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, middle, radii, strict=True)]
        distance = parts[0][:, None, None] + parts[1][:, None] + parts[2]
        labels[distance + 0.12 * noise < 1] = value
    return labels


def rough_field() -> np.ndarray:
    """Smooth noise of spread 1, float32 [D,H,W]."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), 3)
    return field / field.std()


def peer_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, NSD, HD95 and ASSD of every class by MONAI, on the full volume."""
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    hot = [
        torch.from_numpy(np.stack([array == value for value in CLASSES.values()])[None])
        for array in (prediction, truth)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"include_background": True, "spacing": SPACING_MM}
        return {
            "dice": compute_dice(hot[0], hot[1], include_background=True)[0].numpy(),
            "nsd": compute_surface_dice(hot[0], hot[1], [2.0] * len(CLASSES), use_subvoxels=True, **options)[
                0
            ].numpy(),
            "hd95_mm": compute_hausdorff_distance(hot[0], hot[1], percentile=95, **options)[0].numpy(),
            "assd_mm": compute_average_surface_distance(hot[0], hot[1], symmetric=True, **options)[0].numpy(),
        }


def whole_evaluation(cases: int, peer_cases: int, workers: int) -> None:
    """Ours on all cases, ours and the peer's on a few, the ratio."""
    rough = rough_field()
    with tempfile.TemporaryDirectory() as name:
        truth, predicted = Path(name) / "labelsTr", Path(name) / "predictions"
        affine = np.diag([*SPACING_MM[::-1], 1.0])
        for case in range(cases):
            for folder, seed in ((truth, case), (predicted, 10_000 + case)):
                write_volume(folder / f"case_{case:03d}.nii.gz", Volume(draw(seed, rough), affine))
        started, before = time.perf_counter(), _cpu_seconds()
        found = evaluate_folder(
            predicted,
            truth_cases(truth),
            Origin("benchmark", "drawn", "", "moved"),
            classes=CLASSES,
            workers=workers,
        )
        write_rows(Path(name) / "rows.csv", found.rows)
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - before
        print(
            f"iris: {cases} cases x {len(CLASSES)} classes, all measures, {workers} processes: {seconds:.1f} s, of CPU "
            f"{cpu:.1f} s; the aim is 60 s for 50 cases on 2 cores"
        )
        started = time.process_time()
        few = evaluate_folder(
            predicted,
            truth_cases(truth)[:peer_cases],
            Origin("benchmark", "drawn", "", "moved"),
            classes=CLASSES,
            workers=1,
            progress=False,
        )
        ours = (time.process_time() - started) / peer_cases
    pairs = [(draw(10_000 + case, rough), draw(case, rough)) for case in range(peer_cases)]
    started = time.process_time()
    theirs = [peer_scores(*pair) for pair in pairs]
    peer = (time.process_time() - started) / peer_cases
    print(
        f"one process, a case: iris {ours:.2f} s (files read), MONAI on the full volume {peer:.2f} s (in memory)"
    )
    print(f"ratio: {peer / ours:.1f} times faster")
    worst = max(
        abs(row.measures["nsd"] - float(scores["nsd"][CLASSES[row.class_name] - 1]))
        for number, scores in enumerate(theirs)
        for row in few.rows
        if row.case == f"case_{number:03d}" and row.truth_voxels and row.predicted_voxels
    )
    print(f"largest difference of NSD between both: {worst:.1e}")


def _cpu_seconds() -> float:
    """Of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def two_ways() -> None:
    """Seconds of tree and transform for masks with more and more surface: where TREE_SHARE comes from."""
    rng = np.random.default_rng(0)
    for share in (0.001, 0.003, 0.01, 0.02, 0.05, 0.1):
        marked = [
            surfaces._is_surface(surfaces.neighbour_codes(rng.random((96,) * 3) < share)) for _ in range(2)
        ]
        seconds = []
        for way in (surfaces._by_tree, surfaces._by_transform):
            started = time.perf_counter()
            way(marked[0], marked[1], SPACING_MM)
            seconds.append(time.perf_counter() - started)
        elements = (marked[0].sum() + marked[1].sum()) / marked[0].size
        print(f"elements {elements:.3f} of the box: tree {seconds[0]:.3f} s, transform {seconds[1]:.3f} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--peer-cases", type=int, default=3)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument(
        "--ways", action="store_true", help="compare the two ways to measure distances instead"
    )
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    if arguments.ways:
        two_ways()
    else:
        whole_evaluation(arguments.cases, arguments.peer_cases, arguments.workers)


if __name__ == "__main__":
    main()
