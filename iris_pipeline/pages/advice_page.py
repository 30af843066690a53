"""What the advisor found as files: advice.csv (every trial), advice.md (a table and the advice), advice.png, and
strategies.csv where strategies were compared."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iris_pipeline.evaluation.advisor import HELPS, HURTS, UNTOLD, Advice, Trial
from iris_pipeline.prediction.rivals import MARGIN, Attempt, class_dice, comparison_text, mean_dice
from preprocessing.runtime.files import replaced, write_text

COLUMNS = ("query", "size", "references", "class", "dice")
BLUE = "#0072b2"
COLOURS = {HELPS: BLUE, HURTS: "#d55e00", UNTOLD: "0.6", "": "0.6"}  # apart for the colour-blind too
MOST_ROWS = 12


def write_advice(
    folder: Path,
    trials: Sequence[Trial],
    advice: Advice,
    ids: Sequence[str],
    classes: Sequence[str],
    made_by: str,
) -> None:
    """The three files; former ones are replaced."""
    write_text(folder / "advice.csv", trials_text(trials) + f"# {made_by}\n")
    write_text(folder / "advice.md", advice_markdown(advice, made_by))
    draw_advice(folder / "advice.png", trials, advice, ids, classes)


def add_strategies(folder: Path, advice: Advice, attempts: Sequence[Attempt], made_by: str) -> None:
    """strategies.csv, and advice.md once more with what it says: the comparison takes long and comes last."""
    write_text(folder / "strategies.csv", attempts_text(attempts) + f"# {made_by}\n")
    write_text(folder / "advice.md", advice_markdown(advice, made_by, attempts))


def trials_text(trials: Sequence[Trial]) -> str:
    """One line a trial; several references are joined by +."""
    return _csv_text(
        COLUMNS,
        (
            (
                trial.query,
                len(trial.references),
                "+".join(trial.references),
                trial.class_name,
                _dice(trial.dice),
            )
            for trial in trials
        ),
    )


def attempts_text(attempts: Sequence[Attempt]) -> str:
    """One line a strategy, left-out reference and class."""
    return _csv_text(
        ("query", "strategy", "class", "dice"),
        (
            (attempt.query, attempt.strategy, name, _dice(dice))
            for attempt in attempts
            for name, dice in attempt.dice.items()
        ),
    )


def _csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _dice(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def _strategies_markdown(attempts: Sequence[Attempt]) -> str:
    """A row a strategy, a column a class: mean Dice over the left-out references."""
    names = list(dict.fromkeys(name for attempt in attempts for name in attempt.dice))
    of_class = class_dice(attempts)
    rows = [["strategy", *names, "mean"]]
    for strategy, mean in mean_dice(attempts).items():
        scores = [of_class[strategy].get(name, float("nan")) for name in names]
        rows.append([strategy, *map(_score, scores), _score(mean)])
    return (
        f"## Which strategy\n\n{_table(rows)}\n\n- {comparison_text(attempts)}\n"
        "- Tuned on one reference less than there are. `--strategy best` makes this comparison itself, with "
        "the windows of prediction.\n\n"
    )


def advice_markdown(advice: Advice, made_by: str, attempts: Sequence[Attempt] = ()) -> str:
    """The advice in words, then one row a class and reference, one a class and size, and one a strategy."""
    rows = [["class", "reference", "alone", "gain", "queries", "verdict", "found"]]
    rows += [
        [
            n.class_name,
            n.id,
            _score(n.alone),
            _score(n.gain, signed=True),
            f"{n.agreeing} of {n.queries}" if n.queries else "",
            n.verdict,
            _score(n.found),
        ]
        for n in advice.references
    ]
    sizes = [["class", "references", "mean", "worst case", "best case"]]
    sizes += [
        [n.class_name, str(n.size), _score(n.mean), _score(n.low), _score(n.high)] for n in advice.sizes
    ]
    lines = "\n".join(f"- {line}" for line in advice.lines)
    return (
        f"# Advice on the references\n\n{lines}\n\n## Each reference\n\n{_table(rows)}\n\n"
        "- alone: mean Dice over the other cases when it is their only reference.\n"
        "- gain: what the ensemble of all others loses when it is taken out, on average over the queries.\n"
        "- queries: how many of those that can tell have a gain of that sign.\n"
        f"- verdict: {HELPS} or {HURTS} from a gain of {MARGIN} on, above or below 0, where more than half of the "
        f"queries, two at least, agree; else {UNTOLD}.\n"
        "- found: Dice with which all the others find the class in it.\n\n"
        f"## How many\n\n{_table(sizes)}\n\n"
        "- Means over cases of the mean over the tried ensembles of that size.\n"
        "- Dice is taken on the prepared grid, with every case segmented from others only; pose, scale, spacing and "
        "the weight of grey values, though, are settled on all references together, the case among them, so it may "
        "be a little too high.\n"
        "- Of a class those references count that show it.\n\n"
        f"{_strategies_markdown(attempts) if attempts else ''}"
        f"{made_by}\n"
    )


def draw_advice(
    path: Path, trials: Sequence[Trial], advice: Advice, ids: Sequence[str], classes: Sequence[str]
) -> None:
    """A row a class (at most MOST_ROWS): who segments whom alone, who helps the ensemble, how many are enough."""
    shown = [name for name in classes if any(note.class_name == name for note in advice.sizes)][:MOST_ROWS]
    shown = shown or list(classes[:1])
    height = max(3.2, 1.6 + 0.36 * len(ids))
    figure = Figure(figsize=(14, height * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for row, name in zip(grid, shown, strict=True):
        _draw_matrix(row[0], trials, ids, name)
        _draw_gains(row[1], advice, ids, name)
        _draw_sizes(row[2], advice, name)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_matrix(axes: Axes, trials: Sequence[Trial], ids: Sequence[str], class_name: str) -> None:
    matrix = np.full((len(ids), len(ids)), np.nan)
    for trial in trials:
        if trial.class_name == class_name and len(trial.references) == 1:
            matrix[ids.index(trial.references[0]), ids.index(trial.query)] = trial.dice
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    if len(ids) <= 12:
        for (i, j), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                dark = value < 0.6
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
                )
    short = [_short(each) for each in ids]
    axes.set_xticks(range(len(ids)), short, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(ids)), short, fontsize=8)
    axes.set(
        xlabel="segmented case", ylabel="its only reference", title=f"{class_name}: Dice from one reference"
    )
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _draw_gains(axes: Axes, advice: Advice, ids: Sequence[str], class_name: str) -> None:
    notes = {note.id: note for note in advice.references if note.class_name == class_name}
    gains = [notes[each].gain if each in notes else float("nan") for each in ids]
    axes.set(title=f"{class_name}: what each adds to the others", xlabel="Dice gained by having it")
    axes.set_yticks(range(len(ids)), [_short(each) for each in ids], fontsize=8)
    axes.set_ylim(len(ids) - 0.5, -0.5)
    if np.isnan(gains).all():
        axes.text(0.5, 0.5, "needs three references or more", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    colours = [COLOURS[notes[each].verdict if each in notes else ""] for each in ids]
    axes.barh(range(len(ids)), np.nan_to_num(gains), color=colours)
    axes.axvline(0, color="k", linewidth=0.8)
    reach = max(0.05, 1.6 * float(np.nanmax(np.abs(gains))))
    axes.set_xlim(-reach, reach)
    for place, gain in enumerate(gains):
        if not np.isnan(gain):
            side = "left" if gain >= 0 else "right"
            axes.text(gain, place, f" {_score(gain, signed=True)} ", va="center", ha=side, fontsize=8)


def _draw_sizes(axes: Axes, advice: Advice, class_name: str) -> None:
    notes = [note for note in advice.sizes if note.class_name == class_name]
    sizes = [note.size for note in notes]
    low, high = [note.low for note in notes], [note.high for note in notes]
    axes.fill_between(sizes, low, high, color=BLUE, alpha=0.15, label="worst to best case")
    axes.plot(sizes, [note.mean for note in notes], marker="o", color=BLUE, label="mean")
    for note in notes:
        at = (note.size, note.mean)
        text = f"{note.mean:.2f}"
        axes.annotate(text, at, (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set(
        title=f"{class_name}: how many are enough",
        xlabel="references in the ensemble",
        ylabel="Dice",
        ylim=(0, 1.05),
    )
    axes.set_xticks(sizes)
    axes.margins(x=0.1)
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


def _score(value: float, signed: bool = False) -> str:
    if np.isnan(value):
        return ""
    if signed and abs(value) < 0.0005:
        return "0.000"  # of no sign
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"
