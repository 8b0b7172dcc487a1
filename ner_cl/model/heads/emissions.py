"""The output of a head for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["Emissions"]


@dataclass(frozen=True, slots=True)
class Emissions:
    """Tag scores (logits) of the words of a batch, one tensor `[row, word, tag]` per block of the head.

    If the head scores spans, the tensors `[row, word, column]` hold what span scores are computed from.

    Attributes:
        blocks: one tensor per block.
        word_mask: which words are real.
        steps: steps whose blocks were computed, while those of others say `O`; None if all were.
        words: the word vectors that the head read, if gradients are enabled; heads may leave them out.
    """

    blocks: tuple[Float[Tensor, "row word _"], ...]
    word_mask: Bool[Tensor, "row word"]
    steps: tuple[int, ...] | None = None
    words: Float[Tensor, "row word hidden"] | None = None

    def computed(self, step: int) -> bool:
        """Whether the block of a step (from 1) was computed."""
        return self.steps is None or step in self.steps

    def flat(self) -> Float[Tensor, "row word column"]:
        """Concatenates the columns of all blocks."""
        return self.blocks[0] if len(self.blocks) == 1 else torch.cat(self.blocks, dim=-1)

    def select(self, rows: Sequence[int]) -> "Emissions":
        """Some of the rows."""
        index = torch.tensor(rows, dtype=torch.long, device=self.word_mask.device)
        words = None if self.words is None else self.words[index]
        return Emissions(tuple(block[index] for block in self.blocks), self.word_mask[index], self.steps, words)

    def part(self, row: int, start: int, end: int) -> "Emissions":
        """Words `start` to `end` (exclusive) of one row."""
        blocks = tuple(block[row : row + 1, start:end] for block in self.blocks)
        return Emissions(blocks, self.word_mask[row : row + 1, start:end], self.steps)

    @staticmethod
    def joined(parts: Sequence["Emissions"]) -> "Emissions":
        """Concatenates the words of several emissions, each a single row without padding, into one row."""
        blocks = tuple(torch.cat(pieces, dim=1) for pieces in zip(*(part.blocks for part in parts), strict=True))
        return Emissions(blocks, torch.cat([part.word_mask for part in parts], dim=1), parts[0].steps)

    @staticmethod
    def stacked(parts: Sequence["Emissions"]) -> "Emissions":
        """Stacks several emissions of a single row each as the rows of one, padded on the right."""
        columns = zip(*(part.blocks for part in parts), strict=True)
        blocks = tuple(pad_sequence([piece[0] for piece in pieces], batch_first=True) for pieces in columns)
        mask = pad_sequence([part.word_mask[0] for part in parts], batch_first=True)
        return Emissions(blocks, mask, parts[0].steps)
