"""Sentence duplets: every sentence again without the words of new types (TBCL, Zhang et al. 2026, III-C)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ner_cl.data.batching import Batch
from ner_cl.data.encode import Window
from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence

__all__ = ["Duplets", "Erased", "own_duplet"]


@dataclass(frozen=True)
class Erased:
    """The erased versions of some rows of a batch.

    Attributes:
        batch: one row for each erased version.
        rows: the row of the whole batch that each was made from.
        words: the position of each word in that row; 0 where padded.
    """

    batch: Batch
    rows: tuple[int, ...]
    words: Int[Tensor, "row word"]

    def whole(self, values: Shaped[Tensor, "_ _ column"]) -> Shaped[Tensor, "row word column"]:
        """Values of the whole batch's words for the words kept here, at their positions here."""
        places = self.words.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return values[list(self.rows)].gather(1, places)


@final
class Duplets:
    """The step's own rows without the words of new types, encoded once.

    A row is a window, nearly always a whole sentence; the windows of a longer sentence are erased separately. A row
    without words of new types is its own duplet; a row with no other words has none.

    Args:
        context: the step, with its sentences encoded.

    Attributes:
        encoded: the erased rows.
    """

    def __init__(self, context: StepContext) -> None:
        self._kept: dict[int, list[int]] = {}
        sentences: list[Sentence] = []
        for row, window in enumerate(context.encoded.windows):
            sentence = context.encoded.sentences[window.sentence]
            kept = _kept_words(sentence, window, context.types)
            if context.encoded.origins[row] == "own" and 0 < len(kept) < len(window.word_pieces):
                self._kept[row] = kept
                words = tuple(sentence.words[window.first_word + word] for word in kept)
                sentences.append(Sentence(words, (), sentence.annotated_types, source=sentence.source))
        self.encoded = context.model.encode(sentences)
        assert len(self.encoded) == len(sentences)  # part of a window fits into one window
        self._places = {row: place for place, row in enumerate(self._kept)}

    def of(self, batch: Batch) -> Erased | None:
        """The erased versions of the rows of a batch; None if no row has one."""
        rows = tuple(place for place, row in enumerate(batch.rows) if row in self._kept)
        if not rows:
            return None
        erased = self.encoded.batch([self._places[batch.rows[place]] for place in rows])
        words = [torch.tensor(self._kept[batch.rows[place]]) for place in rows]
        device = batch.word_mask.device
        return Erased(erased.to(device), rows, pad_sequence(words, batch_first=True).to(device))


def own_duplet(batch: Batch) -> Bool[Tensor, "row 1"]:
    """Which rows have no word of a new type, so that each is its own erased version."""
    return ~(batch.targets > 0).any(dim=1, keepdim=True)


def _kept_words(sentence: Sentence, window: Window, types: tuple[str, ...]) -> list[int]:
    """The positions, within a window, of the words that no mention of `types` covers."""
    covered = {word for span in sentence.spans if span.type in types for word in range(span.start, span.end)}
    first = window.first_word
    return [word for word in range(len(window.word_pieces)) if first + word not in covered]
