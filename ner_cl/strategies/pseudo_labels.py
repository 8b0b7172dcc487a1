"""Old types in the new sentences, as the model before the step sees them."""

from collections.abc import Sequence

from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence

__all__ = ["label_old_types"]


def label_old_types(context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
    """The step's sentences with the old model's spans added, complete for all types seen; remembered ones as they are.

    Labels are merged as spans: a predicted old span that shares a word with a gold span is dropped whole, so that no
    half of a mention is ever taught.

    Args:
        context: of a step whose new block does not exist yet, so that its guesses cannot mix in.
        train: annotated for the new types, but for remembered sentences.
    """
    if not context.old_types:
        return train
    predicted = context.predict(train)
    seen = (*context.old_types, *context.types)
    return [
        sentence
        if sentence.annotated_types and sentence.annotated_types.isdisjoint(context.types)
        else sentence.with_spans(
            [*sentence.spans, *(old for old in spans if not any(old.overlaps(gold) for gold in sentence.spans))],
            seen,
        )
        for sentence, spans in zip(train, predicted, strict=True)
    ]
