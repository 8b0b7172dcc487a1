"""Options of losses that heads compute."""

from typing import Literal

from pydantic import Field

from ner_cl.config import Options

__all__ = ["DistillOptions"]


class DistillOptions(Options):
    """Weights and form of the distillation loss (Monaikul et al. 2021, section 3).

    Attributes:
        temperature: divides the logits of both teacher and student in the KL term.
        alpha: weight of the KL term.
        beta: weight of the cross entropy.
        form: ExtendNER: `full` normalises the student over all columns, `sub` over the teacher's columns only.
        reduction: ExtendNER: `sum_then_mean` takes one mean over all words; `mean_each` first averages KL and cross
            entropy over their own words in a batch, so the result depends on how sentences are batched.
        scale: multiply the KL term by temperature², so that its gradient does not shrink as the temperature rises.
        blocks: AddNER and SpanKL: `sum` or `mean` of the KL terms of the old blocks.
        mention_weight: how many times as much a word in a mention of an old type counts in the KL term as one outside,
            in proportion to the teacher's probability; 1 treats all words alike, as in the papers. SpanKL: the same
            for spans.
    """

    temperature: float = Field(2.0, gt=0, le=1000)
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(1.0, ge=0)
    form: Literal["full", "sub"] = "full"
    reduction: Literal["sum_then_mean", "mean_each"] = "sum_then_mean"
    scale: bool = True
    blocks: Literal["sum", "mean"] = "sum"
    mention_weight: float = Field(1.0, ge=1)

    @property
    def scaling(self) -> float:
        """What the KL term is multiplied by because of its temperature."""
        return self.temperature**2 if self.scale else 1.0
