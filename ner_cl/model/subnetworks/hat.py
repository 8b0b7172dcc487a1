"""Hard attention to the task: each step uses some units of a shared encoder (Serrà et al. 2018, ICML, section 2)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import torch
from jaxtyping import Bool, Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder, words_of
from ner_cl.model.layers import find_layers, gate_input
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.trunk import ONE_PASS_AT_A_TIME, apply_layer
from ner_cl.registry import subnetworks

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["Hat", "HatOptions"]


class HatOptions(SubnetworkOptions):
    """Which units have gates.

    Attributes:
        layers: number of encoder layers, counted from the top, that have gates and learn after step 1; 0 is all. The
            layers below run once for all steps and do not change after step 1.
        heads: put gates on attention heads too, one each, besides the intermediate units of the feed-forward nets.
            Without them attention does not change after step 1.
    """

    name: Literal["hat"] = "hat"
    layers: int = Field(2, ge=0)
    heads: bool = True


@dataclass(frozen=True, slots=True)
class _Family:
    """Units of one family in the gated layers.

    Attributes:
        feed: for each layer, names within the encoder of the modules whose rows belong to units.
        read: for each layer, the name of the module whose columns belong to units.
        units: units per layer.
        width: rows and columns per unit.
    """

    feed: tuple[tuple[str, ...], ...]
    read: tuple[str, ...]
    units: int
    width: int


@subnetworks.register("hat")
@final
class Hat(Subnetworks):
    """One gate per unit and step: a step's word vectors are those of the encoder with units it does not use shut off.

    A gate multiplies the output of its unit where the next matrix reads it, so a gate of 0 gives an exact 0. The gates
    of the step being learned are `sigmoid(scale · embedding)` in training, and in eval mode 1 where the embedding is
    above 0, else 0. After the step (`settle`), its gates are a fixed mask of zeros and ones.

    Attributes:
        embedding: of the newest step, `[layer, unit]` by family of units; the next step draws its own.
        masks: for each step, whether it uses a unit, `[layer, unit]` by family.
        scale: scale of the gates being learned; above 0.

    Raises:
        ModelError: if steps were learned without gates, which use every unit, or the kind of encoder is not supported.
    """

    options_class = HatOptions
    options: HatOptions

    def __init__(self, encoder: Encoder, options: HatOptions, *, first: int) -> None:
        super().__init__(encoder, options, first=first)
        if first > 1:
            raise ModelError(
                "this model has learned steps without hat, which use every unit of its encoder, so that none is free; "
                "teach a new model with hat from step 1, or list modules"
            )
        self.top(encoder)  # rejects an encoder whose layers cannot run on their own
        self._families = _families(encoder, options)
        self.embedding = nn.ParameterDict()
        self.masks = nn.ModuleDict()
        self.scale = 1.0
        self._learned: int | None = None

    @property
    def free(self) -> float:
        """Share of gated units that no finished step uses."""
        if not len(self.masks):
            return 1.0
        used = torch.cat([units.flatten() for units in self.used().values()])
        return 1 - int(used.sum()) / len(used)

    def used(self) -> dict[str, Bool[Tensor, "layer _"]]:
        """Tells, by family, which units any finished step uses; needs at least one step."""
        return {
            family: torch.stack([mask.get_buffer(family) for mask in self.masks.values()]).any(dim=0)
            for family in self._families
        }

    def gates(self, step: int) -> dict[str, Float[Tensor, "layer _"]]:
        """The gates of a step, by family: between 0 and 1 while it is trained, else 0 or 1."""
        if step != self._learned:
            mask = self.masks[str(step)]
            return {family: mask.get_buffer(family).float() for family in self._families}
        if self.training:
            return {family: torch.sigmoid(self.scale * found) for family, found in self.embedding.items()}
        return {family: (found > 0).float() for family, found in self.embedding.items()}

    def on_parameters(self, units: Mapping[str, Shaped[Tensor, "layer _"]]) -> dict[str, Tensor]:
        """Maps one value per unit to the parameters that feed the unit or read it.

        Args:
            units: the values, by family.

        Returns:
            Values by parameter name of the model, in shapes that broadcast to the parameters: for the rows and biases
            that feed a unit and the columns that read it. Nothing else in the gated layers depends on units.
        """
        found: dict[str, Tensor] = {}
        for name, rows in units.items():
            family = self._families[name]
            for row, feed, read in zip(rows, family.feed, family.read, strict=True):
                wide = row.repeat_interleave(family.width)
                found[f"encoder.{read}.weight"] = wide.unsqueeze(0)
                for module in feed:
                    found |= {f"encoder.{module}.weight": wide.unsqueeze(1), f"encoder.{module}.bias": wide}
        return found

    def learn(self, step: int) -> None:
        """Puts the gates of the newest step in training mode and gives them gradients."""
        self._learned = step
        self.train().requires_grad_(True)

    def settle(self) -> None:
        """Fixes the gates of the step that was learned as a mask of zeros and ones."""
        for family, found in self.embedding.items():
            self.masks[str(self._learned)].get_buffer(family).copy_(found > 0)
        self._learned = None

    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        """Draws the gate embeddings from N(0, 1), as the authors do: about half of the units are on at first."""
        mask = nn.Module()
        for name, family in self._families.items():
            shape = (len(family.read), family.units)
            self.embedding[name] = nn.Parameter(torch.randn(shape, generator=generator))
            mask.register_buffer(name, torch.zeros(shape, dtype=torch.bool))
        self.masks[str(step)] = mask

    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """Runs the layers below the gated ones once, then the gated layers with the gates of each step."""
        top = self.top(model.encoder)
        trunk = self._trunk(model, batch, top)
        views = {}
        for step in steps:
            with self._gated(model.encoder, step):
                hidden = trunk.states[0]
                for layer, call in zip(top, trunk.calls, strict=True):
                    hidden = apply_layer(layer, hidden, call)
            views[step] = words_of(hidden, batch)
        return views

    @contextmanager
    def _gated(self, encoder: Encoder, step: int) -> Iterator[None]:
        """Multiplies units by the gates of a step in every pass inside the context."""
        with ONE_PASS_AT_A_TIME, ExitStack() as hooks:
            for name, gates in self.gates(step).items():
                family = self._families[name]
                for gate, read in zip(gates, family.read, strict=True):
                    hook = gate_input(gate.repeat_interleave(family.width))
                    hooks.callback(encoder.get_submodule(read).register_forward_pre_hook(hook).remove)
            yield


def _families(encoder: Encoder, options: HatOptions) -> dict[str, _Family]:
    """The families of units that have gates.

    Raises:
        ModelError: if the modules of this kind of encoder are not known.
    """
    layers = find_layers(encoder)[-options.layers :]
    if not layers:
        kind = getattr(encoder.config, "model_type", "unknown")
        raise ModelError(
            f"strategy hat does not know the layers of a {kind} encoder; "
            "use a BERT, RoBERTa, ELECTRA, DistilBERT or DeBERTa-v2 encoder"
        )

    def inputs(read: str) -> int:
        module = encoder.get_submodule(read)
        assert isinstance(module, nn.Linear)
        return module.in_features

    read = tuple(layer.output for layer in layers)
    feed = tuple((layer.intermediate,) for layer in layers)
    found = {"intermediate": _Family(feed, read, inputs(read[0]), 1)}
    if options.heads:
        heads = int(encoder.config.num_attention_heads)
        joined = tuple(layer.joined for layer in layers)
        projections = tuple(layer.projections for layer in layers)
        found["heads"] = _Family(projections, joined, heads, inputs(joined[0]) // heads)
    return found
