"""The teacher: the model before the step, for strategies whose student imitates it."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.model.attention import attention_maps
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast
from ner_cl.strategies.base import StepContext

__all__ = ["Teacher", "teacher_logits", "teacher_reads"]


_MOST_BYTES = 2**31  # of logits kept for a step


@final
class Teacher:
    """A frozen copy of a model, made before the step's new block exists.

    Args:
        model: the model to copy; the copy is in eval mode and needs no gradient.
        cache: compute the logits of all words of the step once, keep them and release the copy. Otherwise the copy runs
            on every batch, which costs time and gives the same logits.
        attends: keep the copy in any case to compute attention maps, which are too large to cache.
    """

    def __init__(self, model: NerModel, *, cache: bool, attends: bool = False) -> None:
        self._model: NerModel | None = model.copy().eval().requires_grad_(False)
        self._cache = cache
        self._attends = attends
        self._logits: Tensor | None = None

    def logits_of(self, context: StepContext, batch: Batch) -> Float[Tensor, "row word old"]:
        """The teacher's logits for a batch of the step's sentences, all blocks side by side.

        Args:
            context: the step, with its sentences encoded.
            batch: any batch of these sentences.
        """
        if self._model is not None and not (self._cache and self._fits(context)):
            with torch.no_grad(), autocast(context.precision, context.model.device):
                return self._model(batch).flat()  # type: ignore[no-any-return]
        return self.logits(context)[batch.word_numbers]

    def logits(self, context: StepContext) -> Float[Tensor, "word old"]:
        """The logits for every word of the step, all blocks side by side, by `Batch.word_numbers`; computed once."""
        if self._logits is None:
            assert self._model is not None
            self._logits = teacher_logits(self._model, context.encoded, context)
            self._model = self._model if self._attends else None
        return self._logits

    def _fits(self, context: StepContext) -> bool:
        """Whether the logits of the whole step are small enough to keep: heads that score spans have many per word."""
        assert self._model is not None
        columns = sum(len(block.get_parameter("bias")) for block in self._model.head.blocks)
        return 4 * columns * context.encoded.words <= _MOST_BYTES

    def attention(self, context: StepContext, batch: Batch) -> list[Float[Tensor, "row head piece piece"]]:
        """The attention maps of the teacher's encoder for a batch, one per layer; see `attention_maps`."""
        assert self._model is not None
        with autocast(context.precision, context.model.device):
            return attention_maps(self._model.encoder, batch)


def teacher_logits(teacher: NerModel, encoded: EncodedSentences, context: StepContext) -> Float[Tensor, "word old"]:
    """The teacher's logits for every word of the step, all blocks side by side, by `Batch.word_numbers`.

    Args:
        teacher: the teacher, in eval mode.
        encoded: the sentences of the step.
        context: gives batch size and precision.
    """
    device = teacher.device
    logits: Tensor | None = None
    for _, batch in encoded.in_length_order(context.eval_batch_tokens):
        batch = batch.to(device)
        with torch.no_grad(), autocast(context.precision, device):
            flat = teacher(batch).flat()
        if logits is None:
            logits = torch.empty(encoded.words, flat.shape[-1], device=device)
        logits[batch.word_numbers[batch.word_mask]] = flat[batch.word_mask].float()
    assert logits is not None
    return logits


def teacher_reads(
    teacher: NerModel, encoded: EncodedSentences, context: StepContext, rows: Sequence[int] | None = None
) -> Iterator[tuple[Batch, Float[Tensor, "row word hidden"], Float[Tensor, "row word old"]]]:
    """Batches of rows with the teacher's word vectors and logits, all blocks side by side, in fp32.

    Args:
        teacher: the teacher, in eval mode and without sub-networks.
        encoded: encoded sentences.
        context: gives batch size and precision.
        rows: the rows to read; all by default.
    """
    for _, batch in encoded.in_length_order(context.eval_batch_tokens, among=rows):
        batch = batch.to(teacher.device)
        with torch.no_grad(), autocast(context.precision, teacher.device):
            vectors, emissions = teacher.read(batch)
        yield batch, vectors.float(), emissions.flat().float()
