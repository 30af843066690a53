"""What each run's own record says: what it was trained on, and every setting by which two runs can differ."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
STATE_FILE = Path("checkpoint") / "state.json"
NOT_CAUSES = ("workers", "validate_every", "validation_episodes")
"""Settings that no result depends on."""


@dataclass(frozen=True)
class RunFacts:
    """One training run. settings: name -> value as text: settings of the training, of the network, data, start."""

    name: str
    datasets: tuple[str, ...]
    settings: dict[str, str]


def run_facts(folder: Path) -> RunFacts | None:
    """Facts of the run in `folder`; None where it left no readable run.json (another tool's row has none)."""
    record = _json(folder / RUN_FILE)
    if not record:
        return None
    datasets = tuple(str(name) for name in record.get("datasets", []))
    settings = {
        name: _text(value)
        for name, value in dict(record.get("settings", {})).items()
        if name not in NOT_CAUSES
    }
    # A run records its network itself; of older ones the checkpoint tells, where it is at hand.
    network = record.get("config") or _json(folder / STATE_FILE).get("config") or {}
    # What a setting made of the network stands in the network's own record: one change must not count as two.
    settings = {name: value for name, value in settings.items() if name not in network}
    settings |= {f"network {name}": _text(value) for name, value in dict(network).items()}
    settings["training datasets"] = ", ".join(sorted(datasets))
    settings["start from"] = _option(str(record.get("command", "")), "--start-from")
    return RunFacts(folder.name, datasets, settings)


def _option(command: str, option: str) -> str:
    """The value of an option in a logged command line; "" without it."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    for position, word in enumerate(words):
        if word == option and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
