"""The model before the step, asked about the step's sentences: for strategies whose student imitates it."""

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


_MOST_BYTES = 2**31  # of logits that are kept of a step


@final
class Teacher:
    """A frozen copy of a model, made before the step's new block exists.

    Args:
        model: what to copy; the copy is in eval mode and needs no gradient.
        cache: ask it once about every word of the step, keep the answers and let the copy go; without it, it is run on
            every batch, which costs time and gives the same answers.
        attends: keep the copy in any case, because its attention will be asked for, which is too much to keep.
    """

    def __init__(self, model: NerModel, *, cache: bool, attends: bool = False) -> None:
        self._model: NerModel | None = model.copy().eval().requires_grad_(False)
        self._cache = cache
        self._attends = attends
        self._logits: Tensor | None = None

    def says(self, context: StepContext, batch: Batch) -> Float[Tensor, "row word old"]:
        """Its logits for a batch of the step's sentences, all blocks side by side.

        Args:
            context: of the step, with the sentences encoded.
            batch: any batch of them.
        """
        if self._model is not None and not (self._cache and self._fits(context)):
            with torch.no_grad(), autocast(context.precision, context.model.device):
                return self._model(batch).flat()  # type: ignore[no-any-return]
        return self.logits(context)[batch.word_numbers]

    def logits(self, context: StepContext) -> Float[Tensor, "word old"]:
        """Its logits for every word of the step, all blocks side by side, by `Batch.word_numbers`; asked for once."""
        if self._logits is None:
            assert self._model is not None
            self._logits = teacher_logits(self._model, context.encoded, context)
            self._model = self._model if self._attends else None
        return self._logits

    def _fits(self, context: StepContext) -> bool:
        """Whether its logits for the whole step may be kept: heads that score spans say a lot of each word."""
        assert self._model is not None
        columns = sum(len(block.get_parameter("bias")) for block in self._model.head.blocks)
        return 4 * columns * context.encoded.words <= _MOST_BYTES

    def attention(self, context: StepContext, batch: Batch) -> list[Float[Tensor, "row head piece piece"]]:
        """What its encoder looks at in a batch, a map a layer; see `attention_maps`."""
        assert self._model is not None
        with autocast(context.precision, context.model.device):
            return attention_maps(self._model.encoder, batch)


def teacher_logits(teacher: NerModel, encoded: EncodedSentences, context: StepContext) -> Float[Tensor, "word old"]:
    """The teacher's logits for every word of the step, all blocks side by side, by `Batch.word_numbers`.

    Args:
        teacher: in eval mode.
        encoded: the sentences of the step.
        context: gives batch size and precision.
    """
    device = teacher.device
    logits: Tensor | None = None
    for _, batch in encoded.in_length_order(context.batch_tokens):
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
        teacher: in eval mode, without sub-networks.
        encoded: sentences.
        context: gives batch size and precision.
        rows: which of their rows; all by default.
    """
    for _, batch in encoded.in_length_order(context.batch_tokens, among=rows):
        batch = batch.to(teacher.device)
        with torch.no_grad(), autocast(context.precision, teacher.device):
            vectors = teacher.encoder(batch)
            logits = teacher.head(vectors, batch.word_mask).flat()
        yield batch, vectors.float(), logits.float()
