"""Weight averaging: a weighted mean of the weights before and after a step."""

from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy

__all__ = ["WeightAverage", "WeightAverageOptions"]


class WeightAverageOptions(StrategyOptions):
    """How much the old weights count, and for which parameters.

    Attributes:
        old_share: share of the weights before the step (λ), 0 to 1: 0 keeps the new weights, 1 restores the old ones.
        parts: `all` averages every parameter that existed before the step; `encoder` leaves the head as trained.
    """

    name: Literal["weight_average"] = "weight_average"
    old_share: float = Field(0.5, ge=0, le=1)
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
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts every step from the pre-trained encoder, so there are no old weights to average with",
    }

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the current weights; none in step 1, where there is nothing to forget."""
        self._before: dict[str, Tensor] = {}
        if context.old_types and self.options.old_share > 0:
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

    def settle(self, context: StepContext) -> None:
        """Interpolates the weights towards their old values."""
        parameters: list[Tensor] = [context.model.get_parameter(name) for name in self._before]
        if parameters:
            with torch.no_grad():
                torch._foreach_lerp_(parameters, list(self._before.values()), self.options.old_share)
        self._before = {}
