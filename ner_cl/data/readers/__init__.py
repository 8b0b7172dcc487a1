"""Read annotated sentences from files of any supported format."""

import re
from collections.abc import Collection, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ner_cl.data.readers.assemble import assemble, first_overlap, longest_spans
from ner_cl.data.readers.base import Draft, Problem, Reader, ReadOptions, ReadReport
from ner_cl.data.readers.conll import ConllReader
from ner_cl.data.readers.docbin import DocBinReader
from ner_cl.data.readers.hub import HubReader, holds_parquet, is_saved, rows_of
from ner_cl.data.readers.jsonl import JsonlReader
from ner_cl.data.readers.records import drafts_of_records
from ner_cl.data.schemes import check_scheme
from ner_cl.errors import ConfigError, DataError
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
    "check_items",
    "detect_format",
    "first_overlap",
    "longest_spans",
    "read_sentences",
    "read_with_report",
    "sentences_of",
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
    """Read a whole file of annotated sentences strictly: the first unreadable line is an error.

    A sentence is annotated for the types the file declares for it, limited to `types` if these are given. A sentence
    without a declaration is annotated for `types`, or, if these are not given, for all types that occur in the file.

    Args:
        path: the file; for "hub" also `dataset` or `dataset:config`, each optionally with `#split`.
        format: "auto" (by the file's suffix, else by its first bytes), "conll", "jsonl", "docbin", "hub" or another
            registered format.
        scheme: tag scheme of column files: "auto", "iob1", "iob2", "bioes" or "io".
        types: the types the file was annotated for, or those wanted from it.
        on_overlap: "error", "longest" (keep the longest of overlapping spans) or "keep" (all, as nested annotation).
        alignment: what to do with a span that cuts a word: "error", or "expand" it to whole words.
        explicit_types: if the file knows several types, refuse a sentence without declared types, because it may be
            annotated for some of them only.

    Raises:
        DataError: if anything cannot be read; names file and line.
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


def sentences_of(
    data: str | PathLike[str] | Iterable[Any],
    *,
    types: Collection[str] | None = None,
    on_overlap: str = "error",
    alignment: str = "error",
    explicit_types: bool = False,
    format: str = "auto",  # noqa: A002  as in read_sentences
    scheme: str = "auto",
) -> list[Sentence]:
    """Return sentences of whatever holds them; options as in `read_sentences`.

    Args:
        data: `Sentence`s, returned as they are except that "longest" drops spans; a file; or records in memory, as they
            stand in JSON lines: dicts with `text` and `spans`, or with `tokens` and `ner_tags`, such as the rows of a
            `datasets.Dataset`.
        types: the types the data were annotated for, or those wanted from them.
        on_overlap: what to do with overlapping spans.
        alignment: what to do with a span that cuts a word.
        explicit_types: whether records must declare their types.
        format: format of a file.
        scheme: scheme of tags.

    Raises:
        DataError: if anything cannot be read; names the file and line, or the number of the record.
    """
    _check_choices(types, on_overlap, alignment)
    if isinstance(data, str | PathLike):
        return read_sentences(
            data,
            format=format,
            scheme=scheme,
            types=types,
            on_overlap=on_overlap,
            alignment=alignment,
            explicit_types=explicit_types,
        )
    check_items(data)
    items = list(rows_of(data) if hasattr(data, "with_format") else data)
    if items and all(isinstance(item, Sentence) for item in items):
        return _without_overlaps(items) if on_overlap == "longest" else items
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping | list | tuple | Sentence):
            raise DataError(
                f"item {number} is a {type(item).__name__}; give each as a ner_cl.Sentence or as a record with text "
                "and spans, or name a file"
            )
    if number := next((number for number, item in enumerate(items, start=1) if isinstance(item, Sentence)), 0):
        raise DataError(f"item {number} is a Sentence and others are records; give either Sentences or records")
    report = ReadReport("record")
    drafts = drafts_of_records(enumerate(items, start=1), ReadOptions(check_scheme(scheme), alignment), report)
    return assemble(drafts, report, types=types, on_overlap=on_overlap, explicit_types=explicit_types) if drafts else []


def _without_overlaps(sentences: Iterable[Sentence]) -> list[Sentence]:
    return [sentence.with_spans(longest_spans(sentence.spans), sentence.annotated_types) for sentence in sentences]


def check_items(data: object) -> None:
    """Refuse what does not give sentences or texts one by one."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        raise DataError("the data are a table; give its rows, such as table.to_dict('records')")
    if isinstance(data, Mapping):
        names = ", ".join(map(str, data)) or "no key"
        if any(hasattr(value, "features") for value in data.values()):
            raise DataError(f"the data have the splits {names}; give one of them, such as data['train']")
        raise DataError(f"the data are one record with {names}; give a list of records")
    if not isinstance(data, Iterable):
        raise DataError(f"the data are of type {type(data).__name__}; name a file, or give a list or a data set")


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
    """Read sentences like `read_sentences`, and also report what was repaired.

    With `tolerant`, all sentences that cannot be read are left out and listed in `ReadReport.problems`. A file that
    cannot be opened is still an error.
    """
    _check_choices(types, on_overlap, alignment)
    name = fspath(path)
    chosen = detect_format(name) if format == "auto" else format
    report = ReadReport(name, tolerant=tolerant, format=chosen)
    drafts = _reader(chosen).read(name, ReadOptions(check_scheme(scheme), alignment), report)
    sentences = assemble(drafts, report, types=types, on_overlap=on_overlap, explicit_types=explicit_types)
    return sentences, report


def detect_format(path: str | PathLike[str], *, otherwise: str = "conll") -> str:
    """Detect the format of a file by its suffix, else by its first bytes.

    A name with `#` that is no file, a folder written by `save_to_disk`, and one of parquet files are data sets.

    Args:
        path: the file.
        otherwise: the format if neither tells; where several formats claim a suffix, it comes first.
    """
    name = fspath(path).split("#")[0]
    suffix = Path(name).suffix.lower()
    names: list[str] = [otherwise, *readers]
    for format_ in names:
        if suffix and suffix in _reader(format_).suffixes:
            return format_
    if not Path(fspath(path)).is_file():
        folder = Path(name)
        return (
            "hub"
            if is_saved(folder) or holds_parquet(folder) or ("#" in fspath(path) and not Path(name).is_file())
            else otherwise
        )
    with Path(fspath(path)).open("rb") as file:
        head = file.read(4096)
    if head.startswith((b"PAR1", b"ARROW1")):
        return "hub"
    if head.startswith((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
        return "docbin"
    return "jsonl" if _JSON_START.match(head.removeprefix(b"\xef\xbb\xbf")) else otherwise


def _reader(name: str) -> Reader:
    kind = readers[name]
    if not (isinstance(kind, type) and issubclass(kind, Reader)):
        raise ConfigError(
            f"format {name!r} is registered without a Reader class; derive it from ner_cl.data.readers.Reader"
        )
    return kind()


def _check_choices(types: Collection[str] | None, on_overlap: str, alignment: str) -> None:
    _check_choice("on_overlap", on_overlap, _OVERLAPS)
    _check_choice("alignment", alignment, _ALIGNMENTS)
    if isinstance(types, str):
        raise ConfigError(f"types must be a list of names, not the text {types!r}; write [{types!r}]")


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} {value!r} is unknown{nearest(value, choices)}; choose {', '.join(choices)}")
