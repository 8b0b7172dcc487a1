"""ICE: one classifier per step on a frozen encoder, with a shared constant `O` (Liu & Huang 2023, Findings of ACL)."""

from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import cross_entropy_each, masked_mean
from ner_cl.registry import strategies
from ner_cl.strategies.base import PROTECTING, StepContext, Strategy
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.old_blocks import freeze_old_blocks
from ner_cl.strategies.read_once import freeze_encoder
from ner_cl.strategies.rows import on_rows

__all__ = ["Ice", "IceOptions"]


class IceOptions(StrategyOptions):
    """What a new classifier competes with, and how long step 1 trains the encoder.

    Attributes:
        outside: the logit of `O` (δ), the same for every word; set in step 1 and kept by later steps.
        previous_logits: let new columns compete with the frozen columns of old types too (ICE-PL&O in the paper);
            otherwise they compete with `O` alone (ICE-O).
        warmup_epochs: number of epochs of step 1 in which the encoder is trained, times the factor by which
            `training.epochs: auto` is raised; afterwards it never changes. 0, as in the paper, uses the encoder as
            pre-trained.
    """

    name: Literal["ice"] = "ice"
    outside: float = 0.0
    previous_logits: bool = False
    warmup_epochs: int = Field(3, ge=0)


@strategies.register("ice")
@final
class Ice(Strategy):
    """Trains columns without bias for the new types against an `O` whose logit is a constant.

    Every column is trained against the same constant, so columns of different steps are comparable. Old logits are
    constant to the last bit after step 1. On a model trained with another strategy, `O` keeps its column, which is
    frozen with the others.
    """

    options_class = IceOptions
    options: IceOptions
    holds_old_types = True
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        PROTECTING,
        "ice trains nothing but the new block after step 1, and there is nothing in it to protect",
    )

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads without one softmax, as all columns compete with one `O`."""
        return why_not_one_softmax(head)

    def begin_stage(self, context: StepContext) -> None:
        """Freezes old blocks, biases and, unless step 1 trains it, the encoder; sets `O` in the first block."""
        head = context.model.head
        freeze_old_blocks(head)
        new = head.new_block()
        with torch.no_grad():
            new.bias.zero_()
            if len(head.blocks) == 1:
                new.weight[0] = 0.0
                new.bias[0] = self.options.outside
        new.bias.requires_grad_(False)
        freeze_encoder(context, self.options.warmup_epochs, epoch=1)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """0 for the row of `O`, which only the first block has."""
        if len(context.model.head.blocks) > 1:
            return {}
        weight = context.model.head.new_block().weight
        gate = torch.ones_like(weight[:, :1], requires_grad=False)
        gate[0] = 0.0
        return {"head.blocks.0.weight": gate}

    def begin_epoch(self, context: StepContext) -> None:
        """Freezes the encoder after the warm-up."""
        freeze_encoder(context, self.options.warmup_epochs, epoch=context.epoch)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy as labelled; old types are frozen, so it does not change them."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            logits = context.model.head.as_annotated(emissions.blocks[0], batch)
            old = 1 + 2 * len(context.old_types)
            if not self.options.previous_logits:
                hidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
                hidden[1:old] = True
                logits = logits.masked_fill(hidden, -torch.inf)
            return {"ce": masked_mean(cross_entropy_each(logits, batch.targets), batch.word_mask)}

        return on_rows(batch, emissions, terms)
