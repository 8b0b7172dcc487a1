"""One module per step on the top layers of a shared encoder that does not change."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ner_cl.data.batching import Batch
from ner_cl.data.tagset import Tagset
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.joins import Concatenation, Fusion, Join, Separate, Skip, Stack, Vote
from ner_cl.model.subnetworks.kinds import Adapters, Copies, Kind, Ladders, Lora
from ner_cl.model.subnetworks.module_pass import ModulePass
from ner_cl.registry import subnetworks

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["ModuleOptions", "Modules"]

_KINDS: dict[str, type[Kind]] = {"adapter": Adapters, "copy": Copies, "ladder": Ladders, "lora": Lora}
_JOINS: dict[str, type[Join]] = {
    "concat": Concatenation,
    "fusion": Fusion,
    "separate": Separate,
    "sequence": Stack,
    "skip": Skip,
    "vote": Vote,
}


class ModuleOptions(SubnetworkOptions):
    """What modules consist of, and their join.

    Attributes:
        kind: `copy` (a second copy of the top layers), `lora` (low-rank changes to their weights), `adapter` (a
            bottleneck after each of them) or `ladder` (bottlenecks beside them, which cost next to nothing to run).
        layers: number of encoder layers, counted from the top, that a module extends; 0, or more than there are, is
            all.
        size: units of a bottleneck, or the rank; not used by `copy`.
        join: what a module reads from earlier ones. `separate`: nothing. `concat`: its block reads the final states of
            all modules so far side by side. `skip`: each layer above the lowest, and the block, also reads their states
            through matrices of its own. `sequence`: its lowest layer reads the final states of the module before it and
            the output of that module's block. `fusion` (kind `adapter` only): attention over the outputs of all
            adapters so far. `vote`: its block knows older types too, and blocks vote.
    """

    name: Literal["modules"] = "modules"
    kind: Literal["adapter", "copy", "ladder", "lora"] = "ladder"
    layers: int = Field(0, ge=0)
    size: int = Field(128, ge=1)
    join: Literal["concat", "fusion", "separate", "sequence", "skip", "vote"] = "separate"

    @model_validator(mode="after")
    def _fusion_is_of_adapters(self) -> "ModuleOptions":
        if self.join == "fusion" and self.kind != "adapter":
            raise ValueError(f"join: fusion attends over adapters, and kind is {self.kind}; set kind: adapter")
        return self

    @model_validator(mode="after")
    def _no_size_of_copies(self) -> "ModuleOptions":
        if self.kind == "copy" and "size" in self.chosen:
            raise ValueError("size: has no effect with kind: copy; leave it out")
        return self


@subnetworks.register("modules")
@final
class Modules(Subnetworks):
    """Sub-networks that are modules, one per step; the encoder below them is shared and runs once."""

    options_class = ModuleOptions
    options: ModuleOptions

    def __init__(self, encoder: Encoder, options: ModuleOptions, *, first: int) -> None:
        super().__init__(encoder, options, first=first)
        self.top(encoder)  # rejects an encoder without layers
        if options.kind != "copy" and options.size > 4 * encoder.hidden:
            raise ModelError(
                f"modules of size {options.size} are wider than four times the encoder, whose width is "
                f"{encoder.hidden}; give them a smaller size"
            )
        self.kind = _KINDS[options.kind](encoder.hidden, options.size)
        self.join = _JOINS[options.join](encoder.hidden, first=first)
        self.learns_like = "encoder" if self.kind.pretrained else "head"

    def width(self, step: int) -> int:
        """Size of the word vectors that a step's block reads."""
        return self.hidden if step < self.first else self.join.width(step)

    def covers(self, tagset: Tagset) -> tuple[str, ...]:
        """All older types if blocks vote, else none."""
        return tagset.types if self.join.knows_older else ()

    def learn(self, step: int) -> None:
        """Leaves only one step's module in training mode and with gradients."""
        self.join.learn(step, self.kind)

    def fuses(self, step: int) -> bool:
        """Whether a step's module is to attend over all adapters so far, once its own is learned."""
        return isinstance(self.join, Fusion) and str(step) in self.join.steps

    def fuse(self, step: int) -> None:
        """Turns on a step's attention over adapters."""
        assert isinstance(self.join, Fusion)
        self.join.fused(step).on.fill_(True)

    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        top = self.top(model.encoder)
        self.kind.add(step, top, generator)
        self.join.add(step, layers=len(top), model=model, generator=generator)

    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """Runs the encoder once, then each step's module and the modules that it reads, on the same states."""
        top = self.top(model.encoder)
        shared = [step for step in steps if step < self.first]
        trunk = self._trunk(model, batch, top, shared)
        run = ModulePass(model, batch, self.kind, first=self.first, trunk=trunk, top=top, run=self._states)
        views = dict.fromkeys(shared, run.words(run.trunk.states[-1])) if shared else {}
        views.update((step, self.join.words(step, run)) for step in steps[len(shared) :])
        return views

    def _whole(self, shared: Sequence[int]) -> bool:
        """See `Subnetworks._whole`; joins and kinds of modules may need it too."""
        return bool(shared) or (self.join.reads_others and self.first > 1) or self.kind.beside

    def _states(self, step: int, run: ModulePass) -> tuple[Tensor, ...]:
        """Computes the states of a step's module: the input of its lowest layer, then the output of each layer."""
        states = [run.trunk.states[0]]
        for number in range(len(run.top)):
            states.append(self.join.layer(step, number, self.join.below(step, number, states[-1], run), run))
        return tuple(states)
