"""The interface of heads: how they grow, score words, learn from gold, imitate a teacher and are decoded."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ner_cl.config import HeadOptions
from ner_cl.data.batching import Batch
from ner_cl.data.tagset import Tagset
from ner_cl.errors import ModelError
from ner_cl.model.decode import coupling, spans_of_rows
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.losses import kd_sub, masked_mean, mention_weights, over_blocks

__all__ = ["Head"]


class Head(nn.Module, ABC):
    """An output layer on word vectors that gains a block of columns in every step.

    A head is a list of weight blocks, one per step, each computed by a matrix product of its own. Old logits thus stay
    the same to the last bit when a block is added, which one wider product would not guarantee, and an optimizer can
    treat old and new rows differently.

    Attributes:
        known: for each block, the indices of the types that it has columns for, in column order.
        temperatures: for each block, the divisor of its logits when span probabilities are computed; 1 until measured.
            Tags do not depend on it.
    """

    name: str
    apart: ClassVar[bool] = False
    """Whether blocks share nothing, so that each may read its own word vectors."""
    tags_words: ClassVar[bool] = True
    """Whether columns are tag scores of a word; otherwise span scores are computed from them."""
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Names of `HeadOptions` that have no effect on this head."""

    def __init__(self, hidden: int, options: HeadOptions) -> None:
        super().__init__()
        self.hidden = hidden
        self.options = options
        self.tagset = Tagset()
        self.blocks = nn.ModuleList()
        self.known: list[tuple[int, ...]] = []
        self.temperatures: list[float] = []

    def grow(
        self,
        types: Sequence[str],
        *,
        generator: torch.Generator | None = None,
        width: int | None = None,
        covers: Sequence[str] = (),
    ) -> None:
        """Adds the block for `types`; old rows do not change.

        Args:
            types: the new types, in order.
            generator: draws the new rows.
            width: size of the word vectors that the block reads; that of the encoder by default.
            covers: older types that the block has columns for too, after those of `types`.
        """
        self.tagset = self.tagset.grow(types)
        self.known.append(tuple(self.tagset.types.index(type_) for type_ in (*types, *covers)))
        # One softmax over all types keeps its last temperature until a new one is measured.
        self.temperatures.append(1.0 if self.apart else [1.0, *self.temperatures][-1])
        block = nn.Linear(width or self.hidden, self._new_columns(len(types) + len(covers)))
        self._start(block, generator)
        self.blocks.append(block)

    @property
    def longest_span(self) -> int | None:
        """Maximum words of a span that can be found; None if there is no limit."""
        return None

    @property
    def votes(self) -> bool:
        """Whether blocks vote, so that several may know the same type."""
        return False

    @property
    def knows_older(self) -> bool:
        """Whether any block also knows types of earlier steps."""
        return any(len(known) > len(types) for known, types in zip(self.known, self.tagset.steps, strict=True))

    def measured(self, step: int) -> tuple[float, ...]:
        """The measured values that turn the logits of a step's block (from 1) into scores."""
        return (self.temperatures[step - 1],)

    def measured_as(self, other: "Head") -> None:
        """Copies the measured values of a head with the same steps and options."""
        self.temperatures = list(other.temperatures)

    def merge_by(self, merge: str) -> None:
        """Changes how blocks are merged from now on; see `HeadOptions.merge`.

        Raises:
            ModelError: if there are no blocks to merge, or they cannot be merged this way.
        """
        raise ModelError(f"head {self.name} has one output for all types, so there are no blocks to merge")

    def reset(self) -> None:
        """Forgets all types."""
        self.tagset = Tagset()
        self.blocks = nn.ModuleList()
        self.known = []
        self.temperatures = []

    def scores(self, words: Float[Tensor, "row word hidden"]) -> list[Float[Tensor, "row word _"]]:
        """Computes the matrix product of every block, in fp32 whatever the surrounding precision."""
        with torch.autocast(words.device.type, enabled=False):
            words = words.float()
            return [block(words) for block in self.blocks]

    def of_views(
        self, views: Mapping[int, Float[Tensor, "row word _"]], word_mask: Bool[Tensor, "row word"]
    ) -> "Emissions":
        """Computes tag scores, each step's block reading its own word vectors, in fp32.

        Args:
            views: word vectors by step, from 1. The block of a step that is missing finds nothing.
            word_mask: which words are real.

        Raises:
            ModelError: if the head shares columns between steps.
        """
        if not self.apart:
            raise ModelError(f"head {self.name} shares columns between steps, so that none has word vectors of its own")
        blocks = []
        for step, block in enumerate(self.blocks, start=1):
            assert isinstance(block, nn.Linear)
            if step in views:
                with torch.autocast(word_mask.device.type, enabled=False):
                    blocks.append(block(views[step].float()))
            else:
                blocks.append(self._silence(block.weight.new_zeros(*word_mask.shape, block.out_features)))
        return Emissions(tuple(blocks), word_mask, tuple(views))

    def _silence(self, scores: Float[Tensor, "row word column"]) -> Float[Tensor, "row word column"]:
        """Scores of this shape that find nothing: `O` with certainty."""
        silent = torch.full_like(scores, -torch.inf)
        silent[..., 0] = 0.0
        return silent

    def _asked(self, emissions: Emissions, types: Collection[str] | None) -> list[int]:
        """The indices of the blocks that were computed and know at least one of `types`."""
        return [
            index
            for index, known in enumerate(self.known)
            if emissions.computed(index + 1) and (types is None or any(self.tagset.types[i] in types for i in known))
        ]

    def _annotated_blocks(self, batch: Batch, emissions: Emissions) -> list[int]:
        """The indices of the blocks that were computed and know a type annotated in the batch."""
        annotated = batch.annotated_types
        return [
            index
            for index, known in enumerate(self.known)
            if emissions.computed(index + 1) and not annotated.isdisjoint(known)
        ]

    def of_scores(self, scores: Float[Tensor, "row word column"], word_mask: Bool[Tensor, "row word"]) -> "Emissions":
        """Builds emissions from the concatenated scores of all blocks; the inverse of `Emissions.flat`."""
        if not self.apart:
            return Emissions((scores,), word_mask)
        widths = [self._new_columns(len(known)) for known in self.known]
        return Emissions(torch.split(scores, widths, dim=-1), word_mask)

    @property
    def columns(self) -> int:
        """Number of columns of all blocks together."""
        return sum(block.out_features for block in self.blocks if isinstance(block, nn.Linear))

    def new_block(self) -> nn.Linear:
        """The block of the newest step."""
        block = self.blocks[-1]
        assert isinstance(block, nn.Linear)
        return block

    @torch.no_grad()
    def shift(self, amounts: Mapping[str, float]) -> None:
        """Adds an amount to both tag logits of each named type; only for heads whose columns are tags."""
        for block, known in zip(self.blocks, self.known, strict=True):
            bias = block.get_parameter("bias")
            first = len(bias) - 2 * len(known)  # after `O`, if the block has one
            for place, index in enumerate(known):
                start = first + 2 * place
                bias[start : start + 2] += amounts.get(self.tagset.types[index], 0.0)

    @torch.no_grad()
    def _start(self, block: nn.Linear, generator: torch.Generator | None) -> None:
        """Draws the rows of a new block."""
        block.weight.normal_(0.0, 0.02, generator=generator)
        block.bias.zero_()
        outside = self._outside_row()
        if outside is not None and self.options.new_rows == "outside" and block.in_features == self.hidden:
            block.to(outside.weight.device)
            block.weight.add_(outside.weight[0])
            block.bias.add_(outside.bias[0])

    def _outside_row(self) -> nn.Linear | None:
        """The block whose row 0 is the `O` that new rows may start from; None before the first step."""
        block = self.blocks[0] if len(self.blocks) else None
        assert block is None or isinstance(block, nn.Linear)
        return block

    @abstractmethod
    def _new_columns(self, types: int) -> int:
        """Number of columns that a block for this many types adds."""

    @abstractmethod
    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Computes tag scores of words."""

    @abstractmethod
    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """The loss of the gold annotation, on the scale of a mean over words; each head says how.

        Args:
            emissions: emissions of the batch.
            batch: has targets and the types they are complete for.
            unannotated: what `O` says about types that were not annotated: `negative` (the word is of none of them, as
                in plain fine-tuning) or `unknown` (nothing).
        """

    def as_annotated(self, scores: Float[Tensor, "row word tag"], batch: Batch) -> Float[Tensor, "row word tag"]:
        """Scores in which types of the newest step count as `O` in rows that are not annotated for them.

        A step of several types may have sentences that are annotated for only some of them. By default scores are
        returned unchanged: losses of separate blocks leave out what is not annotated.

        Args:
            scores: logits of one softmax over the tags of all types.
            batch: has the types that each row is annotated for.
        """
        return scores

    def divergences(
        self,
        emissions: Emissions,
        teacher: Float[Tensor, "row word old"],
        *,
        temperature: float,
        mention_weight: float = 1.0,
    ) -> list[Float[Tensor, ""]]:
        """KL from the teacher for each block with old columns, as a mean over words.

        Args:
            emissions: the student's.
            teacher: logits of the teacher, all its blocks concatenated.
            temperature: divides both logits.
            mention_weight: factor for words in mentions of the block's types; see `mention_weights`.
        """
        terms = []
        start, old = 0, teacher.shape[-1]
        for block in emissions.blocks:
            teacher_logits = teacher[..., start : start + block.shape[-1]]
            if teacher_logits.shape[-1]:
                kl = kd_sub(teacher_logits, block[..., : teacher_logits.shape[-1]], temperature=temperature)
                terms.append(masked_mean(kl * mention_weights(teacher_logits, mention_weight), emissions.word_mask))
            start = min(old, start + block.shape[-1])
        return terms

    def distillation(
        self, emissions: Emissions, batch: Batch, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> dict[str, Float[Tensor, ""]]:
        """Computes the loss terms `ce` (gold labels, for new types) and `kd` (the teacher, for old types).

        By default both apply to every word: gold to annotated blocks, the teacher to old blocks.

        Args:
            emissions: the student's.
            batch: has targets for the newest step.
            teacher: logits of the teacher, all its blocks concatenated.
            options: weights and form.
        """
        ce = self.supervised(emissions, batch, unannotated="unknown")
        return {"ce": options.beta * ce, "kd": self.imitation(emissions, teacher, options)}

    def imitation(
        self, emissions: Emissions, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> Float[Tensor, ""]:
        """Weighted KL from the teacher on words without annotation, which leaves open whether they are of new types.

        Args:
            emissions: the student's.
            teacher: logits of the teacher, all its blocks concatenated.
            options: weight and form.

        Returns:
            A mean over words.
        """
        weight, temperature = options.mention_weight, options.temperature
        terms = self.divergences(emissions, teacher, temperature=temperature, mention_weight=weight)
        return options.alpha * (options.scaling * over_blocks(terms, options.blocks))

    @abstractmethod
    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """Decodes legal tag ids of the joint tagset, 0 where padded; only of `types` if they are given."""

    def spans(
        self, emissions: Emissions, *, types: Collection[str] | None = None, nested: bool = False
    ) -> Int[Tensor, "span 4"]:
        """Finds spans, each as row, first word, one past the last word, index of the type.

        Args:
            emissions: emissions of any batch.
            types: find only these types; all by default.
            nested: do not let spans compete, so they may overlap. A head with one output for all types ignores it.
        """
        return spans_of_rows(self.decode(emissions, types=types))

    def coupling(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Float[Tensor, "row word"]:
        """Tells where rows may be cut without changing what `decode` finds of `types`; see `ner_cl.model.decode`."""
        return coupling(emissions.blocks[0].float(), emissions.word_mask)

    def decisions(self, emissions: Emissions) -> list[Float[Tensor, "decision choice"]]:
        """For each block, the logits of every decision it makes on real words; by default a tag per word."""
        return [block[emissions.word_mask].float() for block in emissions.blocks]

    def summed_logits(
        self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
    ) -> list[Float[Tensor, ""]]:
        """For each step, the sum of its block's logits over all real words."""
        mask = word_mask.unsqueeze(-1)
        return [torch.where(mask, scores, 0.0).sum() for scores in self.scores(words)]

    def gold_logits(self, emissions: Emissions, batch: Batch) -> Float[Tensor, ""]:
        """Sums the logits of the gold tags over the words in mentions of the newest step's types."""
        # Only `ogd` calls this, and it is refused where blocks know older types.
        block = emissions.blocks[-1]
        typed = batch.word_mask & (batch.targets > 2 * self.tagset.type_offset(len(self.tagset.steps)))
        index = (batch.targets - (len(self.tagset) - block.shape[-1])).clamp(min=0)
        logits = block.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return torch.where(typed, logits, torch.zeros_like(logits)).sum()

    @abstractmethod
    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """The probability, in [0, 1], of exactly each span `(row, start, end, type index)`."""
