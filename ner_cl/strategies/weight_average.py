"""Weight averaging: a weighted mean of the weights before and after a step."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.evaluate.counts import Counts, count_spans, micro_f1
from ner_cl.registry import strategies
from ner_cl.strategies.base import Settled, StepContext, Strategy

__all__ = ["WeightAverage", "WeightAverageOptions"]

# What `auto` tries, in this order, and from how many dev mentions on: fewer say too little of what a share costs.
_SHARES = (0.3, 0.2, 0.1)
_FEWEST_MENTIONS = 30


class WeightAverageOptions(StrategyOptions):
    """How much the old weights count, and for which parameters.

    Attributes:
        old_share: share of the weights before the step (λ), 0 to 1: 0 keeps the new weights, 1 restores the old ones.
            `auto` takes the largest of 0.3, 0.2 and 0.1 with which micro F1 of the new types on the step's dev
            sentences is no lower than with 0; 0 if there is none, or if these have fewer than 30 such mentions.
        parts: `all` averages every parameter that existed before the step; `encoder` leaves the head as trained.
    """

    name: Literal["weight_average"] = "weight_average"
    old_share: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.25
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
    settle_order = 1  # `auto` looks at what the new columns predict in the end
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
    def settle(self, context: StepContext) -> Settled | None:
        """Interpolates the weights towards their old values."""
        if not self._before:
            return None
        share, why_none = self._allowed(context) if self.options.old_share == "auto" else (self.options.old_share, "")
        self._go_back(context, share)
        self._before = {}
        return Settled(why_none or f"{share:g} of the old weights kept", {"old_share": share})

    def _go_back(self, context: StepContext, share: float) -> None:
        parameters: list[Tensor] = [context.model.get_parameter(name) for name in self._before]
        torch._foreach_lerp_(parameters, list(self._before.values()), share)

    def _allowed(self, context: StepContext) -> tuple[float, str]:
        """The largest share that costs the new types nothing on the dev sentences, and why it is 0; changes nothing."""
        counts = _count_new(context)
        reference = micro_f1(counts)
        mentions = sum(count.tp + count.fn for count in counts.values())
        if mentions < _FEWEST_MENTIONS:
            return 0.0, f"none of the old weights kept: only {mentions} mentions of new types in the dev sentences"
        if not reference:  # it cannot fall, so it says nothing
            return 0.0, "none of the old weights kept: F1 of the new types is 0 on the dev sentences"
        after = {name: context.model.get_parameter(name).detach().clone() for name in self._before}
        for share in _SHARES:
            self._go_back(context, share)
            f1 = micro_f1(_count_new(context))
            for name, tensor in after.items():
                context.model.get_parameter(name).copy_(tensor)
            if f1 is not None and f1 >= reference:
                return share, ""
        return 0.0, f"none of the old weights kept: even {_SHARES[-1]:g} lowers F1 of new types on the dev sentences"


def _count_new(context: StepContext) -> dict[str, Counts]:
    return count_spans(context.dev, context.predict(context.dev), context.types)
