"""The output of a frozen trunk for a step's sentences, computed once per step instead of once per update."""

import hashlib
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.model.encoder import Encoder
from ner_cl.model.precision import Precision, autocast
from ner_cl.model.subnetworks.trunk import Call, TrunkPass, all_layers, calls_alike, run_trunk

__all__ = ["TrunkCache"]

_MOST_BYTES = 2**31  # for the states of the step's sentences, and the same again for passes over other sentences


@final
class TrunkCache:
    """The states of every window at the top layers, by the window's number.

    If they would take more than 2 GiB, none are kept and the trunk runs every time.

    Args:
        encoder: frozen and in eval mode.
        encoded: the step's sentences.
        layers: the top layers; nothing is kept unless the encoder calls all its layers with the same arguments. If
            empty, only the encoder's output is kept, of any encoder.
        whole: also keep the encoder's own states in and after its top layers.
        batch_tokens: word pieces per batch.
        precision: number format of the passes.
    """

    def __init__(
        self,
        encoder: Encoder,
        encoded: EncodedSentences,
        layers: Sequence[nn.Module],
        *,
        whole: bool,
        batch_tokens: int,
        precision: Precision,
    ) -> None:
        self._encoder, self.layers, self._whole = encoder, layers, whole
        self._encoded = encoded
        self._states: dict[int, tuple[Float[Tensor, "piece hidden"], ...]] = {}
        self._passes: dict[tuple[bytes, torch.Size, bool], TrunkPass] = {}
        self._bytes = 0
        states_each = len(layers) + 1 if whole else 1
        if (layers and not calls_alike(encoder)) or 4 * encoder.hidden * states_each * sum(
            encoded.lengths
        ) > _MOST_BYTES:
            return
        device = next(encoder.parameters()).device
        for rows, batch in encoded.in_length_order(batch_tokens):
            with torch.no_grad(), autocast(precision, device):
                states = run_trunk(encoder, batch.to(device), layers, whole=whole).states
            for position, row in enumerate(rows):
                length = encoded.lengths[row]
                self._states[row] = tuple(state[position, :length].clone() for state in states)

    def eval_pass(self, batch: Batch, *, whole: bool) -> TrunkPass:
        """The result of `run_trunk` for any batch; for other sentences exact to the last bit, and kept, up to 2 GiB.

        This serves dev sentences, which are predicted after every epoch in the same batches.
        """
        if whole == self._whole and batch.source == self._encoded.number:
            return self.trunk_pass(batch)
        key = hashlib.sha256(batch.piece_ids.cpu().numpy().data).digest(), batch.piece_ids.shape, whole
        if key in self._passes:
            return self._passes[key]
        found = run_trunk(self._encoder, batch, self.layers, whole=whole)
        self._bytes += sum(state.numel() * state.element_size() for state in found.states)
        if self._bytes < _MOST_BYTES:
            self._passes[key] = found
        return found

    def trunk_pass(self, batch: Batch) -> TrunkPass:
        """The result of `run_trunk` for a batch of the step's sentences, up to rounding; padding is zero.

        For other sentences, whose rows have the same numbers, the trunk runs.
        """
        if not self._states or batch.source != self._encoded.number:
            return run_trunk(self._encoder, batch, self.layers, whole=self._whole)
        calls: tuple[Call, ...] = ()
        if self.layers:  # the first layer, where this pass ends, is called with the same arguments as the top layers
            calls = run_trunk(self._encoder, batch, all_layers(self._encoder)[:1], whole=False).calls * len(self.layers)
        pieces = batch.piece_ids.shape[1]
        states = tuple(
            torch.stack([nn.functional.pad(state, (0, 0, 0, pieces - len(state))) for state in rows])
            for rows in zip(*(self._states[row] for row in batch.rows), strict=True)
        )
        return TrunkPass(states, calls)
