"""Where the command line talks: stdout is data, stderr is talk."""

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

__all__ = ["NOTABLE_FALL", "emit", "emit_json", "is_main_process", "percent", "say", "table", "talk", "use_utf8"]

talk = Console(stderr=True, highlight=False, soft_wrap=True)
"""The console on stderr; `talk.quiet` silences it."""


def is_main_process() -> bool:
    """Whether this is the one of several training processes that talks; true without `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """One line of talk on stderr; nothing under `--quiet`."""
    talk.print(line, markup=False)


def emit(text: str) -> None:
    """Lines of data on stdout; nothing in any but the main process."""
    if is_main_process():
        sys.stdout.write(f"{text}\n")


def emit_json(values: Any) -> None:
    """Data on stdout as indented JSON."""
    emit(json.dumps(values, indent=2, ensure_ascii=False))


def use_utf8() -> None:
    """Makes stdout UTF-8 whatever the locale says: data files are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


NOTABLE_FALL = 0.01
"""How far F1 of an old type falls in a step, 0 to 1, before anybody is told."""


def percent(score: float | None) -> str:
    """A score from 0 to 1 times 100, or a hyphen where it is undefined."""
    return "-" if score is None else f"{100 * score:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> str:
    """Plain text in columns: the first `text_columns` flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = (
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
