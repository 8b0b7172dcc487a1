"""Learning without forgetting: cross entropy as labelled, and distillation on every word (Li & Hoiem 2016)."""

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.rows import cross_entropy_as_labelled, on_rows
from ner_cl.strategies.teacher import Teacher

__all__ = ["Lwf", "LwfOptions"]


class LwfOptions(StrategyOptions):
    """Weight and form of the distillation term, and how the teacher is run.

    Attributes:
        strength: weight of the distillation term (λ); 0 is plain fine-tuning.
        temperature: divides the logits of both teacher and student in the KL term.
        scale: multiply the KL term by temperature², so that its gradient does not shrink as the temperature rises. The
            paper has no such factor.
        cache: run the teacher once over all words of the step and keep its outputs; `false` runs it beside the student
            in every update, which takes longer and gives the same targets.
    """

    name: Literal["lwf"] = "lwf"
    strength: float = Field(1.0, ge=0)
    temperature: float = Field(2.0, gt=0, le=1000)
    scale: bool = True
    cache: bool = True


@strategies.register("lwf")
@final
class Lwf(Strategy):
    """Cross entropy on the new sentences as labelled, and imitation of the teacher's old columns on every word.

    Li & Hoiem 2016, "Learning without forgetting", equations 1 to 3. With AddNER and SpanKL, and sentences annotated
    for all types of the step, it is `distill` with `alpha` and `mention_weight` 1. With ExtendNER, the two terms
    contradict each other wherever a mention of an old type is labelled `O`; `distill` applies only one of them to each
    word.
    """

    options_class = LwfOptions
    options: LwfOptions
    holds_old_types = True

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, unless there is nothing to imitate."""
        imitates = context.old_types and self.options.strength > 0
        self._teacher = Teacher(context.model, cache=self.options.cache) if imitates else None

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce` and, with a teacher, `kd`."""
        teacher = self._teacher
        terms = cross_entropy_as_labelled(context.model.head, batch, emissions)
        if teacher is None:
            return terms

        def imitation(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            options = self.options
            teacher_logits = teacher.logits_of(context, batch)
            terms = context.model.head.divergences(emissions, teacher_logits, temperature=options.temperature)
            factor = options.temperature**2 if options.scale else 1.0
            return {"kd": options.strength * factor * torch.stack(terms).sum()}

        return {**terms, **on_rows(batch, emissions, imitation)}

    def release(self) -> None:
        """Releases the teacher and its targets."""
        self._teacher = None
