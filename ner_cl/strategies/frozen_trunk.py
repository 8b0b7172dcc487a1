"""Frozen trunk: lower layers stay fixed while the top layers learn."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

from pydantic import Field
from torch import nn

from ner_cl.config import StrategyOptions
from ner_cl.model.subnetworks.trunk import all_layers, top_layers
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.read_once import read_once

__all__ = ["FrozenTrunk", "FrozenTrunkOptions"]


class FrozenTrunkOptions(StrategyOptions):
    """How much of the encoder continues to learn.

    Attributes:
        layers: number of top layers that are trained; `auto` is five sixths of all layers, rounded up, and 0 trains the
            whole encoder, as without the strategy.
        since: the first step that trains only these layers: with 1 the others stay as pre-trained, with 2 as step 1
            left them.
        cache: run the frozen part once over the step's sentences and keep its outputs; `false` runs it in every update,
            which takes longer and gives the same result up to rounding.
    """

    name: Literal["frozen_trunk"] = "frozen_trunk"
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    since: int = Field(1, ge=1)
    cache: bool = True


@strategies.register("frozen_trunk")
@final
class FrozenTrunk(Strategy):
    """Trains only the top layers of the encoder; embeddings and lower layers stay fixed.

    Lower layers carry what all types share (Jawahar et al. 2019, "What does BERT learn about the structure of
    language?", section 4), so a step that leaves them alone forgets less; their outputs for a step's sentences are
    computed once.
    """

    options_class = FrozenTrunkOptions
    options: FrozenTrunkOptions
    excludes: ClassVar[Mapping[str, str]] = {
        **{name: f"{name} trains no layer at all after step 1" for name in ("frozen", "ice")},
        "joint": "joint trains the whole encoder in every step",
        **dict.fromkeys(("hat", "modules", "packnet"), "it says itself which layers learn, by its option layers"),
    }

    def begin_stage(self, context: StepContext) -> None:
        """Freezes embeddings and lower layers and, with `cache`, runs them once over the step's sentences."""
        self._top: list[nn.Module] = []
        if context.number < self.options.since or not self.options.layers:
            return
        encoder = context.model.encoder
        count = self.options.layers
        self._top = top_layers(encoder, math.ceil(5 * len(all_layers(encoder)) / 6) if count == "auto" else count)
        encoder.requires_grad_(False)
        for layer in self._top:
            layer.requires_grad_(True)
        if self.options.cache:
            read_once(context, self._top)

    def begin_epoch(self, context: StepContext) -> None:
        """Turns off dropout in the frozen layers."""
        if self._top:
            context.model.encoder.eval()
            for layer in self._top:
                layer.train()
