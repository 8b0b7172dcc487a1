"""GEM: updates never oppose the gradient of any earlier step's memory (Lopez-Paz and Ranzato 2017, NeurIPS)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

from pydantic import Field

from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.constraints import HalfSpace
from ner_cl.strategies.references import ReferenceOptions, ReferenceStrategy

__all__ = ["Gem", "GemOptions"]


class GemOptions(ReferenceOptions):
    """Which sentences are kept, how many of them each update is compared with, and how strongly they count.

    Attributes:
        draw: number of remembered sentences per update from each earlier step; by default as many as fill a training
            batch (`training.batch_tokens`).
        margin: minimum weight of every earlier step's gradient in an update that opposes any of them (the paper's
            memory strength γ); the gradient of the new sentences has weight 1.
        ridge: added to the squared length of every step's gradient when weights are computed (the published code's ε);
            keeps weights small where gradients are small.
    """

    name: Literal["gem"] = "gem"
    draw: int | None = Field(None, ge=1)
    margin: float = Field(0.5, ge=0)
    ridge: float = Field(1e-3, ge=0)


@strategies.register("gem")
@final
class Gem(ReferenceStrategy):
    """Keeps a few sentences of every step; no update may raise the loss on those of any step, to first order.

    If an update would, the nearest one that does not replaces it (Lopez-Paz and Ranzato 2017, equation 11 and section
    3). The loss of a remembered sentence covers only the types of its own step.
    """

    options_class = GemOptions
    options: GemOptions
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint trains on all earlier sentences anyway",
    }

    def constraints(self, context: StepContext) -> Sequence[HalfSpace]:
        """The gradient on remembered sentences of each step, drawn anew for every update."""
        assert self._references is not None
        generator = context.generator(f"gem/{context.epoch}/{context.update}")
        found = []
        for group in self._references.groups:
            rows = self._references.draw([group], generator, count=self.options.draw, tokens=context.batch_tokens)
            if gradient := self._references.gradient(context, rows, generator):
                found.append(HalfSpace(gradient, self.options.margin, self.options.ridge))
        return found
