"""What a model costs on the machine at hand, in the setting of the paper's Table 3.

One reference with K classes is encoded once, then Q queries are segmented: images [1,1,D,H,W], masks [1,K,D,H,W]. The
images are noise and the masks boxes, since time and memory do not depend on what a scan shows. Every figure is
measured by the command and kept as JSON; nothing of it is typed in.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from iris_pipeline import paper
from iris_pipeline.model import STRIDE, Iris, count_parameters
from iris_pipeline.tables.table_format import Table
from preprocessing.errors import EvaluationError, ModelError
from preprocessing.runtime.files import load_json
from preprocessing.runtime.progress import Bar

FOLDER = "efficiency"
QUERIES, CLASSES, EDGE_VOXELS = 10, 15, 128
NOTE = (
    "Ours: one reference with all classes is encoded once, then every query is segmented to a label map; seconds are "
    "those of both, without reading files. Memory: the peak of what the process holds on a CPU, of what torch holds on "
    "a GPU. Rows 'paper' are the paper's own figures on its own machine, not measured here."
)


class Efficiency(BaseModel):
    """One measurement. machine: the processor's model; memory_gb: peak, 10^9 bytes; edge_voxels: of the cubes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: str
    parameters: int
    queries: int
    classes: int
    edge_voxels: int
    device: Literal["cpu", "cuda"]
    machine: str
    threads: int
    precision: Literal["bf16", "fp32"]
    encode_seconds: float
    segment_seconds: float
    memory_gb: float
    code: str
    command: str

    @property
    def seconds(self) -> float:
        """Of the whole task: reference and queries."""
        return self.encode_seconds + self.segment_seconds

    @property
    def file_name(self) -> str:
        """One file a model, setting, machine and precision: measuring again replaces it."""
        setting = f"{self.queries}x{self.classes}x{self.edge_voxels}"
        parts = (self.model, setting, self.machine, f"{self.threads} threads", self.precision)
        return "__".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in parts) + ".json"


def measure_efficiency(
    model: Iris,
    name: str,
    *,
    queries: int = QUERIES,
    classes: int = CLASSES,
    edge_voxels: int = EDGE_VOXELS,
    device: str = "cpu",
    autocast: bool = False,
    code: str = "",
    command: str = "",
    progress: bool = True,
) -> Efficiency:
    """Time and memory of one reference and `queries` queries. ModelError for an edge the network cannot take.

    The memory of a CPU is that of the whole process since it began: measure in a process of its own.
    """
    if edge_voxels % STRIDE or edge_voxels <= STRIDE or min(queries, classes) < 1 or classes > edge_voxels:
        raise ModelError(
            "A measurement takes at least one query and class, at most as many classes as the cube has planes, and "
            f"an edge above {STRIDE} that {STRIDE} divides; got {queries} queries, {classes} classes, {edge_voxels} "
            "voxels."
        )
    model = model.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, edge_voxels, edge_voxels, edge_voxels)
    masks = box_masks(classes, edge_voxels).to(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        reference = torch.randn(shape, generator=generator).to(device)
        _wait(device)
        started = time.perf_counter()
        tokens = model.encode_task(reference, masks)
        _wait(device)
        encode_seconds = time.perf_counter() - started
        segment_seconds = 0.0
        for _ in Bar(range(queries), desc=name, unit="query", disable=not progress, dynamic_ncols=True):
            query = torch.randn(shape, generator=generator)
            started = time.perf_counter()
            logits = model.segment(query.to(device), tokens)
            highest, label = logits.max(dim=1)
            ((label + 1) * (highest > 0)).to(torch.uint8).cpu()
            _wait(device)
            segment_seconds += time.perf_counter() - started
    return Efficiency(
        model=name,
        parameters=count_parameters(model),
        queries=queries,
        classes=classes,
        edge_voxels=edge_voxels,
        device="cuda" if device == "cuda" else "cpu",
        machine=machine_name(device),
        threads=torch.get_num_threads(),
        precision="bf16" if autocast else "fp32",
        encode_seconds=round(encode_seconds, 3),
        segment_seconds=round(segment_seconds, 3),
        memory_gb=round(_peak_bytes(device) / 1e9, 2),
        code=code,
        command=command,
    )


def box_masks(classes: int, edge_voxels: int) -> Tensor:
    """[1,K,D,H,W] of 0 and 1: slabs one after the other along z, in the middle of y and x."""
    masks = torch.zeros((1, classes, edge_voxels, edge_voxels, edge_voxels))
    quarter, height = edge_voxels // 4, edge_voxels // classes
    for number in range(classes):
        masks[0, number, number * height : (number + 1) * height, quarter:-quarter, quarter:-quarter] = 1
    return masks


def machine_name(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the processor or the GPU, and nothing else of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def read_measurements(folder: Path) -> list[Efficiency]:
    """All measurements in results/efficiency, sorted by name; EvaluationError for a file that is none."""
    return [
        load_json(path, Efficiency, EvaluationError, "measure again with iris_benchmark")
        for path in sorted(folder.glob("*.json"))
    ]


def efficiency_table(measured: Iterable[Efficiency]) -> Table | None:
    """The paper's Table 3 with rows of ours above the paper's; None where nothing was measured."""
    lines = [
        {
            "from": "ours",
            "method": one.model,
            "parameters (M)": f"{one.parameters / 1e6:.1f}",
            "seconds": f"{one.seconds:.1f}",
            "memory (GB)": f"{one.memory_gb:.2f}",
            "setting": f"{one.queries} queries of {one.edge_voxels}^3, 1 reference, {one.classes} classes",
            "machine": f"{one.machine}, {_threads(one)}{one.precision}",
            "measured by": f"`{one.command}` at {one.code}" if one.command else one.code,
        }
        for one in measured
    ]
    if not lines:
        return None
    theirs = paper.load_table(3)
    for _, line in theirs.iterrows():
        lines.append(
            {"from": "paper", "method": str(line["method"]), "setting": str(line["setting"])}
            | {
                heading: "" if pd.isna(line[column]) else f"{line[column]:g}"
                for heading, column in (
                    ("parameters (M)", "parameters_m"),
                    ("seconds", "seconds"),
                    ("memory (GB)", "gpu_memory_gb"),
                )
            }
        )
    return Table("table3", "Table 3: efficiency", pd.DataFrame(lines).fillna(""), (NOTE,))


def _threads(one: Efficiency) -> str:
    return f"{one.threads} thread{'s' * (one.threads != 1)}, " if one.device == "cpu" else ""


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:
        raise ModelError(
            "Peak memory is measured where the system keeps it (Linux, macOS): run this there."
        ) from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
