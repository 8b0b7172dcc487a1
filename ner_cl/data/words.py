"""Split text into words: the rule shared by training and prediction."""

import regex

__all__ = ["is_invisible", "split_words"]

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


def is_invisible(text: str) -> bool:
    """Whether `text` is empty or has only whitespace, control and zero-width characters."""
    return _ONLY_INVISIBLE.fullmatch(text) is not None
