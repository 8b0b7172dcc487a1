"""What every head must say: how it grows, scores words, is taught, imitates a teacher and is decoded."""

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
from ner_cl.model.losses import kd_sub, masked_mean, over_blocks

__all__ = ["Head"]


class Head(nn.Module, ABC):
    """An output layer on word vectors that gains a block of columns in every step.

    A head is a list of weight blocks, one a step, each its own matrix product. That keeps old logits equal to the last
    bit when a block is added, which one wider product would not promise, and lets an optimizer treat old and new rows
    differently.

    Attributes:
        known: for each block, the indices of the types that it has columns for, in the order of the columns.
        temperatures: for each block, what divides its logits where probabilities of spans are computed; 1 until
            measured. Tags do not depend on it.
    """

    name: str
    apart: ClassVar[bool] = False
    """Whether blocks share nothing, so that each may read word vectors of its own."""
    tags_words: ClassVar[bool] = True
    """Whether columns are scores of a word's tags; otherwise scores of spans are made of them."""
    without_effect: ClassVar[tuple[str, ...]] = ("width", "max_words")
    """Names of `HeadOptions` that this head does not know."""

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
        """Adds the block for `types`; every old row stays as it is.

        Args:
            types: the new types, in order.
            generator: draws the new rows.
            width: size of the word vectors that the block reads, where it is not that of the encoder.
            covers: older types that the block has columns for too, behind those of its own.
        """
        self.tagset = self.tagset.grow(types)
        self.known.append(tuple(self.tagset.types.index(type_) for type_ in (*types, *covers)))
        # One softmax over all types keeps the temperature it has until another one is measured.
        self.temperatures.append(1.0 if self.apart else [1.0, *self.temperatures][-1])
        block = nn.Linear(width or self.hidden, self._new_columns(len(types) + len(covers)))
        self._start(block, generator)
        self.blocks.append(block)

    @property
    def longest_span(self) -> int | None:
        """Words of the longest span that can be found; None where there is no limit."""
        return None

    @property
    def votes(self) -> bool:
        """Whether blocks vote, so that several may know the same type."""
        return False

    @property
    def knows_older(self) -> bool:
        """Whether a block knows types of earlier steps too."""
        return any(len(known) > len(types) for known, types in zip(self.known, self.tagset.steps, strict=True))

    def measured(self, step: int) -> tuple[float, ...]:
        """What was measured of a step's block (from 1), which turns its logits into scores."""
        return (self.temperatures[step - 1],)

    def measured_as(self, other: "Head") -> None:
        """Takes over what was measured of the blocks of a head with the same steps and options."""
        self.temperatures = list(other.temperatures)

    def merge_by(self, merge: str) -> None:
        """Has blocks merged in another way from now on; see `HeadOptions.merge`.

        Raises:
            ModelError: if there is nothing to merge, or not in this way.
        """
        raise ModelError(f"head {self.name} has one output for all types, so there are no blocks to merge")

    def reset(self) -> None:
        """Forgets all types."""
        self.tagset = Tagset()
        self.blocks = nn.ModuleList()
        self.known = []
        self.temperatures = []

    def scores(self, words: Float[Tensor, "row word hidden"]) -> list[Float[Tensor, "row word _"]]:
        """The product of every block, in fp32 whatever the surrounding precision."""
        with torch.autocast(words.device.type, enabled=False):
            words = words.float()
            return [block(words) for block in self.blocks]

    def of_views(
        self, views: Mapping[int, Float[Tensor, "row word _"]], word_mask: Bool[Tensor, "row word"]
    ) -> "Emissions":
        """Tag scores where each step's block reads word vectors of its own, in fp32.

        Args:
            views: word vectors by step, from 1. The block of a step that is not there finds nothing.
            word_mask: which words are real.

        Raises:
            ModelError: if the head's blocks share columns between steps.
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
        """What a block of that shape scores that finds nothing: certainly `O`."""
        silent = torch.full_like(scores, -torch.inf)
        silent[..., 0] = 0.0
        return silent

    def _asked(self, emissions: Emissions, types: Collection[str] | None) -> list[int]:
        """Indices of the blocks that were computed and know one of some types."""
        return [
            index
            for index, known in enumerate(self.known)
            if emissions.computed(index + 1) and (types is None or any(self.tagset.types[i] in types for i in known))
        ]

    def _annotated_blocks(self, batch: Batch, emissions: Emissions) -> list[int]:
        """Indices of the blocks that were computed and have annotation in the batch."""
        annotated = batch.annotated_types
        return [
            index
            for index, known in enumerate(self.known)
            if emissions.computed(index + 1) and not annotated.isdisjoint(known)
        ]

    def of_scores(self, scores: Float[Tensor, "row word column"], word_mask: Bool[Tensor, "row word"]) -> "Emissions":
        """Emissions from the scores of all blocks side by side, as `Emissions.flat` gives them."""
        if not self.apart:
            return Emissions((scores,), word_mask)
        widths = [self._new_columns(len(known)) for known in self.known]
        return Emissions(torch.split(scores, widths, dim=-1), word_mask)

    @property
    def columns(self) -> int:
        """Of all blocks together."""
        return sum(block.out_features for block in self.blocks if isinstance(block, nn.Linear))

    def new_block(self) -> nn.Linear:
        """The block of the newest step."""
        block = self.blocks[-1]
        assert isinstance(block, nn.Linear)
        return block

    @torch.no_grad()
    def shift(self, amounts: Mapping[str, float]) -> None:
        """Adds to the logits of types, by name, of both their tags; only where columns are tags."""
        for block, known in zip(self.blocks, self.known, strict=True):
            bias = block.get_parameter("bias")
            first = len(bias) - 2 * len(known)  # behind `O`, where the block has one
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
        """How many columns a step with that many types adds."""

    @abstractmethod
    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Tag scores of words."""

    @abstractmethod
    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """Mean cross entropy over the words of the batch.

        Args:
            emissions: of the batch.
            batch: gives targets and the types they are complete for.
            unannotated: what `O` says of types that were not annotated: `negative` (that the word is none of them, as
                plain fine-tuning reads it) or `unknown` (nothing).
        """

    def as_annotated(self, scores: Float[Tensor, "row word tag"], batch: Batch) -> Float[Tensor, "row word tag"]:
        """Scores of all tags in which types of the newest step count as `O` in rows that are not annotated for them.

        A step of several types may have sentences that were annotated for some of them only. Here nothing changes:
        blocks of their own are left out of a loss where nothing is known.

        Args:
            scores: of one softmax over the tags of all types.
            batch: tells what each row is annotated for.
        """
        return scores

    def divergences(
        self, emissions: Emissions, teacher: Float[Tensor, "row word old"], *, temperature: float
    ) -> list[Float[Tensor, ""]]:
        """KL from a teacher to what each block says of old types, each a mean over words.

        Args:
            emissions: of the student.
            teacher: logits of the teacher, all its blocks side by side.
            temperature: both logits are divided by it.
        """
        terms = []
        start, old = 0, teacher.shape[-1]
        for block in emissions.blocks:
            said = teacher[..., start : start + block.shape[-1]]
            if said.shape[-1]:
                kl = kd_sub(said, block[..., : said.shape[-1]], temperature=temperature)
                terms.append(masked_mean(kl, emissions.word_mask))
            start = min(old, start + block.shape[-1])
        return terms

    def distillation(
        self, emissions: Emissions, batch: Batch, teacher: Float[Tensor, "row word old"], options: DistillOptions
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `ce` and `kd` of learning from gold for new types and from a teacher for old ones.

        Here both on every word: gold for annotated blocks, the teacher for old ones.

        Args:
            emissions: of the student.
            batch: with targets for the newest step.
            teacher: logits of the teacher, all its blocks side by side.
            options: weights and form.
        """
        kl = over_blocks(self.divergences(emissions, teacher, temperature=options.temperature), options.blocks)
        if options.scale:
            kl = kl * options.temperature**2
        ce = self.supervised(emissions, batch, unannotated="unknown")
        return {"ce": options.beta * ce, "kd": options.alpha * kl}

    def imitation(
        self,
        emissions: Emissions,
        teacher: Float[Tensor, "row word old"],
        *,
        temperature: float,
        blocks: Literal["sum", "mean"] = "sum",
    ) -> Float[Tensor, ""]:
        """KL from a teacher on words of which nothing is known: it leaves open whether they are of new types.

        Args:
            emissions: of the student.
            teacher: logits of the teacher, all its blocks side by side.
            temperature: both logits are divided by it.
            blocks: how those of old blocks are put together.

        Returns:
            A mean over words.
        """
        return over_blocks(self.divergences(emissions, teacher, temperature=temperature), blocks)

    @abstractmethod
    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """Legal tag ids of the joint tagset, 0 where padded; only of `types` where they are given."""

    def spans(
        self, emissions: Emissions, *, types: Collection[str] | None = None, nested: bool = False
    ) -> Int[Tensor, "span 4"]:
        """What is found: row, first word, one past the last word, index of the type.

        Args:
            emissions: of any batch.
            types: only these.
            nested: what is found where nothing competes, so that spans may overlap. A head with one output for all
                types has no such reading, and finds the same.
        """
        return spans_of_rows(self.decode(emissions, types=types))

    def coupling(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Float[Tensor, "row word"]:
        """Where rows may be cut without a change of what `decode` says of `types`; see `ner_cl.model.decode`."""
        return coupling(emissions.blocks[0].float(), emissions.word_mask)

    def decisions(self, emissions: Emissions) -> list[Float[Tensor, "decision choice"]]:
        """For each block the logits of all that it decides about real words, one choice of several each: here a tag."""
        return [block[emissions.word_mask].float() for block in emissions.blocks]

    def summed_logits(
        self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
    ) -> list[Float[Tensor, ""]]:
        """For each step, the sum of all logits of its columns over all real words: what says how a step is computed."""
        mask = word_mask.unsqueeze(-1)
        return [torch.where(mask, scores, 0.0).sum() for scores in self.scores(words)]

    def gold_logits(self, emissions: Emissions, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the logits of the gold tags, over the words in mentions of the newest step's types."""
        block = emissions.blocks[-1]  # in which they are the last columns, whether or not others stand before them
        typed = batch.word_mask & (batch.targets > 2 * self.tagset.type_offset(len(self.tagset.steps)))
        index = (batch.targets - (len(self.tagset) - block.shape[-1])).clamp(min=0)
        logits = block.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return torch.where(typed, logits, torch.zeros_like(logits)).sum()

    @abstractmethod
    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """Probability of exactly each span `(row, start, end, type index)`, in [0, 1]."""
