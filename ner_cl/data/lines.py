"""Where a text of several lines is cut, for training and for prediction: no entity spans two paragraphs or list items.

Models learn from sentences. A line that ends a paragraph, an item of a list or a field of a form ends whatever was said
in it; a line that ends because the page is no wider does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import regex

from ner_cl.types import Sentence, Span

__all__ = ["by_lines", "line_starts", "parts_of"]

_LINE_END = regex.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_ENDS_A_SENTENCE = regex.compile(r"[.!?:;…。！？]['\"’”)\]»」』]*$")
_NARROWEST = 40  # characters; no text is wrapped at less, so shorter lines are a list


def line_starts(text: str) -> list[int]:
    """The offsets, in code points, of lines that do not continue the line before them.

    A line continues the one before if that was wrapped: it does not end a sentence, and with the first word of this
    line it would have been longer than the longest line of its paragraph, if that has at least 40 characters. A line
    after a blank one continues nothing.

    Example:
        >>> line_starts("Ada Lovelace\\nCharles Babbage")
        [13]
    """
    ends = [match.span() for match in _LINE_END.finditer(text)]
    if not ends:
        return []
    begins = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(text)]
    lines = [(begin, text[begin:stop].strip()) for begin, stop in zip(begins, stops, strict=True)]
    starts = []
    for is_blank, group in groupby(lines, key=lambda line: not line[1]):
        if not is_blank:
            paragraph = list(group)
            longest = max(len(line) for _, line in paragraph)
            starts.append(paragraph[0][0])
            starts += [begin for (_, line), (begin, next_) in pairwise(paragraph) if not _wrapped(line, next_, longest)]
    return [start for start in starts if start]


def parts_of(sentence: Sentence) -> list[tuple[int, int]]:
    """The words of each part of a sentence that is read by itself: the first, and one past the last.

    Words whose text is not known are one part.
    """
    words = len(sentence.words)
    if sentence.text is None or sentence.offsets is None:
        return [(0, words)]
    starts = line_starts(sentence.text)
    cuts, word = [0], 0
    for start in starts:
        while word < words and sentence.offsets[word][0] < start:
            word += 1
        cuts.append(word)
    return [(first, last) for first, last in pairwise([*cuts, words]) if first < last] or [(0, words)]


def by_lines(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Sentences as they are read: each part as a sentence of its own, but no mention is cut."""
    return [part for sentence in sentences for part in _cut(sentence)]


def _wrapped(line: str, following: str, longest: int) -> bool:
    if longest < _NARROWEST or _ENDS_A_SENTENCE.search(line):
        return False
    return len(line) + 1 + len(following.split(maxsplit=1)[0]) > longest


def _cut(sentence: Sentence) -> Iterable[Sentence]:
    parts = parts_of(sentence)
    if len(parts) == 1:
        return [sentence]
    whole = [parts[0]]
    for first, last in parts[1:]:
        if any(span.start < first < span.end for span in sentence.spans):
            whole[-1] = whole[-1][0], last
        else:
            whole.append((first, last))
    return [_between(sentence, first, last) for first, last in whole]


def _between(sentence: Sentence, first: int, last: int) -> Sentence:
    assert sentence.text is not None
    assert sentence.offsets is not None
    offsets: Sequence[tuple[int, int]] = sentence.offsets[first:last]
    begin, end = offsets[0][0], offsets[-1][1]
    inside = [span for span in sentence.spans if first <= span.start and span.end <= last]
    return replace(
        sentence,
        words=sentence.words[first:last],
        spans=tuple(Span(span.start - first, span.end - first, span.type) for span in inside),
        text=sentence.text[begin:end],
        offsets=tuple((start - begin, stop - begin) for start, stop in offsets),
    )
