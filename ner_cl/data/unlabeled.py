"""Raw text: in-domain words that are not annotated or whose annotation is ignored."""

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ner_cl.data.documents import holds_texts, offsets_of_words, read_documents
from ner_cl.data.lines import by_lines
from ner_cl.data.readers import check_items, detect_format, read_sentences
from ner_cl.data.readers.conll import ConllReader
from ner_cl.data.readers.hub import rows_in, rows_of
from ner_cl.data.words import sentence_of_text
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["read_unlabeled"]


def read_unlabeled(
    texts: str | PathLike[str] | Iterable[Any],
    *,
    format: str = "auto",  # noqa: A002  as in read_sentences
    **reading: Any,
) -> list[Sentence]:
    """Read raw texts as sentences, one a line, that are annotated for no entity type.

    Args:
        texts: the texts, as strings, lists of words, `Sentence`s, or records or a `datasets.Dataset` with `tokens` or
            `text`; or a file with one text per line or JSON lines with `text`, as `ner-cl predict` reads them; or
            a file of annotated sentences.
        format: format of a file that neither its suffix nor its first bytes tell; `auto` takes it for plain text.
        **reading: options of `read_sentences` for a file of annotated sentences.

    Raises:
        DataError: if the file cannot be read, an item is no text, or the texts hold no word.
    """
    if isinstance(texts, str | PathLike):
        found = _read(fspath(texts), format, reading)
        problem = f"{fspath(texts)}: holds no text; give one text a line"
    else:
        check_items(texts)
        items = rows_of(texts) if hasattr(texts, "with_format") else texts
        found = [_sentence_of(item, f"unlabeled: item {number}") for number, item in enumerate(items)]
        problem = "unlabeled: none of the texts holds a word; give some"
    found = [Sentence(item.words, text=item.text, offsets=item.offsets) for item in found if item.words]
    sentences = [Sentence(line.words) for line in by_lines(found)]
    if not sentences:
        raise DataError(f"{problem}, or leave unlabeled out")
    return sentences


def _read(path: str, format_: str, reading: dict[str, Any]) -> list[Sentence]:
    if (kind := _format_of_annotated(path, format_)) is None:
        return [document.sentence for document in read_documents(path)]
    if kind == "hub":
        return [_sentence_of(row, f"{path}:{number}") for number, row in enumerate(rows_in(path), start=1)]
    return read_sentences(path, format=kind, on_overlap="keep", **reading)


def _format_of_annotated(path: str, format_: str) -> str | None:
    """Format of a file of annotated sentences, None for one of texts; only the name tells plain text from columns."""
    suffix = Path(path.partition("#")[0]).suffix.lower()
    if suffix == ".txt":
        return None
    kind = detect_format(path, otherwise="conll" if format_ == "auto" else format_)
    if kind == "jsonl":
        return None if holds_texts(path) else kind
    return kind if kind != "conll" or format_ == "conll" or suffix in ConllReader.suffixes else None


def _sentence_of(item: object, where: str) -> Sentence:
    """Return a text, a `Sentence`, a list of words, or a record that holds one of these, as a sentence."""
    if isinstance(item, Sentence):
        return item
    if isinstance(item, str):
        return sentence_of_text(item)
    if isinstance(item, Mapping):
        words, text = item.get("tokens", item.get("words")), item.get("text")
        own = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
        if isinstance(text, str) and (not own or item.get("word_offsets") is not None):
            return sentence_of_text(text, offsets_of_words(item, text, where))
        if own:
            return _sentence_of(words, where)
        raise DataError(f"{where}: has neither text nor tokens; name its column of texts so")
    if isinstance(item, list | tuple):
        if not all(isinstance(word, str) and word for word in item):
            raise DataError(f"{where}: holds a word that is no string or empty; correct it")
        return Sentence(tuple(item))
    raise DataError(f"{where}: is of type {type(item).__name__}; give a text, a list of words, or a record with text")
