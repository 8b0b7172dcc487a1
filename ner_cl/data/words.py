"""Split text into words: the rule shared by training and prediction."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import regex

from ner_cl.types import Sentence

__all__ = ["cut_mentions", "is_invisible", "sentence_of_text", "split_words", "text_and_offsets", "with_text"]

# Scripts written without spaces: every character (with its marks) is a word, so any span falls on word boundaries.
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u30fc\uff70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Le}"
)

# DI is "default ignorable": zero-width (non-)joiners, the byte-order mark, soft hyphens, variation selectors, fillers.
_INVISIBLE = r"[\s\p{Z}\p{Cc}\p{DI}\ufff9-\ufffb]"

# Ignorable characters that do not end a word: all except the zero-width space and the fillers that replace a letter.
_JOINER = r"[\p{DI}--[\u200b\u115f\u1160\u3164\uffa0]]"

# Possessive quantifiers (`++`) never backtrack and nothing is captured, so the scan is linear in the text length.
_RUN = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]--\p{{DI}}]++"
_MARKS = r"[\p{M}\U0001f3fb-\U0001f3ff]*+"
_ALTERNATIVES = (
    # One character of an unspaced script.
    rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*+",
    # A run of letters and digits, across joiners; a joiner after its last mark is spelling (Malayalam, Sinhala).
    rf"{_RUN}(?:{_JOINER}++{_RUN})*+(?:(?<=\p{{M}})\u200d)?+",
    # A flag.
    r"\p{RI}\p{RI}",
    # Any other visible character; an emoji sequence counts as one.
    rf"[\S--{_INVISIBLE}]{_MARKS}(?:\u200d[\p{{So}}\p{{Sk}}]{_MARKS})*+",
)
_WORD = regex.compile("|".join(_ALTERNATIVES), regex.VERSION1)
_ONLY_INVISIBLE = regex.compile(rf"{_INVISIBLE}*+", regex.VERSION1)


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the code-point offsets `(start, end)` of the words of `text`, in order and without overlap.

    A word is a run of letters, marks, digits and underscores (including inner soft hyphens and zero-width joiners), one
    character of a script written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan), or one other visible
    character with its marks. Whitespace, control and zero-width characters alone form no word. Runs in linear time.

    Example:
        >>> [text[start:end] for text in ["Dr. Lee's 東京 trip"] for start, end in split_words(text)]
        ['Dr', '.', 'Lee', "'", 's', '東', '京', 'trip']
    """
    return [match.span() for match in _WORD.finditer(text)]


def sentence_of_text(text: str, offsets: Sequence[tuple[int, int]] | None = None) -> Sentence:
    """Return a text as a sentence without annotation; its words are those of `split_words`, or at the offsets given."""
    places = tuple(split_words(text) if offsets is None else offsets)
    return Sentence(tuple(text[start:end] for start, end in places), text=text, offsets=places)


def text_and_offsets(sentence: Sentence) -> tuple[str, list[tuple[int, int]]]:
    """Return the text the words were cut from, if known, else the words joined by single spaces; and word offsets."""
    if sentence.text is not None and sentence.offsets is not None:
        slices = (sentence.text[start:end] for start, end in sentence.offsets)
        if all(piece == word for piece, word in zip(slices, sentence.words, strict=True)):
            return sentence.text, list(sentence.offsets)
    offsets: list[tuple[int, int]] = []
    start = 0
    for word in sentence.words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(sentence.words), offsets


def with_text(sentence: Sentence) -> Sentence:
    """Return a sentence that has text and offsets, those of `text_and_offsets`."""
    text, offsets = text_and_offsets(sentence)
    return sentence if text is sentence.text else replace(sentence, text=text, offsets=tuple(offsets))


def cut_mentions(sentences: Iterable[Sentence]) -> str:
    """Say how many mentions hold words that `split_words` would cut, if these are a hundredth or more; else "".

    A model learns such words whole, and `predict` finds them in parts where it is given text.
    """
    whole: dict[str, bool] = {}
    mentions, cut, example = 0, 0, ""
    for sentence in sentences:
        for span in sentence.spans:
            mentions += 1
            words = sentence.words[span.start : span.end]
            for word in words:
                if word not in whole:
                    whole[word] = len(split_words(word)) == 1
            parted = [word for word in words if not whole[word]]
            cut, example = cut + bool(parted), example or "".join(parted[:1])
    if not cut or 100 * cut < mentions:
        return ""
    return (
        f"{cut} of {mentions} mentions hold words that `predict` cuts where it reads text, such as {example!r}; "
        "give it such words whole: word_offsets in JSON lines, or a Sentence"
    )


def is_invisible(text: str) -> bool:
    """Whether `text` is empty or has only whitespace, control and zero-width characters."""
    return _ONLY_INVISIBLE.fullmatch(text) is not None
