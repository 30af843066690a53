"""What a training run leaves for people to look at: train.csv, train.log, curve.png, run.json."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure

from iris_pipeline.checkpoints.checkpoint import RUN_SCHEMA_VERSION
from iris_pipeline.provenance import command_line, revision
from iris_pipeline.training.losses import LossParts
from preprocessing.runtime.files import replaced, write_bytes, write_json

COLUMNS = ["iteration", "loss", "dice_loss", "ce_loss", "lr", "gradient_norm", "seconds", "validation_dice"]


class RunLog:
    """Writes the log of one run as it happens; a context manager, so that the curve is drawn however it ends.

    Rows of train.csv hold the mean since the last row; `validation_dice` (mean over datasets) is filled where it was
    measured, and validation.csv has it per dataset.

    resumed_at: the iteration from which a run goes on; rows of later ones, which a killed run left behind its last
    checkpoint, are dropped. validated: the iteration of the latest validation, None before the first.
    """

    def __init__(
        self,
        folder: Path,
        settings: Any,
        datasets: list[str],
        resumed_at: int | None = None,
        every: int = 20,
        network: dict[str, Any] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.every, self.datasets = folder, every, datasets
        self._run = {
            "schema_version": RUN_SCHEMA_VERSION,
            "status": "running",
            "datasets": datasets,
            "settings": asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {},
            "config": network or {},
            "command": command_line("iris_train", sys.argv[1:]),
            "code": revision(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        table = folder / "train.csv"
        fresh = resumed_at is None or not table.exists() or not table.stat().st_size
        self.validated: int | None = None
        if resumed_at is not None and not fresh:
            keep_rows(table, resumed_at)
            self.validated = keep_rows(folder / "validation.csv", resumed_at)
        self._csv = table.open("w" if fresh else "a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._csv, COLUMNS)
        if fresh:
            self._writer.writeheader()
            self._csv.flush()  # a run that is killed before its first row can go on with the table
            (folder / "validation.csv").write_text("iteration,dataset,dice\n", encoding="utf-8")
        self._log = (folder / "train.log").open("w" if fresh else "a", encoding="utf-8")
        self._recent: list[tuple[float, float, float]] = []
        self._last: tuple[int, float, float, float] | None = None
        self.smoothed_loss = float("nan")
        write_json(folder / "run.json", self._run)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self.say(f"Stopped by {kind.__name__ if kind else 'an error'}: {error}")
            self._run["status"] = "stopped"
            write_json(self.folder / "run.json", self._run)
        if self._recent and self._last:
            self._row(*self._last)  # the steps since the last full row
        self._csv.close()
        self._log.close()
        draw_curve(self.folder)

    def say(self, text: str) -> None:
        """One line in train.log, with the time, flushed."""
        self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._log.flush()

    def step(self, iteration: int, losses: list[LossParts], rate: float, norm: float, seconds: float) -> None:
        """Gather a step; every `every` steps a row is written."""
        for parts in losses:
            self._recent.append((float(parts.total.detach()), float(parts.dice), float(parts.cross_entropy)))
        total = self._recent[-1][0]
        self.smoothed_loss = (
            total if self.smoothed_loss != self.smoothed_loss else 0.98 * self.smoothed_loss + 0.02 * total
        )
        self._last = (iteration, rate, norm, seconds)
        if iteration % self.every == 0:
            self._row(*self._last)

    def _row(self, iteration: int, rate: float, norm: float, seconds: float) -> None:
        mean = [sum(values) / len(values) for values in zip(*self._recent, strict=True)]
        row = dict(zip(("loss", "dice_loss", "ce_loss"), (f"{v:.5f}" for v in mean), strict=True))
        row |= {"iteration": str(iteration), "lr": f"{rate:.3e}", "gradient_norm": f"{norm:.3f}"}
        self._writer.writerow(row | {"seconds": f"{seconds:.1f}"})
        self._csv.flush()
        self.say(f"iteration {iteration}  loss {mean[0]:.4f}  lr {rate:.2e}  {seconds:.0f} s")
        self._recent.clear()

    def validation(self, iteration: int, scores: dict[str, float]) -> None:
        """Dice per dataset on the fixed validation episodes."""
        mean = sum(scores.values()) / max(len(scores), 1)
        self._writer.writerow({"iteration": iteration, "validation_dice": f"{mean:.4f}"})
        self._csv.flush()
        with (self.folder / "validation.csv").open("a", encoding="utf-8") as file:
            file.writelines(f"{iteration},{name},{value:.4f}\n" for name, value in scores.items())
        parts = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.say(f"iteration {iteration}  validation Dice {mean:.4f}  ({parts})")
        self._run["validation"] = scores
        self.validated = iteration
        draw_curve(self.folder)

    def finish(self, iteration: int, seconds: float, scores: dict[str, float]) -> None:
        """Mark the run as finished: prediction takes the newest finished run by default. scores: of its validation."""
        self.say(f"Finished: {iteration} iterations in {seconds / 60:.1f} minutes.")
        self._run |= {
            "status": "finished",
            "validation": scores,
            "iterations": iteration,
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_json(self.folder / "run.json", self._run)


def keep_rows(path: Path, iteration: int) -> int | None:
    """Drop the rows of a table of later iterations, and half a row at its end; the last iteration that is left."""
    if not path.exists():
        return None
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
    kept: list[tuple[int, bytes]] = []
    for row in rows:
        number = row.split(b",")[0]
        if row.endswith(b"\n") and number.isdigit() and int(number) <= iteration:
            kept.append((int(number), row))
    if len(kept) < len(rows):
        write_bytes(path, header + b"".join(row for _, row in kept))
    return kept[-1][0] if kept else None


def draw_curve(folder: Path) -> None:
    """curve.png from train.csv and validation.csv: loss on the left axis, validation Dice per dataset on the right."""
    with (folder / "train.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    with (folder / "validation.csv").open(encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot's, whose windows are the caller's
    left = figure.subplots()
    left.plot(
        [int(r["iteration"]) for r in rows],
        [float(r["loss"]) for r in rows],
        color="0.4",
        label="training loss",
    )
    left.set(xlabel="iteration", ylabel="Dice + cross-entropy", ylim=(0, None))
    right = left.twinx()
    for name in dict.fromkeys(row["dataset"] for row in scores):
        points = [(int(r["iteration"]), float(r["dice"])) for r in scores if r["dataset"] == name]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    right.set(ylabel="validation Dice (one-shot, crops)", ylim=(0, 1))
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    with replaced(folder / "curve.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")
