"""A finished table as Markdown, CSV and LaTeX (booktabs), its notes and the command that made it under it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from preprocessing.runtime.files import write_text

APART = ("paper", "baseline")
"""Values of a first cell whose rows LaTeX sets apart by a rule: figures that are not a model's of ours."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
MADE_BY = re.compile(r"(# )?Made by (`|\\texttt\{)iris\\?_tables\b")
"""How the command begins under a table, in CSV or in LaTeX"""


@dataclass(frozen=True)
class Table:
    """A finished table. name: of its files; frame: cells as shown; notes: the lines under it.

    on_page: false for long lists that are for other programs to read, and come as CSV only.
    """

    name: str
    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    on_page: bool = True


def file_name(*parts: str) -> str:
    """Parts as one name for a table's files: small letters and digits, all else an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower()).strip("_")


def to_markdown(table: Table, made_by: str, level: int = 2) -> str:
    """The table as Markdown with aligned columns, the notes and the command under it."""
    cells = [list(table.frame.columns), *table.frame.astype(str).to_numpy().tolist()]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(cells[0]))]
    drawn = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = "\n".join(f"- {note}" for note in (*table.notes, made_by))
    return f"{'#' * level} {table.title}\n\n" + "\n".join(drawn) + f"\n\n{notes}\n"


def to_csv(table: Table, made_by: str) -> str:
    """The table as CSV; notes and command follow as lines that begin with #."""
    notes = "".join(f"# {note}\n" for note in (*table.notes, made_by))
    return table.frame.to_csv(index=False, lineterminator="\n") + notes


def to_latex(table: Table, made_by: str) -> str:
    """The table for a paper that loads booktabs: numbers to the right, notes and command in small print under it."""
    header, body = list(table.frame.columns), table.frame.astype(str).to_numpy().tolist()
    numeric = [all(_is_number(line[i]) for line in body) for i in range(len(header))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{''.join('r' if each else 'l' for each in numeric)}}}",
        r"\toprule",
        _tex_line(header),
        r"\midrule",
    ]
    for number, line in enumerate(body):
        if number and line[0] != body[number - 1][0] and line[0] in APART:
            lines.append(r"\midrule")
        lines.append(_tex_line(line))
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip\footnotesize\raggedright"]
    lines += [rf"{_escape(note)}\par" for note in (*table.notes, made_by)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def write_tables(tables: Sequence[Table], results: Path, made_by: str, heading: str = "Results") -> Path:
    """results/tables.md and results/tables/<name>.csv and .tex; returns the page.

    Tables of former calls go, known by the command at their end; other files in the folder stay.
    """
    folder = results / "tables"
    written = set()
    for table in tables:
        texts = {".csv": to_csv(table, made_by)} | (
            {".tex": to_latex(table, made_by)} if table.on_page else {}
        )
        for ending, text in texts.items():
            write_text(folder / f"{table.name}{ending}", text)
            written.add(f"{table.name}{ending}")
    for old in [*folder.glob("*.csv"), *folder.glob("*.tex")]:
        if old.name not in written and _ends_with_its_command(old):
            old.unlink()
    page = results / "tables.md"
    shown = [to_markdown(table, made_by) for table in tables if table.on_page]
    write_text(page, "\n".join([f"# {heading}\n", *shown]))
    return page


def _ends_with_its_command(path: Path) -> bool:
    """Whether a CSV or LaTeX file is a table of ours; in LaTeX one more line follows the command."""
    if not path.is_file():
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-2:]
    return any(MADE_BY.match(line) for line in lines)


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(text: str) -> str:
    """Plain text for LaTeX; what stands between backquotes is set in typewriter."""
    safe = "".join(SPECIAL.get(sign, sign) for sign in text)
    safe = safe.replace("--", "{-}{-}")  # TeX would draw the two dashes of an option as one
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", safe)


def _is_number(cell: str) -> bool:
    """Whether a cell is empty or begins with a number: "0.81 [0.79, 0.83]" is one."""
    return not cell or re.match(r"[-+]?\d+(\.\d+)?(?=$|\s)", cell) is not None
