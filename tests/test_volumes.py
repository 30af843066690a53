"""volumes.csv: millilitres by hand, one line a case and class, and what else stands in the table stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iris_pipeline.scans.volumes import TABLE, ClassVolume, volumes_in, volumes_of
from preprocessing.errors import PredictionError
from preprocessing.volume import Volume


def test_voxels_and_millilitres_by_hand() -> None:
    labels = np.zeros((3, 20, 20), np.uint8)
    labels[0, :10, :10] = 2  # 100 voxels
    labels[2] = 255  # 400 voxels
    labels[2, 0, 0] = 7  # a value that no class has is nobody's
    affine = np.diag([-1.0, 2.0, 5.0, 1.0])  # 10 mm3 a voxel
    found = volumes_of("a", Volume(labels, affine), {"liver": 2, "lung": 255, "spleen": 1})
    assert [(each.case, each.class_name, each.voxels) for each in found] == [
        ("a", "liver", 100),
        ("a", "lung", 399),
        ("a", "spleen", 0),
    ]
    assert [each.ml for each in found] == pytest.approx([1.0, 3.99, 0.0])
    sheared = affine.copy()
    sheared[1, 2] = 4.0  # a tilted gantry: slices are longer apart, and as thick as before
    assert volumes_of("a", Volume(labels, sheared), {"liver": 2})[0].ml == pytest.approx(1.0)


def test_the_table_has_each_case_once(tmp_path: Path) -> None:
    table = volumes_in(tmp_path)
    table.keep("b", [ClassVolume("b", "liver", 10, 0.0125), ClassVolume("b", "left, right", 0, 0.0)])
    table.keep("a", [ClassVolume("a", "liver", 3, 1.5)])
    assert (tmp_path / TABLE).read_text(encoding="utf-8") == (
        'case,class,voxels,ml\na,liver,3,1.500\nb,liver,10,0.013\nb,"left, right",0,0.000\n'
    )
    table.keep("b", [ClassVolume("b", "liver", 20, 0.025)])
    assert volumes_in(tmp_path).rows() == [
        ClassVolume("a", "liver", 3, 1.5),
        ClassVolume("b", "liver", 20, 0.025),
    ]
    assert volumes_in(tmp_path / "nothing").rows() == []


@pytest.mark.parametrize("text", ["case,class\na,b\n", "case,class,voxels,ml\na,b,many,1\n"])
def test_another_table_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / TABLE).write_text(text, encoding="utf-8")
    with pytest.raises(PredictionError) as told:
        volumes_in(tmp_path).keep("a", [ClassVolume("a", "liver", 3, 1.5)])
    assert str(told.value) == (
        f"{tmp_path / TABLE} should have the columns case, class, voxels, ml: take it away, it is made anew."
    )
    assert (tmp_path / TABLE).read_text(encoding="utf-8") == text
