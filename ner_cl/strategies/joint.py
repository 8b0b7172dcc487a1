"""Joint training: the upper bound, which sees all data."""

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.rows import cross_entropy_as_annotated
from ner_cl.types import Sentence

__all__ = ["Joint", "JointOptions"]


class JointOptions(StrategyOptions):
    """Which steps of the upper bound are trained.

    Attributes:
        last_only: train only the last step, on all data with all types; earlier rows of the matrix are then null. A run
            then trains once, not once per step.
        annotation: `all`: every sentence is annotated for all types; `own`: only for the types of its own step. The
            difference shows how much is lost to missing annotation rather than to missing sentences.
    """

    name: Literal["joint"] = "joint"
    last_only: bool = False
    annotation: Literal["all", "own"] = "all"


@strategies.register("joint")
@final
class Joint(Strategy):
    """At step k, trains from the pre-trained encoder on the sentences of steps 1 to k, annotated for all types seen.

    With `annotation: own`, a sentence stays annotated for the types of its step alone; its `O` says nothing of others.

    Monaikul et al. 2021 call it "non-CL complete". It deliberately breaks the rules of continual learning.
    """

    options_class = JointOptions
    options: JointOptions
    holds_old_types = True

    @property
    def reads_earlier(self) -> Literal["all", "own"]:
        """The option `annotation`."""
        return self.options.annotation

    @property
    def last_step_only(self) -> bool:
        """The option `last_only`."""
        return self.options.last_only

    def begin_step(self, context: StepContext) -> None:
        """Resets the model to its pre-trained encoder and an untrained head."""
        context.reset_model()

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """All sentences so far, annotated for all types so far."""
        return context.earlier

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy on the sentences of all steps, ignoring the types that a sentence is not annotated for."""
        return cross_entropy_as_annotated(context.model.head, batch, emissions, "own", "remembered")
