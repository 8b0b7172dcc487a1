"""CFNER: words are learned together with those the teacher finds similar (Zheng et al. 2022, EMNLP)."""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from ner_cl.config import HeadOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import masked_mean, unknown_as_outside
from ner_cl.model.ner_model import NerModel
from ner_cl.registry import strategies
from ner_cl.strategies.balance import BalanceOptions, teacher_weight, word_factors
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.neighbours import Neighbours
from ner_cl.strategies.old_blocks import freeze_old_blocks
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.step_words import StepWords
from ner_cl.strategies.teacher import teacher_reads

__all__ = ["Cfner", "CfnerOptions", "joint_log_probs"]

_FIRST_THRESHOLD = 0.9  # of the curriculum; the threshold falls to 0 in the last epoch


class CfnerOptions(BalanceOptions):
    """How many neighbours count, and how the teacher's answers are used.

    Attributes:
        neighbours: number of neighbours of a word; the mean of their probabilities counts as much as the word's own. 0
            for none.
        candidates: only this many words of each kind, the first in the step, can be neighbours; 0 for all.
        columns: columns in which the neighbours of a word labelled `O` contribute probabilities: `all`, or only the
            `old` ones, over which they then sum to 1, as in the authors' code. With `old`, the neighbours can satisfy
            the loss alone: a word that drifts to a new type then gets no gradient back.
        sharpen: for a word labelled `O` in which the teacher finds an old type, imitate only the teacher's best tag.
        curriculum: treat such a word in this way, and use its neighbours, only where the student's highest probability
            among the old columns, `O` included, reaches a threshold, which falls from 0.9 in the first epoch to 0 in
            the last planned one; until then the word is imitated like others.
    """

    name: Literal["cfner"] = "cfner"
    reduction: Literal["mean_each", "sum_then_mean"] = "sum_then_mean"  # few words are typed: their own mean drowns KD
    neighbours: int = Field(3, ge=0)
    candidates: int = Field(5000, ge=0)
    columns: Literal["all", "old"] = "all"
    sharpen: bool = True
    curriculum: bool = False

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "CfnerOptions":
        if not self.neighbours and "candidates" in self.chosen:
            raise ValueError("candidates: has no effect with neighbours: 0; leave it out")
        if not self.neighbours and not self.sharpen and self.curriculum:
            raise ValueError("curriculum: has no effect with neighbours: 0 and sharpen: false; leave it out")
        return self


@dataclass(frozen=True)
class _Knowledge:
    """What the teacher knows about a step: its logits, the neighbours of words, and each word's factor in each term."""

    logits: Float[Tensor, "word old"]
    neighbours: Neighbours
    gold: Float[Tensor, " word"]
    imitation: Float[Tensor, " word"]


@strategies.register("cfner")
@final
class Cfner(Strategy):
    """Learns and imitates with probabilities that are half the word's own and half its nearest neighbours'.

    Zheng et al. 2022, "Distilling Causal Effect from Miscellaneous Other-Class for Continual Named Entity Recognition".
    Neighbours are of the same kind: words tagged with new types, or words labelled `O` in which the teacher finds an
    old type. Unlike in the authors' code, a term is a mean over the words of a batch that does not depend on what else
    is in the batch: words that contribute to a term are counted over the whole step (`reduction`).
    """

    options_class = CfnerOptions
    options: CfnerOptions
    holds_old_types = True

    def __init__(self, options: CfnerOptions) -> None:
        super().__init__(options)
        self._teacher: NerModel | None = None
        self._knowledge: _Knowledge | None = None

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads without one softmax over all tags."""
        return why_not_one_softmax(head)

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, in eval mode and without gradients."""
        self.release()
        if context.old_types:
            self._teacher = context.model.copy().eval().requires_grad_(False)

    def begin_stage(self, context: StepContext) -> None:
        """Freezes the rows of old types if `freeze_old_rows` is set."""
        if self.options.freeze_old_rows:
            freeze_old_blocks(context.model.head)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce` and `kd`; in step 1, which has no teacher, plain cross entropy."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if not context.old_types:
                return {"ce": context.model.head.supervised(emissions, batch, unannotated="unknown")}
            if self._teacher is not None:
                self._knowledge, self._teacher = self._ask_teacher(context, self._teacher), None
            assert self._knowledge is not None
            return self._terms(context, self._knowledge, batch, emissions.blocks[0])

        return on_rows(batch, emissions, terms)

    def release(self) -> None:
        """Releases teacher, targets and neighbours."""
        self._teacher = self._knowledge = None

    def _terms(
        self, context: StepContext, known: _Knowledge, batch: Batch, logits: Float[Tensor, "row word tag"]
    ) -> dict[str, Float[Tensor, ""]]:
        numbers, old = batch.word_numbers, known.logits.shape[-1]
        log_probs = torch.log_softmax(context.model.head.as_annotated(logits, batch).float(), dim=-1)
        target = torch.log_softmax(known.logits[numbers], dim=-1)
        answers = target.argmax(dim=-1)
        typed = batch.word_mask & (batch.targets > 0)
        defined = batch.word_mask & (batch.targets == 0) & (answers > 0)
        if self.options.curriculum:
            defined &= log_probs.detach()[..., :old].amax(dim=-1).exp() >= _threshold(context)
        joint = self._with_neighbours(context, known, batch, log_probs, typed, defined)
        ce = -joint.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        terms = {"ce": masked_mean(known.gold[numbers] * torch.where(typed, ce, 0.0), batch.word_mask)}
        new = logits.shape[-1] - old
        if weight := teacher_weight(self.options, old=old, new=new):
            kl = (target.exp() * (target - joint[..., :old])).sum(dim=-1)
            if self.options.sharpen:
                kl = torch.where(defined, -joint.gather(-1, answers.unsqueeze(-1)).squeeze(-1), kl)
            terms["kd"] = weight * masked_mean(known.imitation[numbers] * kl, batch.word_mask)
        return terms

    def _with_neighbours(
        self,
        context: StepContext,
        known: _Knowledge,
        batch: Batch,
        log_probs: Float[Tensor, "row word tag"],
        typed: Bool[Tensor, "row word"],
        defined: Bool[Tensor, "row word"],
    ) -> Float[Tensor, "row word tag"]:
        """The log-probabilities of words, joined with those of their neighbours where these count."""
        near = known.neighbours.table[batch.word_numbers]
        asked = (typed | defined) & (near >= 0).any(dim=-1)
        if not asked.any():
            return log_probs
        logits, real = known.neighbours.ask(context, near[asked])
        if (unknown := batch.unannotated(context.model.head.known[-1])) is not None:
            logits = unknown_as_outside(logits, unknown.unsqueeze(1).expand(*asked.shape, -1)[asked])
        if self.options.columns == "old":
            new = torch.arange(logits.shape[-1], device=logits.device) >= known.logits.shape[-1]
            logits = logits.masked_fill(defined[asked][:, None, None] & new, -torch.inf)
        joint = log_probs.clone()
        joint[asked] = joint_log_probs(log_probs[asked], logits, real)
        return joint

    def _ask_teacher(self, context: StepContext, teacher: NerModel) -> _Knowledge:
        """Runs the teacher once over all words of the step."""
        words = StepWords.of(context.encoded, context.model.device)
        logits = torch.empty(len(words.targets), len(teacher.tagset), device=context.model.device)
        found: list[tuple[Tensor, Tensor]] = []  # number and vector of every word that may have neighbours
        for batch, vectors, scores in teacher_reads(teacher, context.encoded, context):
            numbers, vectors, scores = (part[batch.word_mask] for part in (batch.word_numbers, vectors, scores))
            logits[numbers] = scores
            defined = words.outside[numbers] & (scores.argmax(dim=-1) > 0)
            kept = words.typed[numbers] | defined
            found.append((numbers[kept], vectors[kept]))
        numbers, order = torch.cat([part for part, _ in found]).sort()
        vectors = torch.cat([part for _, part in found])[order]
        neighbours = Neighbours(words, self.options.neighbours)
        for kind in (words.typed[numbers], words.outside[numbers]):
            neighbours.add(numbers[kind], vectors[kind], candidates=self.options.candidates)
        gold, imitation = (
            word_factors(self.options.reduction, counted, words.own) for counted in (words.typed, words.outside)
        )
        return _Knowledge(logits, neighbours, gold, imitation)


def joint_log_probs(
    own: Float[Tensor, "word tag"], near: Float[Tensor, "word near tag"], real: Bool[Tensor, "word near"]
) -> Float[Tensor, "word tag"]:
    """The log of a distribution that is half a word's own and half the mean of its neighbours'.

    Args:
        own: log-probabilities of words.
        near: logits of their neighbours.
        real: which neighbours exist, at least one for each word.
    """
    probs = torch.where(real.unsqueeze(-1), near.softmax(dim=-1), 0.0).sum(dim=1) / real.sum(dim=1, keepdim=True)
    return torch.logaddexp(own, probs.log()) - math.log(2)


def _threshold(context: StepContext) -> float:
    """The least probability that the student must give an old tag in this epoch."""
    return _FIRST_THRESHOLD * (context.epochs - context.epoch) / max(1, context.epochs - 1)
