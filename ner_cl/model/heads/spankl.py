"""SpanKL: one score per span and type, without any `O` (Zhang & Chen 2023, AAAI)."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.bands import crossing, non_maximum_suppression, span_band, tags_of_disjoint, within
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import bernoulli_kl, mention_weights
from ner_cl.registry import heads

__all__ = ["SpanKl"]

_PRIOR = -4.0  # logit of every span from the biases of a new block alone: a probability of 1.8 %
_MARGIN = 1e-4  # a logit this close to 0 may change sign by rounding
_NEVER = -1e4  # logit of spans whose block was not computed: a probability of zero in fp32


@heads.register("spankl")
@final
class SpanKl(Head):
    """A yes/no decision for every span and type: in training nothing competes, and the spans found may overlap.

    A block gives each word two vectors per type, as the first and as the last word of a span; the logit of a span is
    the scaled product of the two. Emissions are these vectors, so they are only as long as the row. Scores of spans of
    up to `HeadOptions.max_words` words are computed from them when needed.
    """

    name = "spankl"
    apart = True
    tags_words = False
    without_effect = ("new_rows", "continuation", "merge")

    def grow(
        self,
        types: Sequence[str],
        *,
        generator: torch.Generator | None = None,
        width: int | None = None,
        covers: Sequence[str] = (),
    ) -> None:
        """Adds the block for `types`; see `Head.grow`.

        Raises:
            ModelError: if older types are to be covered too, which only blocks that vote can do.
        """
        if covers:
            raise ModelError("blocks of head spankl do not vote, so none can know older types too; use head addner")
        super().grow(types, generator=generator, width=width)

    @property
    def longest_span(self) -> int:
        """`HeadOptions.max_words`."""
        return self.options.max_words

    def merge_by(self, merge: str) -> None:
        """Raises ModelError: overlapping spans are always resolved by their probability."""
        raise ModelError(f"head {self.name} has no votes to merge: overlapping spans are resolved by their probability")

    def _new_columns(self, types: int) -> int:
        return types * 2 * self.options.width

    @torch.no_grad()
    def _start(self, block: nn.Linear, generator: torch.Generator | None) -> None:
        """Draws the rows and sets biases that make every span unlikely.

        Nearly all spans are not mentions. A block that starts undecided spends its first updates on learning just that
        (Lin et al. 2017, section 3.3, "prior").
        """
        super()._start(block, generator)
        first, last = block.bias.view(-1, 2, self.options.width).unbind(1)
        first.fill_((-_PRIOR) ** 0.5 * self.options.width**-0.25)
        last.copy_(-first)

    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Computes both vectors of every word for every type, one block per step."""
        return Emissions(tuple(self.scores(words)), word_mask)

    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """Binary cross entropy: summed over spans, averaged over a row's types, divided by all words.

        A block none of whose types is annotated gets no loss and no gradient, whatever `unannotated` is. In a block
        with some of its types annotated, `unknown` leaves the others out.
        """
        total = emissions.blocks[-1][..., :0].sum()  # zero with a graph, as a batch may have no annotation at all
        blocks = self._annotated_blocks(batch, emissions)
        if not blocks:
            return total
        annotated = [batch.annotated[:, list(self.known[block])] for block in blocks]
        if unannotated == "negative":
            annotated = [known.any(dim=1, keepdim=True).expand_as(known) for known in annotated]
        counted = torch.cat(annotated, dim=1).float()  # [row, type]
        band = self._band(emissions.blocks[block] for block in blocks)
        gold = self._gold(batch, self._types(blocks), band)
        cost = F.binary_cross_entropy_with_logits(band, gold, reduction="none")
        share = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        return total + self._mean(cost * share[:, None, None, :], batch.word_mask)

    def divergences(
        self,
        emissions: Emissions,
        teacher: Float[Tensor, "row word old"],
        *,
        temperature: float,
        mention_weight: float = 1.0,
    ) -> list[Float[Tensor, ""]]:
        """KL of yes/no decisions for each old block: summed over spans, averaged over types, divided by all words."""
        terms = []
        start, old = 0, teacher.shape[-1]
        for block in emissions.blocks:
            if start == old:
                break
            teacher_logits = self._band([teacher[..., start : start + block.shape[-1]]])
            kl = bernoulli_kl(teacher_logits, self._band([block]), temperature=temperature)
            kl = kl * mention_weights(teacher_logits, mention_weight, decisions=True)
            terms.append(self._mean(kl / kl.shape[-1], emissions.word_mask))
            start += block.shape[-1]
        return terms

    def spans(
        self, emissions: Emissions, *, types: Collection[str] | None = None, nested: bool = False
    ) -> Int[Tensor, "span 4"]:
        """Finds spans of probability above 0.5; unless nested, most probable first, skipping those that overlap one."""
        blocks = self._asked(emissions, types)
        if not blocks:
            return emissions.word_mask.new_zeros(0, 4, dtype=torch.long)
        band = self._shown(emissions, blocks, types)
        row, start, more, column = (band > 0).nonzero(as_tuple=True)
        found = torch.stack([row, start, start + more + 1, self._types(blocks)[column]], dim=1)
        return found if nested else found[non_maximum_suppression(found, band[row, start, more, column])]

    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """The tags of the spans left after resolving overlaps; types that are not asked for do not compete."""
        return tags_of_disjoint(self.spans(emissions, types=types), emissions.word_mask)

    def coupling(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Float[Tensor, "row word"]:
        """The probability of the likeliest span with a word and the one before it; infinite if it would be found."""
        blocks = self._asked(emissions, types)
        mask = emissions.word_mask
        if not blocks:
            return torch.zeros_like(mask, dtype=torch.float).masked_fill(~mask, torch.inf)
        best = crossing(self._shown(emissions, blocks, types).amax(-1))
        return best.sigmoid().masked_fill((best > -_MARGIN) | ~mask, torch.inf)

    def decisions(self, emissions: Emissions) -> list[Float[Tensor, "decision choice"]]:
        """For each block, the logits of no and yes for every span and type."""
        inside = within(emissions.word_mask, self.options.max_words)
        logits = [self._band([block])[inside].flatten() for block in emissions.blocks]
        return [torch.stack([torch.zeros_like(yes), yes], dim=-1) for yes in logits]

    def summed_logits(
        self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
    ) -> list[Float[Tensor, ""]]:
        """For each step, the sum of the logits of all spans and all types of its block."""
        inside = within(word_mask, self.options.max_words)
        return [self._band([columns])[inside].sum() for columns in self.scores(words)]

    def gold_logits(self, emissions: Emissions, batch: Batch) -> Float[Tensor, ""]:
        """Sums the logits of the gold spans of the newest step's types."""
        band = self._band(emissions.blocks[-1:])
        return (band * self._gold(batch, self._types([len(self.blocks) - 1]), band)).sum()

    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """The probability of each span by itself, at the temperature of its type's block."""
        row, start, end, type_ = spans.unbind(1)
        vectors = self._vectors(emissions.flat())
        product = (vectors[row, start, type_, 0] * vectors[row, end - 1, type_, 1]).sum(dim=-1)
        temperatures = [t for t, known in zip(self.temperatures, self.known, strict=True) for _ in known]
        scale = math.sqrt(self.options.width) * product.new_tensor(temperatures)[type_]
        return (product / scale).sigmoid()

    def _types(self, blocks: Sequence[int]) -> Int[Tensor, " type"]:
        """The indices of some blocks' types, in column order."""
        found = [type_ for block in blocks for type_ in self.known[block]]
        return torch.tensor(found, device=next(self.parameters()).device)

    def _vectors(self, columns: Float[Tensor, "row word column"]) -> Float[Tensor, "row word type 2 width"]:
        """The two vectors of every word for every type."""
        return columns.float().reshape(*columns.shape[:-1], -1, 2, self.options.width)

    def _band(self, blocks: Iterable[Float[Tensor, "row word _"]]) -> Float[Tensor, "row word length type"]:
        """The logit of every span for the types of some blocks."""
        vectors = self._vectors(torch.cat(list(blocks), dim=-1))
        return span_band(vectors[..., 0, :], vectors[..., 1, :], longest=self.options.max_words)

    def _shown(
        self, emissions: Emissions, blocks: Sequence[int], types: Collection[str] | None
    ) -> Float[Tensor, "row word length type"]:
        """The band of some blocks, -inf for types not asked for and spans that end outside the row."""
        band = self._band(emissions.blocks[block] for block in blocks)
        hidden = ~within(emissions.word_mask, self.options.max_words)[..., None]
        if types is not None:
            asked = [self.tagset.types[type_] in types for block in blocks for type_ in self.known[block]]
            hidden = hidden | ~torch.tensor(asked, device=hidden.device)
        return band.masked_fill(hidden, -torch.inf)

    def _gold(
        self, batch: Batch, types: Int[Tensor, " type"], band: Float[Tensor, "row word length type"]
    ) -> Float[Tensor, "row word length type"]:
        """A band of 1 for gold mentions and 0 for all other spans."""
        row, start, end, type_ = batch.spans.unbind(1)
        column = torch.full((len(self.tagset.types),), -1, device=types.device)
        column[types] = torch.arange(len(types), device=types.device)
        known = (column[type_] >= 0) & (end - start <= band.shape[2])
        gold = torch.zeros_like(band)
        gold[row[known], start[known], (end - start - 1)[known], column[type_[known]]] = 1
        return gold

    def _mean(self, costs: Float[Tensor, "row word length type"], mask: Bool[Tensor, "row word"]) -> Float[Tensor, ""]:
        """Sums the costs of all spans and types and divides by the number of words."""
        inside = within(mask, self.options.max_words)[..., None]
        return torch.where(inside, costs, torch.zeros_like(costs)).sum() / mask.sum().clamp(min=1)

    def _silence(self, columns: Float[Tensor, "row word column"]) -> Float[Tensor, "row word column"]:
        """Turns zeros into vectors that give every span a probability of zero, in place."""
        vectors = columns.view(*columns.shape[:-1], -1, 2, self.options.width)
        vectors[..., 0, 0], vectors[..., 1, 0] = _NEVER, math.sqrt(self.options.width)
        return columns
