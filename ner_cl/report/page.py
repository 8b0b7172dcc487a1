"""Render pages from templates, with styles and figures inlined, so that each page is a single file."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ner_cl.config import flatten
from ner_cl.errors import MissingExtra
from ner_cl.evaluate.matrix import TOTALS
from ner_cl.report.collect import Report
from ner_cl.report.definitions import DEFINITIONS
from ner_cl.report.spread import Spread

try:
    import jinja2
except ImportError as error:
    raise MissingExtra("pages need jinja2; run: pip install 'ner-cl[report]'") from error

__all__ = ["fill", "report_page"]

_CARDS = {
    "final/micro_f1": "micro F1, last step",
    "final/macro_f1": "macro F1, last step",
    "average/micro_f1": "micro F1, mean over steps",
    "average/macro_f1": "macro F1, mean over steps",
    "learning/new_f1_mean": "new type when learned",
    "forgetting/max_drop": "forgetting (max drop)",
}
_PARTS = {
    "matrix": "F1",
    "curves": "Curves",
    "transfer": "Forgetting",
    "confusion": "Confusion",
    "mistakes": "Mistakes",
    "calibration": "Calibration",
    "cost": "Cost",
    "run": "What was run",
}


def fill(template: str, **values: Any) -> str:
    """Render a page from a template of this package; values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ner_cl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source, _, _ = environment.loader.get_source(environment, "style.css") if environment.loader else ("", "", None)
    return environment.get_template(template).render(style=source, version=_version(), **values)


def report_page(report: Report, figures: Sequence[tuple[str, str]]) -> str:
    """Render the page about a run.

    Args:
        report: the values to show.
        figures: for each figure, its part of the page and its `<svg>`.
    """
    by_part: dict[str, list[str]] = defaultdict(list)
    for part, svg in figures:
        by_part[part].append(svg)
    return fill(
        "report.html.j2",
        report=report,
        figures=by_part,
        cards=[(title, report.metrics[key].percent()) for key, title in _CARDS.items()],
        parts=list(_PARTS.items()),
        rows=_rows(report),
        confusion=[(step, _shares(table)) for step, table in report.confusion.items()],
        definitions=DEFINITIONS,
        environment=[(key, str(value)) for key, value in flatten(report.environment).items() if value is not None],
    )


def _rows(report: Report) -> list[tuple[str, list[str]]]:
    """Return the rows of the heat map as text."""
    rows = [
        (type_, ["" if row is None or type_ not in row else row[type_].percent() or "–" for row in report.f1])
        for type_, step in report.learned.items()
        if step <= len(report.f1)
    ]
    totals: Sequence[Sequence[Spread]] = (report.micro, report.macro)
    return [*rows, *((label, [s.percent() for s in scores]) for label, scores in zip(TOTALS, totals, strict=True))]


def _shares(table: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the cells of the confusion table."""
    asked = (("old", "o"), ("old", "new"), ("new", "o"), ("new", "old"), ("o", "old"), ("o", "new"))
    totals = {truth: sum(row.values()) for truth, row in table.items()}
    return [f"{100 * table[a][b] / totals[a]:.1f} %" if totals[a] else "–" for a, b in asked]


def _version() -> str:
    try:
        return version("ner-cl")
    except PackageNotFoundError:  # a source tree that was never installed
        return "from source"
