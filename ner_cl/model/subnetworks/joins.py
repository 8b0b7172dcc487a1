"""Joins: how the module of a step uses the modules of earlier steps.

No module reads a later one, so what old blocks read does not change. An earlier module that a later one reads is
frozen, and no gradient reaches it.
"""

from abc import ABC
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.model.subnetworks.kinds import Adapters, Kind
from ner_cl.model.subnetworks.module_pass import ModulePass
from ner_cl.model.subnetworks.trunk import apply_layer

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["Concatenation", "Fusion", "Join", "Separate", "Skip", "Stack", "Vote"]


class Join(nn.Module, ABC):
    """Leaves modules separate; a join overrides what lets its modules read more than their own states.

    Args:
        hidden: hidden size of the encoder.
        first: the first step with a module.
    """

    reads_others = False
    """Whether a module reads the states of its sources."""
    knows_older = False
    """Whether a step's block has columns for older types too."""

    def __init__(self, hidden: int, *, first: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = first
        self.steps = nn.ModuleDict()

    def sources(self, step: int) -> range:
        """The earlier steps that a module may read, oldest first.

        The blocks of all steps before the first module read the encoder, so only the last of these steps is a source.
        """
        return range(max(1, self.first - 1), step)

    def add(self, step: int, *, layers: int, model: "NerModel", generator: torch.Generator | None) -> None:
        """Creates the parameters through which a step's module reads others.

        Args:
            step: the step; its module exists already.
            layers: layers of a module.
            model: the model before its head grows.
            generator: draws new parameters.
        """

    def learn(self, step: int, kind: Kind) -> None:
        """Leaves only one step's own parameters, here and in its module, in training mode and with gradients."""
        self.eval().requires_grad_(False)
        kind.learn(step)
        if str(step) in self.steps:
            self.steps[str(step)].train().requires_grad_(True)

    def width(self, step: int) -> int:
        """Size of the word vectors that a step's block reads."""
        return self.hidden

    def below(
        self, step: int, number: int, hidden: Float[Tensor, "row place hidden"], run: ModulePass
    ) -> Float[Tensor, "row place hidden"]:
        """The input of a layer of a step's module.

        Args:
            step: whose module.
            number: index of the layer, from 0; one more than the last stands for the step's block.
            hidden: output of the layer below.
            run: the pass, with the states of sources.
        """
        return hidden

    def layer(
        self, step: int, number: int, hidden: Float[Tensor, "row place hidden"], run: ModulePass
    ) -> Float[Tensor, "row place hidden"]:
        """The output of a layer of a step's module, given its input as `hidden`."""
        return run.kind.layer(step, number, hidden, run.trunk, run.top)

    def words(self, step: int, run: ModulePass) -> Float[Tensor, "row word _"]:
        """Word vectors for the step's block."""
        return run.words(run.states(step)[-1])


@final
class Separate(Join):
    """Each module by itself."""


@final
class Vote(Join):
    """Each module by itself, but its block has columns for all types seen so far, so that blocks can vote."""

    knows_older = True


@final
class Concatenation(Join):
    """The block of step k reads `[h¹; …; hᵏ]`, the final states of all modules so far side by side.

    The encoder's own come first where the blocks of earlier steps read it.
    """

    reads_others = True

    def width(self, step: int) -> int:
        """`hidden` for each source and for the module itself."""
        return self.hidden * (len(self.sources(step)) + 1)

    def words(self, step: int, run: ModulePass) -> Float[Tensor, "row word _"]:
        """The final states of the sources, oldest first, then of the module itself."""
        states = [run.frozen(source)[-1] for source in self.sources(step)]
        return torch.cat([run.words(state) for state in (*states, run.states(step)[-1])], dim=-1)


@final
class Skip(Join):
    """Lateral connections, `hₖ + Σ_j U_kj h_j` (Rusu et al. 2016, "Progressive Neural Networks", equation 1).

    `h_j` is the output of the layer below in module j, and `U_kj` is zero at first. As in the paper, the lowest layer
    has none, since all modules start from the same states there, but the block on top does.
    """

    reads_others = True

    def add(self, step: int, *, layers: int, model: "NerModel", generator: torch.Generator | None) -> None:
        """Creates a zero matrix for each source and layer."""
        self.steps[str(step)] = nn.ModuleDict(
            {
                str(source): nn.ModuleList(_zero(self.hidden, self.hidden) for _ in range(layers))
                for source in self.sources(step)
            }
        )

    def below(
        self, step: int, number: int, hidden: Float[Tensor, "row place hidden"], run: ModulePass
    ) -> Float[Tensor, "row place hidden"]:
        """Adds the mapped states of each source at the same height, above the lowest layer."""
        if number == 0:
            return hidden
        laterals = self.steps[str(step)]
        assert isinstance(laterals, nn.ModuleDict)
        for source, matrices in laterals.items():
            assert isinstance(matrices, nn.ModuleList)
            hidden = hidden + matrices[number - 1](run.frozen(int(source))[number])
        return hidden

    def words(self, step: int, run: ModulePass) -> Float[Tensor, "row word _"]:
        """The final states with their lateral connections added."""
        return run.words(self.below(step, len(run.top), run.states(step)[-1], run))


@final
class Stack(Join):
    """The lowest layer of module k reads `h + Wₖ [hₖ₋₁; pₖ₋₁]`, with `Wₖ` zero at first.

    `hₖ₋₁` are the final states of the previous step, and `pₖ₋₁` the tag probabilities of its block, so a module can
    learn to find nothing where the previous one finds something.
    """

    reads_others = True

    def add(self, step: int, *, layers: int, model: "NerModel", generator: torch.Generator | None) -> None:
        """Creates the zero matrix, except for the very first step, which has no previous one."""
        if self.sources(step):
            self.steps[str(step)] = _zero(self.hidden + model.head.new_block().out_features, self.hidden)

    def below(
        self, step: int, number: int, hidden: Float[Tensor, "row place hidden"], run: ModulePass
    ) -> Float[Tensor, "row place hidden"]:
        """Adds the mapped final states and tag probabilities of the previous step, at the lowest layer."""
        if number or str(step) not in self.steps:
            return hidden
        seen = run.frozen(step - 1)[-1]
        with torch.no_grad(), torch.autocast(seen.device.type, enabled=False):
            probabilities = run.model.head.blocks[step - 2](seen.float()).softmax(dim=-1)
        added: Tensor = self.steps[str(step)](torch.cat([seen.float(), probabilities], dim=-1))
        return hidden + added


@final
class Fusion(Join):
    """Attention over the outputs of the adapters of all steps so far (Pfeiffer et al. 2021, "AdapterFusion").

    A step is learned in two stages: its adapter alone, then, with all adapters frozen, the attention over them. A
    buffer records whether the attention is on, so it is saved with the weights. The first adapter is not fused, as
    there is no other.
    """

    def add(self, step: int, *, layers: int, model: "NerModel", generator: torch.Generator | None) -> None:
        """Creates one attention per layer, turned off."""
        if step > self.first:
            self.steps[str(step)] = FusedLayers(self.hidden, layers, generator)

    def learn(self, step: int, kind: Kind) -> None:
        """Trains only the step's attention if it is on, else only its adapter."""
        self.eval().requires_grad_(False)
        if self.is_on(step):
            kind.eval().requires_grad_(False)
            self.steps[str(step)].train().requires_grad_(True)
        else:
            kind.learn(step)

    def is_on(self, step: int) -> bool:
        """Whether a step's module attends over all adapters so far."""
        return str(step) in self.steps and bool(self.fused(step).on)

    def fused(self, step: int) -> "FusedLayers":
        """The attention of a step."""
        part = self.steps[str(step)]
        assert isinstance(part, FusedLayers)
        return part

    def layer(
        self, step: int, number: int, hidden: Float[Tensor, "row place hidden"], run: ModulePass
    ) -> Float[Tensor, "row place hidden"]:
        """Runs the encoder's layer and adds to its output what the attention selects from the adapters."""
        if not self.is_on(step):
            return super().layer(step, number, hidden, run)
        assert isinstance(run.kind, Adapters)
        output = apply_layer(run.top[number], hidden, run.trunk.calls[number])
        adapters = [run.kind.bottleneck(other, number) for other in range(self.first, step + 1)]
        values = torch.stack([adapter(output) for adapter in adapters], dim=-2)
        added: Tensor = self.fused(step).layers[number](output, values)
        return output + added


@final
class FusedLayers(nn.Module):
    """The attention of one step, one part per layer.

    Args:
        hidden: hidden size of the encoder.
        layers: layers of a module.
        generator: draws queries and keys.
    """

    on: Tensor

    def __init__(self, hidden: int, layers: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AdapterAttention(hidden, generator) for _ in range(layers))
        self.register_buffer("on", torch.tensor(False))


@final
class AdapterAttention(nn.Module):
    """`Σ_n a_n V z_n`, with `a` the softmax of `q(h) · k(z_n)` over adapters n (Pfeiffer et al. 2021, equation 2).

    Args:
        hidden: size of its inputs and output.
        generator: draws queries and keys; `V` starts as the identity.
    """

    def __init__(self, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.normal_(0.0, 0.02, generator=generator)
                layer.bias.zero_()
            nn.init.eye_(self.value.weight)

    def forward(
        self, hidden: Float[Tensor, "row place hidden"], values: Float[Tensor, "row place adapter hidden"]
    ) -> Float[Tensor, "row place hidden"]:
        """Computes what is added to the states.

        Args:
            hidden: the layer's output, which gives the queries.
            values: what each adapter would add to it.
        """
        scores = (self.query(hidden)[..., None, :] * self.key(values)).sum(dim=-1)
        shares = scores.softmax(dim=-1)
        added: Tensor = (shares[..., None] * self.value(values)).sum(dim=-2)
        return added


def _zero(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
