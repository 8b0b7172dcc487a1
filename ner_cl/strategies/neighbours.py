"""Words that a teacher finds similar, and the student's logits for them, for CFNER (Zheng et al. 2022)."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ner_cl.model.precision import autocast
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.importance import measuring
from ner_cl.strategies.step_words import StepWords

__all__ = ["Neighbours", "nearest"]

_CHUNK = 1024  # words whose distances are in memory at once


def nearest(vectors: Float[Tensor, "word size"], count: int, *, candidates: int = 0) -> Int[Tensor, "word near"]:
    """The indices of each vector's nearest others by L2 distance, nearest first; never its own index.

    Args:
        vectors: the vectors.
        count: number of neighbours; fewer if there are not that many others.
        candidates: only the first so many vectors can be neighbours; 0 for all.
    """
    pool = vectors[:candidates] if candidates else vectors
    count = max(0, min(count, len(pool) - 1))
    found = [vectors.new_empty((0, count), dtype=torch.long)]
    for start in range(0, len(vectors), _CHUNK):
        chunk = vectors[start : start + _CHUNK]
        distances = torch.cdist(chunk, pool)
        own = torch.arange(start, start + len(chunk), device=vectors.device).unsqueeze(1)
        distances.masked_fill_(own == torch.arange(len(pool), device=vectors.device), torch.inf)
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)


@final
class Neighbours:
    """The neighbours of some words of a step, among words of the same kind.

    Args:
        words: the words of the step.
        count: maximum number of neighbours of each word.

    Attributes:
        table: numbers of the neighbours of each word; -1 where there is none.
    """

    def __init__(self, words: StepWords, count: int) -> None:
        self._words = words
        self.table: Int[Tensor, "word near"] = torch.full(
            (len(words.targets), count), -1, dtype=torch.long, device=words.targets.device
        )

    def add(self, numbers: Int[Tensor, " some"], vectors: Float[Tensor, "some size"], *, candidates: int) -> None:
        """Makes words neighbours of each other.

        Args:
            numbers: numbers of the words.
            vectors: the teacher's vectors of the words; their lengths do not matter.
            candidates: see `nearest`.
        """
        near = nearest(F.normalize(vectors, dim=-1), self.table.shape[1], candidates=candidates)
        self.table[numbers.unsqueeze(1), torch.arange(near.shape[1], device=near.device)] = numbers[near]

    def ask(
        self, context: StepContext, near: Int[Tensor, "some near"]
    ) -> tuple[Float[Tensor, "some near tag"], Bool[Tensor, "some near"]]:
        """The student's logits for words anywhere in the step's sentences, without dropout or gradient.

        Args:
            context: the step.
            near: rows of the table.

        Returns:
            The logits, and which of them belong to a word.
        """
        real = near >= 0
        numbers: Tensor = torch.unique(near[real])
        places = torch.searchsorted(numbers, near.clamp(min=0)).clamp(max=len(numbers) - 1)
        return self._logits(context, numbers)[places], real

    def _logits(self, context: StepContext, numbers: Int[Tensor, " some"]) -> Float[Tensor, "some tag"]:
        """The student's logits for distinct words in ascending order."""
        encoded, model = context.encoded, context.model
        rows = torch.unique(self._words.rows[numbers]).tolist()
        plan = encoded.plan(rows, batch_tokens=context.eval_batch_tokens)
        found = torch.empty(len(numbers), len(model.tagset), device=model.device)
        with (
            torch.no_grad(),
            measuring(context, "neighbours", dropout=False),
            autocast(context.precision, model.device),
        ):
            for part in plan:
                batch = encoded.batch(part).to(model.device)
                wanted = batch.word_mask & torch.isin(batch.word_numbers, numbers)
                found[torch.searchsorted(numbers, batch.word_numbers[wanted])] = model(batch).flat().float()[wanted]
        return found
