"""Texts without annotation, read line by line so that a stream of any length fits into memory."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ner_cl.data.not_text import not_utf8, refuse_other_kinds
from ner_cl.errors import DataError

if TYPE_CHECKING:
    from ner_cl.types import Entity, Sentence

__all__ = ["Document", "holds_texts", "offsets_of_words", "read_documents"]

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_KEPT_KEYS = ("id", "meta")


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its source (`file:line`), and the fields of its record that are passed through (`id` and `meta`).

    `offsets` are those of its words, if its record has `word_offsets`.
    """

    text: str
    source: str
    kept: Mapping[str, Any] = field(default_factory=dict)
    offsets: tuple[tuple[int, int], ...] | None = None

    @property
    def sentence(self) -> "Sentence":
        """The text with its words: those of its record, else those of `split_words`."""
        from ner_cl.data.words import sentence_of_text

        return replace(sentence_of_text(self.text, self.offsets), source=self.source)

    def with_entities(self, entities: "Sequence[Entity]") -> bytes:
        """Return one JSON line with the text, the kept fields and the entities found."""
        spans = [
            {
                "start": entity.start,
                "end": entity.end,
                "label": entity.type,
                "score": round(entity.score, 4),
                "step": entity.step,
            }
            for entity in entities
        ]
        words = {} if self.offsets is None else {"word_offsets": self.offsets}
        record = {**self.kept, "text": self.text, "spans": spans, **words}
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def read_documents(source: str) -> Iterator[Document]:
    """Yield the documents of a file, or of stdin for `-`: lines of text, or JSON objects with `text`.

    In plain text every line is a document; a blank line is an empty one. A file is read as JSON lines if its suffix
    says so or its first line is a JSON object with `text`; blank lines between JSON lines are skipped.

    Raises:
        DataError: if something cannot be read; names file and line.
    """
    name = "stdin" if source == "-" else source
    is_json: bool | None = Path(source).suffix.lower() in _JSON_ENDINGS or None
    with _opened(source) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{name}:{number}"
            if number == 1:
                refuse_other_kinds(raw[:8], name)
            line = _decode(raw, where).removeprefix("\ufeff" if number == 1 else "")
            if is_json is None:
                is_json = _is_record(line)
            if not is_json:
                yield Document(line, where)
            elif line.strip():
                yield _document(line, where)


def holds_texts(source: str) -> bool:
    """Whether the first non-blank line of a file is a JSON object with `text`."""
    with _opened(source) as file:
        first = next((raw for raw in file if raw.strip()), b"")
    refuse_other_kinds(first[:8], source)
    return _is_record(_decode(first, source).removeprefix("\ufeff"))


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        if sys.stdin is None:
            raise DataError("stdin is closed; name a file of text or JSON lines")
        yield sys.stdin.buffer
        return
    if Path(source).suffix.lower() == ".csv":
        raise DataError(
            f"{source}: is a CSV file, whose header and commas would be read as text; write the column with the texts "
            "to a file, one a line, or as JSON lines with text"
        )
    try:
        file = Path(source).open("rb")  # noqa: SIM115  closed below, outside the errors of opening
    except FileNotFoundError:
        raise DataError(f"{source}: no such file; name a file of text or JSON lines, or - for stdin") from None
    except IsADirectoryError:
        raise DataError(f"{source}: is a folder; name one file in it") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be opened ({error.strerror}); check the path and its permissions") from None
    with file:
        yield file


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(raw, where) from None


def _is_record(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "text" in value


def _document(line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f'{where}: is not valid JSON; give one object a line, such as {{"text": "..."}}') from None
    if isinstance(record, list):
        raise DataError(f"{where}: is a JSON array; give one object a line, for instance with: jq -c '.[]'")
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where}: has no text; give one object a line, such as {{"text": "..."}}')
    kept = {key: record[key] for key in _KEPT_KEYS if key in record}
    try:
        json.dumps([text, kept], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: holds half a character (a lone surrogate); correct it") from None
    return Document(text, where, kept, offsets_of_words(record, text, where))


def offsets_of_words(record: Mapping[str, Any], text: str, where: str) -> tuple[tuple[int, int], ...] | None:
    """Return the `word_offsets` of a record, or None if it has none; DataError if they do not fit its text."""
    if record.get("word_offsets") is None:
        return None
    from ner_cl.data.readers.records import RecordError, word_offsets

    try:
        return tuple(word_offsets(record["word_offsets"], text))
    except RecordError as error:
        raise DataError(f"{where}: {error}") from None
