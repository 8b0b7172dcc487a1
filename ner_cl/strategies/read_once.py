"""Running frozen layers once over a step's sentences instead of in every update."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.model.subnetworks.cache import TrunkCache
from ner_cl.model.subnetworks.trunk import apply_layer, calls_alike
from ner_cl.strategies.base import StepContext

__all__ = ["freeze_encoder", "read_once"]


def freeze_encoder(context: StepContext, warmup_epochs: int, *, epoch: int) -> None:
    """Freezes the encoder, with dropout off, after the first `warmup_epochs` epochs of step 1.

    `warmup_epochs` is multiplied by `context.epoch_factor`. After them, the encoder runs once over a step's sentences.
    """
    if not context.old_types and epoch <= warmup_epochs * context.epoch_factor:
        return
    encoder = context.model.encoder
    encoder.requires_grad_(False)
    encoder.eval()
    if encoder.shortcut is None:
        read_once(context, [])


def read_once(context: StepContext, learning: Sequence[nn.Module]) -> None:
    """Makes the encoder use cached outputs of its frozen layers, until the learner ends the step.

    The layers run here, without dropout, over all sentences of the step, and over dev sentences when these are first
    scored. The outputs are the same up to rounding. If some layers learn, an encoder that calls its layers in an
    unknown way keeps running them all.

    Args:
        context: a step whose sentences are encoded.
        learning: the top layers that learn, from the lowest; all below are frozen. If empty, all layers are frozen.
    """
    encoder = context.model.encoder
    if learning and not calls_alike(encoder):
        return
    encoder.shortcut = None
    encoder.eval()
    cache = TrunkCache(
        encoder,
        context.encoded,
        learning,
        whole=not learning,
        batch_tokens=context.eval_batch_tokens,
        precision=context.precision,
    )
    encoder.shortcut = partial(_from_the_trunk_up if learning else _to_the_end, cache)


def _from_the_trunk_up(cache: TrunkCache, batch: Batch) -> Float[Tensor, "row piece hidden"]:
    layers = cache.layers
    trunk = cache.trunk_pass(batch) if layers[-1].training else cache.eval_pass(batch, whole=False)
    hidden = trunk.states[0]
    for layer, call in zip(layers, trunk.calls, strict=True):
        hidden = apply_layer(layer, hidden, call)
    return hidden


def _to_the_end(cache: TrunkCache, batch: Batch) -> Float[Tensor, "row piece hidden"]:
    # A frozen encoder is never in training mode, but gradients are enabled while its outputs are trained on.
    trunk = cache.trunk_pass(batch) if torch.is_grad_enabled() else cache.eval_pass(batch, whole=True)
    return trunk.states[-1]
