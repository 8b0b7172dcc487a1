"""ExtendNER: one output layer that grows (Monaikul et al. 2021, AAAI, section 3.2)."""

from collections.abc import Collection
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ner_cl.data.batching import Batch
from ner_cl.model.decode import hide_types, span_log_probability, viterbi
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.losses import (
    cross_entropy_each,
    kd_full,
    kd_merged,
    kd_sub,
    marginal_cross_entropy,
    masked_mean,
    mention_weights,
    unknown_as_outside,
)
from ner_cl.registry import heads

__all__ = ["ExtendNer"]


@heads.register("extendner")
@final
class ExtendNer(Head):
    """One softmax over `O` and the tags of all types; each word learns either from gold or from the teacher.

    A word labelled with a type costs cross entropy over all columns, a word labelled `O` the KL from the teacher. Tags
    are decoded by Viterbi over legal IOB2 paths.
    """

    name = "extendner"
    without_effect = ("continuation", "merge", "width", "max_words")

    def _new_columns(self, types: int) -> int:
        return 2 * types + (0 if len(self.blocks) else 1)

    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Computes tag scores, as one block with all columns."""
        read = words if torch.is_grad_enabled() else None
        return Emissions((torch.cat(self.scores(words), dim=-1),), word_mask, words=read)

    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """Cross entropy over all columns, marginal over unannotated types if they are `unknown`."""
        logits = emissions.blocks[0]
        if unannotated == "unknown":
            return masked_mean(marginal_cross_entropy(logits, batch.targets, batch.annotated), batch.word_mask)
        return masked_mean(cross_entropy_each(logits, batch.targets), batch.word_mask)

    def as_annotated(self, scores: Float[Tensor, "row word tag"], batch: Batch) -> Float[Tensor, "row word tag"]:
        """Scores in which types of the newest step count as `O` in rows that are not annotated for them.

        See `Head.as_annotated` and `unknown_as_outside`. If every row is annotated for all of them, returns `scores`.
        """
        unknown = batch.unannotated(self.known[-1])
        return scores if unknown is None else unknown_as_outside(scores, unknown)

    def distillation(
        self, emissions: Emissions, batch: Batch, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> dict[str, Float[Tensor, ""]]:
        """One of the two terms for every word, chosen by its gold label (Monaikul et al. 2021, figure 2)."""
        logits = emissions.blocks[0]
        student = self.as_annotated(logits, batch) if options.form == "full" else logits[..., : teacher.shape[-1]]
        kl = (kd_full if options.form == "full" else kd_sub)(teacher, student, temperature=options.temperature)
        kl = kl * options.scaling * mention_weights(teacher, options.mention_weight)
        typed = batch.word_mask & (batch.targets > 0)
        outside = batch.word_mask & (batch.targets == 0)
        ce = cross_entropy_each(logits, batch.targets)
        if options.reduction == "mean_each":
            terms = {"ce": masked_mean(ce, typed), "kd": masked_mean(kl, outside)}
        else:
            # A word costs nothing in the other term but still counts in its mean.
            zero = torch.zeros_like(ce)
            terms = {
                "ce": masked_mean(torch.where(typed, ce, zero), batch.word_mask),
                "kd": masked_mean(torch.where(outside, kl, zero), batch.word_mask),
            }
        return {"ce": options.beta * terms["ce"], "kd": options.alpha * terms["kd"]}

    def imitation(
        self, emissions: Emissions, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> Float[Tensor, ""]:
        """KL from the teacher, with the new columns counted as `O`; see `kd_merged`."""
        kl = kd_merged(teacher, emissions.blocks[0], temperature=options.temperature)
        kl = kl * mention_weights(teacher, options.mention_weight)
        return options.alpha * (options.scaling * masked_mean(kl, emissions.word_mask))

    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """Viterbi over all columns (section 4.2 of the paper); other types are then hidden."""
        # No softmax: it would subtract the same constant from all tags of a word, and so from all paths.
        return hide_types(viterbi(emissions.blocks[0].float(), emissions.word_mask), self.tagset, types)

    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """Each span's forward-backward probability over legal paths, at the temperature of the last step."""
        tempered = emissions.blocks[0].float() / self.temperatures[-1]
        return span_log_probability(tempered, emissions.word_mask, spans).exp()
