"""The page that compares methods side by side."""

import numpy as np

from ner_cl.report.compare import Comparison, Contrast
from ner_cl.report.drawing import COLOURS, INK, Figure, canvas, room_for, svg_of
from ner_cl.report.page import fill
from ner_cl.report.tables import contrast_cells, method_cells, outcome_cells, type_cells

__all__ = ["comparison_page"]

_ROW = 26


def comparison_page(comparison: Comparison) -> str:
    """Render one file with all tables and figures."""
    told = "F1 of every run after the last step; a line is the mean."
    figures = [(svg_of(_finals(comparison), told), told)]
    if any(contrast.micro for contrast in comparison.contrasts):
        told = f"Change against {comparison.baseline}, with its 95 % interval over test sentences."
        figures.append((svg_of(_changes(comparison), told), told))
    return fill(
        "compare.html.j2",
        comparison=comparison,
        figures=figures,
        methods=method_cells(comparison),
        types=type_cells(comparison),
        fates=outcome_cells(comparison),
        contrasts=contrast_cells(comparison),
    )


def _finals(comparison: Comparison) -> Figure:
    """Draw a point per run and a line at the mean: micro above, macro below."""
    methods = comparison.methods
    room = room_for(method.name for method in methods)
    with canvas(room + 330, 95 + _ROW * len(methods)) as (figure, axes):
        for y, method in enumerate(methods):
            for offset, key, colour, marker in ((-0.16, "micro", COLOURS[0], "o"), (0.16, "macro", COLOURS[1], "s")):
                finals = [run.scores[f"final/{key}_f1"] for run in method.runs]
                values = [100 * score for score in finals if score is not None]
                label = f"{key} F1" if y == 0 else None
                heights = np.full(len(values), y + offset)
                axes.plot(values, heights, marker=marker, color=colour, alpha=0.55, linestyle="", label=label)
                if values:
                    axes.plot(2 * [np.mean(values)], [y + offset - 0.14, y + offset + 0.14], color=INK, linewidth=2)
        axes.set_yticks(range(len(methods)), [method.name for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("F1 × 100 after the last step")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def _changes(comparison: Comparison) -> Figure:
    """Draw the differences with their intervals over test sentences."""
    room = room_for(method.name for method in comparison.methods)
    with canvas(room + 330, 95 + _ROW * len(comparison.contrasts)) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=1.2)
        for y, contrast in enumerate(comparison.contrasts):
            for offset, name, colour, marker in ((-0.16, "micro", COLOURS[0], "o"), (0.16, "macro", COLOURS[1], "s")):
                test = contrast.micro if name == "micro" else contrast.macro
                if test is None:
                    continue
                ends = [100 * test.low, 100 * test.high]
                axes.plot(ends, [y + offset] * 2, color=colour, linewidth=2)
                label = f"{name} F1" if contrast is _first(comparison) else None
                axes.plot(100 * test.difference, y + offset, marker=marker, color=colour, linestyle="", label=label)
        axes.set_yticks(range(len(comparison.contrasts)), [contrast.name for contrast in comparison.contrasts])
        axes.set_ylim(len(comparison.contrasts) - 0.5, -0.5)
        axes.set_xlabel("change of F1 × 100")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def _first(comparison: Comparison) -> Contrast | None:
    """Return the first contrast with an interval, which labels the colours in the legend."""
    return next((contrast for contrast in comparison.contrasts if contrast.micro), None)
