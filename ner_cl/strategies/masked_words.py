"""Masked language modelling on raw text before a step, under masks (Ke et al. 2023, as published: no labels)."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder
from ner_cl.model.precision import autocast
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.gated import hold_back
from ner_cl.strategies.importance import measuring
from ner_cl.types import Sentence

__all__ = ["MaskedWords", "pretrain", "raw_text"]

_SHARE = 0.15  # of the pieces are predicted: 8 in 10 of them masked, 1 replaced, 1 unchanged (Devlin et al. 2019)


@final
class MaskedWords:
    """Predicts masked word pieces from an encoder's hidden states, with its own input embeddings and a bias.

    Args:
        encoder: an encoder whose tokenizer has a mask token.

    Attributes:
        bias: the bias of each piece of the vocabulary, trained together with the encoder.

    Raises:
        ModelError: if there is no mask token, or hidden states and embeddings differ in size.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._embeddings = encoder.embeddings.get_parameter("weight")
        if encoder.tokenizer.mask_token_id is None or self._embeddings.shape[1] != encoder.hidden:
            raise ModelError(
                "strategy das cannot pretrain this encoder, which has no mask piece or embeddings of another size than "
                "its hidden states; set pretrain_epochs: 0"
            )
        device = self._embeddings.device
        self._encoder = encoder
        self._mask_id: int = encoder.tokenizer.mask_token_id
        self._special = torch.tensor(sorted(encoder.tokenizer.all_special_ids), device=device)
        self.bias = torch.zeros(len(self._embeddings), device=device, requires_grad=True)

    def loss(self, batch: Batch, generator: np.random.Generator) -> Float[Tensor, ""]:
        """Mean cross entropy of the predicted pieces; 0 if there are none.

        Args:
            batch: any batch; its targets are not used.
            generator: draws which pieces are predicted.
        """
        ids, chosen = self.corrupt(batch.piece_ids, generator)
        hidden: Tensor = self._encoder.backbone(input_ids=ids, attention_mask=batch.piece_mask).last_hidden_state
        guesses = F.linear(hidden[chosen], self._embeddings, self.bias).float()
        # A sum, since the mean over no pieces is NaN.
        return F.cross_entropy(guesses, batch.piece_ids[chosen], reduction="sum") / max(1, len(guesses))

    def corrupt(
        self, ids: Int[Tensor, "row piece"], generator: np.random.Generator
    ) -> tuple[Int[Tensor, "row piece"], Bool[Tensor, "row piece"]]:
        """The pieces with some masked or replaced, and which are to be predicted; special pieces never are."""
        chosen, kind, piece = torch.from_numpy(generator.random((3, *ids.shape))).to(ids.device)
        guessed = (chosen < _SHARE) & ~torch.isin(ids, self._special)
        shown = torch.where(kind < 0.8, torch.full_like(ids, self._mask_id), ids)
        shown = torch.where(kind >= 0.9, (piece * len(self.bias)).long(), shown)
        return torch.where(guessed, shown, ids), guessed


def raw_text(context: StepContext) -> list[Sentence]:
    """The step's own and its unlabeled sentences, without annotation."""
    own = context.encoded.sentences_from("own")
    return [Sentence(sentence.words) for sentence in (*own, *context.unlabeled)]


def pretrain(context: StepContext, gates: Mapping[str, Tensor], *, epochs: int, rate: float) -> None:
    """Continues pre-training the encoder's trainable parameters on the step's raw text, with gated updates.

    AdamW without weight decay, with the learning rate falling linearly to 0, as in the authors' code.

    Args:
        context: the step.
        gates: factors in [0, 1] on the updates of parameters, by name.
        epochs: passes over the text.
        rate: initial learning rate.
    """
    model = context.model
    task = MaskedWords(model.encoder)
    encoded = model.encode(raw_text(context))
    plan = [
        rows
        for epoch in range(epochs)
        for rows in encoded.plan(
            range(len(encoded)),
            batch_tokens=context.batch_tokens,
            generator=context.generator(f"das/pretrain/{epoch}"),
        )
    ]
    named = {f"encoder.{name}": parameter for name, parameter in model.encoder.named_parameters()}
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    held = {name: gates[name].to(model.device) for name in named if name in gates}
    trained = [*named.values(), task.bias]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    draw = context.generator("das/pretrain/masks")
    with measuring(context, "das/pretrain/dropout", dropout=True):
        for update, rows in enumerate(plan):
            optimizer.param_groups[0]["lr"] = rate * (1 - update / len(plan))
            with autocast(context.precision, model.device):
                loss = task.loss(encoded.batch(rows).to(model.device), draw)
            loss.backward()  # type: ignore[no-untyped-call]
            _step(optimizer, trained, [named[name] for name in held], list(held.values()))
    optimizer.zero_grad(set_to_none=True)


def _step(
    optimizer: torch.optim.Optimizer, trained: Sequence[Tensor], held: Sequence[Tensor], gates: Sequence[Tensor]
) -> None:
    """Makes one clipped update, scaled by the gates; none if the gradient is not finite."""
    norm = nn.utils.clip_grad_norm_(trained, 1.0)
    if torch.isfinite(norm):
        before = [parameter.detach().clone() for parameter in held]
        optimizer.step()
        with torch.no_grad():
            hold_back(held, before, gates)
    optimizer.zero_grad(set_to_none=True)
