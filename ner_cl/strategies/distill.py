"""Knowledge distillation from the model before the step (Monaikul et al. 2021, AAAI)."""

from collections.abc import Sequence
from typing import Annotated, Literal, final

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch, rows_from
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.registry import heads, strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.mixing import mixed
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.teacher import Teacher
from ner_cl.types import Sentence

__all__ = ["Distill", "DistillStrategyOptions"]


# `alpha: auto`, measured in docs/results/defaults.md.
_ALPHA = 0.5
_ALPHA_OF_FEW = 0.1
_FEW = 40  # sentences of a step


class DistillStrategyOptions(StrategyOptions, DistillOptions):
    """Options of the loss, how the teacher is run, and how much raw text it labels besides the step's sentences.

    The papers treat all words alike: `alpha: 1` and `mention_weight: 1`. By default a word outside mentions counts half
    as much as one of a new type, and one in a mention of an old type twice as much.

    Attributes:
        alpha: weight of the KL term; `auto` is 0.5, or 0.1 with raw text and fewer than 40 sentences: with a larger
            weight, so small a step memorises its mentions and finds no others.
        cache: run the teacher once over all words of the step and keep its outputs; `false` runs it beside the student
            in every update, which takes longer and gives the same targets.
        unlabeled: share of the rows of a batch that are raw in-domain text, if the step has any; 0 ignores such text.
        unlabeled_sentences: maximum number of sentences of raw text used in a step, drawn at random.
    """

    name: Literal["distill"] = "distill"
    alpha: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # type: ignore[assignment]  # a number for heads
    mention_weight: float = Field(4.0, ge=1)
    cache: bool = True
    unlabeled: float = Field(0.25, ge=0, le=0.95)
    unlabeled_sentences: int = Field(2000, ge=1)


@strategies.register("distill")
@final
class Distill(Strategy):
    """The student imitates the frozen model of the previous step on old types and learns new ones from gold.

    The head decides which words imitate what: see `AddNer.distillation` and `ExtendNer.distillation`, and
    `Head.imitation` for raw text, which has no annotation.
    """

    options_class = DistillStrategyOptions
    options: DistillStrategyOptions
    holds_old_types = True

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses options that the head does not read."""
        apart = heads[head.name].apart  # type: ignore[attr-defined]
        for name in ("form", "reduction") if apart else ("blocks",):
            if name in self.options.chosen:
                return f"has an option {name}, which has no effect with head {head.name}; leave it out"
        return ""

    @property
    def reads_unlabeled(self) -> bool:
        """True unless `unlabeled` or `alpha` is 0."""
        return self.options.unlabeled > 0 and self.options.alpha != 0

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, in eval mode and without gradients."""
        self._teacher = Teacher(context.model, cache=self.options.cache) if context.old_types else None
        self._loss: DistillOptions | None = None

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The step's sentences, followed by raw ones from step 2 on."""
        raw = context.unlabeled
        if not raw or self._teacher is None or not self.reads_unlabeled:
            return train
        drawn = context.at_most(raw, self.options.unlabeled_sentences, "distill/unlabeled")
        return [*train, *(Sentence(sentence.words) for sentence in drawn)]

    def plan(self, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
        """The batches with raw rows mixed in."""
        raw = rows_from(context.encoded.origins, "unlabeled")
        if not raw or self._teacher is None or not self.reads_unlabeled:
            return batches
        units = batches if context.keep_batches else [[row] for batch in batches for row in batch]
        lengths, ratio = context.encoded.lengths, self.options.unlabeled
        return mixed(units, raw, lengths, tokens=context.batch_tokens, ratio=ratio, generator=generator)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce`, `kd` and, on raw rows, `kd_raw`; in step 1, which has no teacher, plain cross entropy."""
        options, head, teacher = self._resolved(context), context.model.head, self._teacher

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if teacher is None:
                return {"ce": options.beta * head.supervised(emissions, batch, unannotated="unknown")}
            found = head.distillation(emissions, batch, teacher.logits_of(context, batch), options)
            if not options.alpha:
                del found["kd"]  # with a gradient of zeros, weight decay would shrink blocks that nothing trains
            return found

        def imitation(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if teacher is None or not options.alpha:
                return {}
            return {"kd_raw": head.imitation(emissions, teacher.logits_of(context, batch), options)}

        return on_rows(batch, emissions, terms) | on_rows(batch, emissions, imitation, "unlabeled")

    def _resolved(self, context: StepContext) -> DistillOptions:
        """The options of the loss, with a number for `alpha: auto`, which depends on the sentences trained on."""
        if self._loss is None:
            self._loss = options = self.options
            if options.alpha == "auto":
                few = len(context.encoded.sentences_from("own")) < _FEW
                beside_raw_text = self.reads_unlabeled and bool(context.unlabeled)
                self._loss = options.model_copy(update={"alpha": _ALPHA_OF_FEW if few and beside_raw_text else _ALPHA})
        return self._loss

    def release(self) -> None:
        """Releases the teacher and its targets."""
        self._teacher = None
