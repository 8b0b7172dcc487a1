"""Convert character spans to word spans."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ner_cl.data.readers.base import ReadReport
from ner_cl.data.words import is_invisible
from ner_cl.types import Span

__all__ = ["CharSpan", "align_spans"]


class CharSpan(NamedTuple):
    """A typed mention in a text: code points `start` (inclusive) to `end` (exclusive)."""

    start: int
    end: int
    type: str


def align_spans(
    text: str,
    spans: Iterable[CharSpan],
    offsets: Sequence[tuple[int, int]],
    *,
    alignment: str,
    line: int,
    report: ReadReport,
) -> list[Span] | None:
    """Convert character spans to word spans; None if any span was refused.

    Whitespace and invisible characters at the edges of a span are ignored. A span that cuts a word is refused with a
    hint at the nearest word boundaries, or expanded to whole words if `alignment` is "expand".

    Args:
        text: the text.
        spans: spans in code points.
        offsets: code-point offsets of the words of `text`.
        alignment: "error" or "expand".
        line: line of the text, for messages.
        report: receives repairs and refusals.
    """
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    aligned: list[Span] = []
    complete = True
    for span in spans:
        found = _align(text, span, starts, ends, alignment=alignment, line=line, report=report)
        if found is None:
            complete = False
        else:
            aligned.append(found)
    return aligned if complete else None


def _align(
    text: str, span: CharSpan, starts: list[int], ends: list[int], *, alignment: str, line: int, report: ReadReport
) -> Span | None:
    if not 0 <= span.start < span.end <= len(text):
        why = "start must lie before end" if span.start >= span.end else f"the text has {len(text)} characters"
        report.refuse(
            line, f"span {span.start}..{span.end} {span.type} is outside the text: {why}; correct the offsets"
        )
        return None
    surface = text[span.start : span.end]
    first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
    if first == last:
        report.refuse(line, f"span {span.start}..{span.end} {span.type} covers no word, only {surface!r}; remove it")
        return None
    if surface != surface.strip():
        report.repaired("whitespace at the border of a span trimmed", line)
    begin, end = starts[first], ends[last - 1]
    # Leaving out only invisible characters (a joiner, a variation selector) does not count as cutting a word.
    if is_invisible(text[begin : span.start]) and is_invisible(text[span.end : end]):
        return Span(first, last, span.type)
    if alignment == "expand":
        report.repaired("span that cut a word expanded to whole words", line)
        return Span(first, last, span.type)
    report.refuse(
        line,
        f"span {span.start}..{span.end} {surface!r} {span.type} cuts a word; the nearest word "
        f"borders are {begin}..{end} {text[begin:end]!r}: correct the offsets, give the words as word_offsets, or read "
        "with alignment 'expand'",
        kind="misaligned",
    )
    return None
