"""Output of the command line: data on stdout, messages on stderr."""

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

__all__ = [
    "NOTABLE_FALL",
    "emit",
    "emit_json",
    "is_main_process",
    "percent",
    "replace_closed_streams",
    "say",
    "table",
    "talk",
    "use_utf8",
]

talk = Console(stderr=True, highlight=False, soft_wrap=True)
"""The console on stderr; `talk.quiet` silences it."""


def is_main_process() -> bool:
    """Whether this is the training process that prints output; always true without `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print one message on stderr; nothing with `--quiet`."""
    talk.print(line, markup=False, emoji=False)


def emit(text: str) -> None:
    """Write data on stdout; only in the main process."""
    if is_main_process():
        sys.stdout.write(f"{text}\n")


def emit_json(values: Any) -> None:
    """Write data on stdout as indented JSON."""
    emit(json.dumps(values, indent=2, ensure_ascii=False))


def replace_closed_streams() -> None:
    """Discard what is written to stdout or stderr if the process was started without them (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open until the process ends


def use_utf8() -> None:
    """Set stdout to UTF-8, the encoding of data files, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


NOTABLE_FALL = 0.01
"""A drop in F1 (0 to 1) of an old type in one step is reported only above this."""


def percent(score: float | None) -> str:
    """Format a score from 0 to 1 times 100; a hyphen if it is undefined."""
    return "-" if score is None else f"{100 * score:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> str:
    """Format rows as plain-text columns: the first `text_columns` left-aligned, the others right-aligned."""
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
