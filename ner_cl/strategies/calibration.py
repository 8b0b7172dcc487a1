"""The weight of a step's block in votes, measured on the step's dev sentences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ner_cl.evaluate.counts import count_spans, micro_f1
from ner_cl.model.emissions import emissions_of
from ner_cl.model.heads.addner import AddNer
from ner_cl.model.merge import best_temperature
from ner_cl.model.predict import predict_sentences
from ner_cl.strategies.base import StepContext
from ner_cl.types import Sentence

__all__ = ["calibrate_vote"]

LEAST_WEIGHT = 0.01
"""The weight of a block that finds nothing on dev, so that it still counts where no other block knows its types."""


def calibrate_vote(context: StepContext) -> None:
    """Sets the newest block's temperature and voting weight, if blocks vote and dev sentences have gold mentions.

    Only sentences annotated for all types of the step count.

    The temperature is the one with which the block's probabilities of its own types fit the dev sentences best; the
    weight is the F1 of the block alone. Both stay fixed in all later steps.

    Args:
        context: the step at its end, with its best weights.
    """
    model = context.model
    if not isinstance(model.head, AddNer) or not model.head.votes:
        return
    dev = [sentence for sentence in context.dev if sentence.annotated_types.issuperset(context.types)]
    if not any(sentence.spans for sentence in dev):
        return
    logits, targets = _words(context, model.head, dev)
    annotated = [model.types[index] in context.types for index in model.head.known[-1]]
    temperature = best_temperature(logits, targets, torch.tensor(annotated, device=logits.device))
    found = predict_sentences(
        model, dev, types=context.types, batch_tokens=context.eval_batch_tokens, precision=context.precision
    )
    f1 = micro_f1(count_spans(dev, found, context.types)) or 0.0
    model.head.ballot(context.number).measured(weight=max(LEAST_WEIGHT, f1), temperature=temperature)


def _words(context: StepContext, head: AddNer, dev: Sequence[Sentence]) -> tuple[Tensor, Tensor]:
    """The newest block's logits for every word of `dev`, and the words' targets in the block's own ids."""
    model, step = context.model, context.number
    logits, targets = [], []
    for indices, emissions in emissions_of(
        model,
        model.encode(dev),
        steps=[step],
        batch_tokens=context.eval_batch_tokens,
        precision=context.precision,
    ):
        for row, index in enumerate(indices):
            sentence = dev[index]
            logits.append(emissions.blocks[step - 1][row, : len(sentence.words)])
            targets += model.tagset.encode(sentence.spans, len(sentence.words))
    return torch.cat(logits), head.local(torch.tensor(targets, device=model.device), step)
