"""RDP: prototypical pseudo-labels and task relation distillation (Zhang et al. 2023, CIKM), and TBCL's duplets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch, EncodedSentences, rows_from
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import kd_full
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.duplets import Duplets, Erased, own_duplet
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.prototypes import TagMeans, distances_to, rectified
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.teacher import teacher_reads

__all__ = ["Rdp", "RdpOptions", "word_costs"]


class RdpOptions(StrategyOptions):
    """Weights of the terms other than cross entropy, and how pseudo-labels are made.

    Attributes:
        distillation: weight of the KL term, on words labelled `O`.
        soft_labels: weight of the cross entropy with soft labels, on all words.
        entropy: weight of the student's own entropy, on all words.
        prototypes: correct the teacher's pseudo-labels by how near a word is to the mean vector of each tag; `false`
            takes the tag that the teacher finds most likely.
        duplets: learn every sentence a second time without the words of new types (TBCL).
        consistency: with `duplets`: weight of the squared distance between the student's outputs for a word of an old
            type in the whole sentence and in the erased one.
    """

    name: Literal["rdp"] = "rdp"
    distillation: float = Field(2.0, ge=0)
    soft_labels: float = Field(0.3, ge=0)
    entropy: float = Field(0.1, ge=0)
    prototypes: bool = True
    duplets: bool = False
    consistency: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "RdpOptions":
        if not self.duplets and "consistency" in self.chosen:
            raise ValueError("consistency: has no effect without duplets; leave it out or set duplets: true")
        return self


@dataclass(frozen=True)
class _Answers:
    """The teacher's logits and pseudo-labels of words, by `Batch.word_numbers`."""

    logits: Float[Tensor, "word old"]
    labels: Int[Tensor, " word"]

    def of(self, batch: Batch) -> tuple[Float[Tensor, "row word old"], Int[Tensor, "row word"]]:
        """Logits and pseudo-labels for the words of a batch."""
        return self.logits[batch.word_numbers], self.labels[batch.word_numbers]


@strategies.register("rdp")
@final
class Rdp(Strategy):
    """Cross entropy on gold and on the teacher's pseudo-labels, plus distillation, soft-label and entropy terms.

    The teacher is the model before the step. Its answers do not depend on the student and are computed once, before the
    first update.
    """

    options_class = RdpOptions
    options: RdpOptions
    holds_old_types = True

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads without one softmax, as a pseudo-label is one tag out of all old ones."""
        return why_not_one_softmax(head)

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, until its answers are computed."""
        self._teacher = context.model.copy().eval().requires_grad_(False) if context.old_types else None
        self._answers: _Answers | None = None
        self._erased: tuple[Duplets, _Answers] | None = None

    def begin_stage(self, context: StepContext) -> None:
        """Computes the teacher's answers for all whole and erased sentences, then releases it."""
        teacher, self._teacher = self._teacher, None
        if teacher is None:
            return
        encoded = context.encoded
        own = rows_from(encoded.origins, "own")
        means = _prototypes(teacher, encoded, context, own) if self.options.prototypes else None
        self._answers = _ask(teacher, encoded, context, own, means)
        if self.options.duplets:
            duplets = Duplets(context)
            everything = range(len(duplets.encoded))
            self._erased = duplets, _ask(teacher, duplets.encoded, context, everything, means)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce`, `kd`, `soft_labels`, `entropy` and, with duplets, `consistency`; in step 1, plain cross entropy."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if not context.old_types:
                return {"ce": context.model.head.supervised(emissions, batch, unannotated="unknown")}
            assert self._answers is not None
            costs = self._costs(context, emissions, batch, self._answers)
            if self._erased is None:
                sums = {name: _sum(cost, batch.word_mask) for name, cost in costs.items()}
            else:
                times = 1 + own_duplet(batch).long()
                sums = {name: _sum(times * cost, batch.word_mask) for name, cost in costs.items()}
                for name, value in self._erased_sums(context, batch, emissions).items():
                    sums[name] = sums[name] + value if name in sums else value
            words = batch.word_mask.sum().clamp(min=1)
            return {name: value / words for name, value in sums.items()}

        return on_rows(batch, emissions, terms)

    def release(self) -> None:
        """Releases the teacher's answers."""
        self._answers, self._erased = None, None

    def _erased_sums(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Summed costs of the erased versions of a batch's rows, and of their distance from the whole rows."""
        assert self._answers is not None
        assert self._erased is not None
        duplets, answers = self._erased
        erased = duplets.of(batch)
        if erased is None:
            return {}
        with autocast(context.precision, context.model.device):
            of_erased = context.model(erased.batch, steps=context.trained_steps)
        costs = self._costs(context, of_erased, erased.batch, answers)
        sums = {name: _sum(cost, erased.batch.word_mask) for name, cost in costs.items()}
        if self.options.consistency:
            _, labels = self._answers.of(batch)
            sums["consistency"] = self.options.consistency * _distance(emissions, of_erased, erased, labels)
        return sums

    def _costs(
        self, context: StepContext, emissions: Emissions, batch: Batch, answers: _Answers
    ) -> dict[str, Float[Tensor, "row word"]]:
        """The weighted cost of each word in each term whose weight is not 0."""
        weights = {
            "ce": 1.0,
            "kd": self.options.distillation,
            "soft_labels": self.options.soft_labels,
            "entropy": self.options.entropy,
        }
        student_logits = emissions.blocks[0]
        annotated = context.model.head.as_annotated(student_logits, batch)
        costs = word_costs(student_logits, batch.targets, *answers.of(batch), annotated=annotated)
        return {name: weight * costs[name] for name, weight in weights.items() if weight}


def word_costs(
    logits: Float[Tensor, "row word tag"],
    targets: Int[Tensor, "row word"],
    teacher: Float[Tensor, "row word old"],
    labels: Int[Tensor, "row word"],
    *,
    annotated: Float[Tensor, "row word tag"] | None = None,
) -> dict[str, Float[Tensor, "row word"]]:
    """The cost of every word in each term of RDP.

    `ce`: cross entropy, on the pseudo-label where gold says `O`. `kd`: KL from teacher to student over all columns
    where gold says `O`, else 0. `soft_labels`: cross entropy to `softmax(σ(teacher), 1 at a gold tag of a new type)`.
    `entropy`: the student's entropy. The last two are means over columns, as in the authors' code, so their weights
    mean the same for any number of types.

    Args:
        logits: the student's logits.
        targets: gold tags, of new types only.
        teacher: the teacher's logits.
        labels: the teacher's pseudo-labels, among the old tags.
        annotated: the student's logits for `ce` and `kd` (`Head.as_annotated`), if different.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    read = logits if annotated is None else annotated
    read_log_probs = log_probs if read is logits else torch.log_softmax(read.float(), dim=-1)
    outside = targets == 0
    gold = F.one_hot(targets, logits.shape[-1]).float()[..., teacher.shape[-1] :]
    soft = torch.softmax(torch.cat([torch.sigmoid(teacher.float()), gold], dim=-1), dim=-1)
    chosen = torch.where(outside, labels, targets)
    divergence = kd_full(teacher, read, temperature=1.0)
    return {
        "ce": -read_log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1),
        "kd": torch.where(outside, divergence, torch.zeros_like(divergence)),
        "soft_labels": -(soft * log_probs).mean(dim=-1),
        "entropy": -(log_probs.exp() * log_probs).mean(dim=-1),
    }


def _prototypes(teacher: NerModel, encoded: EncodedSentences, context: StepContext, rows: Sequence[int]) -> TagMeans:
    """The mean vector of each old tag, over the words labelled `O` that the teacher gives this tag."""
    means = TagMeans(len(teacher.tagset.tags), teacher.encoder.hidden, teacher.device)
    for batch, vectors, logits in teacher_reads(teacher, encoded, context, rows):
        outside = batch.word_mask & (batch.targets == 0)
        means.add(vectors[outside], logits[outside].argmax(dim=-1))
    return means


def _ask(
    teacher: NerModel,
    encoded: EncodedSentences,
    context: StepContext,
    rows: Sequence[int],
    means: TagMeans | None,
) -> _Answers:
    """The teacher's logits and pseudo-labels of the words of some rows."""
    logits = torch.zeros(encoded.words, len(teacher.tagset.tags), device=teacher.device)
    labels = torch.zeros(encoded.words, dtype=torch.long, device=teacher.device)
    for batch, vectors, teacher_logits in teacher_reads(teacher, encoded, context, rows):
        numbers, scores = batch.word_numbers[batch.word_mask], teacher_logits[batch.word_mask]
        logits[numbers] = scores
        if means is not None:
            scores = rectified(scores, distances_to(means.means, means.known, vectors[batch.word_mask]))
        labels[numbers] = scores.argmax(dim=-1)
    return _Answers(logits, labels)


def _distance(
    emissions: Emissions, of_erased: Emissions, erased: Erased, labels: Int[Tensor, "row word"]
) -> Float[Tensor, ""]:
    """`Σ ‖ŷ(whole) - ŷ(erased)‖²` over words that are pseudo-labelled with an old type (TBCL, equation 10)."""
    whole = torch.softmax(erased.whole(emissions.blocks[0].float()), dim=-1)
    squares = (whole - torch.softmax(of_erased.blocks[0].float(), dim=-1)).square().sum(dim=-1)
    old = erased.whole(labels.unsqueeze(-1)).squeeze(-1) > 0
    return _sum(squares, erased.batch.word_mask & old)


def _sum(values: Float[Tensor, "row word"], mask: Bool[Tensor, "row word"]) -> Float[Tensor, ""]:
    return torch.where(mask, values, torch.zeros_like(values)).sum()
