"""What a strategy of continual learning may do: seven hooks, all empty here."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.model.heads.base import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision
from ner_cl.types import Sentence, Span

__all__ = ["Constraint", "StepContext", "Strategy"]

# A tensor for each parameter that a reference direction touches, by parameter name.
Constraint = Mapping[str, Tensor]


@dataclass(kw_only=True)
class StepContext:
    """What a strategy may know of the step being learned.

    Attributes:
        number: the step, from 1.
        types: the new types.
        old_types: the types learned before.
        model: the student; its new block is there once `sentences` is done.
        epochs: passes over the data that are planned, at most.
        batch_tokens: word pieces of a batch when predicting.
        precision: number format of forward passes.
        earlier: the sentences of steps 1 to `number`, annotated for all types seen. Only strategies that say
            `needs_earlier_data` (the joint upper bound) find anything here.
        reset_model: gives the student back its pre-trained encoder and an untrained head. For the joint upper bound.
        predict: the spans the student finds now.
        generator: makes an independent random stream for a purpose, the same one whenever the step is run again.
        epoch: the epoch being trained, from 1; 0 before the first.
        encoded: the step's sentences as they are trained on; set before the first `losses`.
    """

    number: int
    types: tuple[str, ...]
    old_types: tuple[str, ...]
    model: NerModel
    epochs: int
    batch_tokens: int
    precision: Precision
    earlier: tuple[Sentence, ...]
    reset_model: Callable[[], None]
    predict: Callable[[Sequence[Sentence]], list[list[Span]]]
    generator: Callable[[str], np.random.Generator]
    epoch: int = 0
    encoded: EncodedSentences | None = None


class Strategy(ABC):
    """One idea of continual learning. A strategy knows neither files nor other strategies.

    The hooks are called in the order in which they stand here; `losses` to `precondition` once for every batch or
    update. Strategies are combined as a list whose order does not matter.

    Attributes:
        options_class: the options; its `name` is the name in configurations.
        holds_old_types: whether the strategy says how old types are held. Exactly one of a list does; `distill` is
            added to a list without one.
        needs_earlier_data: whether it breaks the rules on purpose and reads the data of earlier steps.
    """

    options_class: ClassVar[type[StrategyOptions]]
    holds_old_types: ClassVar[bool] = False
    needs_earlier_data: ClassVar[bool] = False

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options

    def begin_step(self, context: StepContext) -> None:  # noqa: B027
        """Before anything else: keep a teacher, allocate state, add modules."""

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The sentences to train on: mix some in, pseudo-label. The new block does not exist yet."""
        return train

    def begin_epoch(self, context: StepContext) -> None:  # noqa: B027
        """Before each epoch: freeze or thaw parameters on a schedule."""

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms of a batch; the loop minimises the sum of all terms of all strategies."""
        return {}

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Factors in [0, 1] on the *update* of parameters, by name; asked for once, before the first update."""
        return {}

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        """Reference directions `r` that the update must not oppose (`⟨-update, r⟩ ≥ 0`); asked for at every update."""
        return ()

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The optimizer's step replaced: the update to add to each parameter, or None to leave it to the optimizer."""
        return None

    def end_step(self, context: StepContext) -> None:  # noqa: B027
        """After the best weights are restored: measure importance, choose replay, store bases."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a later step needs, kept under `strategy/` of the model folder."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes back what `state_dict` gave."""
