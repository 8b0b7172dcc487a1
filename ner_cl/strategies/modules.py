"""Modular networks: a module a step on a shared encoder that does not change after step 1."""

from collections.abc import Mapping
from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.base import Emissions
from ner_cl.model.subnetworks.modules import ModuleOptions
from ner_cl.registry import strategies
from ner_cl.strategies.apart import POINTLESS_APART, own_loss, subnetworks_of
from ner_cl.strategies.base import StepContext, Strategy

__all__ = ["ModuleStrategy", "ModuleStrategyOptions"]


class ModuleStrategyOptions(StrategyOptions, ModuleOptions):
    """What a module is made of, and what it stands on.

    Attributes:
        trunk: `learned` trains the encoder in step 1, whose block reads it directly, and freezes it then; `pretrained`
            never trains it, and step 1 has a module like all others. A model that has learned steps already keeps the
            encoder it has.
    """

    name: Literal["modules"] = "modules"
    trunk: Literal["learned", "pretrained"] = "learned"


@strategies.register("modules")
@final
class ModuleStrategy(Strategy):
    """Trains a module and a block in each step, and nothing that any earlier step computes with."""

    options_class = ModuleStrategyOptions
    options: ModuleStrategyOptions
    holds_old_types = True
    isolates = True
    excludes: ClassVar[Mapping[str, str]] = POINTLESS_APART

    def begin_step(self, context: StepContext) -> None:
        """Has the new step given a module; in step 1 only if the encoder is not to be trained."""
        if context.old_types or self.options.trunk == "pretrained":
            subnetworks_of(context.model, ModuleOptions, self.options)

    def begin_stage(self, context: StepContext) -> None:
        """Freezes all but the new module and block."""
        model = context.model
        if model.subnetworks is None:
            return
        model.encoder.requires_grad_(False)
        model.subnetworks.learn(context.number)
        for block in list(model.head.blocks)[:-1]:
            block.requires_grad_(False)

    def begin_epoch(self, context: StepContext) -> None:
        """Runs what is frozen without dropout."""
        model = context.model
        if model.subnetworks is not None:
            model.encoder.eval()
            model.subnetworks.learn(context.number)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of the new block."""
        return own_loss(context, batch, emissions)
