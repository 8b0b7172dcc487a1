"""Split a test sentence into marked pieces, to show gold and predicted mentions one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ner_cl.types import Sentence, Span

__all__ = ["Example", "Piece", "example_of"]

_MOST_WORDS = 40
_WORDS_AROUND = 16

Verdict = Literal["plain", "right", "wrong", "missed"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of words that is a mention or lies between mentions.

    Attributes:
        text: the words.
        type: type of the mention; "" for words between mentions.
        verdict: `right` if gold and prediction agree, `missed` if only in gold, `wrong` if only predicted; `plain` for
            words between mentions.
        focus: whether this is the mention that the example is about.
    """

    text: str
    type: str = ""
    verdict: Verdict = "plain"
    focus: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence, or the words around the mention in question, once as annotated and once as predicted."""

    gold: tuple[Piece, ...]
    found: tuple[Piece, ...]
    source: str


def example_of(sentence: Sentence, found: Sequence[Span], *, focus: Span) -> Example:
    """Mark the mentions of a sentence; a long sentence is cut to the words around `focus`."""
    low, high = 0, len(sentence.words)
    if high > _MOST_WORDS:
        low, high = max(0, focus.start - _WORDS_AROUND), min(high, focus.end + _WORDS_AROUND)
    known = [span for span in found if span.type in sentence.annotated_types]
    return Example(
        tuple(_pieces(sentence, sentence.spans, known, "missed", focus, (low, high))),
        tuple(_pieces(sentence, known, sentence.spans, "wrong", focus, (low, high))),
        sentence.source.rpartition("/")[2],
    )


def _pieces(
    sentence: Sentence,
    spans: Sequence[Span],
    others: Sequence[Span],
    alone: Verdict,
    focus: Span,
    borders: tuple[int, int],
) -> list[Piece]:
    """Return the pieces from left to right; of overlapping mentions, only the first is shown."""
    position, end = borders
    pieces = [Piece("…")] if position else []
    for span in sorted(spans):
        if span.start < position or span.end > end:
            continue
        if span.start > position:
            pieces.append(Piece(_text(sentence, position, span.start)))
        verdict: Verdict = "right" if span in others else alone
        pieces.append(Piece(_text(sentence, span.start, span.end), span.type, verdict, span == focus))
        position = span.end
    if position < end:
        pieces.append(Piece(_text(sentence, position, end)))
    return [*pieces, Piece("…")] if end < len(sentence.words) else pieces


def _text(sentence: Sentence, start: int, end: int) -> str:
    """Return the words as originally written, if known, else joined by spaces."""
    if sentence.text is not None and sentence.offsets is not None:
        return sentence.text[sentence.offsets[start][0] : sentence.offsets[end - 1][1]]
    return " ".join(sentence.words[start:end])
