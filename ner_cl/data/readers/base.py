"""Shared parts of all readers: the interface, the report, and reading a file into lines."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ner_cl.data.not_text import not_utf8, refuse_other_kinds
from ner_cl.errors import DataError
from ner_cl.types import Span

__all__ = ["Draft", "Problem", "ReadOptions", "ReadReport", "Reader", "read_bytes", "read_lines", "read_text"]

ProblemKind = Literal["broken", "misaligned", "overlap"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A part of a file that cannot be read as it is.

    Attributes:
        kind: "broken" (an unreadable line), "misaligned" (a span that cuts a word) or "overlap".
        line: line (or row) of the file from 1, or 0 for the file as a whole.
        message: one line with the location and a remedy.
    """

    kind: ProblemKind
    line: int
    message: str


@dataclass(slots=True)
class ReadReport:
    """What happened while one file was read.

    Attributes:
        path: the file, as the user named it.
        tolerant: collect problems and continue instead of raising the first one.
        format: the format it was read as.
        scheme: the tag scheme it was read as, or "" if the format has none.
        declares_types: whether the file declares the annotated types of any sentence.
        incomplete: indices of the sentences with words that the file marks as unannotated.
        repairs: what was repaired or skipped → the affected lines.
        problems: what could not be read (tolerant reading only; the sentences concerned are left out).
    """

    path: str
    tolerant: bool = False
    format: str = ""
    scheme: str = ""
    declares_types: bool = False
    incomplete: frozenset[int] = frozenset()
    repairs: dict[str, list[int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def source(self, line: int) -> str:
        """Return `file:line`, or only the file for line 0."""
        return f"{self.path}:{line}" if line else self.path

    def repaired(self, what: str, line: int) -> None:
        """Record that `what` was repaired or skipped in `line`."""
        self.repairs.setdefault(what, []).append(line)

    def refuse(self, line: int, message: str, *, kind: ProblemKind = "broken") -> None:
        """Raise a DataError with the location, or record the problem if the report is tolerant."""
        problem = Problem(kind, line, f"{self.source(line)}: {message}")
        if not self.tolerant:
            raise DataError(problem.message)
        self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a file: tag `scheme`, and what to do with a span that cuts a word (`alignment`)."""

    scheme: str = "auto"
    alignment: str = "error"


@dataclass(frozen=True, slots=True)
class Draft:
    """A sentence as read, before overlaps and annotated types are settled.

    Attributes:
        words: the words, in order.
        spans: as found, in any order; may repeat or overlap.
        annotated_types: the types the file declares for this sentence, or None without a declaration.
        line: line (or row) of the file from 1.
        text: the text the words were cut from, if known.
        offsets: code-point offsets of each word in `text`, if known.
        incomplete: whether the file marks some words as unannotated.
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    annotated_types: frozenset[str] | None
    line: int
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None
    incomplete: bool = False


class Reader(ABC):
    """Abstract base class for one file format. Register the final class with `@readers.register("name")`.

    Attributes:
        suffixes: file name suffixes, lower case with the dot, for which `format="auto"` chooses this reader.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, path: str, options: ReadOptions, report: ReadReport) -> list[Draft]:
        """Read the sentences of the file at `path`.

        Every unreadable line goes to `report.refuse`, every repair to `report.repaired`.

        Raises:
            DataError: if the file cannot be opened; for a broken line unless the report is tolerant.
        """


def read_bytes(path: str) -> bytes:
    """Return the content of a file; DataError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name one file in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from None


def read_text(path: str) -> str:
    """Return the content of a UTF-8 file, including a byte-order mark; DataError for another encoding."""
    data, file = read_bytes(path), Path(path)
    refuse_other_kinds(data[:8], path, file.name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_utf8(data, f"{path}:{line}", file.name) from None


def read_lines(path: str, report: ReadReport) -> list[str]:
    r"""Return the lines of a UTF-8 file; only `\n` and `\r\n` end a line, not U+0085 or U+2028."""
    text = read_text(path)
    if text.startswith("\ufeff"):
        text = text[1:]
        report.repaired("byte-order mark at the start of the file removed", 1)
    if not text.strip():
        raise DataError(f"{path}: is empty; name a file with sentences")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for index, line in enumerate(lines):
        if line.endswith("\r"):
            lines[index] = line[:-1]
            report.repaired("CRLF line end", index + 1)
    return lines
