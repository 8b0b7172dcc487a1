"""Write annotated sentences to a file, either completely or not at all."""

import json
from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path

from ner_cl.data.readers import first_overlap
from ner_cl.data.readers.docbin import ANNOTATED_TYPES, SPAN_GROUP
from ner_cl.data.schemes import check_scheme, tags_of_spans
from ner_cl.data.words import split_words, text_and_offsets
from ner_cl.errors import ConfigError, DataError
from ner_cl.files import replace_file
from ner_cl.registry import nearest
from ner_cl.types import Sentence

__all__ = ["columns", "format_to_write", "write_sentences"]

_SUFFIXES = {
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".bioes", ".tsv", ".txt"), "conll"),
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    ".spacy": "docbin",
}


def write_sentences(
    path: str | PathLike[str],
    sentences: Iterable[Sentence],
    *,
    format: str = "auto",  # noqa: A002  the word users know
    scheme: str = "iob2",
    empty: bool = False,
) -> str:
    """Write sentences to one file; no file is left behind if a sentence does not fit the format.

    JSON lines can hold everything. A DocBin cannot hold words of whitespace only. Column files cannot
    hold overlapping spans, annotated types, or words with tabs or line breaks.

    Args:
        path: the file; an existing file is replaced.
        sentences: the sentences to write.
        format: "conll", "jsonl", "docbin", or "auto" to choose by the file's suffix.
        scheme: tag scheme of a column file: "iob2", "iob1", "bioes" or "io".
        empty: also write sentences without words. Readers skip them.

    Returns:
        The format written.

    Raises:
        DataError: if a sentence does not fit the format, or the file cannot be written.
        ConfigError: for an unknown format or scheme.

    Example:
        >>> import tempfile, pathlib
        >>> from ner_cl.types import Sentence, Span
        >>> path = pathlib.Path(tempfile.mkdtemp(), "people.conll")
        >>> _ = write_sentences(path, [Sentence(("Ada", "writes"), (Span(0, 1, "PER"),), frozenset({"PER"}))])
        >>> path.read_text()
        'Ada\\tB-PER\\nwrites\\tO\\n\\n'
    """
    name, chosen = fspath(path), format_to_write(path, format)
    scheme, items = check_scheme(scheme), list(sentences)
    for number, sentence in enumerate(items, start=1):
        if not (sentence.words or empty):
            raise DataError(f"{_where(sentence, number)}has no words; leave it out")
    data = _WRITERS[chosen](items, scheme)
    try:
        with replace_file(Path(name)) as file:
            file.write(data)
    except OSError as error:
        raise DataError(f"{name}: cannot be written ({error.strerror}); check the folder and its permissions") from None
    return chosen


def format_to_write(path: str | PathLike[str], chosen: str = "auto") -> str:
    """Return the format that `write_sentences` writes; see there for errors."""
    suffix = Path(fspath(path)).suffix.lower()
    found = _SUFFIXES.get(suffix) if chosen == "auto" else chosen
    if found is None:
        raise ConfigError(f"{fspath(path)}: the ending {suffix!r} says no format; name one of {', '.join(_WRITERS)}")
    if found not in _WRITERS:
        raise ConfigError(f"format {found!r} cannot be written{nearest(found, _WRITERS)}; known: {', '.join(_WRITERS)}")
    return found


def columns(sentence: Sentence, scheme: str, where: str) -> str:
    """Return a sentence as lines of word, tab and tag, with a blank line after them.

    Args:
        sentence: the sentence.
        scheme: the tag scheme.
        where: what messages begin with.

    Raises:
        DataError: if columns cannot hold a word or type, or spans overlap.
    """
    for word in sentence.words:
        if not word.strip(" ") or any(char in word for char in "\t\n\r") or word.startswith("-DOCSTART-"):
            raise DataError(f"{where}a column file cannot hold the word {word!r}; write JSONL")
    for span in sentence.spans:
        if span.type != " ".join(span.type.split()) or not span.type:
            raise DataError(f"{where}a column file cannot hold the type {span.type!r}; write JSONL")
    try:
        tags = tags_of_spans(sentence.spans, len(sentence.words), scheme)
    except DataError as error:
        raise DataError(f"{where}{error}") from None
    return "".join(f"{word}\t{tag}\n" for word, tag in zip(sentence.words, tags, strict=True)) + "\n"


def _conll(sentences: Sequence[Sentence], scheme: str) -> bytes:
    numbered = enumerate(sentences, start=1)
    text = "".join(columns(sentence, scheme, _where(sentence, number)) for number, sentence in numbered)
    # A reader strips one byte-order mark from the start of a file; if the first word begins with one, add another.
    return _encoded(f"\ufeff{text}" if text.startswith("\ufeff") else text, sentences)


def _jsonl(sentences: Sequence[Sentence], scheme: str) -> bytes:
    lines = (
        json.dumps(_record(sentence, number), ensure_ascii=False) for number, sentence in enumerate(sentences, start=1)
    )
    return _encoded("".join(f"{line}\n" for line in lines), sentences)


def _record(sentence: Sentence, number: int) -> dict[str, object]:
    """Return the JSON record; `word_offsets` is added if the words differ from those that `split_words` finds."""
    text, offsets = text_and_offsets(sentence)
    record: dict[str, object] = {
        "text": text,
        "spans": [
            {"start": offsets[span.start][0], "end": offsets[span.end - 1][1], "label": span.type}
            for span in sentence.spans
        ],
        "annotated_types": sorted(sentence.annotated_types),
    }
    if offsets != split_words(text):
        record["word_offsets"] = offsets
    return record


def _docbin(sentences: Sequence[Sentence], scheme: str) -> bytes:
    from spacy.tokens import Doc, DocBin
    from spacy.tokens import Span as DocSpan
    from spacy.vocab import Vocab

    _encoded("".join(word for sentence in sentences for word in sentence.words), sentences)
    vocab, docs = Vocab(), DocBin(store_user_data=True)
    for number, sentence in enumerate(sentences, start=1):
        if not all(word.strip() for word in sentence.words):
            raise DataError(f"{_where(sentence, number)}a DocBin cannot hold a word of whitespace only; drop it")
        tokens, spaces, places = _tokens(sentence)
        doc = Doc(vocab, words=tokens, spaces=spaces)
        spans = [DocSpan(doc, places[s.start], places[s.end - 1] + 1, label=s.type) for s in sentence.spans]
        if first_overlap(sentence.spans) is None:
            doc.set_ents(spans)
        else:
            doc.spans[SPAN_GROUP] = spans
            doc.set_ents([])
        doc.user_data[ANNOTATED_TYPES] = sorted(sentence.annotated_types)
        docs.add(doc)
    data: bytes = docs.to_bytes()
    return data


def _tokens(sentence: Sentence) -> tuple[list[str], list[bool], list[int]]:
    """Return spaCy's tokens, whether a space follows each, and the token index of each word.

    As in spaCy, whitespace other than one space after a word is a token. What else stands between words, such as
    zero-width characters, becomes a space if there is whitespace in it, and is left out otherwise.
    """
    text, offsets = text_and_offsets(sentence)
    tokens: list[str] = []
    spaces: list[bool] = []
    places: list[int] = []
    before = 0
    for start, end in [*offsets, (len(text), len(text))]:
        between = text[before:start]
        if between and not between.isspace():
            between = " " if any(map(str.isspace, between)) else ""
        if tokens and between.startswith(" "):
            spaces[-1], between = True, between[1:]
        if between:
            tokens.append(between)
            spaces.append(False)
        if end > start:
            places.append(len(tokens))
            tokens.append(text[start:end])
            spaces.append(False)
        before = end
    return tokens, spaces, places


def _encoded(text: str, sentences: Sequence[Sentence]) -> bytes:
    """Encode as UTF-8; DataError names the first sentence with a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        for number, sentence in enumerate(sentences, start=1):
            for piece in (*sentence.words, *sentence.annotated_types, sentence.text or ""):
                if any("\ud800" <= char <= "\udfff" for char in piece):
                    raise DataError(
                        f"{_where(sentence, number)}UTF-8 cannot hold {piece!r}; correct the text"
                    ) from None
        raise


def _where(sentence: Sentence, number: int) -> str:
    return sentence.where or f"sentence {number}: "


_WRITERS: dict[str, Callable[[Sequence[Sentence], str], bytes]] = {"conll": _conll, "jsonl": _jsonl, "docbin": _docbin}
