"""JSON files: one object per line, or one array of objects."""

import json
from collections.abc import Iterator
from typing import final

from ner_cl.data.readers.base import Draft, Reader, ReadOptions, ReadReport, read_lines
from ner_cl.data.readers.records import drafts_of_records
from ner_cl.registry import readers

__all__ = ["JsonlReader"]


@readers.register("jsonl")
@final
class JsonlReader(Reader):
    """Reads texts with spans in code points, and words with tags or with spans in word offsets.

    The exports of Prodigy, doccano, Label Studio and spaCy are read directly; see the how-to on data.
    """

    suffixes = (".jsonl", ".json", ".ndjson")

    def read(self, path: str, options: ReadOptions, report: ReadReport) -> list[Draft]:
        """Read the sentences of a JSON file; see `Reader.read`."""
        return drafts_of_records(_values(read_lines(path, report), report), options, report)


def _values(lines: list[str], report: ReadReport) -> Iterator[tuple[int, object]]:
    """Yield the JSON values of a file, each with its line."""
    first = next(line for line in lines if line.strip())
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # Not one value per line but an array or object over several lines, unless the first line is simply broken.
        whole = first.lstrip().startswith("[") or first.strip() == "{"
    else:
        whole = isinstance(value, list) and (not value or isinstance(value[0], dict | list))
    yield from _whole_file("\n".join(lines), report) if whole else _one_a_line(lines, report)


def _one_a_line(lines: list[str], report: ReadReport) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            report.repaired("blank line skipped", number)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.refuse(number, f"is not valid JSON ({_reason(error)}); correct the line")
        else:
            yield number, value


def _whole_file(text: str, report: ReadReport) -> Iterator[tuple[int, object]]:
    """Yield the elements of the array, or the single object, that makes up the file."""
    decoder = json.JSONDecoder()
    position = _skip_blanks(text, 0)
    inside = text[position] == "["
    position, line, seen = position + inside, 1, 0
    while (position := _skip_blanks(text, position)) < len(text) and text[position] != "]":
        line, seen = line + text.count("\n", seen, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            report.refuse(at, f"is not valid JSON ({_reason(error)}); correct it")
            return
        yield line, value
        position = _skip_blanks(text, position)
        if text[position : position + 1] == ",":
            position += 1
        elif inside and text[position : position + 1] != "]":
            report.refuse(line, "is followed by neither a comma nor the end of the array; correct the JSON")
            return
    if inside and (reason := _unfinished(text, position)):
        report.refuse(1 + text.count("\n", 0, position), reason)


def _unfinished(text: str, position: int) -> str:
    """Say what is wrong at the position where array and file should end; "" if nothing is."""
    if position == len(text):
        return "the file ends before its array does; write it out again, or close it with ]"
    if _skip_blanks(text, position + 1) < len(text):
        return "more follows the end of the array; put it into a file of its own, or all records into one array"
    return ""


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
