"""The result matrix: exact counts for every entity type after every step, its files and its plain-text table."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import Counts, macro_f1, micro_f1
from ner_cl.evaluate.metrics import summary
from ner_cl.files import replace_text

__all__ = ["Matrix", "render", "render_side_by_side"]

LINE_WIDTH = 120
CELL_WIDTH = 6
MOST_TYPE_LINES = 30
"""With more types than this, a table has one line per step instead of one per type."""
HEADER = "F1 × 100 after step"
TOTALS = ("all types, micro", "all types, macro")
SEPARATOR = " |"
LEGEND = "* the step that taught it   - no gold in the test set   ? not evaluated"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts on the whole test set after each step, restricted to the types seen so far.

    All scores (F1, forgetting, transfer) are computed from these counts, which are exact and additive.

    Attributes:
        types: all types of the stream, in learning order.
        steps: the types each step teaches.
        counts: one row per step run so far: the counts of every type taught by then, or None if the model was not
            evaluated after that step.

    Raises:
        DataError: if types, steps and rows are inconsistent.

    Example:
        >>> matrix = Matrix.start([["PER"], ["LOC"]]).with_row({"PER": Counts(1, 0, 2)})
        >>> matrix = matrix.with_row({"PER": Counts(1, 1, 2), "LOC": Counts(3, 0, 1)})
        >>> matrix.f1[0], round(matrix.metrics["forgetting/max_drop"], 3)
        ({'PER': 0.5}, 0.1)
    """

    types: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    counts: tuple[Mapping[str, Counts] | None, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts are consistent and copy the rows, with types in learning order."""
        if self.types != tuple(chain.from_iterable(self.steps)) or len(set(self.types)) != len(self.types):
            raise DataError(f"matrix: the types {list(self.types)} are not those of the steps {self.steps}, each once")
        if not all(self.steps):
            raise DataError("matrix: every step must teach at least one type")
        if len(self.counts) > len(self.steps):
            raise DataError(f"matrix: {len(self.counts)} rows for {len(self.steps)} steps")
        rows = (None if row is None else self._ordered(row, step) for step, row in enumerate(self.counts, start=1))
        object.__setattr__(self, "counts", tuple(rows))

    def _ordered(self, row: Mapping[str, Counts], step: int) -> dict[str, Counts]:
        seen = self.seen_after(step)
        if set(row) != set(seen):
            raise DataError(f"matrix: row {step} has the types {sorted(row)}; give counts for {sorted(seen)}")
        return {type_: row[type_] for type_ in seen}

    @property
    def learned(self) -> dict[str, int]:
        """The step, from 1, that taught each type."""
        return {type_: number for number, types in enumerate(self.steps, start=1) for type_ in types}

    @classmethod
    def start(cls, steps: Sequence[Sequence[str]]) -> "Matrix":
        """Create a matrix without rows for a stream with these steps."""
        return cls(tuple(chain.from_iterable(steps)), tuple(tuple(step) for step in steps))

    def seen_after(self, step: int) -> tuple[str, ...]:
        """Return the types taught in steps 1 to `step`, which row `step` counts."""
        return tuple(chain.from_iterable(self.steps[:step]))

    def with_row(self, counts: Mapping[str, Counts] | None) -> "Matrix":
        """Return a matrix with one more row; None for a step that was not evaluated."""
        return replace(self, counts=(*self.counts, counts))

    @property
    def f1(self) -> list[dict[str, float | None] | None]:
        """F1 by row and type; None for a type without gold or a row that was not evaluated."""
        return [None if row is None else {type_: cell.f1 for type_, cell in row.items()} for row in self.counts]

    @property
    def micro_f1(self) -> list[float | None]:
        """Micro F1 over the types seen so far, by row."""
        return [None if row is None else micro_f1(row) for row in self.counts]

    @property
    def macro_f1(self) -> list[float | None]:
        """Mean F1 over the types seen so far that have gold, by row."""
        return [None if row is None else macro_f1(row) for row in self.counts]

    @property
    def metrics(self) -> dict[str, float | None]:
        """Continual-learning scores of the rows so far; see `ner_cl.evaluate.metrics` for the keys."""
        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `matrix.json` as plain lists, dicts and numbers."""
        return {
            "types": list(self.types),
            "steps": [list(step) for step in self.steps],
            "counts": [
                None if row is None else {type_: asdict(cell) for type_, cell in row.items()} for row in self.counts
            ],
            "f1": self.f1,
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "metrics": self.metrics,
        }

    def to_json(self) -> str:
        """Return the text of `matrix.json`; the same matrix always gives the same bytes."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Matrix":
        """Parse a `matrix.json`; only types, steps and counts are read, the rest is computed from them.

        Raises:
            DataError: if the text is not JSON or its parts are inconsistent.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"matrix: {where}: {first['msg']}; expected the content of a matrix.json") from None

    @classmethod
    def load(cls, path: Path) -> "Matrix":
        """Read a `matrix.json`, or the one in a run folder; DataError if it is missing or invalid."""
        file = path / "matrix.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"{file}: no such file; give a run folder or its matrix.json")
        try:
            return cls.from_json(file.read_bytes())
        except DataError as error:
            raise DataError(f"{file}: {error}") from None

    def to_csv(self) -> str:
        """Return CSV with one line per step and type: counts, precision, recall and F1; undefined scores are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", "type", "tp", "fp", "fn", "precision", "recall", "f1"])
        for step, row in enumerate(self.counts, start=1):
            for type_, cell in (row or {}).items():
                writer.writerow([step, type_, cell.tp, cell.fp, cell.fn, cell.precision, cell.recall, cell.f1])
        return text.getvalue()

    def save(self, folder: Path) -> None:
        """Write `matrix.json` and `matrix.csv`, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "matrix.json", self.to_json())
        replace_text(folder / "matrix.csv", self.to_csv())


_ADAPTER: TypeAdapter[Matrix] = TypeAdapter(Matrix)


def render(matrix: Matrix) -> str:
    """Render F1 × 100 as text: a line per type, a column per step, a star at the step that taught the type.

    With more than 30 types there is a line per step instead: the micro F1 of the types it taught. Columns that do not
    fit into 120 characters continue below.
    """
    lines = _cells(matrix, by_step=len(matrix.types) > MOST_TYPE_LINES)
    width = max(map(len, lines))
    columns = max(1, (LINE_WIDTH - width) // CELL_WIDTH)
    blocks = [
        [
            f"{label:<{width}}{''.join(cells[low : low + columns])}".rstrip()
            for label, cells in lines.items()
            if not cells or "".join(cells[low : low + columns]).strip()
        ]
        for low in range(0, max(1, len(matrix.counts)), columns)
    ]
    return "\n\n".join(["\n".join(block) for block in blocks]) + f"\n{LEGEND}"


def render_side_by_side(left: Matrix, right: Matrix, titles: tuple[str, str]) -> str:
    """Render two runs side by side, or one below the other if they do not fit into 120 characters.

    Lines follow the learning order of `left`, then come types that only `right` knows. `titles` head the two halves.
    """
    by_step = max(len(left.types), len(right.types)) > MOST_TYPE_LINES
    halves = _cells(left, by_step=by_step), _cells(right, by_step=by_step)
    widths = [max(CELL_WIDTH * len(m.counts), len(t)) for m, t in zip((left, right), titles, strict=True)]
    room = LINE_WIDTH - sum(widths) - len(SEPARATOR)
    if room < len(HEADER):
        return "\n\n".join(f"{title}\n{render(matrix)}" for title, matrix in zip(titles, (left, right), strict=True))
    labels = [label for label in {**halves[0], **halves[1]} if label not in TOTALS]
    width = min(room, max(map(len, [*labels, *TOTALS])))
    heads = [f"{title:<{size}}" for title, size in zip(titles, widths, strict=True)]
    lines = [f"{'':<{width}}{SEPARATOR.join(heads)}".rstrip()]
    for label in [*labels, *TOTALS]:
        cells = (f"{''.join(half.get(label, [])):<{size}}" for half, size in zip(halves, widths, strict=True))
        lines.append(f"{_shorten(label, width):<{width}}{SEPARATOR.join(cells)}".rstrip())
    return "\n".join([*lines, LEGEND])


def _cells(matrix: Matrix, *, by_step: bool) -> dict[str, list[str]]:
    """Return the lines of a table: label → one fixed-width cell per step run so far."""
    lines = {HEADER: [f"{step:>{CELL_WIDTH - 1}} " for step in range(1, len(matrix.counts) + 1)]}
    for step, types in enumerate(matrix.steps[: len(matrix.counts)], start=1):
        if by_step:
            lines[f"step {step} ({len(types)} types)"] = _scores(matrix, types, step)
        else:
            lines.update({type_: _scores(matrix, [type_], step) for type_ in types})
    for label, scores in zip(TOTALS, (matrix.micro_f1, matrix.macro_f1), strict=True):
        lines[label] = [_cell(score, row) for score, row in zip(scores, matrix.counts, strict=True)]
    return lines


def _scores(matrix: Matrix, types: Sequence[str], learned: int) -> list[str]:
    """Return the cells with the micro F1 of `types`, blank before step `learned` and starred at it."""
    cells = [" " * CELL_WIDTH] * (learned - 1)
    for step, row in enumerate(matrix.counts[learned - 1 :], start=learned):
        score = None if row is None else micro_f1({type_: row[type_] for type_ in types})
        cells.append(_cell(score, row, mark="*" if step == learned else " "))
    return cells


def _cell(score: float | None, row: Mapping[str, Counts] | None, mark: str = " ") -> str:
    undefined = "?" if row is None else "-"
    text = undefined if score is None else f"{100 * score:.1f}"
    return f"{text:>{CELL_WIDTH - 1}}{mark}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
