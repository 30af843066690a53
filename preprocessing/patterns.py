"""Patterns: where the files of a raw dataset lie, written as paths with named parts.

`{case}/{case}_inn.nii*` finds 01/01_inn.nii and tells that `case` is 01. A `{name}` stands for a piece of one
file or folder name, the same wherever it is used again; `*`, `?` and `[...]` are the shell's. What hides
(macOS' shadows `._x`, `.DS_Store`) and `__MACOSX` is never found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
ANYTHING = "[^/]+?"
_SHELL = re.compile(r"[*?\[]")
_SHELL_PIECE = re.compile(r"\[!?[^\[\]]+\]|.")


@dataclass(frozen=True)
class Match:
    """A file or folder, and what the named parts of the pattern stand for in its path."""

    path: Path
    names: Mapping[str, str]
    pattern: str = ""

    @property
    def exactness(self) -> int:
        """How much of the pattern is told: of two that fit one file the more exact one means it."""
        return exactness(self.pattern)


def placeholders(pattern: str) -> set[str]:
    """The names in a pattern.

    >>> sorted(placeholders("{part}/{case}/{case}.nii.gz"))
    ['case', 'part']
    """
    return set(PLACEHOLDER.findall(pattern))


def exactness(pattern: str) -> int:
    """The number of characters that are told.

    >>> exactness("labels{part}/{case}*")
    7
    """
    return len(_SHELL.sub("", PLACEHOLDER.sub("", pattern)))


def fill(template: str, names: Mapping[str, str]) -> str:
    """The template with its named parts put in.

    >>> fill("{case}_{frame}", {"case": "A0S9V9", "frame": "ED"})
    'A0S9V9_ED'
    """
    return PLACEHOLDER.sub(lambda found: names[found.group(1)], template)


def find(folder: Path, patterns: Sequence[str], where: Mapping[str, str] | None = None) -> Iterator[Match]:
    """Every path below `folder` that fits one of the patterns, pattern by pattern, sorted by name.

    where: name -> regular expression of what it may stand for (default: anything inside one file name).
    """
    rules = tuple(sorted((where or {}).items()))
    for pattern in patterns:
        for match in _descend(folder, tuple(pattern.split("/")), {}, rules):
            yield replace(match, pattern=pattern)


def finds_any(folder: Path, patterns: Sequence[str], where: Mapping[str, str] | None = None) -> bool:
    """Whether there is one such path."""
    return next(find(folder, patterns, where), None) is not None


def settle_top(folder: Path, tops: Sequence[str], patterns: Sequence[str], where: Mapping[str, str]) -> Path:
    """The folder under which the patterns hold: `folder` itself, or what a download is called inside it.

    Each top, say ACDC/database, is tried whole and without its leading parts; so whoever unpacks a download
    renames nothing. `folder` where none fits.
    """
    inside = ["/".join(top.split("/")[start:]) for top in tops for start in range(len(top.split("/")))]
    for candidate in (folder, *(folder / part for part in dict.fromkeys(inside))):
        if candidate.is_dir() and finds_any(candidate, patterns, where):
            return candidate
    return folder


def as_regex(pattern: str) -> re.Pattern[str]:
    """The pattern of a whole path as a regular expression.

    >>> as_regex("images{part}/{case}").fullmatch("imagesTr/c1").groupdict()
    {'part': 'Tr', 'case': 'c1'}
    """
    return _regex(pattern, (), ())


def _descend(
    folder: Path, parts: tuple[str, ...], names: dict[str, str], rules: tuple[tuple[str, str], ...]
) -> Iterator[Match]:
    part, rest = parts[0], parts[1:]
    if not _SHELL.search(part) and placeholders(part) <= names.keys():
        entry = folder / fill(part, names)
        found: list[tuple[Path, dict[str, str]]] = [(entry, {})] if entry.exists() else []
    else:
        compiled = _regex(part, tuple(sorted(names.items())), rules)
        found = [
            (entry, match.groupdict())
            for entry in _entries(folder)
            if (match := compiled.fullmatch(entry.name)) is not None
        ]
    for entry, more in found:
        known = names | more
        if not rest:
            yield Match(entry, known)
        elif entry.is_dir():
            yield from _descend(entry, rest, known, rules)


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


@lru_cache(maxsize=1024)
def _regex(
    part: str, known: tuple[tuple[str, str], ...], rules: tuple[tuple[str, str], ...]
) -> re.Pattern[str]:
    """A pattern or one part of it as a regular expression; names that are known already stand for themselves."""
    names, where, pieces, end, opened = dict(known), dict(rules), [], 0, set()
    for found in PLACEHOLDER.finditer(part):
        pieces.append(_shell(part[end : found.start()]))
        name, end = found.group(1), found.end()
        if name in names:
            pieces.append(re.escape(names[name]))
        elif name in opened:
            pieces.append(f"(?P={name})")
        else:
            opened.add(name)
            pieces.append(f"(?P<{name}>{where.get(name, ANYTHING)})")
    return re.compile("".join([*pieces, _shell(part[end:])]))


def _shell(text: str) -> str:
    """The shell's wildcards as a regular expression."""
    pieces = []
    for found in _SHELL_PIECE.finditer(text):
        token = found.group()
        wild = {"*": "[^/]*", "?": "[^/]"}.get(token)
        inside = token[1:-1].replace("!", "^", 1) if len(token) > 2 and token[0] == "[" else None
        pieces.append(wild or (f"[{inside}]" if inside else re.escape(token)))
    return "".join(pieces)
