"""Modular networks: one module per step on a shared encoder that does not change after step 1."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.subnetworks.modules import ModuleOptions, Modules
from ner_cl.model.subnetworks.trunk import run_trunk
from ner_cl.registry import heads, strategies
from ner_cl.strategies.apart import ApartStrategy, options_of, own_loss, subnetworks_of
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.calibration import calibrate_vote
from ner_cl.strategies.old_blocks import freeze_old_blocks
from ner_cl.strategies.pseudo_labels import label_old_types
from ner_cl.types import Sentence

__all__ = ["ModuleStrategy", "ModuleStrategyOptions"]


class ModuleStrategyOptions(StrategyOptions, ModuleOptions):
    """What a module consists of, and which encoder it is built on.

    Attributes:
        trunk: `learned` trains the encoder in step 1, whose block reads it directly, then freezes it; `pretrained`
            never trains it, and step 1 gets a module like all other steps. A model that has already learned steps keeps
            its encoder.
        cache: run the frozen encoder once over the step's sentences and keep the outputs that modules read; `false`
            runs it in every update, which takes longer and gives the same result up to rounding.
        fusion_epochs: for `join: fusion`: number of epochs in which attention over the adapters is learned, after the
            adapter.
    """

    name: Literal["modules"] = "modules"
    trunk: Literal["learned", "pretrained"] = "learned"
    cache: bool = True
    fusion_epochs: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _no_fusion_without_adapters(self) -> "ModuleStrategyOptions":
        if self.join != "fusion" and "fusion_epochs" in self.chosen:
            raise ValueError(f"fusion_epochs: has no effect with join: {self.join}; leave it out")
        return self


@strategies.register("modules")
@final
class ModuleStrategy(ApartStrategy):
    """Trains a module and a block in each step, and nothing that an earlier step uses."""

    options_class = ModuleStrategyOptions
    options: ModuleStrategyOptions

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads whose blocks cannot vote with `join: vote`, or do not tag words with `join: sequence`."""
        if self.options.join == "sequence" and not heads[head.name].tags_words:  # type: ignore[attr-defined]
            return f"with join: sequence reads tags of words, which head {head.name} has none of; choose another join"
        if self.options.join == "vote" and "merge" in heads[head.name].without_effect:  # type: ignore[attr-defined]
            return f"with join: vote needs blocks that vote, which those of head {head.name} never do; use head addner"
        if self.options.join == "vote" and head.merge not in ("majority", "vote"):
            return f"with join: vote needs blocks that vote, and head.merge is {head.merge}; set head.merge: vote"
        return ""

    def begin_step(self, context: StepContext) -> None:
        """Gives the new step a module; in step 1 only if the encoder is not trained."""
        if context.old_types or self.options.trunk == "pretrained":
            subnetworks_of(context.model, ModuleOptions, self.options)
        else:  # refuse now what would fail in step 2, before step 1 is trained
            model, options = context.model, options_of(ModuleOptions, self.options)
            modules = Modules(model.encoder, options, first=context.number + 1)
            with torch.no_grad():
                one = model.encode([Sentence(("word",))]).batch([0]).to(model.device)
                run_trunk(model.encoder, one, modules.top(model.encoder), whole=True)

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The sentences, with the model's predictions for old types added if the new block is to know these."""
        modules = _modules_of(context)
        return label_old_types(context, train) if modules and modules.join.knows_older else train

    def stages(self, context: StepContext) -> Sequence[int]:
        """One more stage with `join: fusion`, from the second adapter on."""
        modules = _modules_of(context)
        return (self.options.fusion_epochs,) if modules and modules.fuses(context.number) else ()

    def begin_stage(self, context: StepContext) -> None:
        """Freezes all but the new module and block; in a later stage, all but the fusion attention and the block."""
        model, modules = context.model, _modules_of(context)
        if modules is None:
            return
        if context.stage and modules.fuses(context.number):
            modules.fuse(context.number)
        model.encoder.requires_grad_(False)
        modules.learn(context.number)
        freeze_old_blocks(model.head)
        if self.options.cache:
            self._read_once(context)

    def begin_epoch(self, context: StepContext) -> None:
        """Turns off dropout in everything that is frozen."""
        model = context.model
        if model.subnetworks is not None:
            model.encoder.eval()
            model.subnetworks.learn(context.number)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of the new block, as `ce`."""
        return own_loss(context, batch, emissions)

    def settle(self, context: StepContext) -> None:
        """Measures the weight of the new block's vote, if blocks vote."""
        calibrate_vote(context)


def _modules_of(context: StepContext) -> Modules | None:
    """The model's modules; None if there are none yet."""
    found = context.model.subnetworks
    assert found is None or isinstance(found, Modules)
    return found
