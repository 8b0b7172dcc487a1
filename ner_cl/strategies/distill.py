"""Knowledge distillation from the model before the step (Monaikul et al. 2021, AAAI)."""

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.base import DistillOptions, Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.teacher import Teacher

__all__ = ["Distill", "DistillStrategyOptions"]


class DistillStrategyOptions(StrategyOptions, DistillOptions):
    """The loss's options, and how the teacher is run.

    Attributes:
        cache: ask the teacher once about every word of the step and keep the answers; without it, the teacher runs
            beside the student in every update, which costs time and gives the same targets.
    """

    name: Literal["distill"] = "distill"
    cache: bool = True


@strategies.register("distill")
@final
class Distill(Strategy):
    """The student imitates the frozen model of the step before on old types and learns new ones from gold.

    What is imitated where is the head's business: see `AddNer.distillation` and `ExtendNer.distillation`.
    """

    options_class = DistillStrategyOptions
    options: DistillStrategyOptions
    holds_old_types = True

    def begin_step(self, context: StepContext) -> None:
        """Keeps the model as it is now: in eval mode, without gradients."""
        self._teacher = Teacher(context.model, cache=self.options.cache) if context.old_types else None

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce` and `kd`; in step 1, where nobody knows better, plain cross entropy."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            head = context.model.head
            if not context.old_types:
                return {"ce": self.options.beta * head.supervised(emissions, batch, unannotated="unknown")}
            assert self._teacher is not None
            found = head.distillation(emissions, batch, self._teacher.says(context, batch), self.options)
            if not self.options.alpha:
                del found["kd"]  # or its gradient of zeros would have weight decay shrink blocks that nothing trains
            return found

        return on_rows(batch, emissions, terms)

    def release(self) -> None:
        """Lets teacher and targets go."""
        self._teacher = None
