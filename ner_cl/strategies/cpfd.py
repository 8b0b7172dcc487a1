"""CPFD: confident pseudo-labels, and distillation of attention as well as logits (Zhang et al. 2023, EMNLP)."""

from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import HeadOptions
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ModelError
from ner_cl.model.attention import AttentionRecorder, pooled_distance
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import cross_entropy_each, kd_full, masked_mean
from ner_cl.registry import strategies
from ner_cl.strategies.balance import BalanceOptions, teacher_weight, word_factors
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.confidence import PseudoLabels, pseudo_labels_of
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.old_blocks import freeze_old_blocks
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.step_words import StepWords
from ner_cl.strategies.teacher import Teacher

__all__ = ["Cpfd", "CpfdOptions"]


class CpfdOptions(BalanceOptions):
    """Which of the teacher's answers are believed, and what the student imitates.

    Attributes:
        floor: lower bound, in nats, of the entropy threshold, which is otherwise the median over the words with the
            same answer. The teacher's answer for a word labelled `O` becomes its label if the entropy of the answer is
            below the threshold.
        least_share: lower bound of the factor on a sentence's cross entropy, which is otherwise the share of its words
            labelled `O` whose answer is believed. With 0, a sentence in which nothing is believed does not teach new
            types either.
        type_balance: give words pseudo-labelled with old types more weight in sentences that have many of them.
        attention: weight of the distance between attention maps, besides the divergence of logits; 0 for none.
    """

    name: Literal["cpfd"] = "cpfd"
    floor: float = Field(1e-3, ge=0)
    least_share: float = Field(0.0, ge=0, le=1)
    type_balance: bool = True
    attention: float = Field(1.0, ge=0)


@strategies.register("cpfd")
@final
class Cpfd(Strategy):
    """Learns from gold and from the teacher's confident answers, and imitates its logits and attention maps.

    Zhang et al. 2023, "Continual Named Entity Recognition without Catastrophic Forgetting". Unlike in the authors'
    code, a term is a mean over the words of a batch that does not depend on what else is in the batch: words that
    contribute to a term are counted over the whole step (`reduction`), and attention is compared over the real pieces
    of each sentence.
    """

    options_class = CpfdOptions
    options: CpfdOptions
    holds_old_types = True

    def __init__(self, options: CpfdOptions) -> None:
        super().__init__(options)
        self._teacher: Teacher | None = None
        self._recorder: AttentionRecorder | None = None
        self._pseudo: PseudoLabels | None = None
        self._imitation: Float[Tensor, " word"] | None = None

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads without one softmax over all tags."""
        return why_not_one_softmax(head)

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, and starts recording the student's attention.

        Raises:
            ModelError: if attention is to be imitated and the encoder does not expose it.
        """
        self.release()
        if not context.old_types:
            return
        attends = self.options.attention * self.options.strength > 0
        self._teacher = Teacher(context.model, cache=True, attends=attends)
        if attends:
            try:
                self._recorder = AttentionRecorder(context.model.encoder)
            except ModelError as error:
                raise ModelError(f"strategy cpfd: {error} (attention: 0)") from error

    def begin_stage(self, context: StepContext) -> None:
        """Freezes the rows of old types if `freeze_old_rows` is set."""
        if self.options.freeze_old_rows:
            freeze_old_blocks(context.model.head)

    def begin_epoch(self, context: StepContext) -> None:
        """Makes all layers run if attention is recorded: the cached outputs of frozen layers do not include it."""
        if self._recorder is not None:
            context.model.encoder.shortcut = None

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce`, `kd` and `attention`; in step 1, which has no teacher, plain cross entropy."""
        whole, own = batch, rows_from(batch.origins, "own")  # attention is recorded for rows of all origins

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if self._teacher is None:
                return {"ce": context.model.head.supervised(emissions, batch, unannotated="unknown")}
            found = self._logit_terms(context, self._teacher, batch, emissions)
            if self._recorder is not None:
                layers = zip(self._recorder.of(whole), self._teacher.attention(context, batch), strict=True)
                distances = [
                    pooled_distance(student[own], teacher, batch.piece_mask > 0) for student, teacher in layers
                ]
                words = batch.word_mask.sum(dim=1)
                distance = (torch.stack(distances).mean(dim=0) * words).sum() / words.sum()
                found["attention"] = self.options.attention * self._weight(context) * distance
            return found

        return on_rows(batch, emissions, terms)

    def release(self) -> None:
        """Releases the teacher and what was computed for the step, and stops recording attention."""
        if self._recorder is not None:
            self._recorder.close()
        self._teacher = self._recorder = self._pseudo = self._imitation = None

    def _logit_terms(
        self, context: StepContext, teacher: Teacher, batch: Batch, emissions: Emissions
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy on believed labels, and the KL from the teacher on words labelled `O`."""
        if self._pseudo is None or self._imitation is None:
            self._pseudo, self._imitation = self._prepare(context, teacher)
        numbers, logits = batch.word_numbers, context.model.head.as_annotated(emissions.blocks[0], batch).float()
        ce = cross_entropy_each(logits, self._pseudo.labels[numbers])
        kl = kd_full(teacher.logits_of(context, batch), logits, temperature=1.0)
        found = {"ce": masked_mean(self._pseudo.weights[numbers] * ce, batch.word_mask)}
        if weight := self._weight(context):
            found["kd"] = weight * masked_mean(self._imitation[numbers] * kl, batch.word_mask)
        return found

    def _prepare(self, context: StepContext, teacher: Teacher) -> tuple[PseudoLabels, Float[Tensor, " word"]]:
        """The label and weight of every word of the step, and its factor in the imitation term."""
        options, words = self.options, StepWords.of(context.encoded, context.model.device)
        labels = pseudo_labels_of(
            words,
            teacher.logits(context),
            floor=options.floor,
            least_share=options.least_share,
            type_balance=options.type_balance,
        )
        labels = replace(labels, weights=labels.weights * word_factors(options.reduction, labels.believed, words.own))
        return labels, word_factors(options.reduction, words.outside, words.own)

    def _weight(self, context: StepContext) -> float:
        new = context.model.head.new_block().out_features
        return teacher_weight(self.options, old=len(context.model.tagset.tags) - new, new=new)
