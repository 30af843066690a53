"""A table beside the masks with lines of each case, as volumes.csv and confidence.csv are.

What it says of a case goes with the case's mask: a new mask has new lines, and one that is gone has none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from preprocessing.errors import PredictionError
from preprocessing.runtime.files import write_text


class CaseRow(Protocol):
    """A line of the table; cells: what is written of it, in the order of the columns."""

    @property
    def case(self) -> str: ...

    def cells(self) -> Sequence[object]: ...


Row = TypeVar("Row", bound=CaseRow)


class CaseTable(Generic[Row]):
    """One such file, which need not be there, while it is this run's.

    row_of: cells by column -> row; KeyError, ValueError or TypeError where they are none. remedy: what to do then.
    Whatever reads the file (all but `write`) raises PredictionError if it is something else, and leaves it as it is.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], row_of: Callable[[Mapping[str, str]], Row], remedy: str
    ) -> None:
        self._path, self._columns, self._row_of, self._remedy = path, columns, row_of, remedy
        self._cases: frozenset[str] = frozenset()  # that the file was last seen to have

    def rows(self) -> list[Row]:
        """What the file says now; none where there is no file."""
        self._cases = frozenset()
        if not self._path.is_file():
            return []
        try:
            with self._path.open(encoding="utf-8", newline="") as stream:
                found = [self._row_of(cells) for cells in csv.DictReader(stream)]
        except (KeyError, ValueError, TypeError, csv.Error):
            raise PredictionError(
                f"{self._path} should have the columns {', '.join(self._columns)}: {self._remedy}."
            ) from None
        self._cases = frozenset(row.case for row in found)
        return found

    def has(self, case: str) -> bool:
        """Whether a case has a line, as far as is known: the file is read for a case only that it was not seen to have.

        So it is read once for all masks that are skipped, and what another process added is found.
        """
        return case in self._cases or any(row.case == case for row in self.rows())

    def keep(self, case: str, rows: Iterable[Row]) -> None:
        """These in the place of what the file says of a case by now; what it says of others stays."""
        self.write([*(row for row in self.rows() if row.case != case), *rows])

    def forget(self, case: str) -> None:
        """Take a case out of the file: its mask is gone."""
        former = self.rows()
        if any(row.case == case for row in former):
            self.write([row for row in former if row.case != case])

    def only(self, stays: Callable[[str], bool]) -> list[Row]:
        """The rows of the cases that stay; others are taken out of the file, as of masks that somebody removed."""
        former = self.rows()
        there = {case for case in self._cases if stays(case)}
        kept = [row for row in former if row.case in there]
        if len(kept) < len(former):
            self.write(kept)
        return kept

    def write(self, rows: Iterable[Row]) -> None:
        """These and no others, sorted by case; a case's own stay in their order. Whole or not at all."""
        ordered = sorted(rows, key=lambda row: row.case)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._columns)
        writer.writerows(row.cells() for row in ordered)
        write_text(self._path, text.getvalue())
        self._cases = frozenset(row.case for row in ordered)
