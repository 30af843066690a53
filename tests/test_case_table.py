"""A table with lines of each case: written whole and sorted, replaced case by case, read as rarely as can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from iris_pipeline.scans.case_table import CaseTable
from preprocessing.errors import PredictionError


@dataclass(frozen=True)
class Line:
    case: str
    note: str
    mm: float

    def cells(self) -> tuple[str, str, str]:
        return self.case, self.note, f"{self.mm:.2f}"

    @classmethod
    def of_cells(cls, cells: Mapping[str, str]) -> Line:
        return cls(cells["case"], cells["note"], float(cells["mm"]))


def table_in(folder: Path) -> CaseTable[Line]:
    return CaseTable(folder / "lines.csv", ("case", "note", "mm"), Line.of_cells, "burn it")


def test_lines_are_sorted_by_case_and_a_case_keeps_its_order(tmp_path: Path) -> None:
    table = table_in(tmp_path / "out")
    assert table.rows() == [] and not table.has("a") and not (tmp_path / "out").exists()
    lines = [Line("b", 'two, "quoted"\nlines', 1.0), Line("a", "z", 0.125), Line("b", "Größe", 0.0)]
    table.write(lines)
    assert (tmp_path / "out" / "lines.csv").read_bytes().decode() == (
        'case,note,mm\na,z,0.12\nb,"two, ""quoted""\nlines",1.00\nb,Größe,0.00\n'
    )
    assert table_in(tmp_path / "out").rows() == [Line("a", "z", 0.12), lines[0], lines[2]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lines.csv"], "no temporary file stays"
    table.write([])
    assert (tmp_path / "out" / "lines.csv").read_text() == "case,note,mm\n" and table.rows() == []


def test_a_case_is_replaced_and_taken_out_and_others_stay(tmp_path: Path) -> None:
    table, path = table_in(tmp_path), tmp_path / "lines.csv"
    table.forget("a")
    assert not path.exists(), "of nothing there is nothing to forget"
    table.keep("a", [Line("a", "first", 1.0), Line("a", "second", 2.0)])
    table.keep("b", [Line("b", "", 3.0)])
    table.keep("a", [Line("a", "third", 4.0)])
    assert table.rows() == [Line("a", "third", 4.0), Line("b", "", 3.0)]
    assert table.has("a") and table.has("b") and not table.has("c")
    table.keep("a", [])
    assert table.rows() == [Line("b", "", 3.0)] and not table.has("a")
    before = path.stat()
    table.forget("a")
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "not written for nothing"
    table.forget("b")
    assert path.read_text() == "case,note,mm\n" and not table.has("b")


def test_the_file_is_read_once_for_all_cases_that_it_has(tmp_path: Path, opened: list[str]) -> None:
    table_in(tmp_path).write([Line(f"c{number}", "", number) for number in range(20)])
    opened.clear()
    table = table_in(tmp_path)
    assert all(table.has(f"c{number}") for number in range(20)) and opened == ["lines.csv"]
    table.keep("c3", [Line("c3", "new", 0.5)])
    opened.clear()
    assert all(table.has(f"c{number}") for number in range(20)) and opened == []


def test_what_another_process_wrote_meanwhile_stays_and_is_found(tmp_path: Path) -> None:
    table, other = table_in(tmp_path), table_in(tmp_path)
    table.keep("a", [Line("a", "ours", 1.0)])
    assert table.has("a") and not table.has("b")
    other.keep("b", [Line("b", "theirs", 2.0)])
    assert table.has("b"), "a case that was not seen is looked for again"
    other.keep("c", [Line("c", "theirs", 3.0)])
    table.keep("a", [Line("a", "ours, new", 4.0)])
    assert other.rows() == [Line("a", "ours, new", 4.0), Line("b", "theirs", 2.0), Line("c", "theirs", 3.0)]
    other.keep("d", [Line("d", "theirs", 5.0)])
    table.forget("a")
    assert [row.case for row in other.rows()] == ["b", "c", "d"]
    (tmp_path / "lines.csv").unlink()
    assert not table.has("a") and table.rows() == [] and not table.has("b"), "nor what is no longer there"


@pytest.mark.parametrize(
    "content",
    [
        b"case,note\na,b\n",  # a column is lacking
        b"case,note,mm\na,b\n",  # a line is short
        b"case,note,mm\na,b,much\n",
        b"\x93NUMPY\x01\x00\xff\xfe",  # no text
        b'case,note,mm\na,"' + b"x" * 200_000,  # more than csv takes for a cell
    ],
)
def test_something_else_of_this_name_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lines.csv"
    path.write_bytes(content)
    table = table_in(tmp_path)
    for act in (
        table.rows,
        lambda: table.has("a"),
        lambda: table.keep("a", [Line("a", "", 1.0)]),
        lambda: table.forget("a"),
    ):
        with pytest.raises(PredictionError) as told:
            act()
        assert str(told.value) == f"{path} should have the columns case, note, mm: burn it."
    assert path.read_bytes() == content
