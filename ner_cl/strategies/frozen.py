"""SEQ*: a frozen encoder and frozen old blocks, after "Learn or Recall?" (Zheng et al. 2024)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import PROTECTING, StepContext, Strategy
from ner_cl.strategies.old_blocks import freeze_old_blocks
from ner_cl.strategies.read_once import freeze_encoder
from ner_cl.strategies.rows import on_rows

__all__ = ["Frozen", "FrozenOptions"]


class FrozenOptions(StrategyOptions):
    """How long step 1 trains the encoder.

    Attributes:
        warmup_epochs: number of epochs of step 1 in which the encoder is trained, times the factor by which
            `training.epochs: auto` is raised; afterwards it never changes.
    """

    name: Literal["frozen"] = "frozen"
    warmup_epochs: int = Field(3, ge=0)


@strategies.register("frozen")
@final
class Frozen(Strategy):
    """Trains the encoder only in the first epochs of step 1, and afterwards only each step's new block.

    This is the linear variant without pre-allocated columns. Old logits are constant to the last bit after step 1.
    """

    options_class = FrozenOptions
    options: FrozenOptions
    holds_old_types = True
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        PROTECTING,
        "frozen trains nothing but the new block after step 1, and there is nothing in it to protect",
    )

    excludes_apart: ClassVar[Mapping[str, str]] = {
        "replay": "the blocks that remembered sentences are annotated for are frozen, so they teach nothing"
    }

    def begin_stage(self, context: StepContext) -> None:
        """Freezes the encoder right away if it does not train in this step."""
        freeze_encoder(context, self.options.warmup_epochs, epoch=1)

    def begin_epoch(self, context: StepContext) -> None:
        """Freezes the encoder after the warm-up, and the old blocks."""
        freeze_encoder(context, self.options.warmup_epochs, epoch=context.epoch)
        freeze_old_blocks(context.model.head)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy as labelled: its gradients for old types reach frozen rows only."""
        head = context.model.head

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if head.apart:
                return {"ce": head.supervised(emissions, batch, unannotated="unknown")}
            emissions = replace(emissions, blocks=(head.as_annotated(emissions.blocks[0], batch),))
            return {"ce": head.supervised(emissions, batch, unannotated="negative")}

        return on_rows(batch, emissions, terms)
