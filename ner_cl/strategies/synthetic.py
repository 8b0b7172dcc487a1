"""Synthetic sentences: a step's own sentences with random words in the place of its types' mentions.

Sentences that were collected for new types mention old ones rarely, so a student hardly sees what it is to keep. An
encoder's vocabulary is full of names. Put where a new type was mentioned, some of them are mentions of old types, and
the model before the step says which: nothing of earlier data is kept, and no other text is needed. The idea of teaching
a student by inputs that are made up, because the data are gone, is that of data-free distillation (Lopes et al. 2017).
"""

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ner_cl.strategies.base import StepContext
from ner_cl.strategies.selection import balanced
from ner_cl.types import Sentence

__all__ = ["synthetic_sentences", "vocabulary_words"]

_VARIANTS = 4  # of each sentence, from which those with mentions of rare old types are chosen
_REPLACED = 0.1  # share of the other words that are replaced
_LONGEST = 3  # words in the place of a mention
_WORD_STARTS = ("Ġ", "▁")


def synthetic_sentences(context: StepContext, train: Sequence[Sentence], *, most: int) -> list[Sentence]:
    """Makes as many sentences without annotation as there are with mentions of new types.

    Of four variants of each sentence, those are chosen that together have the most mentions of the old types that are
    rarest among them, as predicted by the model before the step.

    Args:
        context: a step whose new block does not exist yet.
        train: the step's sentences; those without mentions of its types are not used.
        most: maximum number of sentences.
    """
    own = [s for s in train if any(span.type in context.types for span in s.spans)]
    own = context.at_most(own, most, "distill/synthetic")
    words = vocabulary_words(context.model.encoder.tokenizer)
    if not words:
        return []
    draw = context.generator("distill/words")
    variants = [_varied(sentence, context.types, words, draw) for _ in range(_VARIANTS) for sentence in own]
    columns = {type_: column for column, type_ in enumerate(context.old_types)}
    mentions = np.zeros((len(variants), len(columns)))
    for row, spans in enumerate(context.predict(variants)):
        for span in spans:
            mentions[row, columns[span.type]] += 1
    return [variants[row] for row in islice(balanced(mentions, draw), len(own))]


def vocabulary_words(tokenizer: Any) -> list[str]:
    """The pieces of a vocabulary that are whole words of three letters or more, in alphabetical order."""
    pieces = list(tokenizer.get_vocab())
    starts = [piece for piece in pieces if piece.startswith(_WORD_STARTS)]
    words = {tokenizer.convert_tokens_to_string([piece]).strip() for piece in starts or pieces}
    return sorted(word for word in words if word.isalpha() and len(word) > 2)


def _varied(sentence: Sentence, types: Collection[str], words: Sequence[str], draw: np.random.Generator) -> Sentence:
    """The sentence with one to three random words for each mention of `types`, and for a tenth of the other words."""
    replaced = draw.random(len(sentence.words)) < _REPLACED
    made: list[str] = []
    end = 0
    for span in [span for span in sentence.spans if span.type in types]:
        made += _other(sentence.words[end : span.start], replaced[end : span.start], words, draw)
        if span.start >= end:  # else it lies within the one before
            made += (words[index] for index in draw.integers(len(words), size=int(draw.integers(_LONGEST)) + 1))
        end = max(end, span.end)
    return Sentence((*made, *_other(sentence.words[end:], replaced[end:], words, draw)))


def _other(
    given: Sequence[str], replaced: Sequence[bool] | np.ndarray, words: Sequence[str], draw: np.random.Generator
) -> list[str]:
    return [words[int(draw.integers(len(words)))] if new else word for word, new in zip(given, replaced, strict=True)]
