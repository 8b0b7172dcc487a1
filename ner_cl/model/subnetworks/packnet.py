"""One encoder whose weights are divided among steps; a step's sub-network has its own and all earlier ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder, words_of
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.trunk import apply_layer
from ner_cl.registry import subnetworks

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["PackNet", "PackNetOptions"]


class PackNetOptions(SubnetworkOptions):
    """Which weights are divided among steps.

    Attributes:
        layers: number of encoder layers, counted from the top, whose weights are shared out among steps; 0 is all.
    """

    name: Literal["packnet"] = "packnet"
    layers: int = Field(0, ge=0)


@subnetworks.register("packnet")
@final
class PackNet(Subnetworks):
    """Every entry of the linear weights of the top layers is owned by one step, or free.

    A step's sub-network is the encoder with 0 in every entry that is free or owned by a later step (Mallya and Lazebnik
    2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning"). The weights themselves stay in the
    encoder; stored here is each entry's owner, in one byte. All else in the encoder belongs to step 1.

    Raises:
        ModelError: if steps were learned before, whose blocks read all weights, or if the layers have no linear weight.
    """

    options_class = PackNetOptions
    options: PackNetOptions

    def __init__(self, encoder: Encoder, options: PackNetOptions, *, first: int) -> None:
        super().__init__(encoder, options, first=first)
        if first > 1:
            raise ModelError(
                "packnet shares out the encoder's weights from step 1 on, and this model has learned steps without it; "
                "start a new model, or use modules"
            )
        for number, layer in enumerate(self.top(encoder)):
            for name, weight in _linear_weights(layer):
                self.register_buffer(_buffer(number, name), torch.zeros_like(weight, dtype=torch.uint8))
        if not list(self.buffers()):
            raise ModelError(f"encoder {encoder.options.name!r} has no linear weights to share out; use another")

    def learn(self, step: int) -> None:
        """Does nothing: a step's own parameters are entries of the encoder's weights, and gates block the others."""

    @property
    def free(self) -> float:
        """Share of entries that no step owns."""
        free = sum(int((owner == 0).sum()) for owner in self.buffers())
        return free / sum(owner.numel() for owner in self.buffers())

    def owned(self, model: "NerModel") -> dict[str, tuple[Tensor, UInt8[Tensor, "out in"]]]:
        """The divided weights, by name in the model, with the step that owns each entry (0 is free).

        Args:
            model: the model this belongs to.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        return {
            names[weight]: (weight, owner)
            for number, layer in enumerate(self.top(model.encoder))
            for weight, owner in self._owned(number, layer).values()
        }

    def claim(self, step: int) -> None:
        """Gives all free entries to a step."""
        for owner in self.buffers():
            owner.masked_fill_(owner == 0, step)

    @torch.no_grad()
    def prune(self, model: "NerModel", step: int, share: float) -> None:
        """Frees a step's entries of smallest magnitude, weight by weight, and sets them to 0.

        Args:
            model: the model this belongs to.
            step: whose entries.
            share: share to free, in [0, 1], rounded to a whole number of entries; ties with the last one go too.
        """
        for weight, owner in self.owned(model).values():
            own = owner == step
            sizes = weight[own].abs()
            if count := round(share * len(sizes)):
                pruned = own & (weight.abs() <= sizes.kthvalue(count).values)
                owner.masked_fill_(pruned, 0)
                weight.masked_fill_(pruned, 0.0)

    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        """Creates nothing, as a step owns what it claims; refuses more steps than fit a byte."""
        most = torch.iinfo(torch.uint8).max
        if step > most:
            raise ModelError(f"packnet can tell no more than {most} steps apart; start a new model")

    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """Runs the trunk once, then the top layers for each step with the weights of its sub-network."""
        top = self.top(model.encoder)
        trunk = self._trunk(model, batch, top)
        views = {}
        for step in steps:
            hidden = trunk.states[0]
            for number, layer in enumerate(top):
                weights = {
                    # Not a product, which would turn negative weights into -0.0 and infinite ones into NaN.
                    name: weight.masked_fill((owner == 0) | (owner > step), 0.0)
                    for name, (weight, owner) in self._owned(number, layer).items()
                }
                hidden = apply_layer(layer, hidden, trunk.calls[number], weights=weights)
            views[step] = words_of(hidden, batch)
        return views

    def _owned(self, number: int, layer: nn.Module) -> dict[str, tuple[Tensor, UInt8[Tensor, "out in"]]]:
        """A layer's divided weights, by name in the layer, with the step that owns each entry."""
        return {name: (weight, self.get_buffer(_buffer(number, name))) for name, weight in _linear_weights(layer)}


def _linear_weights(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            yield f"{name}.weight", module.weight


def _buffer(number: int, name: str) -> str:
    """The name of the buffer with the owners of a weight; buffer names may not contain a dot."""
    return f"owner/{number}/{name.replace('.', '/')}"
