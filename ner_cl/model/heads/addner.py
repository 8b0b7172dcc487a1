"""AddNER: an output layer a step, each with its own `O` (Monaikul et al. 2021, AAAI, section 3.1)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.model.decode import span_log_probability
from ner_cl.model.heads.base import DistillOptions, Emissions, Head, hide_types
from ner_cl.model.losses import kd_sub, marginal_cross_entropy, masked_mean
from ner_cl.model.resolve import resolve
from ner_cl.registry import heads

__all__ = ["AddNer"]


@heads.register("addner")
@final
class AddNer(Head):
    """A softmax a step over `O` and the tags of that step's types; the conflict resolver merges them.

    Old blocks imitate the teacher on every word, the new block learns from gold on every word.
    """

    name = "addner"
    apart = True

    def _new_columns(self, types: int) -> int:
        return 2 * types + 1

    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Tag scores, one block a step."""
        return Emissions(tuple(self.scores(words)), word_mask)

    def of_views(
        self, views: Mapping[int, Float[Tensor, "row word _"]], word_mask: Bool[Tensor, "row word"]
    ) -> Emissions:
        """Each block's product with its own step's word vectors, in fp32; silence from blocks of other steps."""
        blocks = []
        for step, block in enumerate(self.blocks, start=1):
            if step in views:
                with torch.autocast(word_mask.device.type, enabled=False):
                    blocks.append(block(views[step].float()))
            else:
                assert isinstance(block, nn.Linear)
                blocks.append(_silence(block.weight.new_empty(*word_mask.shape, block.out_features)))
        return Emissions(tuple(blocks), word_mask)

    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """Cross entropy of every block that has annotation in the batch, summed over blocks.

        A block none of whose types is annotated gets no loss and no gradient in either reading of `O`: that is what a
        block of its own is for. Within a block that is annotated for some types, `unknown` leaves the others out.
        """
        total = emissions.blocks[-1][..., :0].sum()  # zero, but with a graph, as a batch may have no annotation at all
        for block, first, count in self._annotated_blocks(batch):
            targets = _local(batch.targets, first, count)
            annotated = batch.annotated[:, first : first + count]
            mask = batch.word_mask & annotated.any(dim=1, keepdim=True)
            if unannotated == "negative":
                annotated = torch.ones_like(annotated)
            total = total + masked_mean(marginal_cross_entropy(emissions.blocks[block], targets, annotated), mask)
        return total

    def distillation(
        self, emissions: Emissions, batch: Batch, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> dict[str, Float[Tensor, ""]]:
        """Both terms on every word: gold for annotated blocks, the teacher for old ones (section 3.1, equation of L).

        Each block has its own softmax, so the two forms of KL coincide here.
        """
        terms = []
        start = 0
        for block in emissions.blocks:
            if start == teacher.shape[-1]:
                break
            logits = teacher[..., start : start + block.shape[-1]]
            terms.append(masked_mean(kd_sub(logits, block, temperature=options.temperature), batch.word_mask))
            start += block.shape[-1]
        kl = torch.stack(terms).sum() if options.blocks == "sum" else torch.stack(terms).mean()
        if options.scale:
            kl = kl * options.temperature**2
        ce = self.supervised(emissions, batch, unannotated="unknown")
        return {"ce": options.beta * ce, "kd": options.alpha * kl}

    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """The conflict resolver over the blocks that know the types asked for; other blocks are not consulted."""
        log_probs = [torch.log_softmax(block.float(), dim=-1) for block in emissions.blocks]
        if types is not None:
            for index, step in enumerate(self.tagset.steps):
                if not any(type_ in types for type_ in step):
                    log_probs[index] = _silence(log_probs[index])
        tags = resolve(log_probs, emissions.word_mask, continuation=self.options.continuation)
        return hide_types(tags, self.tagset, types)

    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """Forward-backward probability of each span under the chain of the block that knows its type."""
        scores = emissions.blocks[0].new_zeros(len(spans), dtype=torch.float32)
        for index, block in enumerate(emissions.blocks):
            first = self.tagset.type_offset(index + 1)
            count = len(self.tagset.steps[index])
            own = ((spans[:, 3] >= first) & (spans[:, 3] < first + count)).nonzero().squeeze(-1)
            if len(own) == 0:
                continue
            local = spans[own] - torch.tensor([0, 0, 0, first], device=spans.device)
            log_probs = torch.log_softmax(block.float(), dim=-1)
            scores[own] = span_log_probability(log_probs, emissions.word_mask, local).exp().float()
        return scores

    def _annotated_blocks(self, batch: Batch) -> Iterator[tuple[int, int, int]]:
        """`(block, index of its first type, number of types)` of the blocks with annotation in the batch."""
        first = 0
        for block, types in enumerate(self.tagset.steps):
            if any(first <= index < first + len(types) for index in batch.annotated_types):
                yield block, first, len(types)
            first += len(types)


def _local(targets: Int[Tensor, "row word"], first: int, count: int) -> Int[Tensor, "row word"]:
    """Joint tag ids as ids of one block; tags of other blocks become its `O`."""
    own = (targets > 2 * first) & (targets <= 2 * (first + count))
    return torch.where(own, targets - 2 * first, torch.zeros_like(targets))


def _silence(scores: Float[Tensor, "row word tag"]) -> Float[Tensor, "row word tag"]:
    """What a block of that shape scores that always says `O`."""
    silent = torch.full_like(scores, -torch.inf)
    silent[..., 0] = 0.0
    return silent
