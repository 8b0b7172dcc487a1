"""Format a comparison as Markdown, as LaTeX, as CSV, and as table cells for a page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ner_cl.evaluate.mistakes import Outcomes
from ner_cl.evaluate.significance import BootstrapTest
from ner_cl.report.compare import Comparison, Contrast, Method
from ner_cl.report.spread import Spread

__all__ = [
    "COLUMNS",
    "Cells",
    "contrast_cells",
    "method_cells",
    "outcome_cells",
    "to_csv",
    "to_latex",
    "to_markdown",
    "type_cells",
]

_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
}

COLUMNS = {
    "final/micro_f1": "micro F1, last step",
    "final/macro_f1": "macro F1, last step",
    "average/micro_f1": "micro F1, mean over steps",
    "average/macro_f1": "macro F1, mean over steps",
    "old/macro_f1_average": "old types, mean over steps",
    "new/macro_f1_average": "new types, mean over steps",
    "learning/new_f1_mean": "new type when learned",
    "forgetting/max_drop": "forgetting (max drop)",
}


@dataclass(frozen=True)
class Cells:
    """A table of text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Format as a Markdown table."""
        head, *rows = ("| " + " | ".join(cells) + " |" for cells in (self.header, *self.rows))
        return "\n".join([head, "|---" * len(self.header) + "|", *rows])

    def to_latex(self) -> str:
        """Format as a `tabular` with the rules of the package booktabs; the first column is text."""
        head, *rows = (" & ".join(map(_latex, cells)) + r" \\" for cells in (self.header, *self.rows))
        columns = "l" + "r" * (len(self.header) - 1)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"])


def method_cells(comparison: Comparison) -> Cells:
    """Return scores × 100 of each method, as mean ± standard deviation over its runs, and the cost of a run."""
    orders = any(method.orders > 1 for method in comparison.methods)
    header = ["run", "seeds", *(["orders"] if orders else []), *COLUMNS.values()]
    header += ["micro F1 below joint", "wall time", "training sentences/s"]
    rows = []
    for method in comparison.methods:
        counts = [str(method.seeds), *([str(method.orders)] if orders else [])]
        scores = [method.scores[key].percent() for key in COLUMNS]
        rows.append((method.name, *counts, *scores, *_costs(method)))
    return Cells(tuple(header), tuple(rows))


def type_cells(comparison: Comparison) -> Cells:
    """Return F1 × 100 of every type after the last step."""
    rows = [
        (method.name, *(method.types[type_].percent() if type_ in method.types else "" for type_ in comparison.types))
        for method in comparison.methods
    ]
    return Cells(("run", *comparison.types), tuple(rows))


def outcome_cells(comparison: Comparison) -> Cells:
    """Return the outcomes of the mentions of all types after the last step, as the mean over a method's runs."""
    header = ["run", "mentions", "right", "as another type", "of a later step", "other borders", "missed"]
    header += ["found", "is another type", "other borders", "is nothing", "precision", "recall"]
    rows = []
    for method in comparison.methods:
        if not method.judged:
            continue
        all_types = Outcomes.total(method.outcomes.values())
        confused = (all_types.other_type, all_types.later_type)
        gold = (all_types.gold, all_types.right, *confused, all_types.other_borders, all_types.missed)
        found = (all_types.found, all_types.wrong_type, all_types.wrong_borders, all_types.made_up)
        means = [f"{count / method.judged:.0f}" for count in (*gold, *found)]
        shares = [Spread(share).percent() for share in (all_types.counts.precision, all_types.counts.recall)]
        rows.append((method.name, *means, *shares))
    return Cells(tuple(header), tuple(rows))


def contrast_cells(comparison: Comparison) -> Cells:
    """Compare every method with the baseline, by F1 × 100 after the last step."""
    header = ["run", "pairs"]
    for average in ("micro", "macro"):
        header += [f"{average} F1 change", "95 % over sentences", "p, sentences", "p, runs"]
    rows = []
    for contrast in comparison.contrasts:
        cells = [contrast.name, str(contrast.pairs)]
        for test, key in ((contrast.micro, "final/micro_f1"), (contrast.macro, "final/macro_f1")):
            cells += [_change(contrast, key), *_bootstrap(test), _runs(contrast, key)]
        rows.append(tuple(cells))
    return Cells(tuple(header), tuple(rows))


def to_markdown(comparison: Comparison) -> str:
    """Format all tables, one below the other, each with an explanation."""
    parts = [
        f"Stream {comparison.stream}. F1 × 100, strict, on the whole test set; ± is one standard deviation over runs.",
        method_cells(comparison).to_markdown(),
        "F1 of every type after the last step:",
        type_cells(comparison).to_markdown(),
    ]
    fates = outcome_cells(comparison)
    if fates.rows:
        parts += [
            "What became of the test set's mentions after the last step, all types, mean of a run:",
            fates.to_markdown(),
        ]
    if comparison.contrasts:
        parts += [
            f"Against `{comparison.baseline}`, runs with the same seed and order paired. *p, sentences*: bootstrap "
            "over test sentences; *p, runs*: exchange within pairs of runs, in brackets the smallest p that so many "
            "pairs can give.",
            contrast_cells(comparison).to_markdown(),
        ]
    methods = "\n".join(f"- `{method.name}`: {method.method}" for method in comparison.methods)
    parts.append(f"Methods:\n\n{methods}")
    parts.append(_told("What differs besides the strategies", [str(item) for item in comparison.differences]))
    parts.append(_told("Notes", comparison.notes) if comparison.notes else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(comparison: Comparison) -> str:
    """Format scores and F1 of every type as two `tabular`s, which need the package booktabs."""
    parts = [
        r"% \usepackage{booktabs}",
        f"% {comparison.stream}: F1 x 100, strict, whole test set; mean and standard deviation over runs.",
        method_cells(comparison).to_latex(),
        "% F1 x 100 of every type after the last step.",
        type_cells(comparison).to_latex(),
    ]
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Format one CSV line per run: method, seed, order, folder, all scores, and F1 by type after the last step."""
    keys = list(comparison.methods[0].scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "seed", "order", "folder", *keys, *(f"f1/{type_}" for type_ in comparison.types)])
    for method in comparison.methods:
        for run in method.runs:
            scores = [run.scores[key] for key in keys]
            types = [run.types.get(type_) for type_ in comparison.types]
            writer.writerow([method.name, run.seed, run.order, run.folder, *scores, *types])
    return text.getvalue()


def _latex(text: str) -> str:
    """Text with the characters escaped that mean something to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _costs(method: Method) -> tuple[str, str, str]:
    return (
        "" if method.gap is None else f"{100 * method.gap:.1f}",
        "" if method.minutes is None else f"{method.minutes:.1f} min",
        "" if method.speed is None else f"{method.speed:.0f}",
    )


def _change(contrast: Contrast, key: str) -> str:
    return _signed(contrast.changes[key]) if key in contrast.changes else ""


def _bootstrap(test: BootstrapTest | None) -> list[str]:
    return ["", ""] if test is None else [f"{_signed(test.low)} to {_signed(test.high)}", _p(test.p)]


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _runs(contrast: Contrast, key: str) -> str:
    test = contrast.runs.get(key)
    return "" if test is None else f"{_p(test.p)} ({_p(test.smallest)})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _told(title: str, lines: Sequence[str]) -> str:
    return f"{title}: nothing." if not lines else f"{title}:\n\n" + "\n".join(f"- {line}" for line in lines)
