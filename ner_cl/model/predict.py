"""From sentences or texts to spans: the code path shared by Python, the command line, spaCy and the server."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ner_cl.data.lines import parts_of
from ner_cl.data.words import sentence_of_text, with_text
from ner_cl.errors import ConfigError
from ner_cl.model.emissions import stretches_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision
from ner_cl.types import Entity, Sentence, Span

__all__ = ["ScoredSpan", "predict_sentences", "predict_texts", "score_merged_and_nested", "score_sentences"]

# Texts are batched by length within chunks of this size, so that an endless stream needs bounded memory.
_CHUNK_TEXTS = 1024
_CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A predicted span of words and its probability."""

    span: Span
    score: float


def predict_sentences(
    model: NerModel,
    sentences: Sequence[Sentence],
    *,
    types: Collection[str] | None = None,
    nested: bool = False,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> list[list[Span]]:
    """Finds the spans of each sentence, in order, without scores; see `score_sentences`."""
    (found,) = _find(model, sentences, types, [nested], batch_tokens, precision, scored=False)
    return [[item.span for item in items] for items in found]


def score_sentences(
    model: NerModel,
    sentences: Sequence[Sentence],
    *,
    types: Collection[str] | None = None,
    nested: bool = False,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> list[list[ScoredSpan]]:
    """Finds the spans of each sentence, in order, with the probability of each.

    Args:
        model: any model.
        sentences: sentences to read.
        types: find only these types; all by default.
        nested: do not let spans compete (see `Head.spans`), so that they may overlap. By default no two spans overlap.
        batch_tokens: word pieces per batch, padding included; by default chosen for the device.
        precision: number format of the encoder.
    """
    (found,) = _find(model, sentences, types, [nested], batch_tokens, precision)
    return found


def score_merged_and_nested(
    model: NerModel,
    sentences: Sequence[Sentence],
    *,
    types: Collection[str] | None = None,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> tuple[list[list[ScoredSpan]], list[list[ScoredSpan]]]:
    """The results of `score_sentences` without and with `nested`, at the cost of one."""
    merged, nested = _find(model, sentences, types, [False, True], batch_tokens, precision)
    return merged, nested


def predict_texts(
    model: NerModel,
    texts: Iterable[str | Sentence | Sequence[str]],
    *,
    types: Collection[str] | None = None,
    min_score: float = 0.0,
    nested: bool = False,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> Iterator[list[Entity]]:
    """Yields the entities of each text, in order; see `NerModel.predict`."""
    step_of = {type_: model.tagset.step_of(type_) for type_ in model.types}
    for chunk in _chunks(texts):
        (scored,) = _find(model, chunk, types, [nested], batch_tokens, precision)
        for sentence, items in zip(chunk, scored, strict=True):
            text, places = sentence.text or "", sentence.offsets or ()
            found = []
            for item in items:
                if item.score >= min_score:
                    start, end = places[item.span.start][0], places[item.span.end - 1][1]
                    type_ = item.span.type
                    found.append(Entity(start, end, type_, text[start:end], item.score, step_of[type_]))
            yield found


def _chunks(texts: Iterable[str | Sentence | Sequence[str]]) -> Iterator[list[Sentence]]:
    chunk: list[Sentence] = []
    characters = 0
    for number, text in enumerate(texts):
        chunk.append(sentence := _sentence(text, number))
        characters += len(sentence.text or "")
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _sentence(text: object, number: int) -> Sentence:
    """One of the texts as a sentence with text and offsets."""
    if isinstance(text, str):
        return sentence_of_text(text)
    if isinstance(text, list | tuple) and all(isinstance(word, str) for word in text):
        return with_text(Sentence(tuple(text)))
    if isinstance(text, Sentence):
        return with_text(text)
    raise ConfigError(f"texts: item {number} is of {type(text).__name__}, not a text, a list of words or a Sentence")


def _find(
    model: NerModel,
    sentences: Sequence[Sentence],
    types: Collection[str] | None,
    readings: Sequence[bool],
    batch_tokens: int | None,
    precision: Precision,
    *,
    scored: bool = True,
) -> list[list[list[ScoredSpan]]]:
    """Finds the spans of each sentence for each reading (nested or not); scores are 1 unless `scored`.

    Lines of a text are read one by one, as in training.
    """
    parts = [
        (index, *part) for index, sentence in enumerate(sentences) if sentence.words for part in parts_of(sentence)
    ]
    encoded = model.encode([Sentence(sentences[index].words[begin:end]) for index, begin, end in parts])
    found: list[list[list[ScoredSpan]]] = [[[] for _ in sentences] for _ in readings]
    for places, emissions in stretches_of(model, encoded, types=types, batch_tokens=batch_tokens, precision=precision):
        for nested, own in zip(readings, found, strict=True):
            spans = model.head.spans(emissions, types=types, nested=nested)
            scores = model.head.span_scores(emissions, spans).clamp(max=1.0) if scored else torch.ones(len(spans))
            for (row, start, end, type_), score in zip(spans.tolist(), scores.tolist(), strict=True):
                part, first = places[row]
                index, begin, _ = parts[part]
                span = Span(begin + first + start, begin + first + end, model.types[type_])
                own[index].append(ScoredSpan(span, score))
    for own in found:
        for items in own:
            items.sort(key=lambda item: item.span)  # nested spans come out of order
    return found
