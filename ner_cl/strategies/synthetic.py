"""Synthetic sentences: a step's own sentences with random words in the place of its types' mentions.

Sentences that were collected for new types mention old ones rarely, so a student hardly sees what it is to keep. An
encoder's vocabulary is full of names. Put where a new type was mentioned, some of them are mentions of old types, and
the model before the step says which: nothing of earlier data is kept, and no other text is needed. The idea of teaching
a student by inputs that are made up, because the data are gone, is that of data-free distillation (Lopes et al. 2017).
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence

__all__ = ["synthetic_sentences", "vocabulary_words"]

_LONGEST = 3  # words in the place of a mention
_WORD_STARTS = ("Ġ", "▁")  # begin the pieces that begin words, in byte-level and sentence-piece vocabularies


def synthetic_sentences(context: StepContext, train: Sequence[Sentence], *, most: int) -> list[Sentence]:
    """Makes a sentence without annotation of each one that mentions a new type.

    Args:
        context: a step whose new block does not exist yet.
        train: the step's sentences; those without mentions of its types are not used.
        most: maximum number of sentences.
    """
    own = [s for s in train if any(span.type in context.types for span in s.spans)]
    words = vocabulary_words(context.model.encoder.tokenizer)
    if not words:
        return []
    draw = context.generator("distill/words")
    return [_varied(sentence, context.types, words, draw) for sentence in context.at_most(own, most, "distill/own")]


def vocabulary_words(tokenizer: Any) -> list[str]:
    """The pieces of a vocabulary that are whole words of three letters or more, in alphabetical order."""
    pieces = list(tokenizer.get_vocab())
    starts = [piece for piece in pieces if piece.startswith(_WORD_STARTS)]
    words = {tokenizer.convert_tokens_to_string([piece]).strip() for piece in starts or pieces}
    return sorted(word for word in words if word.isalpha() and len(word) > 2)


def _varied(sentence: Sentence, types: Collection[str], words: Sequence[str], draw: np.random.Generator) -> Sentence:
    """The sentence with one to three random words in the place of each mention of `types`."""
    made: list[str] = []
    end = 0
    for span in [span for span in sentence.spans if span.type in types]:
        made += sentence.words[end : span.start]
        if span.start >= end:  # else it lies within the one before
            made += (words[index] for index in draw.integers(len(words), size=int(draw.integers(_LONGEST)) + 1))
        end = max(end, span.end)
    return Sentence((*made, *sentence.words[end:]))
