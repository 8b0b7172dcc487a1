"""Gradients of the loss on remembered sentences, computed without side effects on the training update."""

from abc import ABC
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from ner_cl.config import StrategyOptions
from ner_cl.model.precision import autocast
from ner_cl.model.restoring import random_state_restored
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.memory import Memory, MemoryOptions
from ner_cl.strategies.rows import cross_entropy
from ner_cl.types import Sentence

__all__ = ["ReferenceOptions", "ReferenceStrategy", "References"]


@final
class References:
    """The remembered sentences, encoded once per stage, on which reference gradients are computed at every update.

    Args:
        context: the step; the model has its new block.
        groups: remembered sentences of each earlier step, annotated for its types.

    Attributes:
        groups: the rows of each earlier step that has sentences left.
    """

    def __init__(self, context: StepContext, groups: Sequence[Sequence[Sentence]]) -> None:
        self._encoded = context.model.encode(list(chain(*groups)))
        numbers = [number for number, group in enumerate(groups) for _ in group]
        rows: list[list[int]] = [[] for _ in groups]
        for row, window in enumerate(self._encoded.windows):
            rows[numbers[window.sentence]].append(row)
        self.groups = [group for group in rows if group]

    def draw(
        self, groups: Sequence[Sequence[int]], generator: np.random.Generator, *, count: int | None, tokens: int
    ) -> list[int]:
        """Draws rows from the groups in turn, equally many from each as long as they last.

        Args:
            groups: groups of rows.
            generator: draws the rows, and the order of groups.
            count: number of rows in total; None takes as many as make a batch.
            tokens: word pieces of a batch, padding included.
        """
        shuffled = [generator.permutation(groups[index]).tolist() for index in generator.permutation(len(groups))]
        order: list[int] = [row for turn in zip_longest(*shuffled) for row in turn if row is not None]
        if count is not None:
            return order[:count]
        longest = np.maximum.accumulate([self._encoded.lengths[row] for row in order])
        fits = longest * np.arange(1, len(order) + 1) <= tokens
        return order[: max(1, int(fits.sum()))]

    def gradient(self, context: StepContext, rows: Sequence[int], generator: np.random.Generator) -> dict[str, Tensor]:
        """The gradient of the mean loss over some rows, in the precision and mode of training.

        The newest block has a part in it only where all blocks share a softmax (ExtendNER). Neither `.grad` nor torch's
        global random stream, which dropout draws from, is changed.

        Args:
            context: gives model, precision and batch size.
            rows: rows of remembered sentences.
            generator: seeds dropout.

        Returns:
            The gradients, by name, of every trained parameter that the loss depends on; empty if there is none.
        """
        model, device = context.model, context.model.device
        apart = {id(p) for p in model.head.new_block().parameters()} if model.head.apart else set()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in apart}
        total: dict[str, Tensor] = {}
        if not trained:
            return total
        words = sum(len(self._encoded.windows[row].word_pieces) for row in rows)
        with random_state_restored(device), torch.enable_grad():
            torch.manual_seed(int(generator.integers(2**62)))
            for part in self._encoded.plan(rows, batch_tokens=context.batch_tokens):
                batch = self._encoded.batch(part).to(device)
                with autocast(context.precision, device):
                    emissions = model(batch)
                loss = cross_entropy(model.head, batch, emissions, "unknown") * (sum(batch.row_words) / words)
                if loss.requires_grad:
                    _add(total, trained, loss)
        return total


def _add(total: dict[str, Tensor], parameters: dict[str, nn.Parameter], loss: Tensor) -> None:
    """Adds the gradient of a loss to `total`."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, part in zip(parameters, found, strict=True):
        if part is not None:
            total[name] = total[name] + part if name in total else part


class ReferenceOptions(StrategyOptions, MemoryOptions):
    """Base of the options of strategies that compare updates with remembered sentences."""


class ReferenceStrategy(Strategy, ABC):
    """Base of strategies that keep sentences of every step and use their gradients while later steps train."""

    keeps = True

    def __init__(self, options: ReferenceOptions) -> None:
        super().__init__(options)
        self._memory = Memory(options)
        self._references: References | None = None

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Encodes the memory, once per stage; gates nothing."""
        self._references = References(context, self._memory.by_step(context.model.tagset.steps[:-1]))
        return {}

    def end_step(self, context: StepContext) -> None:
        """Chooses what to remember of this step."""
        self._memory.remember(context)

    def release(self) -> None:
        """Releases the encoded memory."""
        self._references = None

    def kept_sentences(self) -> Sequence[Sentence]:
        """The memory."""
        return self._memory.sentences

    def load_sentences(self, sentences: Sequence[Sentence]) -> None:
        """Restores the memory."""
        self._memory.load(sentences)
