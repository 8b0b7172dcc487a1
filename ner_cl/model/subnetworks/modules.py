"""A module a step on the top layers of a shared encoder, which stays as it is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.data.batching import Batch
from ner_cl.model.encoder import Encoder, words_of
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.kinds import Adapters, Copies, Kind, Ladders, Lora
from ner_cl.model.subnetworks.trunk import run_trunk, top_layers
from ner_cl.registry import subnetworks

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["ModuleOptions", "Modules"]

_KINDS: dict[str, type[Kind]] = {"adapter": Adapters, "copy": Copies, "ladder": Ladders, "lora": Lora}


class ModuleOptions(SubnetworkOptions):
    """What a module is made of.

    Attributes:
        kind: `copy` (the top layers once more), `lora` (low-rank changes of their weights), `adapter` (a bottleneck
            behind each of them) or `ladder` (bottlenecks beside them, which cost next to nothing to run).
        layers: how many of the encoder's layers, counted from the top, have a part in a module.
        size: units of a bottleneck, or rank; a `copy` has none.
    """

    name: Literal["modules"] = "modules"
    kind: Literal["adapter", "copy", "ladder", "lora"] = "copy"
    layers: int = Field(2, ge=1)
    size: int = Field(64, ge=1)


@subnetworks.register("modules")
@final
class Modules(Subnetworks):
    """Each step has a module of its own; below it, the encoder is shared and runs once."""

    options_class = ModuleOptions
    options: ModuleOptions

    def __init__(self, encoder: Encoder, options: ModuleOptions, *, first: int) -> None:
        super().__init__(encoder, options, first=first)
        top_layers(encoder, options.layers)  # refuses an encoder without layers
        self.kind = _KINDS[options.kind](encoder.hidden, options.size)
        self.learns_like = "encoder" if self.kind.pretrained else "head"

    def learn(self, step: int) -> None:
        """Leaves only one step's module in training mode and with gradients."""
        self.kind.learn(step)

    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        self.kind.add(step, top_layers(model.encoder, self.options.layers), generator)

    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """The encoder once, then the module of each step on the same states."""
        top = top_layers(model.encoder, self.options.layers)
        shared = [step for step in steps if step < self.first]
        trunk = run_trunk(model.encoder, batch, top, whole=bool(shared) or self.kind.reads_whole_pass)
        views = dict.fromkeys(shared, words_of(trunk.states[-1], batch))
        for step in steps[len(shared) :]:
            hidden = trunk.states[0]
            for number in range(len(top)):
                hidden = self.kind.layer(step, number, hidden, trunk, top)
            views[step] = words_of(hidden, batch)
        return views
