"""What a model costs: the measurement runs, its record comes back, and the table sets it beside the paper's rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iris_pipeline import paper
from iris_pipeline.model import build_iris, count_parameters
from iris_pipeline.tables.efficiency import (
    Efficiency,
    box_masks,
    efficiency_table,
    machine_name,
    measure_efficiency,
    read_measurements,
)
from preprocessing.errors import EvaluationError, ModelError
from preprocessing.runtime.files import save_json

ONE = Efficiency(
    model="Iris paper",
    parameters=70_100_000,
    queries=10,
    classes=15,
    edge_voxels=128,
    device="cpu",
    machine="A processor of 2020",
    threads=2,
    precision="fp32",
    encode_seconds=1.5,
    segment_seconds=20.25,
    memory_gb=3.214,
    code="commit abc",
    command="iris_benchmark --size paper",
)


def test_a_measurement(tmp_path: Path) -> None:
    model = build_iris("tiny", seed=0)
    calls: list[tuple[int, ...]] = []
    segment = model.segment
    model.segment = lambda image, tokens: calls.append(tuple(image.shape)) or segment(image, tokens)  # type: ignore[assignment, func-returns-value]
    found = measure_efficiency(
        model, "tiny one", queries=2, classes=3, edge_voxels=32, progress=False, code="c"
    )
    assert calls == [(1, 1, 32, 32, 32)] * 2, "every query is segmented, the reference only encoded"
    assert found.parameters == count_parameters(model) and (found.queries, found.classes) == (2, 3)
    assert found.encode_seconds > 0 and found.segment_seconds > 0 and 0.1 < found.memory_gb < 60
    assert found.seconds == found.encode_seconds + found.segment_seconds
    assert found.threads == torch.get_num_threads() and found.machine == machine_name("cpu")
    save_json(tmp_path / found.file_name, found)
    assert read_measurements(tmp_path) == [found]
    assert (
        found.file_name.startswith("tiny-one__2x3x32__") and found.file_name.endswith("-fp32.json") is False
    )
    assert found.file_name.endswith("__fp32.json")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"edge_voxels": 40}, "40 voxels"), ({"edge_voxels": 16}, "16 voxels"), ({"queries": 0}, "0 queries")],
)
def test_what_cannot_be_measured(options: dict[str, int], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        measure_efficiency(build_iris("tiny"), "x", progress=False, **options)  # type: ignore[arg-type]


def test_masks_are_disjoint_slabs() -> None:
    masks = box_masks(15, 128)
    assert masks.shape == (1, 15, 128, 128, 128) and masks.sum(1).max() == 1
    assert masks.sum((0, 2, 3, 4)).tolist() == [8 * 64 * 64] * 15


def test_the_machine_is_named_by_its_processor_alone(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A Processor 9000 \nflags : x\nmodel name\t: B\n"
    )
    assert machine_name("cpu", tmp_path / "cpuinfo") == "A Processor 9000"
    assert machine_name("cpu", tmp_path / "absent")


def test_the_table_has_the_papers_rows_apart() -> None:
    table = efficiency_table([ONE])
    assert table is not None
    line = table.frame.iloc[0]
    assert (line["from"], line["method"], line["parameters (M)"]) == ("ours", "Iris paper", "70.1")
    assert (line["seconds"], line["memory (GB)"]) == ("21.8", "3.21")
    assert line["setting"] == "10 queries of 128^3, 1 reference, 15 classes"
    assert line["machine"] == "A processor of 2020, 2 threads, fp32"
    assert line["measured by"] == "`iris_benchmark --size paper` at commit abc"
    theirs = table.frame[table.frame["from"] == "paper"].set_index("method")
    assert list(theirs.index) == list(paper.load_table(3)["method"])
    assert (theirs.loc["Iris", "seconds"], theirs.loc["Iris", "memory (GB)"]) == ("2", "7.4")
    assert theirs.loc["UniverSeg", "memory (GB)"] == ""
    assert efficiency_table([]) is None


def test_a_record_of_another_schema_is_refused(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", ONE.model_copy(update={"schema_version": 9}))
    with pytest.raises(
        EvaluationError, match="schema version 9, this version reads 1: measure again with iris_bench"
    ):
        read_measurements(tmp_path)
