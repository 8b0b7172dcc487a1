"""Draw the figures of the page about a run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ner_cl.evaluate.matrix import TOTALS
from ner_cl.report.collect import Report
from ner_cl.report.drawing import COLOURS, DASHES, INK, MARKERS, Axes, Figure, canvas, room_for
from ner_cl.report.spread import Spread

__all__ = ["Drawn", "draw_all"]

_ROW = 19
"""Height of a heat map row in pixels."""
_CELL = 46
_MOST_LINES = len(COLOURS)
_DARK = 0.55
"""Cells with a score above this are light enough for dark text."""


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        name: name of its file; up to the first hyphen, the part of the page it belongs to (`curves` for `curves-2`).
        label: description of what it shows.
        figure: the figure.
    """

    name: str
    label: str
    figure: Figure

    @property
    def part(self) -> str:
        """The part of the page it belongs to."""
        return self.name.partition("-")[0]


def draw_all(report: Report) -> list[Drawn]:
    """Draw every figure for which there are values."""
    drawn = [Drawn("heatmap", "F1 of every type after each step, as a heat map", heat_map(report))]
    for number, types in enumerate(_panels(report), start=1):
        drawn.append(Drawn(f"curves-{number}", f"F1 over steps of {', '.join(types)}", curves(report, types)))
    if _changes(report):
        drawn.append(Drawn("changes", "F1 of every old type when learned, at best and last", changes(report)))
    if len(report.confusion) > 1:
        drawn.append(Drawn("confusion", "Words confused between old types, new types and O", confusion(report)))
    if report.calibration:
        drawn.append(Drawn("calibration", "Share of right spans by their score", calibration(report)))
    if report.costs:
        drawn.append(Drawn("time", "Seconds of each step", time_spent(report)))
    if any(cost.peak_memory for cost in report.costs):
        drawn.append(Drawn("memory", "Peak memory of each step", memory(report)))
    return drawn


def heat_map(report: Report) -> Figure:
    """Draw F1 by type (in learning order) and step; a bar marks the step that taught a type."""
    learned = {type_: step for type_, step in report.learned.items() if step <= len(report.f1)}
    rows, columns = len(learned), len(report.f1)
    label = room_for([*learned, *TOTALS])
    with canvas(label + _CELL * columns + 24, 62 + _ROW * (rows + 2)) as (figure, axes):
        values = np.full((rows + 2, columns), np.nan)
        for column, row in enumerate(report.f1):
            for index, type_ in enumerate(learned):
                cell = None if row is None else row.get(type_)
                values[index, column] = np.nan if cell is None or cell.mean is None else cell.mean
            for index, score in enumerate((report.micro[column], report.macro[column])):
                values[rows + index, column] = np.nan if score.mean is None else score.mean
        axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=1, edgecolors="none")
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "black" if value > _DARK else "white"
                axes.text(x + 0.5, y + 0.52, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=8)
        _mark_learned(axes, learned.values())
        axes.axhline(rows, color=INK, linewidth=1.5)
        axes.set_yticks(np.arange(rows + 2) + 0.5, [*learned, *TOTALS])
        axes.set_xticks(np.arange(columns) + 0.5, [str(step + 1) for step in range(columns)])
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.set_title("F1 × 100 after step", fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _mark_learned(axes: Axes, steps: Iterable[int]) -> None:
    """Draw a bar at the left of each type's cell in the column of the step that taught it."""
    for row, step in enumerate(steps):
        x = step - 1 + 0.06
        axes.plot([x, x], [row + 0.1, row + 0.9], color=COLOURS[1], linewidth=3, solid_capstyle="butt")


def _panels(report: Report) -> Iterator[list[str]]:
    """Yield the types to draw together: all if few or one per step, else those of each step; in groups that fit."""
    learned = [type_ for type_, step in report.learned.items() if step <= len(report.f1)]
    groups = [learned] if len(learned) <= _MOST_LINES else [list(types) for types in report.steps[: len(report.f1)]]
    if len(learned) > _MOST_LINES and all(len(types) == 1 for types in groups):
        groups = [learned]
    for types in groups:
        for start in range(0, len(types), _MOST_LINES):
            yield types[start : start + _MOST_LINES]


def curves(report: Report, types: Sequence[str]) -> Figure:
    """Draw F1 of each type from the step that taught it; the band is one standard deviation over runs."""
    lines = (len(types) + 1) // 2 if max(map(len, types)) <= 18 else len(types)
    with canvas(350, 220 + 15 * lines) as (figure, axes):
        for index, type_ in enumerate(types):
            start = report.learned[type_]
            points = [(step, report.f1[step - 1]) for step in range(start, len(report.f1) + 1)]
            known = [(step, row[type_]) for step, row in points if row is not None and row[type_].mean is not None]
            _line(axes, known, index, type_)
        _step_axis(axes, len(report.f1))
        axes.set_ylim(0, 100)
        axes.set_ylabel("F1 × 100")
        axes.grid(axis="y")
        columns = 2 if lines < len(types) else 1
        figure.legend(loc="outside lower left", ncols=columns, handlelength=3.2)
    return figure


def _line(axes: Axes, points: Sequence[tuple[int, Spread]], index: int, label: str) -> None:
    """Draw a curve × 100 in the colour, dashes and markers of its index."""
    steps = [step for step, _ in points]
    means = np.array([100 * (score.mean or 0.0) for _, score in points])
    deviations = np.array([100 * (score.sd or 0.0) for _, score in points])
    colour, marker, dashes = COLOURS[index], MARKERS[index], DASHES[index]
    axes.plot(steps, means, color=colour, marker=marker, markersize=5, linestyle=dashes, linewidth=1.6, label=label)
    if deviations.any():
        axes.fill_between(steps, means - deviations, means + deviations, color=colour, alpha=0.18, linewidth=0)


def _changes(report: Report) -> list[tuple[str, float, float, float]]:
    """Return F1 × 100 when learned, at best and last, for every type taught before the last step."""
    found = []
    for type_, step in report.learned.items():
        rows = [row for row in report.f1[step - 1 :] if row is not None]
        means = [100 * score.mean for row in rows if (score := row[type_]).mean is not None]
        if step < len(report.f1) and len(means) > 1:
            found.append((type_, means[0], max(means), means[-1]))
    return found


def changes(report: Report) -> Figure:
    """Draw a line per type from its score when learned to its last score."""
    rows = _changes(report)
    label = room_for(type_ for type_, *_ in rows)
    with canvas(label + 250, 92 + _ROW * len(rows)) as (figure, axes):
        for y, (_, first, best, last) in enumerate(rows):
            fell = last < first
            axes.plot([first, last], [y, y], color=COLOURS[1 if fell else 0], linewidth=2, alpha=0.7, zorder=1)
            axes.plot(best, y, marker="|", color=INK, markersize=11, linestyle="", zorder=2)
            axes.plot(first, y, marker="o", color=INK, markerfacecolor="none", markersize=6, linestyle="", zorder=3)
            axes.plot(last, y, marker="o", color=COLOURS[1 if fell else 0], markersize=6, linestyle="", zorder=3)
        axes.set_yticks(range(len(rows)), [type_ for type_, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("F1 × 100:  ○ when learned   | best   ● last")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    return figure


def confusion(report: Report) -> Figure:
    """Draw the shares of confused words after each step."""
    asked = (("old", "o"), ("old", "new"), ("new", "o"), ("o", "old"), ("o", "new"))
    names = {"old": "old types", "new": "new types", "o": "O"}
    with canvas(350, 265) as (figure, axes):
        for index, (truth, found) in enumerate(asked):
            points = []
            for step, table in report.confusion.items():
                if total := sum(table[truth].values()):
                    points.append((step, Spread(table[truth][found] / total)))
            if points:
                _line(axes, points, index, f"{names[truth]} → {names[found]}")
        _step_axis(axes, len(report.f1))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("% of these words")
        axes.grid(axis="y")
        figure.legend(loc="outside lower left", ncols=2, handlelength=3.2)
    return figure


def calibration(report: Report) -> Figure:
    """Draw, for the last step, the share of correct spans by score."""
    last = report.calibration[-1]
    with canvas(350, 300) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2)
        largest = max((cell.count for cell in last.bins), default=0) or 1
        for cell in last.bins:
            axes.bar(cell.low, cell.count / largest, width=cell.high - cell.low, align="edge", color=INK, alpha=0.12)
        known = [(cell.score, cell.right) for cell in last.bins if cell.score is not None]
        if known:
            axes.plot(*zip(*known, strict=True), color=COLOURS[0], marker="o", linewidth=1.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("score of the span")
        axes.set_ylabel("share that is right")
        error = "" if last.error is None else f", expected calibration error {last.error:.3f}"
        axes.set_title(f"after step {last.step}{error}")
    return figure


def time_spent(report: Report) -> Figure:
    """Draw the seconds of each step in updates and in everything else."""
    with canvas(350, 230) as (figure, axes):
        steps = [cost.step for cost in report.costs]
        training = [cost.train_seconds for cost in report.costs]
        rest = [max(0.0, cost.seconds - cost.train_seconds) for cost in report.costs]
        axes.bar(steps, training, color=COLOURS[0], label="updates")
        axes.bar(steps, rest, bottom=training, color=COLOURS[4], hatch="//", label="all else")
        _step_axis(axes, len(report.f1))
        axes.set_ylabel("seconds")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def memory(report: Report) -> Figure:
    """Draw the peak memory of each step in MiB."""
    with canvas(350, 210) as (figure, axes):
        known = [(cost.step, cost.peak_memory / 2**20) for cost in report.costs if cost.peak_memory]
        axes.bar([step for step, _ in known], [size for _, size in known], color=COLOURS[0])
        _step_axis(axes, len(report.f1))
        axes.set_ylabel("peak memory, MiB")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    return figure


def _step_axis(axes: Axes, steps: int) -> None:
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_xticks(range(1, steps + 1))
    axes.set_xlabel("after step")
