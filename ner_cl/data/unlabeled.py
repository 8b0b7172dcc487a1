"""Raw text: in-domain words that are not annotated or whose annotation is ignored."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ner_cl.data.documents import holds_texts, read_documents
from ner_cl.data.readers import detect_format, read_sentences
from ner_cl.data.readers.conll import ConllReader
from ner_cl.data.words import split_words
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["read_unlabeled"]


def read_unlabeled(
    texts: str | PathLike[str] | Sequence[Any],
    *,
    format: str = "auto",  # noqa: A002  as in read_sentences
    **reading: Any,
) -> list[Sentence]:
    """Read raw texts as sentences that are annotated for no entity type.

    Args:
        texts: the texts; or a file with one text per line or JSON lines with `text`, as `ner-cl predict` reads them; or
            a file of annotated sentences.
        format: format of a file that neither its suffix nor its first bytes tell; `auto` takes it for plain text.
        **reading: options of `read_sentences` for a file of annotated sentences.

    Raises:
        DataError: if the file cannot be read, an item is no text, or the texts hold no word.
    """
    if isinstance(texts, str | PathLike):
        found = _words_of_file(fspath(texts), format, reading)
        problem = f"{fspath(texts)}: holds no text; give one text a line"
    else:
        found = [_words_of(text, number) for number, text in enumerate(texts)]
        problem = "unlabeled: none of the texts holds a word; give some"
    sentences = [Sentence(words) for words in found if words]
    if not sentences:
        raise DataError(f"{problem}, or leave unlabeled out")
    return sentences


def _words_of_file(path: str, format_: str, reading: dict[str, Any]) -> list[tuple[str, ...]]:
    if (kind := _format_of_annotated(path, format_)) is None:
        return [document.sentence.words for document in read_documents(path)]
    return [sentence.words for sentence in read_sentences(path, format=kind, on_overlap="keep", **reading)]


def _format_of_annotated(path: str, format_: str) -> str | None:
    """Format of a file of annotated sentences, None for one of texts; only the name tells plain text from columns."""
    suffix = Path(path.partition("#")[0]).suffix.lower()
    if suffix == ".txt":
        return None
    kind = detect_format(path, otherwise="conll" if format_ == "auto" else format_)
    if kind == "jsonl":
        return None if holds_texts(path) else kind
    return kind if kind != "conll" or format_ == "conll" or suffix in ConllReader.suffixes else None


def _words_of(text: object, number: int) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise DataError(
            f"unlabeled: item {number} is of type {type(text).__name__}; give texts, such as the column dataset['text']"
        )
    return tuple(text[start:end] for start, end in split_words(text))
