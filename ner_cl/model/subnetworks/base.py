"""What gives every step word vectors of its own."""

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

if TYPE_CHECKING:  # a model holds its sub-networks, so importing it here would go round in a circle
    from ner_cl.model.ner_model import NerModel

__all__ = ["SubnetworkOptions", "Subnetworks"]


class SubnetworkOptions(Options):
    """What is needed to build the sub-networks of a model again, whose weights are read from its folder.

    Attributes:
        layers: layers of the encoder, counted from the top, that compute otherwise for each step; 0 is all of them.
    """

    name: str
    layers: int = Field(0, ge=0)


class Subnetworks(nn.Module, ABC):
    """The part of a model that computes word vectors for each step's block apart from those of other steps.

    What it computes for a step depends on parameters that are never changed after that step. Therefore emissions of a
    block stay the same to the last bit whatever is learned later; only where blocks are merged can a later step show.

    Args:
        encoder: the shared one. It is not kept: every pass is given the model.
        options: kind and sizes.
        first: the first step that has a sub-network; the blocks of earlier ones read the encoder itself.

    Attributes:
        count: sub-networks there are.
        learns_like: which learning rate suits the parameters: that of the `encoder` for pre-trained ones, that of the
            `head` for new ones.
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
        """The share that no step has taken yet of what steps share out among them; None where nothing can run out."""
        return None

    def grow(self, model: "NerModel", *, generator: torch.Generator | None = None) -> None:
        """Adds the sub-network of the next step.

        Args:
            model: the one this belongs to, before its head grows.
            generator: draws new parameters.
        """
        self._add(model, self.first + self.count, generator)
        self.count += 1

    def width(self, step: int) -> int:
        """Size of the word vectors that a step's block reads."""
        return self.hidden

    def covers(self, tagset: Tagset) -> tuple[str, ...]:
        """The older types that the next step's block has columns for beside its own.

        Args:
            tagset: before that step.
        """
        return ()

    def cache(self, model: "NerModel", encoded: EncodedSentences, *, batch_tokens: int, precision: Precision) -> None:
        """Runs the layers below once, for all passes in training mode, over what the newest step is trained on.

        Until `forget_cache`, what they make of others is kept too.

        Args:
            model: the one this belongs to, with those layers frozen.
            encoded: the sentences.
            batch_tokens: word pieces of a batch.
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
        """Has the encoder run with every pass again."""
        self._cache = None

    def top(self, encoder: Encoder) -> list[nn.Module]:
        """The layers that compute otherwise for each step."""
        return top_layers(encoder, self.options.layers)

    def _trunk(self, model: "NerModel", batch: Batch, shared: Sequence[int] = ()) -> TrunkPass:
        """What the layers below give, and where blocks of `shared` steps read it, what the encoder makes of that."""
        whole = self._whole(shared)
        if self._cache is None:
            return run_trunk(model.encoder, batch, self.top(model.encoder), whole=whole)
        return self._cache.trunk_pass(batch) if self.training else self._cache.eval_pass(batch, whole=whole)

    def _whole(self, shared: Sequence[int]) -> bool:
        """Whether what the encoder makes of a batch is needed, by blocks of `shared` steps or by sub-networks."""
        return bool(shared)

    @abstractmethod
    def learn(self, step: int) -> None:
        """Leaves only what one step has of its own in training mode and with gradients."""

    @abstractmethod
    def _add(self, model: "NerModel", step: int, generator: torch.Generator | None) -> None:
        """Makes the parameters of one step."""

    @abstractmethod
    def forward(
        self, model: "NerModel", batch: Batch, steps: Sequence[int]
    ) -> Mapping[int, Float[Tensor, "row word _"]]:
        """Word vectors for the blocks of some steps, by step; what they are does not depend on which others are asked.

        Args:
            model: the one this belongs to.
            batch: any batch.
            steps: from 1, ascending.
        """
