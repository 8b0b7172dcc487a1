"""Encoded sentences, batches within a word-piece budget, and the tensors of one batch."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ner_cl.data.encode import PieceEncoder, Window
from ner_cl.data.readers.assemble import longest_spans
from ner_cl.data.tagset import Tagset
from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span

__all__ = ["Batch", "EncodedSentences", "Origin", "plan_batches", "rows_from"]

Origin: TypeAlias = Literal["own", "remembered", "unlabeled"]
"""Origin of a row, derived from its annotation: `own` if it covers some of the newest step's types, `remembered` (from
an earlier step) if it covers other types only, `unlabeled` if it covers none."""

# Batches are cut from length-sorted pools of about this many batches: large enough to waste little padding, small
# enough to keep the training order random.
_POOL_BATCHES = 32

_numbers = count()


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one batch of windows. A "row" is one window, nearly always a whole sentence.

    Attributes:
        piece_ids: vocabulary ids of the word pieces, right-padded.
        piece_mask: 1 for a word piece, 0 for padding.
        word_pieces: position of the first piece of each word; 0 where padded.
        word_mask: true for a word, false for padding; right-padded.
        targets: tag id of each word in the tagset of the step; 0 (`O`) where padded.
        annotated: whether the row's annotation is complete for each type of the tagset.
        word_numbers: index of each word in the whole set, for cached per-word values; 0 where padded.
        spans: mentions that lie entirely within a row: row, first word, one past the last word, type index.
        row_types: `annotated` as type indices per row, available without a device transfer.
        source: `number` of the `EncodedSentences` the batch is cut from; -1 if none.
        rows: index of each row in the whole set.
        row_words: number of words in each row.
        origins: where each row comes from.
    """

    piece_ids: Int[Tensor, "row piece"]
    piece_mask: Int[Tensor, "row piece"]
    word_pieces: Int[Tensor, "row word"]
    word_mask: Bool[Tensor, "row word"]
    targets: Int[Tensor, "row word"]
    annotated: Bool[Tensor, "row type"]
    word_numbers: Int[Tensor, "row word"]
    spans: Int[Tensor, "span 4"]
    row_types: tuple[frozenset[int], ...] = ()
    source: int = -1
    rows: tuple[int, ...] = ()
    row_words: tuple[int, ...] = ()
    origins: tuple[Origin, ...] = ()

    @property
    def annotated_types(self) -> frozenset[int]:
        """Indices of the types that any row is annotated for."""
        return frozenset().union(*self.row_types)

    def unannotated(self, types: Collection[int]) -> Bool[Tensor, "row type"] | None:
        """Mask the given type indices that each row is not annotated for; None if every row is annotated for all."""
        if all(known.issuperset(types) for known in self.row_types):
            return None
        asked = torch.zeros_like(self.annotated[0])
        asked[list(types)] = True
        return ~self.annotated & asked

    def select(self, rows: Sequence[int]) -> "Batch":
        """Return a batch of the given rows, by position in this batch."""
        index = torch.tensor(rows, dtype=torch.long, device=self.piece_ids.device)
        place, span = (self.spans[:, 0] == index[:, None]).nonzero(as_tuple=True)
        return replace(
            self,
            piece_ids=self.piece_ids[index],
            piece_mask=self.piece_mask[index],
            word_pieces=self.word_pieces[index],
            word_mask=self.word_mask[index],
            targets=self.targets[index],
            annotated=self.annotated[index],
            word_numbers=self.word_numbers[index],
            spans=torch.cat([place[:, None], self.spans[span, 1:]], dim=1),
            row_types=tuple(self.row_types[row] for row in rows),
            rows=tuple(self.rows[row] for row in rows),
            row_words=tuple(self.row_words[row] for row in rows),
            origins=tuple(self.origins[row] for row in rows),
        )

    def to(self, device: torch.device) -> "Batch":
        """Return this batch on another device."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            piece_ids=self.piece_ids.to(device, non_blocking=True),
            piece_mask=self.piece_mask.to(device, non_blocking=True),
            word_pieces=self.word_pieces.to(device, non_blocking=True),
            word_mask=self.word_mask.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            annotated=self.annotated.to(device, non_blocking=True),
            word_numbers=self.word_numbers.to(device, non_blocking=True),
            spans=self.spans.to(device, non_blocking=True),
        )


class EncodedSentences:
    """Sentences encoded into windows once, from which batches can be cut repeatedly.

    Args:
        sentences: the sentences to encode.
        pieces: splits words into word pieces.
        tagset: gives the target ids; spans of types it does not know are left out.
        nested: allow overlapping spans; the targets then use the longest of them.

    Attributes:
        number: unique within this process.
        rows_of: the windows of each sentence.
        origins: where each window comes from.

    Raises:
        DataError: if two spans of known types overlap and `nested` is false; names the source of the sentence.
    """

    def __init__(
        self, sentences: Sequence[Sentence], pieces: PieceEncoder, tagset: Tagset, *, nested: bool = False
    ) -> None:
        self.number = next(_numbers)
        self.sentences = sentences
        self.tagset = tagset
        self.windows: list[Window] = pieces.windows([sentence.words for sentence in sentences])
        self.lengths = [len(window.piece_ids) for window in self.windows]
        firsts = np.searchsorted([window.sentence for window in self.windows], range(len(sentences) + 1)).tolist()
        self.rows_of = [range(first, end) for first, end in pairwise(firsts)]
        self._pad_id = pieces.pad_id
        self._targets = [_targets(sentence, tagset, nested=nested) for sentence in sentences]
        types = tagset.types
        numbers = {type_: index for index, type_ in enumerate(types)}
        self._spans = [
            [(span.start, span.end, numbers[span.type]) for span in sentence.spans if span.type in numbers]
            for sentence in sentences
        ]
        indices = {
            known: frozenset(index for index, type_ in enumerate(types) if type_ in known)
            for known in {sentence.annotated_types for sentence in sentences}
        }
        self._annotated = [indices[sentence.annotated_types] for sentence in sentences]
        newest = set(tagset.steps[-1]) if tagset.steps else set()
        self._sentence_origins = [_origin(sentence, newest) for sentence in sentences]
        self.origins: list[Origin] = [self._sentence_origins[window.sentence] for window in self.windows]
        self._word_starts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    @property
    def words(self) -> int:
        """Number of words in all sentences."""
        return int(self._word_starts[-1])

    def sentences_from(self, *wanted: Origin) -> list[Sentence]:
        """Return the sentences of the given origins, in order."""
        return [self.sentences[index] for index in rows_from(self._sentence_origins, *wanted)]

    @property
    def annotated(self) -> list[int]:
        """Indices of the windows annotated for any type: those of the step itself and the remembered ones."""
        return rows_from(self.origins, "own", "remembered")

    @property
    def targets(self) -> Int[Tensor, " word"]:
        """Tag id of every word, indexed by `Batch.word_numbers`."""
        return torch.tensor([tag for tags in self._targets for tag in tags], dtype=torch.long)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of the given windows."""
        windows = [self.windows[row] for row in rows]
        size = len(windows)
        pieces = np.full((size, max(len(w.piece_ids) for w in windows)), self._pad_id, dtype=np.int64)
        words = max(len(w.word_pieces) for w in windows)
        piece_mask = np.zeros_like(pieces)
        word_pieces, targets, numbers = (np.zeros((size, words), dtype=np.int64) for _ in range(3))
        word_mask = np.zeros((size, words), dtype=bool)
        spans: list[tuple[int, int, int, int]] = []
        for row, window in enumerate(windows):
            length, start = len(window.word_pieces), window.first_word
            pieces[row, : len(window.piece_ids)] = window.piece_ids
            piece_mask[row, : len(window.piece_ids)] = 1
            word_pieces[row, :length] = window.word_pieces
            word_mask[row, :length] = True
            targets[row, :length] = self._targets[window.sentence][start : start + length]
            numbers[row, :length] = np.arange(length) + self._word_starts[window.sentence] + start
            spans += (
                (row, first - start, end - start, type_)
                for first, end, type_ in self._spans[window.sentence]
                if start <= first and end <= start + length
            )
        row_types = tuple(self._annotated[window.sentence] for window in windows)
        annotated = np.zeros((size, len(self.tagset.types)), dtype=bool)
        for row, types in enumerate(row_types):
            annotated[row, list(types)] = True
        return Batch(
            piece_ids=torch.from_numpy(pieces),
            piece_mask=torch.from_numpy(piece_mask),
            word_pieces=torch.from_numpy(word_pieces),
            word_mask=torch.from_numpy(word_mask),
            targets=torch.from_numpy(targets),
            annotated=torch.from_numpy(annotated),
            word_numbers=torch.from_numpy(numbers),
            spans=torch.tensor(spans, dtype=torch.long).view(-1, 4),
            row_types=row_types,
            source=self.number,
            rows=tuple(rows),
            row_words=tuple(len(window.word_pieces) for window in windows),
            origins=tuple(self.origins[row] for row in rows),
        )

    def in_length_order(
        self, batch_tokens: int, *, among: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """Yield each window once, in batches of similar length with the window indices; for inference.

        Args:
            batch_tokens: see `plan_batches`.
            among: only these windows; all by default.
        """
        for rows in self.plan(range(len(self)) if among is None else among, batch_tokens=batch_tokens):
            yield rows, self.batch(rows)

    def plan(
        self, rows: Sequence[int], *, batch_tokens: int, generator: np.random.Generator | None = None
    ) -> list[list[int]]:
        """Divide the given windows into batches, repeated ones included; see `plan_batches`."""
        plan = plan_batches([self.lengths[row] for row in rows], batch_tokens=batch_tokens, generator=generator)
        return [[rows[place] for place in batch] for batch in plan]


def rows_from(origins: Sequence[Origin], *wanted: Origin) -> list[int]:
    """Return the positions of the rows with one of the given origins."""
    return [row for row, origin in enumerate(origins) if origin in wanted]


def _origin(sentence: Sentence, newest: set[str]) -> Origin:
    if not sentence.annotated_types:
        return "unlabeled"
    return "remembered" if newest.isdisjoint(sentence.annotated_types) else "own"


def _targets(sentence: Sentence, tagset: Tagset, *, nested: bool) -> list[int]:
    spans: Sequence[Span] = sentence.spans
    if not spans:
        return [0] * len(sentence.words)
    if nested:
        spans = longest_spans(span for span in spans if span.type in tagset.types)
    try:
        return tagset.encode(spans, len(sentence.words))
    except DataError as error:
        raise DataError(f"{sentence.where}{error}") from error


def plan_batches(
    lengths: Sequence[int], *, batch_tokens: int, generator: np.random.Generator | None = None
) -> list[list[int]]:
    """Divide rows into batches of at most `batch_tokens` word pieces, padding included.

    Args:
        lengths: number of word pieces in each row.
        batch_tokens: limit for longest row × number of rows in a batch; a longer row gets a batch of its own.
        generator: shuffles rows and batches; without one, the longest rows come first.

    Returns:
        One list of row indices per batch; every row occurs exactly once.
    """
    if generator is None:
        return _cut_by_budget(sorted(range(len(lengths)), key=lambda row: -lengths[row]), lengths, batch_tokens)
    order = generator.permutation(len(lengths)).tolist()
    average = max(1.0, float(np.mean(lengths))) if lengths else 1.0
    pool = max(1, int(_POOL_BATCHES * batch_tokens / average))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda row: lengths[row])
        batches.extend(_cut_by_budget(chunk, lengths, batch_tokens))
    return [batches[index] for index in generator.permutation(len(batches))]


def _cut_by_budget(order: list[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            longest = lengths[row]
        batches[-1].append(row)
    return batches
