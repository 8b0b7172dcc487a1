"""A-GEM: updates never oppose the mean gradient of remembered sentences (Chaudhry et al. 2019, ICLR)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

from pydantic import Field

from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.constraints import HalfSpace
from ner_cl.strategies.references import ReferenceOptions, ReferenceStrategy

__all__ = ["Agem", "AgemOptions"]


class AgemOptions(ReferenceOptions):
    """Which sentences are kept, and how many of them each update is compared with.

    Attributes:
        draw: number of remembered sentences per update, the same number from each earlier step; by default as many as
            fill a training batch (`training.batch_tokens`).
    """

    name: Literal["agem"] = "agem"
    draw: int | None = Field(None, ge=1)


@strategies.register("agem")
@final
class Agem(ReferenceStrategy):
    """Keeps a few sentences of every step; no update may raise the loss on a random draw of them, to first order.

    If an update would, its component against their gradient is removed (Chaudhry et al. 2019, equation 11). The loss of
    a remembered sentence covers only the types of its own step and so puts no constraint on other types.
    """

    options_class = AgemOptions
    options: AgemOptions
    excludes: ClassVar[Mapping[str, str]] = {
        "gem": "agem is gem with one reference in place of one a step",
        "joint": "joint trains on all earlier sentences anyway",
    }

    def constraints(self, context: StepContext) -> Sequence[HalfSpace]:
        """The gradient on remembered sentences, drawn anew for every update."""
        assert self._references is not None
        if not self._references.groups:
            return ()
        generator = context.generator(f"agem/{context.epoch}/{context.update}")
        rows = self._references.draw(
            self._references.groups, generator, count=self.options.draw, tokens=context.batch_tokens
        )
        gradient = self._references.gradient(context, rows, generator)
        return (HalfSpace(gradient),) if gradient else ()
