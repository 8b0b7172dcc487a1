"""What a learner refuses to start with, and to end with."""

import math
from collections.abc import Collection, Sequence

import torch

from ner_cl.config import check_head
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError, DataError, ModelError, TrainingError
from ner_cl.model.ner_model import EXPORTED, NerModel
from ner_cl.strategies.base import Strategy

__all__ = ["check_data", "check_model", "check_parts", "check_weights"]


def check_model(strategies: Sequence[Strategy], model: NerModel) -> None:
    """Rejects strategies that cannot train the model: its head and its sub-networks limit the choice."""
    if model.runtime is not None:
        raise ModelError(EXPORTED)
    check_head([strategy.options for strategy in strategies], model.head.options)
    if model.subnetworks is not None and not any(strategy.isolates for strategy in strategies):
        name = model.subnetworks.options.name
        raise ConfigError(
            f"strategies: each step of this model has a sub-network of its own ({name}), which only {name} can add to; "
            f"list {name}"
        )


def check_data(step: Step) -> None:
    """Rejects training sentences annotated for types of other steps: old gold would invalidate every comparison."""
    names = ", ".join(step.types)
    if not step.train:
        raise DataError(f"step {step.number} has no training sentences; give data that mention {names}")
    for sentence in step.train:
        if foreign := sentence.annotated_types - set(step.types):
            raise DataError(
                f"{sentence.where}step {step.number} learns {names}, but the sentence is annotated for "
                f"{', '.join(sorted(foreign))} too; hide that with Sentence.restrict"
            )


def check_parts(model: NerModel, known: Collection[str], strategy: Strategy) -> None:
    """Rejects tensors that a strategy added to the model, since a model folder with them could not be opened.

    Args:
        model: the model after the strategy's `begin_step`.
        known: names of its tensors before.
        strategy: the strategy.

    Raises:
        ModelError: if there are any outside sub-networks.
    """
    # Sub-networks are rebuilt from their options; the upper bound may reset the head and let it learn old types anew.
    own = ("subnetworks.", "head.") if strategy.reads_earlier else ("subnetworks.",)
    added = [name for name in model.state_dict() if name not in known and not name.startswith(own)]
    if added:
        raise ModelError(
            f"strategies: {strategy.options.name} added {added[0]} to the model, which could not be loaded again; "
            "derive what it adds from ner_cl.model.subnetworks.base.Subnetworks"
        )


def check_weights(model: NerModel, number: int, strategies: Sequence[Strategy]) -> None:
    """Rejects final weights that are not finite or enormous, with which no loss has been computed yet.

    Args:
        model: the model after a step.
        number: number of the step.
        strategies: the strategies of the step.

    Raises:
        TrainingError: if a weight is not finite or so large that its square is not.
    """
    weights = dict(model.named_parameters())
    largest = torch.stack(torch._foreach_norm([weight.detach() for weight in weights.values()], math.inf)).square()
    if torch.isfinite(largest).all():
        return
    name = next(name for name, value in zip(weights, largest.tolist(), strict=True) if not math.isfinite(value))
    rate = next((f"lr of {s.options.name}" for s in strategies if s.replaces_optimizer), "training.optimizer.lr")
    raise TrainingError(f"step {number}: training ended with weights that are beyond all bounds ({name}); lower {rate}")
