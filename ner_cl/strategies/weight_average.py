"""Weight averaging: a weighted mean of the weights before and after a step."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.evaluate.counts import count_spans, micro_f1
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy

__all__ = ["WeightAverage", "WeightAverageOptions"]

_SHARES = (0.3, 0.2, 0.1)  # what `auto` tries, in this order


class WeightAverageOptions(StrategyOptions):
    """How much the old weights count, and for which parameters.

    Attributes:
        old_share: share of the weights before the step (λ), 0 to 1: 0 keeps the new weights, 1 restores the old ones.
            `auto` takes the largest of 0.3, 0.2 and 0.1 with which micro F1 of the new types on the step's dev sentences
            is no lower than with 0; else 0, as without dev sentences.
        parts: `all` averages every parameter that existed before the step; `encoder` leaves the head as trained.
    """

    name: Literal["weight_average"] = "weight_average"
    old_share: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    parts: Literal["all", "encoder"] = "all"


@strategies.register("weight_average")
@final
class WeightAverage(Strategy):
    """After a step, sets `θ ← λ·θ_before + (1 - λ)·θ_after` for parameters that existed before.

    The interpolation of Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3, once per step. The
    weights after step 1, where there is nothing to forget, and the new block stay as trained.
    """

    options_class = WeightAverageOptions
    options: WeightAverageOptions
    settles = 1  # `auto` looks at what the new columns predict in the end
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts every step from the pre-trained encoder, so there are no old weights to average with",
    }

    @property
    def reads_dev(self) -> bool:
        """True if the share is chosen on dev sentences."""
        return self.options.old_share == "auto"

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the current weights; none in step 1, where there is nothing to forget."""
        self._before: dict[str, Tensor] = {}
        if context.old_types and self.options.old_share != 0 and (context.dev or not self.reads_dev):
            self._before = {
                name: parameter.detach().clone()
                for name, parameter in context.model.named_parameters()
                if self.options.parts == "all" or name.startswith("encoder.")
            }

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Gates nothing; drops the copies of parameters that do not train in this step."""
        self._before = {
            name: tensor for name, tensor in self._before.items() if context.model.get_parameter(name).requires_grad
        }
        return {}

    @torch.no_grad()
    def settle(self, context: StepContext) -> None:
        """Interpolates the weights towards their old values."""
        if self._before:
            after = {name: context.model.get_parameter(name).detach().clone() for name in self._before}
            if self.options.old_share == "auto":
                self._choose(context, after)
            else:
                self._go_back(context, after, self.options.old_share)
        self._before = {}

    def _choose(self, context: StepContext, after: Mapping[str, Tensor]) -> None:
        """Goes back as far as the new types allow."""
        reference = self._new_f1(context)
        for share in _SHARES if reference else ():  # an F1 of 0 cannot fall, so it says nothing
            self._go_back(context, after, share)
            if self._new_f1(context) >= reference:
                return
        self._go_back(context, after, 0.0)

    def _go_back(self, context: StepContext, after: Mapping[str, Tensor], share: float) -> None:
        """Sets the weights to the mean of the old ones and `after`, of which `share` are old."""
        for name, before in self._before.items():
            context.model.get_parameter(name).copy_(torch.lerp(after[name], before, share))

    @staticmethod
    def _new_f1(context: StepContext) -> float:
        """Micro F1 of the new types on the dev sentences, 0 to 1."""
        counts = count_spans(context.dev, context.predict(context.dev), context.types)
        return micro_f1(counts) or 0.0
