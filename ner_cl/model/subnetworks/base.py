"""The interface of sub-networks: separate word vectors for each step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ner_cl.config import Options
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.data.tagset import Tagset
from ner_cl.model.encoder import Encoder
from ner_cl.model.precision import Precision
from ner_cl.model.subnetworks.cache import TrunkCache
from ner_cl.model.subnetworks.trunk import TrunkPass, run_trunk, top_layers

if TYPE_CHECKING:  # avoids a circular import, as a model holds its sub-networks
    from ner_cl.model.ner_model import NerModel

__all__ = ["SubnetworkOptions", "Subnetworks"]


class SubnetworkOptions(Options):
    """Options that rebuild the sub-networks of a saved model before their weights are loaded.

    Attributes:
        layers: number of encoder layers, counted from the top, that compute differently for each step; 0 is all.
    """

    name: str
    layers: int = Field(0, ge=0)


class Subnetworks(nn.Module, ABC):
    """The part of a model that computes word vectors for each step's block separately.

    Word vectors of a step depend only on parameters that never change after that step. Emissions of a block therefore
    stay the same to the last bit, whatever is learned later; a later step can show only where blocks are merged.

    Args:
        encoder: the shared encoder. It is not stored: every pass is given the model.
        options: kind and sizes.
        first: the first step that has a sub-network; the blocks of earlier steps read the encoder itself.

    Attributes:
        count: number of sub-networks.
        learns_like: whose learning rate the parameters use: that of the `encoder` if they are pre-trained, that of the
            `head` if they are new.
    """

    options_class: ClassVar[type[SubnetworkOptions]]
    learns_like: Literal["encoder", "head"] = "head"

    def __init__(self, encoder: Encoder, options: SubnetworkOptions, *, first: int) -> None:
        super().__init__()
        self.hidden = encoder.hidden
        self.options = options
        self.first = first
        self.count = 0
        self._cache: TrunkCache | None = None

    @property
    def free(self) -> float | None:
        """Share of the limited capacity that no step has taken yet; None if nothing can run out."""
        return None

    def grow(self, model: "NerModel", *, generator: torch.Generator | None = None) -> None:
        """Adds the sub-network of the next step.

        Args:
            model: the model this belongs to, before its head grows.
            generator: draws new parameters.
        """
        self._add(model, self.first + self.count, generator)
        self.count += 1

    def width(self, step: int) -> int:
        """Size of the word vectors that a step's block reads."""
        return self.hidden

    def covers(self, tagset: Tagset) -> tuple[str, ...]:
        """The older types that the next step's block has columns for besides its own.

        Args:
            tagset: the tagset before that step.
        """
        return ()

    def cache(self, model: "NerModel", encoded: EncodedSentences, *, batch_tokens: int, precision: Precision) -> None:
        """Runs the layers below the top once on the newest step's training sentences, for all training passes.

        Until `forget_cache`, their output for other sentences is kept too.

        Args:
            model: the model this belongs to, with those layers frozen.
            encoded: the training sentences.
            batch_tokens: word pieces per batch.
            precision: number format of the passes.
        """
        model.encoder.eval()
        self._cache = TrunkCache(
            model.encoder,
            encoded,
            self.top(model.encoder),
            whole=self._whole([]),
            batch_tokens=batch_tokens,
            precision=precision,
        )

    def forget_cache(self) -> None:
        """Drops the cache, so that every pass runs the encoder again."""
        self._cache = None

    def top(self, encoder: Encoder) -> list[nn.Module]:
        """The top layers, which compute differently for each step."""
        return top_layers(encoder, self.options.layers)

    def _trunk(
        self, model: "NerModel", batch: Batch, top: Sequence[nn.Module], shared: Sequence[int] = ()
    ) -> TrunkPass:
        """Runs the layers below the top, and the whole encoder if `shared` steps or sub-networks read its output."""
        whole = self._whole(shared)
        if self._cache is None:
            return run_trunk(model.encoder, batch, top, whole=whole)
        return self._cache.trunk_pass(batch) if self.training else self._cache.eval_pass(batch, whole=whole)

    def _whole(self, shared: Sequence[int]) -> bool:
        """Whether blocks of `shared` steps or sub-networks read the output of the whole encoder."""
        return bool(shared)

    @abstractmethod
    def learn(self, step: int) -> None:
        """Leaves only one step's own parameters in training mode and with gradients."""

    @abstractmethod
    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        """Creates the parameters of one step."""

    @abstractmethod
    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """Computes word vectors for the blocks of some steps, by step, the same whichever other steps are requested.

        Args:
            model: the model this belongs to.
            batch: any batch.
            steps: step numbers from 1, ascending.
        """
