"""An encoder in two parts: a trunk that runs once a batch, and top layers that run otherwise for each step."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder

__all__ = [
    "ONE_PASS_AT_A_TIME",
    "TrunkPass",
    "all_layers",
    "apply_layer",
    "calls_alike",
    "run_trunk",
    "top_layers",
]

ONE_PASS_AT_A_TIME = threading.RLock()
"""Held while a pass goes through layers that carry hooks or exchanged weights: threads share the layers."""

# Encoders that call all their layers alike, so that a pass may end where the top layers begin.
_ALIKE = {"bert", "camembert", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"}


@dataclass(frozen=True)
class TrunkPass:
    """One batch on its way through the encoder.

    Attributes:
        states: what went into each of the top layers, and as the last one what came out of the encoder; only the first
            where the pass ended there.
        calls: the other arguments, positional and named, that each of the top layers was called with.
    """

    states: tuple[Float[Tensor, "row piece hidden"], ...]
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


class _Reached(Exception):
    """The pass has come to the first of the top layers."""


def calls_alike(encoder: Encoder) -> bool:
    """Whether it is known of the encoder that it calls all its layers with the same arguments but for the states."""
    return getattr(encoder.config, "model_type", "") in _ALIKE


def top_layers(encoder: Encoder, count: int) -> list[nn.Module]:
    """The last `count` transformer layers of an encoder; all of them if there are fewer, or if it is 0.

    Raises:
        ModelError: if it has none that can be told, or if something happens between them.
    """
    layers = all_layers(encoder)
    top = layers[-count:]
    if len(top) == len(layers) and getattr(encoder.config, "conv_kernel_size", None):
        raise ModelError(
            f"encoder {encoder.options.name!r} has a convolution behind its first layer, which sub-networks leave out; "
            f"give them fewer than its {len(layers)} layers"
        )
    return top


def all_layers(encoder: Encoder) -> list[nn.Module]:
    """The transformer layers of an encoder, from the lowest.

    Raises:
        ModelError: if it has none that can be told.
    """
    # The list that holds most of the parameters.
    lists = [module for module in encoder.backbone.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=nn.ModuleList())
    if not len(layers):
        raise ModelError(
            f"encoder {encoder.options.name!r} has no list of layers, which some strategies need; use another, or "
            "strategies: [distill]"
        )
    return list(layers)


def run_trunk(encoder: Encoder, batch: Batch, layers: Sequence[nn.Module], *, whole: bool) -> TrunkPass:
    """Runs the encoder and keeps what its top layers are given.

    Args:
        encoder: the whole one.
        batch: any batch.
        layers: its top layers.
        whole: go on to the end, for what the encoder itself makes of the batch.

    Raises:
        ModelError: if the encoder does more to the output of its last layer, or runs a layer more than once.
    """
    whole = whole or not calls_alike(encoder)
    states: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        named = dict(named)
        states.append(given[0] if given else named.pop("hidden_states"))
        calls.append((given[1:], named))
        if not whole:
            raise _Reached

    with ONE_PASS_AT_A_TIME:
        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
        ends: list[Tensor] = []
        hooks.append(layers[-1].register_forward_hook(lambda module, given, output: ends.append(_tensor(output))))
        try:
            last = encoder.run(batch)
        except _Reached:
            return TrunkPass(tuple(states), (calls[0],) * len(layers))
        finally:
            for hook in hooks:
                hook.remove()
    if len(calls) != len(layers) or ends[-1].data_ptr() != last.data_ptr():
        kind = getattr(encoder.config, "model_type", "unknown")
        raise ModelError(
            f"the top layers of a {kind} encoder cannot be run on their own; use a BERT, RoBERTa, ELECTRA, DistilBERT "
            "or DeBERTa-v2 encoder for sub-networks"
        )
    return TrunkPass((*states, last), tuple(calls))


def apply_layer(
    layer: nn.Module,
    hidden: Float[Tensor, "row piece hidden"],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "row piece hidden"]:
    """What a layer makes of other states than those it was called with.

    Args:
        layer: any.
        hidden: the states.
        call: its other arguments, positional and named.
        weights: by their names in the layer, in the place of its own; gradients reach what they were computed from.
    """
    rest, named = call
    with ONE_PASS_AT_A_TIME:  # the layer holds the weights meanwhile; and another pass hangs hooks on it
        if weights is None:
            return _tensor(layer(hidden, *rest, **named))
        return _tensor(functional_call(layer, dict(weights), (hidden, *rest), named))


def _tensor(output: Any) -> Tensor:
    """The states in what a layer returns: they alone, or the first of several things."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
