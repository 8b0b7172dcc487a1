"""Tag scores of sentences of any length: whole, or cut into stretches of words that can be decoded separately.

Decoding loops over the words of a row, which is slow for a document of a million characters, and all its tag scores
take much memory. A row is cut where `Head.coupling` says that nothing is lost: the tags equal those of the whole row.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.data.batching import EncodedSentences
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision, autocast
from ner_cl.model.restoring import modes_restored

__all__ = ["Place", "emissions_of", "stretches_of"]

Place = tuple[int, int]
"""The sentence that a stretch belongs to, and the position of its first word there."""

_SHORTEST = 128  # minimum words of a stretch when a row is cut
_GROUP = 64  # a sentence of more windows is read in order, this many at a time, and never held whole
_MOST_SCORES = 1 << 24  # maximum scores held at a time; for heads with many columns, groups shrink to stay below it


def emissions_of(
    model: NerModel,
    encoded: EncodedSentences,
    *,
    steps: Collection[int] | None = None,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> Iterator[tuple[list[int], Emissions]]:
    """Yields the tag scores of all sentences, batched by length: `(sentence indices, emissions)`, a row per sentence.

    The windows of a sentence that was read in several are joined.

    Args:
        model: any model.
        encoded: sentences to read.
        steps: in a model with sub-networks, run only those of these steps.
        batch_tokens: word pieces per batch, padding included; by default chosen for the device.
        precision: number format of the encoder.
    """
    yield from _Reader(model, encoded, steps, batch_tokens, precision).sentences(range(len(encoded)))


def stretches_of(
    model: NerModel,
    encoded: EncodedSentences,
    *,
    types: Collection[str] | None = None,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> Iterator[tuple[list[Place], Emissions]]:
    """Yields tag scores as `emissions_of` does, but with a row per stretch: most sentences are one, long ones several.

    Args:
        model: any model.
        encoded: sentences to read.
        types: the types that will be decoded, all by default; other blocks have no say in where a row is cut.
        batch_tokens: see `emissions_of`.
        precision: number format of the encoder.
    """
    reader = _Reader(model, encoded, model.steps_of(types), batch_tokens, precision)
    short = [row for rows in encoded.rows_of if len(rows) <= reader.group for row in rows]
    for indices, emissions in reader.sentences(short):
        yield _cut(model, [(index, 0) for index in indices], emissions, types)
    for sentence, rows in enumerate(encoded.rows_of):
        if len(rows) > reader.group:
            yield from _in_order(reader, sentence, types)


@final
class _Reader:
    """Runs a model on windows."""

    def __init__(
        self,
        model: NerModel,
        encoded: EncodedSentences,
        steps: Collection[int] | None,
        batch_tokens: int | None,
        precision: Precision,
    ) -> None:
        self.model = model
        self.encoded = encoded
        self.steps = steps
        # What fits the caches of a CPU; a GPU needs larger batches.
        self.batch_tokens = batch_tokens or (2048 if model.device.type == "cpu" else 16384)
        self.precision: Precision = precision
        self.group = max(1, min(_GROUP, _MOST_SCORES // max(1, model.encoder.pieces.capacity * model.head.columns)))

    def windows(self, among: Sequence[int]) -> Iterator[tuple[list[int], Emissions]]:
        """Yields the tag scores of some windows, one row each."""
        device = self.model.device
        with _evaluating(self.model):
            for rows, batch in self.encoded.in_length_order(self.batch_tokens, among=among):
                with torch.inference_mode(), autocast(self.precision, device):
                    emissions = self.model(batch.to(device), steps=self.steps)
                yield rows, emissions

    def sentences(self, among: Sequence[int]) -> Iterator[tuple[list[int], Emissions]]:
        """Yields the tag scores of the sentences of some windows, one row each."""
        windows, rows_of = self.encoded.windows, self.encoded.rows_of
        parts: dict[int, Emissions] = {}
        for rows, emissions in self.windows(among):
            sentences = [windows[row].sentence for row in rows]
            if all(len(rows_of[sentence]) == 1 for sentence in sentences):
                yield sentences, emissions
                continue
            for place, (row, sentence) in enumerate(zip(rows, sentences, strict=True)):
                parts[row] = emissions.part(place, 0, len(windows[row].word_pieces))
                if all(other in parts for other in rows_of[sentence]):
                    yield [sentence], Emissions.joined([parts.pop(other) for other in rows_of[sentence]])


def _in_order(reader: _Reader, sentence: int, types: Collection[str] | None) -> Iterator[tuple[list[Place], Emissions]]:
    """Yields the stretches of one long sentence; words after the last cut wait for the next group of windows."""
    windows, rows = reader.encoded.windows, reader.encoded.rows_of[sentence]
    waiting: list[Emissions] = []
    first = 0
    for start in range(0, len(rows), reader.group):
        group = rows[start : start + reader.group]
        found = {
            row: emissions.part(place, 0, len(windows[row].word_pieces))
            for some, emissions in reader.windows(group)
            for place, row in enumerate(some)
        }
        read = Emissions.joined([*waiting, *(found[row] for row in group)])
        waiting = []
        places, stretches = _cut(reader.model, [(sentence, first)], read, types)
        if start + reader.group < len(rows):
            waiting, first = [stretches.part(len(places) - 1, 0, _words(stretches, -1))], places[-1][1]
            places, stretches = places[:-1], stretches.select(range(len(places) - 1))
        if places:
            yield places, stretches


def _cut(
    model: NerModel, places: list[Place], emissions: Emissions, types: Collection[str] | None
) -> tuple[list[Place], Emissions]:
    """Cuts each long row into several."""
    if emissions.word_mask.shape[1] < 2 * _SHORTEST:
        return places, emissions
    coupling = model.head.coupling(emissions, types=types).cpu()
    parts: list[Emissions] = []
    found: list[Place] = []
    for row, (sentence, first) in enumerate(places):
        for start, end in pairwise(_borders(coupling[row, : _words(emissions, row)])):
            parts.append(emissions.part(row, start, end))
            found.append((sentence, first + start))
    return found, Emissions.stacked(parts)


def _borders(coupling: Float[Tensor, " word"]) -> list[int]:
    """Both ends and the cuts between them, each at the lowest coupling `_SHORTEST` to `2 * _SHORTEST` words further on.

    If all of that is infinite, the cut is at the next word of finite coupling.
    """
    borders = [0]
    while len(coupling) - borders[-1] >= 2 * _SHORTEST:
        start = borders[-1] + _SHORTEST
        near = coupling[start : start + _SHORTEST]
        if near.isinf().all():
            far = coupling[start + _SHORTEST :].isfinite().nonzero()
            if len(far) == 0:
                break
            borders.append(start + _SHORTEST + int(far[0]))
        else:
            borders.append(start + int(near.argmin()))
    return [*borders, len(coupling)]


def _words(emissions: Emissions, row: int) -> int:
    return int(emissions.word_mask[row].sum())


@contextmanager
def _evaluating(model: NerModel) -> Iterator[None]:
    if not model.training:  # visiting all modules takes a tenth of the time of a short text
        yield
        return
    with modes_restored(model):
        model.eval()
        yield
