"""AddNER: one output layer per step, each with its own `O` (Monaikul et al. 2021, AAAI, section 3.1)."""

from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ner_cl.config import HeadOptions, validate
from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.decode import coupling, hide_types, spans_of_rows, viterbi
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import marginal_cross_entropy, masked_mean
from ner_cl.model.merge import exclusive_scores, majority, span_probability, weighted_vote
from ner_cl.model.resolve import resolve
from ner_cl.registry import heads

__all__ = ["AddNer", "Ballot"]

_VOTES = ("majority", "vote")


@heads.register("addner")
@final
class AddNer(Head):
    """One softmax per step over `O` and the tags of that step's types, merged as `HeadOptions.merge` says.

    On every word, old blocks imitate the teacher and the new block learns from gold (section 3.1, equation of L). Each
    block has its own softmax, so the two forms of KL coincide here.

    Attributes:
        ballots: if blocks vote, weight and temperature of each block's vote.
    """

    name = "addner"
    apart = True
    without_effect = ("new_rows", "width", "max_words")  # the same row on all columns changes no softmax

    def __init__(self, hidden: int, options: HeadOptions) -> None:
        super().__init__(hidden, options)
        self.ballots = nn.ModuleList()

    @property
    def votes(self) -> bool:
        """Whether blocks vote, so that several may know the same type."""
        return self.options.merge in _VOTES

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
            ModelError: if older types are to be covered too and blocks do not vote.
        """
        if covers and not self.votes:
            raise ModelError(
                f"a block that knows older types too cannot be merged by {self.options.merge}; set head.merge: vote"
            )
        super().grow(types, generator=generator, width=width, covers=covers)
        if self.votes:
            self.ballots.append(Ballot())

    def measured(self, step: int) -> tuple[float, ...]:
        """The temperature of a step's block and, if blocks vote, weight and temperature of its vote."""
        found = super().measured(step)
        if not self.votes:
            return found
        ballot = self.ballot(step)
        return (*found, float(ballot.weight), float(ballot.temperature))

    def measured_as(self, other: Head) -> None:
        """Copies the temperatures and, if blocks vote, weight and temperature of each vote."""
        super().measured_as(other)
        assert isinstance(other, AddNer)
        self.ballots.load_state_dict(other.ballots.state_dict())

    def merge_by(self, merge: str) -> None:
        """Changes how blocks are merged from now on.

        Raises:
            ModelError: if blocks also know older types and `merge` is not a vote.
            ConfigError: if `merge` is unknown.
        """
        values = {**self.options.model_dump(), "merge": merge}
        if merge != "resolver":
            del values["continuation"]  # says how the resolver works
        options = validate(HeadOptions, values, "head")
        votes = options.merge in _VOTES
        if self.knows_older and not votes:
            raise ModelError(f"blocks of this model know older types too, so {merge} cannot merge them; use vote")
        self.options = options
        self.ballots.extend(Ballot() for _ in range(len(self.blocks) - len(self.ballots) if votes else 0))
        self.to(next(self.parameters()).device)

    def reset(self) -> None:
        """Forgets all types."""
        super().reset()
        self.ballots = nn.ModuleList()

    def ballot(self, step: int) -> "Ballot":
        """Weight and temperature of the vote of a step's block."""
        found = self.ballots[step - 1]
        assert isinstance(found, Ballot)
        return found

    def _new_columns(self, types: int) -> int:
        return 2 * types + 1

    def forward(self, words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]) -> Emissions:
        """Computes tag scores, one block per step."""
        return Emissions(tuple(self.scores(words)), word_mask)

    def supervised(
        self, emissions: Emissions, batch: Batch, *, unannotated: Literal["negative", "unknown"]
    ) -> Float[Tensor, ""]:
        """Sums the cross entropy of all blocks that have annotation in the batch.

        A block none of whose types is annotated gets no loss and no gradient, whatever `unannotated` is: this is the
        point of separate blocks. In a block with some of its types annotated, `unknown` leaves the others out.
        """
        total = emissions.blocks[-1][..., :0].sum()  # zero with a graph, as a batch may have no annotation at all
        for block in self._annotated_blocks(batch, emissions):
            targets = self.local(batch.targets, block + 1)
            annotated = batch.annotated[:, list(self.known[block])]
            mask = batch.word_mask & annotated.any(dim=1, keepdim=True)
            if unannotated == "negative":
                annotated = torch.ones_like(annotated)
            total = total + masked_mean(marginal_cross_entropy(emissions.blocks[block], targets, annotated), mask)
        return total

    def decode(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Int[Tensor, "row word"]:
        """Merges the blocks that know any of `types`, as `HeadOptions.merge` says; other blocks are ignored."""
        asked = self._asked(emissions, types)
        tags = self._elect(emissions, asked) if self.votes else self._resolve(emissions, asked)
        return hide_types(tags, self.tagset, types)

    def spans(
        self, emissions: Emissions, *, types: Collection[str] | None = None, nested: bool = False
    ) -> Int[Tensor, "span 4"]:
        """Finds the spans of all blocks merged or, if nested, those of each step's types decoded separately."""
        if not nested:
            return super().spans(emissions, types=types)
        readings = [[type_ for type_ in step if types is None or type_ in types] for step in self.tagset.steps]
        found = [spans_of_rows(self.decode(emissions, types=step)) for step in readings if step]
        return torch.cat(found) if found else super().spans(emissions, types=types)

    def coupling(self, emissions: Emissions, *, types: Collection[str] | None = None) -> Float[Tensor, "row word"]:
        """The maximum coupling of all blocks that know any of `types` and, with `merge: vote`, of the vote.

        Where a block may be cut, an argmax `I-x` after the cut follows an argmax that is not of x, so the resolver
        drops it in the whole row too. The joint scores of `merge: viterbi` differ from those of a block by a constant
        per word, which cancels in the comparisons.
        """
        asked = self._asked(emissions, types)
        parts = [coupling(emissions.blocks[index].float(), emissions.word_mask) for index in asked]
        if self.options.merge == "vote" and asked:
            parts.append(coupling(self._vote(emissions, asked), emissions.word_mask))
        if not parts:
            return torch.zeros_like(emissions.word_mask, dtype=torch.float)
        return torch.stack(parts).amax(0)

    def _resolve(self, emissions: Emissions, asked: Collection[int]) -> Int[Tensor, "row word"]:
        """Decodes tags from blocks that share no types."""
        log_probs = [torch.log_softmax(block.float(), dim=-1) for block in emissions.blocks]
        log_probs = [block if index in asked else self._silence(block) for index, block in enumerate(log_probs)]
        if self.options.merge == "viterbi" and log_probs:
            return viterbi(exclusive_scores(log_probs), emissions.word_mask)
        return resolve(log_probs, emissions.word_mask, continuation=self.options.continuation)

    def _elect(self, emissions: Emissions, asked: Sequence[int]) -> Int[Tensor, "row word"]:
        """Decodes tags from blocks that vote; blocks not asked would vote for `O`, so they are left out."""
        if not asked:
            return torch.zeros_like(emissions.word_mask, dtype=torch.long)
        if self.options.merge == "vote":
            return viterbi(self._vote(emissions, asked), emissions.word_mask)
        log_probs, _ = self._ballots(emissions, asked)
        known = [self.known[index] for index in asked]
        return majority(log_probs, known, emissions.word_mask, types=len(self.tagset.types))

    def _vote(self, emissions: Emissions, asked: Sequence[int]) -> Float[Tensor, "row word tag"]:
        """The logarithm of the weighted vote of some blocks."""
        log_probs, weights = self._ballots(emissions, asked)
        known = [self.known[index] for index in asked]
        return weighted_vote([b.exp() for b in log_probs], known, weights, types=len(self.tagset.types)).log()

    def _ballots(self, emissions: Emissions, asked: Sequence[int]) -> tuple[list[Tensor], list[float]]:
        """The tempered log-probabilities of some blocks and the weights of their votes.

        A vote that was never measured has the mean weight of those that were.
        """
        ballots = [self.ballot(index + 1) for index in asked]
        logits = [emissions.blocks[index].float() for index in asked]
        tempered = [block / ballot.temperature for block, ballot in zip(logits, ballots, strict=True)]
        weights = [1.0] * len(ballots)
        if self.options.merge == "vote":
            everyone = [self.ballot(step) for step in range(1, len(self.ballots) + 1)]
            measured = [float(ballot.weight) for ballot in everyone if ballot.is_measured]
            usual = fmean(measured) if measured else 1.0
            weights = [float(ballot.weight) if ballot.is_measured else usual for ballot in ballots]
        return [block.log_softmax(dim=-1) for block in tempered], weights

    def span_scores(self, emissions: Emissions, spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
        """Each span's forward-backward probability in its type's block, at the temperature of that block.

        If blocks vote, it is the mean over the blocks that know the type, weighted and tempered like their votes.
        """
        asked = [index for index in range(len(self.known)) if emissions.computed(index + 1)]
        if self.votes:
            log_probs, weights = self._ballots(emissions, asked)
        else:
            log_probs = [emissions.blocks[index].float() / self.temperatures[index] for index in asked]
            weights = [1.0] * len(asked)
        return span_probability(log_probs, [self.known[index] for index in asked], weights, emissions.word_mask, spans)

    def local(self, targets: Int[Tensor, "*word"], step: int) -> Int[Tensor, "*word"]:
        """Converts joint tag ids to ids of one step's block; tags of types it does not know become `O`."""
        ids = [0] * len(self.tagset)
        for index, type_ in enumerate(self.known[step - 1]):
            ids[1 + 2 * type_], ids[2 + 2 * type_] = 1 + 2 * index, 2 + 2 * index
        return torch.tensor(ids, device=targets.device)[targets]


@final
class Ballot(nn.Module):
    """Weight and temperature of one block's vote, measured once, at the end of its step, and never again.

    Attributes:
        weight: positive; 1 until measured.
        temperature: divides the block's logits; 1 until measured.
    """

    weight: Tensor
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(1.0))
        self.register_buffer("temperature", torch.tensor(1.0))

    @property
    def is_measured(self) -> bool:
        """Whether weight and temperature were measured, which are then not both exactly 1."""
        return float(self.weight) != 1 or float(self.temperature) != 1

    def measured(self, *, weight: float, temperature: float) -> None:
        """Stores the measured values."""
        self.weight.fill_(weight)
        self.temperature.fill_(temperature)
