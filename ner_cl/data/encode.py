"""Encode words as word pieces, in windows that together cover every word."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from ner_cl.errors import ModelError

__all__ = ["PieceEncoder", "Window"]

_MOST_CHARACTERS = 1 << 19  # limit on the total length of the cached words: some 70,000 words, 25 MB


@dataclass(frozen=True, slots=True)
class Window:
    """One encoder row: the word pieces of consecutive words, and which of these words the window represents.

    Attributes:
        sentence: index of the sentence the window belongs to.
        first_word: index, within the sentence, of the first word this window represents.
        piece_ids: vocabulary ids, special pieces included.
        word_pieces: position in `piece_ids` of the first piece of each word the window represents. Taken together, the
            windows of a sentence represent each of its words once, in order.
    """

    sentence: int
    first_word: int
    piece_ids: list[int]
    word_pieces: list[int]


class PieceEncoder:
    """Splits words into word pieces with a fast tokenizer, and long sentences into overlapping windows.

    Windows never cut a word. A word in two windows is represented by the one in which it lies further from the edge. A
    word longer than a quarter of a window is truncated to its first pieces.

    Args:
        tokenizer: a fast `transformers` tokenizer.
        max_pieces: maximum length of a row, special pieces included.
        overlap: minimum number of pieces that neighbouring windows share.

    Raises:
        ModelError: if the tokenizer is not fast or has no vocabulary, or `max_pieces` is too small for `overlap`.
    """

    def __init__(self, tokenizer: Any, *, max_pieces: int, overlap: int) -> None:
        if not tokenizer.is_fast:
            raise ModelError("this encoder has no fast tokenizer, which word alignment needs; choose another encoder")
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # as `transformers` loads a folder without the files
            raise ModelError("this encoder has a tokenizer without a vocabulary; its tokenizer files are missing")
        self.tokenizer = tokenizer
        self._prefix, self._suffix = _special_pieces(tokenizer)
        self.capacity = max_pieces - len(self._prefix) - len(self._suffix)
        self.overlap = overlap
        if self.capacity < 4 or overlap * 2 > self.capacity:
            raise ModelError(
                f"max_pieces {max_pieces} with window_overlap {overlap} leaves no room; give at most half of it"
            )
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._known: dict[str, list[int]] = {}
        self._remembered = 0

    def windows(self, sentences: Sequence[Sequence[str]]) -> list[Window]:
        """Return the windows of all sentences, in order; a sentence that fits has exactly one.

        A word for which the tokenizer gives no piece (invisible characters) gets the unknown piece, so that every word
        gets a prediction.
        """
        known = self._pieces_of(sentences)
        windows: list[Window] = []
        for index, words in enumerate(sentences):
            windows.extend(self._cut(index, [known[word] for word in words]))
        return windows

    def share_unknown(self, sentences: Iterable[Sequence[str]]) -> float:
        """Return the share of the words that have no piece but the unknown one, 0 to 1."""
        counts = Counter(chain.from_iterable(sentences))
        unknown = self.tokenizer.unk_token_id
        pieces = self._pieces_of([list(counts)])
        lost = sum(count for word, count in counts.items() if set(pieces[word]) == {unknown})
        return lost / max(1, counts.total())

    def _pieces_of(self, sentences: Sequence[Sequence[str]]) -> Mapping[str, list[int]]:
        """Return a cache that holds the pieces of each word that occurs.

        A tokenizer splits each word independently and few words make up most of a text, so results are cached. The
        cache is emptied when it has grown too large.
        """
        if self._remembered > _MOST_CHARACTERS:
            self._known, self._remembered = {}, 0
        known = self._known
        new = list({word: None for words in sentences for word in words if word not in known})
        if new:
            known.update(zip(new, self._word_pieces(new), strict=True))
            self._remembered += sum(map(len, new))
        return known

    def _word_pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Return the pieces of each word: at least one, at most a quarter of a window."""
        encoding = self.tokenizer(
            # Tokenizers reject lone surrogates; a question mark replaces them.
            [word.encode("utf-8", "replace").decode() for word in words],
            is_split_into_words=True,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        pieces: list[list[int]] = [[] for _ in words]
        longest = max(1, self.capacity // 4)
        for piece, word in zip(encoding["input_ids"], encoding.word_ids(), strict=True):
            if word is not None and len(pieces[word]) < longest:
                pieces[word].append(piece)
        unknown = self.tokenizer.unk_token_id if self.tokenizer.unk_token_id is not None else self.pad_id
        return [own or [unknown] for own in pieces]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}, "_remembered": 0}  # copies leave out the cached words

    def _cut(self, sentence: int, pieces: list[list[int]]) -> list[Window]:
        lengths = [len(own) for own in pieces]
        if sum(lengths) <= self.capacity:
            firsts = list(accumulate(lengths[:-1], initial=len(self._prefix))) if lengths else []
            return [Window(sentence, 0, [*self._prefix, *chain.from_iterable(pieces), *self._suffix], firsts)]
        stretches = _stretches(lengths, self.capacity, self.overlap)
        # A shared word goes to the window in which it is more central: split the shared words in half.
        borders = [0]
        borders += [(after[0] + before[1] + 1) // 2 for before, after in pairwise(stretches)]
        borders.append(len(pieces))
        windows = []
        for (start, end), own_start, own_end in zip(stretches, borders[:-1], borders[1:], strict=True):
            row, firsts = list(self._prefix), []
            for word in range(start, end):
                if own_start <= word < own_end:
                    firsts.append(len(row))
                row.extend(pieces[word])
            windows.append(Window(sentence, own_start, row + self._suffix, firsts))
        return windows


def _stretches(lengths: Sequence[int], capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Cover all words with ranges `(start, end)` of at most `capacity` pieces; neighbours share `overlap` pieces."""
    stretches: list[tuple[int, int]] = []
    start = 0
    while True:
        end, used = start, 0
        while end < len(lengths) and used + lengths[end] <= capacity:
            used += lengths[end]
            end += 1
        stretches.append((start, end))
        if end == len(lengths):
            return stretches
        previous, start, shared = start, end, 0
        while start - 1 > previous and shared < overlap:
            start -= 1
            shared += lengths[start]


def _special_pieces(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special pieces that a tokenizer puts before and after one sequence, such as `[CLS]` and `[SEP]`."""
    probe = tokenizer("a", add_special_tokens=True)["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    for position in range(len(probe) - len(inner) + 1):
        if probe[position : position + len(inner)] == inner:
            return probe[:position], probe[position + len(inner) :]
    raise ModelError("cannot find the special pieces of this tokenizer; choose another encoder")
