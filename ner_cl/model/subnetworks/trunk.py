"""An encoder in two parts: a trunk that runs once per batch, and top layers that run differently for each step."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder, words_of

__all__ = [
    "ONE_PASS_AT_A_TIME",
    "Call",
    "TrunkPass",
    "all_layers",
    "apply_layer",
    "calls_alike",
    "run_trunk",
    "top_layers",
    "word_vectors",
]

ONE_PASS_AT_A_TIME = threading.RLock()
"""Held while a pass runs layers that carry hooks or swapped weights, because threads share the layers."""

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with besides the states: positional and named arguments."""

# Encoders that call all their layers with the same arguments, so that a pass may end where the top layers begin.
_ALIKE = {"bert", "camembert", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"}


@dataclass(frozen=True)
class TrunkPass:
    """What the top layers were given in one pass of the encoder.

    Attributes:
        states: the input of each top layer, then the output of the encoder; only the first input if the pass ended
            there.
        calls: the other arguments that each of the top layers was called with.
    """

    states: tuple[Float[Tensor, "row piece hidden"], ...]
    calls: tuple[Call, ...]


class _Reached(Exception):
    """Ends a pass at the first of the top layers."""


def calls_alike(encoder: Encoder) -> bool:
    """Whether the encoder is known to call all its layers with the same arguments except the states."""
    return getattr(encoder.config, "model_type", "") in _ALIKE


def top_layers(encoder: Encoder, count: int) -> list[nn.Module]:
    """The last `count` transformer layers of an encoder; all of them if there are fewer or `count` is 0.

    Raises:
        ModelError: if no list of layers is found, or a convolution lies between them.
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
    """The transformer layers of an encoder, lowest first.

    Raises:
        ModelError: if no list of layers is found.
    """
    # The module list with the most parameters.
    lists = [module for module in encoder.backbone.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=nn.ModuleList())
    if not len(layers):
        raise ModelError(
            f"encoder {encoder.options.name!r} has no list of layers, which some strategies need; use another, or "
            "strategies: [distill]"
        )
    return list(layers)


def run_trunk(encoder: Encoder, batch: Batch, layers: Sequence[nn.Module], *, whole: bool) -> TrunkPass:
    """Runs the encoder and records the inputs of its top layers.

    Args:
        encoder: the whole encoder.
        batch: any batch.
        layers: its top layers. If empty, only the output is recorded.
        whole: run to the end, to get the output of the encoder too.

    Raises:
        ModelError: if the encoder changes the output of its last layer, or runs a layer more than once.
    """
    if not layers:
        return TrunkPass((encoder.run(batch),), ())
    whole = whole or not calls_alike(encoder)
    ends: list[Tensor] = []
    with ONE_PASS_AT_A_TIME, _recorded(layers, stop=not whole) as (states, calls):
        hook = layers[-1].register_forward_hook(lambda module, given, output: ends.append(_tensor(output)))
        try:
            last = encoder.run(batch)
        except _Reached:
            return TrunkPass(tuple(states), (calls[0],) * len(layers))
        finally:
            hook.remove()
    if len(calls) != len(layers) or ends[-1].data_ptr() != last.data_ptr():
        kind = getattr(encoder.config, "model_type", "unknown")
        raise ModelError(
            f"the top layers of a {kind} encoder cannot be run on their own; use a BERT, RoBERTa, ELECTRA, DistilBERT "
            "or DeBERTa-v2 encoder for sub-networks"
        )
    return TrunkPass((*states, last), tuple(calls))


def word_vectors(
    encoder: Encoder, batch: Batch, lowest: int, copies: Sequence[nn.Module] = ()
) -> tuple[Float[Tensor, "row word hidden"], Float[Tensor, "row word hidden"]]:
    """Word vectors after the `lowest` layers, fewer than all, and `copies` on top of them; and after all layers.

    `output_hidden_states` of `transformers` would leave hooks in the encoder, with which it cannot be pickled.

    Args:
        encoder: the whole encoder.
        batch: any batch.
        lowest: number of its layers; 0 for the embeddings.
        copies: copies of layers that follow, called with what these are called with, except for the states.

    Raises:
        ModelError: if the encoder does not call each of the layers that were copied once.
    """
    layers = all_layers(encoder)[lowest : lowest + max(1, len(copies))]
    with ONE_PASS_AT_A_TIME, _recorded(layers) as (states, calls):
        last = encoder.run(batch)
    if copies and len(calls) != len(copies):
        raise ModelError(f"encoder {encoder.options.name!r} does not call each of its layers once")
    state = states[0]
    for number, layer in enumerate(copies):
        state = apply_layer(layer, state, calls[number])
    return words_of(state, batch), words_of(last, batch)


@contextmanager
def _recorded(layers: Sequence[nn.Module], *, stop: bool = False) -> Iterator[tuple[list[Tensor], list[Call]]]:
    """Records the states and the other arguments of every call of these layers in a pass.

    Args:
        layers: layers of an encoder, lowest first.
        stop: raise `_Reached` at the first call.
    """
    states: list[Tensor] = []
    calls: list[Call] = []

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A layer adds its keys and values to a cache, where whatever is run with the same arguments would find them.
        named = {name: None if isinstance(value, Cache) else value for name, value in named.items()}
        states.append(given[0] if given else named.pop("hidden_states"))
        calls.append((tuple(None if isinstance(value, Cache) else value for value in given[1:]), named))
        if stop:
            raise _Reached

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield states, calls
    finally:
        for hook in hooks:
            hook.remove()


def apply_layer(
    layer: nn.Module,
    hidden: Float[Tensor, "row piece hidden"],
    call: Call,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "row piece hidden"]:
    """Runs a layer on given states, with the other arguments of a recorded call.

    Args:
        layer: any layer.
        hidden: the states.
        call: the other arguments.
        weights: used in place of the layer's own, by name; gradients reach what they were computed from.
    """
    rest, named = call
    with ONE_PASS_AT_A_TIME:  # the layer holds the swapped weights meanwhile, or another pass has hooks on it
        if weights is None:
            return _tensor(layer(hidden, *rest, **named))
        return _tensor(functional_call(layer, dict(weights), (hidden, *rest), named))


def _tensor(output: Any) -> Tensor:
    """The states in the output of a layer: the output itself, or its first item if it is a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
