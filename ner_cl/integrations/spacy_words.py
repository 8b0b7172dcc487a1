"""What the model reads of a document: the visible tokens of each sentence and line."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from spacy.tokens import Doc

from ner_cl.data.lines import line_starts
from ner_cl.data.words import is_invisible

__all__ = ["chunks_of", "sections_of", "token_texts"]

# Documents are collected up to this many words: enough to sort by length, in little memory.
_CHUNK_WORDS = 1 << 16


def token_texts(doc: Doc) -> list[str]:
    """The text of every token, read without creating `Token` objects, which the document would keep."""
    strings = doc.vocab.strings
    return [strings[orth] for orth in doc.to_array("ORTH").tolist()]


def sections_of(doc: Doc, texts: Sequence[str], *, by_sentence: bool) -> list[list[int]]:
    """The tokens that the model reads together, by their index.

    Args:
        doc: any document.
        texts: its `token_texts`.
        by_sentence: whether to cut where an earlier component has begun a sentence. Lines are always apart (see
            `line_starts`).
    """
    starts = {0, len(doc)}
    if by_sentence and doc.has_annotation("SENT_START"):
        starts.update(np.flatnonzero(doc.to_array("SENT_START") == 1).tolist())
    # Not `token.is_space`, which a vocabulary without a language does not provide.
    invisible = {text for text in set(texts) if is_invisible(text)}
    if any(not text.isprintable() for text in invisible) and (lines := line_starts(doc.text)):
        starts.update(np.searchsorted(doc.to_array("IDX"), lines).tolist())
    sections = (
        [index for index in range(first, last) if texts[index] not in invisible]
        for first, last in pairwise(sorted(starts))
    )
    return [section for section in sections if section]


def chunks_of(stream: Iterable[Doc], batch_size: int) -> Iterator[list[Doc]]:
    """Batches of at most `batch_size` documents, or of fewer if these are long."""
    chunk: list[Doc] = []
    words = 0
    for doc in stream:
        chunk.append(doc)
        words += len(doc)
        if len(chunk) >= batch_size or words >= _CHUNK_WORDS:
            yield chunk
            chunk, words = [], 0
    if chunk:
        yield chunk
