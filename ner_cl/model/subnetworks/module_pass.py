"""One pass of a batch through modules that may read each other."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.model.encoder import words_of
from ner_cl.model.subnetworks.kinds import Kind
from ner_cl.model.subnetworks.trunk import TrunkPass

if TYPE_CHECKING:
    from ner_cl.model.ner_model import NerModel

__all__ = ["ModulePass"]


@final
class ModulePass:
    """Runs each module at most once per batch, however many other modules read it.

    Args:
        model: the model with the modules.
        batch: any batch.
        kind: kind of the modules.
        first: the first step that has a module; the blocks of earlier steps read the encoder itself.
        trunk: the encoder's own pass.
        top: the encoder's own top layers.
        run: computes the states of a step.
    """

    def __init__(
        self,
        model: "NerModel",
        batch: Batch,
        kind: Kind,
        *,
        first: int,
        trunk: TrunkPass,
        top: Sequence[nn.Module],
        run: Callable[[int, "ModulePass"], tuple[Tensor, ...]],
    ) -> None:
        self.model = model
        self.batch = batch
        self.kind = kind
        self.first = first
        self._by_word = kind.beside
        if kind.beside:  # such modules work word by word, so other pieces are dropped
            trunk = TrunkPass(tuple(words_of(state, batch) for state in trunk.states), trunk.calls)
        self.trunk = trunk
        self.top = top
        self._run = run
        self._states: dict[int, tuple[Tensor, ...]] = {}

    def words(self, states: Float[Tensor, "row place hidden"]) -> Float[Tensor, "row word hidden"]:
        """The states of the first piece of every word."""
        return states if self._by_word else words_of(states, self.batch)

    def states(self, step: int) -> tuple[Float[Tensor, "row place hidden"], ...]:
        """The states of a step's module: the input of its lowest layer, then the output of each layer."""
        if step < self.first:
            return self.trunk.states
        if step not in self._states:
            self._states[step] = self._run(step, self)
        return self._states[step]

    def frozen(self, step: int) -> tuple[Float[Tensor, "row place hidden"], ...]:
        """The states of a step for another module to read, without gradients."""
        with torch.no_grad():
            return tuple(state.detach() for state in self.states(step))
