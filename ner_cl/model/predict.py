"""From sentences or texts to spans, in batches of like length."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from ner_cl.data.batching import EncodedSentences
from ner_cl.data.tagset import spans_of_tags
from ner_cl.data.words import split_words
from ner_cl.model.heads.base import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision, autocast
from ner_cl.types import Entity, Sentence, Span

__all__ = [
    "ScoredSpan",
    "emissions_of",
    "predict_sentences",
    "predict_texts",
    "score_sentences",
    "spans_by_block",
]

# Texts are sorted by length within chunks of this many, so that an endless stream can be predicted in bounded memory.
_CHUNK_TEXTS = 1024


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A predicted span of words and its probability."""

    span: Span
    score: float


def emissions_of(
    model: NerModel,
    encoded: EncodedSentences,
    *,
    steps: Collection[int] | None = None,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
) -> Iterator[tuple[list[int], Emissions]]:
    """Tag scores of all sentences, in batches of like length: `(sentence indices, emissions, a row a sentence)`.

    The rows of a sentence that was read in several windows are joined, so that decoding sees the whole sentence. Of a
    model with sub-networks only those of `steps` are run, where they are given.
    """
    was_training = model.training
    model.eval()
    device = model.device
    windows_of = [0] * len(encoded.sentences)
    for window in encoded.windows:
        windows_of[window.sentence] += 1
    parts: dict[int, dict[int, tuple[Tensor, ...]]] = {}
    try:
        for rows, batch in encoded.in_length_order(batch_tokens):
            with torch.inference_mode(), autocast(precision, device):
                emissions = model(batch.to(device), steps=steps)
            whole = [i for i, row in enumerate(rows) if windows_of[encoded.windows[row].sentence] == 1]
            if len(whole) == len(rows):
                yield [encoded.windows[row].sentence for row in rows], emissions
                continue
            for i, row in enumerate(rows):
                window = encoded.windows[row]
                count = len(window.word_pieces)
                parts.setdefault(window.sentence, {})[window.first_word] = tuple(b[i, :count] for b in emissions.blocks)
                if len(parts[window.sentence]) == windows_of[window.sentence]:
                    yield [window.sentence], _join(parts.pop(window.sentence), emissions.steps)
    finally:
        model.train(was_training)


def _join(parts: dict[int, tuple[Tensor, ...]], steps: tuple[int, ...] | None) -> Emissions:
    """One row from the windows of a sentence, in word order."""
    ordered = [parts[first_word] for first_word in sorted(parts)]
    blocks = tuple(torch.cat(pieces).unsqueeze(0) for pieces in zip(*ordered, strict=True))
    return Emissions(blocks, torch.ones(blocks[0].shape[:2], dtype=torch.bool, device=blocks[0].device), steps)


def predict_sentences(
    model: NerModel,
    sentences: Sequence[Sentence],
    *,
    types: Collection[str] | None = None,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
) -> list[list[Span]]:
    """The spans the model finds in each sentence, in order, without scores."""
    found: list[list[Span]] = [[] for _ in sentences]
    encoded = model.encode(sentences)
    for indices, emissions in emissions_of(
        model, encoded, steps=model.steps_of(types), batch_tokens=batch_tokens, precision=precision
    ):
        for index, spans in zip(indices, _spans(model, emissions, types), strict=True):
            found[index] = spans
    return found


def spans_by_block(
    model: NerModel, sentences: Sequence[Sentence], *, batch_tokens: int = 4096, precision: Precision = "auto"
) -> list[list[Span]]:
    """What each step's block finds by itself: spans of different steps may overlap, as nothing has merged them yet."""
    found: list[list[Span]] = [[] for _ in sentences]
    encoded = model.encode(sentences)
    for indices, emissions in emissions_of(model, encoded, batch_tokens=batch_tokens, precision=precision):
        for types in model.tagset.steps:
            for index, spans in zip(indices, _spans(model, emissions, types), strict=True):
                found[index] += spans
    return found


def score_sentences(
    model: NerModel,
    sentences: Sequence[Sentence],
    *,
    types: Collection[str] | None = None,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
) -> list[list[ScoredSpan]]:
    """The spans the model finds in each sentence, in order, with the probability of each."""
    found: list[list[ScoredSpan]] = [[] for _ in sentences]
    encoded = model.encode(sentences)
    for indices, emissions in emissions_of(
        model, encoded, steps=model.steps_of(types), batch_tokens=batch_tokens, precision=precision
    ):
        rows = _spans(model, emissions, types)
        scores = iter(model.head.span_scores(emissions, _positions(model, rows, emissions)).tolist())
        for index, spans in zip(indices, rows, strict=True):
            found[index] = [ScoredSpan(span, min(1.0, next(scores))) for span in spans]
    return found


def predict_texts(
    model: NerModel,
    texts: Iterable[str],
    *,
    types: Collection[str] | None = None,
    min_score: float = 0.0,
    batch_tokens: int = 4096,
    precision: Precision = "auto",
) -> Iterator[list[Entity]]:
    """The entities of each text, in order; see `NerModel.predict`."""
    step_of = {type_: model.tagset.step_of(type_) for type_ in model.types}
    stream = iter(texts)
    while chunk := list(islice(stream, _CHUNK_TEXTS)):
        offsets = [split_words(text) for text in chunk]
        filled = [index for index, words in enumerate(offsets) if words]
        sentences = [Sentence(tuple(chunk[i][start:end] for start, end in offsets[i])) for i in filled]
        scored = score_sentences(model, sentences, types=types, batch_tokens=batch_tokens, precision=precision)
        found: list[list[Entity]] = [[] for _ in chunk]
        for index, spans in zip(filled, scored, strict=True):
            text, words = chunk[index], offsets[index]
            for item in spans:
                if item.score >= min_score:
                    start, end = words[item.span.start][0], words[item.span.end - 1][1]
                    type_ = item.span.type
                    found[index].append(Entity(start, end, type_, text[start:end], item.score, step_of[type_]))
        yield from found


def _spans(model: NerModel, emissions: Emissions, types: Collection[str] | None) -> list[list[Span]]:
    tags = model.head.decode(emissions, types=types).tolist()
    return [spans_of_tags(row, model.types) for row in tags]


def _positions(model: NerModel, rows: list[list[Span]], emissions: Emissions) -> Int[Tensor, "span 4"]:
    number = {type_: index for index, type_ in enumerate(model.types)}
    flat = [(row, s.start, s.end, number[s.type]) for row, spans in enumerate(rows) for s in spans]
    return torch.tensor(flat, dtype=torch.long, device=emissions.word_mask.device).reshape(-1, 4)
