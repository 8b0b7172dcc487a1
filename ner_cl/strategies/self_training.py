"""Self-training: the old model labels the new sentences."""

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.pseudo_labels import label_old_types
from ner_cl.strategies.rows import cross_entropy_as_annotated
from ner_cl.types import Sentence

__all__ = ["SelfTraining", "SelfTrainingOptions"]


class SelfTrainingOptions(StrategyOptions):
    """Self-training has no options."""

    name: Literal["self_training"] = "self_training"


@strategies.register("self_training")
@final
class SelfTraining(Strategy):
    """Hard pseudo-labels for old types, gold for new ones, cross entropy on all words.

    The "hard label" comparison of Monaikul et al. 2021.
    """

    options_class = SelfTrainingOptions
    holds_old_types = True

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The sentences with the old model's spans added."""
        return label_old_types(context, train)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy; the pseudo-labels count as gold."""
        return cross_entropy_as_annotated(context.model.head, batch, emissions)
