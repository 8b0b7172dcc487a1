"""Old types in the new sentences, as the model before the step sees them."""

from collections.abc import Sequence

from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence, Span

__all__ = ["label_old_types", "with_old_types"]


def label_old_types(context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
    """The step's sentences with the old model's spans added, complete for all old types too; others as they are.

    Labels are merged as spans: a predicted old span that shares a word with a gold span is dropped whole, so that no
    half of a mention is ever taught.

    Args:
        context: of a step whose new block does not exist yet, so that its guesses cannot mix in.
        train: annotated for new types, but for remembered and raw sentences.
    """
    if not context.old_types:
        return train
    predicted = context.predict(train)
    return [
        sentence
        if sentence.annotated_types.isdisjoint(context.types)
        else with_old_types(sentence, spans, context.old_types)
        for sentence, spans in zip(train, predicted, strict=True)
    ]


def with_old_types(sentence: Sentence, predicted: Sequence[Span], old_types: Sequence[str]) -> Sentence:
    """A sentence annotated for all old types, by what was predicted where it is not and no gold overlaps."""
    added = (
        span
        for span in predicted
        if span.type not in sentence.annotated_types and not any(span.overlaps(gold) for gold in sentence.spans)
    )
    return sentence.with_spans([*sentence.spans, *added], sentence.annotated_types.union(old_types))
