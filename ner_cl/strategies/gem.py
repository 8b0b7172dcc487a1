"""GEM: no update against the gradient of any earlier step's memory (Lopez-Paz and Ranzato 2017, NeurIPS)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import HalfSpace
from ner_cl.strategies.memory import Memory, MemoryOptions
from ner_cl.strategies.references import References
from ner_cl.types import Sentence

__all__ = ["Gem", "GemOptions"]


class GemOptions(StrategyOptions, MemoryOptions):
    """Which sentences are kept, how many of them every update is compared with, and how strongly.

    Attributes:
        draw: remembered sentences of each earlier step an update; by default as many as make one training batch
            (`training.batch_tokens`).
        margin: least weight of every step's gradient in an update, the gradient of the new sentences having weight 1,
            once any of them is opposed (the paper's memory strength γ).
        ridge: added to the squared length of every step's gradient when weights are sought (the published code's ε);
            keeps weights small where gradients are.
    """

    name: Literal["gem"] = "gem"
    draw: int | None = Field(None, ge=1)
    margin: float = Field(0.5, ge=0)
    ridge: float = Field(1e-3, ge=0)


@strategies.register("gem")
@final
class Gem(Strategy):
    """Keeps a few sentences of every step, and no update may raise the loss on any step's, to first order.

    Where the update would, the nearest one that does not is taken in its place (Lopez-Paz and Ranzato 2017, equation
    11 and section 3). The loss of a remembered sentence is that of its own step's types only.
    """

    options_class = GemOptions
    options: GemOptions
    keeps = True
    excludes: ClassVar[Mapping[str, str]] = {
        "frozen": "frozen trains nothing but the new block after step 1, and there is nothing in it to protect",
        "joint": "joint trains on all earlier sentences anyway",
    }

    def __init__(self, options: GemOptions) -> None:
        super().__init__(options)
        self._memory = Memory(options)
        self._references: References | None = None

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Encodes the memory, once a step; there is nothing to gate."""
        self._references = References(context, self._memory.by_step(context.model.tagset.steps[:-1]))
        return {}

    def constraints(self, context: StepContext) -> Sequence[HalfSpace]:
        """The gradient on a draw of remembered sentences of each step, new ones at every update."""
        assert self._references is not None
        generator = context.generator(f"gem/{context.epoch}/{context.update}")
        found = []
        for group in self._references.groups:
            rows = self._references.draw([group], generator, count=self.options.draw, tokens=context.train_tokens)
            if gradient := self._references.gradient(context, rows, generator):
                found.append(HalfSpace(gradient, self.options.margin, self.options.ridge))
        return found

    def end_step(self, context: StepContext) -> None:
        """Chooses what to remember of this step."""
        self._memory.remember(context)

    def release(self) -> None:
        """Lets the encoded memory go."""
        self._references = None

    def kept_sentences(self) -> Sequence[Sentence]:
        """The memory."""
        return self._memory.sentences

    def load_sentences(self, sentences: Sequence[Sentence]) -> None:
        """Takes the memory back."""
        self._memory.load(sentences)
