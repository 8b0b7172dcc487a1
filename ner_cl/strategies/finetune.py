"""Plain fine-tuning, the lower bound: nothing prevents forgetting."""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.rows import cross_entropy_as_labelled

__all__ = ["Finetune", "FinetuneOptions"]


class FinetuneOptions(StrategyOptions):
    """Plain fine-tuning has no options."""

    name: Literal["finetune"] = "finetune"


@strategies.register("finetune")
@final
class Finetune(Strategy):
    """Cross entropy on the new sentences as labelled, with mentions of old types as `O`."""

    options_class = FinetuneOptions
    holds_old_types = True

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy that takes every `O` literally."""
        return cross_entropy_as_labelled(context.model.head, batch, emissions)
