"""Reading annotated sentences from files, whatever format they come in."""

import re
from collections.abc import Collection
from os import PathLike, fspath
from pathlib import Path

from ner_cl.data.readers.assemble import assemble, first_overlap, longest_spans
from ner_cl.data.readers.base import Draft, Problem, Reader, ReadOptions, ReadReport
from ner_cl.data.readers.conll import ConllReader
from ner_cl.data.readers.docbin import DocBinReader
from ner_cl.data.readers.hub import HubReader
from ner_cl.data.readers.jsonl import JsonlReader
from ner_cl.data.schemes import check_scheme
from ner_cl.errors import ConfigError
from ner_cl.registry import nearest, readers
from ner_cl.types import Sentence

__all__ = [
    "ConllReader",
    "DocBinReader",
    "Draft",
    "HubReader",
    "JsonlReader",
    "Problem",
    "ReadOptions",
    "ReadReport",
    "Reader",
    "detect_format",
    "first_overlap",
    "longest_spans",
    "read_sentences",
    "read_with_report",
]

_OVERLAPS = ("error", "longest", "keep")
_ALIGNMENTS = ("error", "expand")
_JSON_START = re.compile(rb'\s*(\{\s*["}]|\[\s*(\{|\]|\r?\n))')


def read_sentences(
    path: str | PathLike[str],
    *,
    format: str = "auto",  # noqa: A002  the word users know
    scheme: str = "auto",
    types: Collection[str] | None = None,
    on_overlap: str = "error",
    alignment: str = "error",
    explicit_types: bool = False,
) -> list[Sentence]:
    """Read a whole file of annotated sentences, strictly: the first line that cannot be read is an error.

    Every sentence is annotated for `types`; where those are not given, for the types the file names, and where it
    names none, for all types that occur in it. A sentence for which the file says more keeps to what it says.

    Args:
        path: the file; for "hub" also `dataset`, `dataset:config`, each with `#split`.
        format: "auto" (by the file's ending, else by its first bytes), "conll", "jsonl", "docbin", "hub" or a
            registered one.
        scheme: tag scheme of column files: "auto", "iob1", "iob2", "bioes" or "io".
        types: the types the file was annotated for, or that are wanted from it.
        on_overlap: "error", "longest" (keep the longest of overlapping spans) or "keep" (all, as nested annotation).
        alignment: what to do with a span that cuts a word: "error", or "expand" it to whole words.
        explicit_types: refuse a sentence of which the file does not say what it is annotated for, if the file knows
            several types: it may have been annotated for some of them only.

    Raises:
        DataError: with file and line, for anything that cannot be read.
        ConfigError: for an unknown format, scheme or option.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "people.conll")
        >>> _ = path.write_text("Ada\\tB-PER\\nwrites\\tO\\n")
        >>> read_sentences(path)[0].spans
        (Span(start=0, end=1, type='PER'),)
    """
    return read_with_report(
        path,
        format=format,
        scheme=scheme,
        types=types,
        on_overlap=on_overlap,
        alignment=alignment,
        explicit_types=explicit_types,
    )[0]


def read_with_report(
    path: str | PathLike[str],
    *,
    format: str = "auto",  # noqa: A002  as in read_sentences
    scheme: str = "auto",
    types: Collection[str] | None = None,
    on_overlap: str = "error",
    alignment: str = "error",
    explicit_types: bool = False,
    tolerant: bool = False,
) -> tuple[list[Sentence], ReadReport]:
    """`read_sentences` that also tells what was repaired.

    With `tolerant`, sentences that cannot be read are left out and listed in `ReadReport.problems`, all of them. A
    file that cannot be opened is an error all the same.
    """
    _check_choice("on_overlap", on_overlap, _OVERLAPS)
    _check_choice("alignment", alignment, _ALIGNMENTS)
    if isinstance(types, str):
        raise ConfigError(f"types must be a list of names, not the text {types!r}; write [{types!r}]")
    name = fspath(path)
    chosen = detect_format(name) if format == "auto" else format
    report = ReadReport(name, tolerant=tolerant, format=chosen)
    drafts = _reader(chosen).read(name, ReadOptions(check_scheme(scheme), alignment), report)
    sentences = assemble(drafts, report, types=types, on_overlap=on_overlap, explicit_types=explicit_types)
    return sentences, report


def detect_format(path: str | PathLike[str]) -> str:
    """The format of a file by its ending, else by its first bytes; column files are the last resort."""
    name = fspath(path).split("#")[0]
    suffix = Path(name).suffix.lower()
    for format_ in readers:
        if suffix and suffix in _reader(format_).suffixes:
            return format_
    if not Path(fspath(path)).is_file():
        return "hub" if "#" in fspath(path) and not suffix else "conll"
    with Path(fspath(path)).open("rb") as file:
        head = file.read(4096)
    if head.startswith((b"PAR1", b"ARROW1")):
        return "hub"
    if head.startswith((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
        return "docbin"
    return "jsonl" if _JSON_START.match(head.removeprefix(b"\xef\xbb\xbf")) else "conll"


def _reader(name: str) -> Reader:
    kind = readers[name]
    if not (isinstance(kind, type) and issubclass(kind, Reader)):
        raise ConfigError(
            f"format {name!r} is registered without a Reader class; derive it from ner_cl.data.readers.Reader"
        )
    return kind()


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} {value!r} is unknown{nearest(value, choices)}; choose {', '.join(choices)}")
