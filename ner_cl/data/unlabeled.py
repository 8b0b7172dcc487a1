"""Raw text: words of a domain that nobody annotated."""

from collections.abc import Sequence
from pathlib import Path

from ner_cl.data.readers.base import read_text
from ner_cl.data.words import split_words
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["read_unlabeled"]


def read_unlabeled(texts: str | Path | Sequence[str]) -> list[Sentence]:
    """The words of raw texts, as sentences that are annotated for no type.

    Args:
        texts: the texts, or a file with one a line.

    Raises:
        DataError: if the file cannot be read or there is no word in it.
    """
    lines = read_text(str(texts)).splitlines() if isinstance(texts, str | Path) else texts
    words = [tuple(line[start:end] for start, end in split_words(line)) for line in lines]
    sentences = [Sentence(found) for found in words if found]
    if not sentences:
        where = f"{texts}: " if isinstance(texts, str | Path) else ""
        raise DataError(f"{where}holds no text; give one text a line, or leave unlabeled out")
    return sentences
