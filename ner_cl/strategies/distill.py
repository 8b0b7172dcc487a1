"""Knowledge distillation from the model before the step (Monaikul et al. 2021, AAAI)."""

import copy
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.model.heads.base import DistillOptions, Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.rows import on_rows

__all__ = ["Distill", "DistillStrategyOptions", "teacher_logits"]


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
        self._targets: Tensor | None = None
        self._teacher: NerModel | None = None
        if context.old_types:
            self._teacher = copy.deepcopy(context.model).eval().requires_grad_(False)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce` and `kd`; in step 1, where nobody knows better, plain cross entropy."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            head = context.model.head
            if not context.old_types:
                return {"ce": self.options.beta * head.supervised(emissions, batch, unannotated="unknown")}
            found = head.distillation(emissions, batch, self._teacher_says(context, batch), self.options)
            if not self.options.alpha:
                del found["kd"]  # or its gradient of zeros would have weight decay shrink blocks that nothing trains
            return found

        return on_rows(batch, emissions, terms, remembered=False)

    def release(self) -> None:
        """Lets teacher and targets go."""
        self._targets = self._teacher = None

    def _teacher_says(self, context: StepContext, batch: Batch) -> Float[Tensor, "row word old"]:
        if self._teacher is not None and not self.options.cache:
            with torch.no_grad(), autocast(context.precision, context.model.device):
                return self._teacher(batch).flat()  # type: ignore[no-any-return]
        if self._targets is None:
            assert self._teacher is not None
            assert context.encoded is not None
            self._targets = teacher_logits(self._teacher, context.encoded, context)
            self._teacher = None
        return self._targets[batch.word_numbers]


def teacher_logits(teacher: NerModel, encoded: EncodedSentences, context: StepContext) -> Float[Tensor, "word old"]:
    """The teacher's logits for every word of the step, all blocks side by side, by `Batch.word_numbers`.

    Args:
        teacher: in eval mode.
        encoded: the sentences of the step.
        context: gives batch size and precision.
    """
    device = teacher.device
    logits: Tensor | None = None
    for _, batch in encoded.in_length_order(context.batch_tokens):
        batch = batch.to(device)
        with torch.no_grad(), autocast(context.precision, device):
            flat = teacher(batch).flat()
        if logits is None:
            logits = torch.empty(encoded.words, flat.shape[-1], device=device)
        logits[batch.word_numbers[batch.word_mask]] = flat[batch.word_mask].float()
    assert logits is not None
    return logits
