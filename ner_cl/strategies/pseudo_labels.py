"""Pseudo-labels: old types in the new sentences, as predicted by the model before the step."""

from collections.abc import Sequence

from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence, Span

__all__ = ["label_old_types", "with_old_types"]


def label_old_types(context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
    """Adds the old model's spans to the step's sentences, then annotated for all old types too; others are unchanged.

    Labels are merged as spans: a predicted span that shares a word with a gold span is dropped entirely, so that no
    partial mention is learned. A head that scores whole spans can learn both, so there it is kept.

    Args:
        context: a step whose new block does not exist yet and so cannot add predictions.
        train: sentences annotated for new types, except for remembered and raw ones.
    """
    if not context.old_types:
        return train
    labelled = list(train)
    own = [number for number, sentence in enumerate(train) if not sentence.annotated_types.isdisjoint(context.types)]
    nested = not context.model.head.tags_words
    for number, spans in zip(own, context.predict([train[number] for number in own]), strict=True):
        labelled[number] = with_old_types(train[number], spans, context.old_types, nested=nested)
    return labelled


def with_old_types(
    sentence: Sentence, predicted: Sequence[Span], old_types: Sequence[str], *, nested: bool = False
) -> Sentence:
    """A sentence annotated for all old types, by predicted spans of those that it is not annotated for.

    Args:
        sentence: the sentence.
        predicted: spans of any types.
        old_types: the types that it is annotated for in addition.
        nested: keep predicted spans that overlap a gold span.
    """
    missing = [span for span in predicted if span.type not in sentence.annotated_types]
    if not nested:
        missing = [span for span in missing if not any(span.overlaps(gold) for gold in sentence.spans)]
    return sentence.with_spans([*sentence.spans, *missing], sentence.annotated_types.union(old_types))
