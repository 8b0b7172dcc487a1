"""The linear layers of a model, and what goes into and comes out of them at real words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import top_layers

__all__ = [
    "Call",
    "check_linear",
    "input_groups",
    "linear_layers",
    "real_pieces",
    "tap",
    "top_layer_names",
    "values_at",
]


class Call(NamedTuple):
    """One use of a layer in a forward pass.

    Attributes:
        name: of the layer.
        inputs: what went in, `[row, piece or word, input]`.
        outputs: what came out, with its graph where there is one.
    """

    name: str
    inputs: Float[Tensor, "row place input"]
    outputs: Float[Tensor, "row place output"]


def linear_layers(model: NerModel) -> dict[str, nn.Linear]:
    """Every linear layer of encoder and head, by the name that `.weight` and `.bias` complete to a parameter's."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def check_linear(model: NerModel, layers: Mapping[str, nn.Module], *, strategy: str) -> None:
    """Sees to it that a strategy finds something to protect.

    Args:
        model: any.
        layers: what the strategy would hold, by name.
        strategy: its name.

    Raises:
        ModelError: if none of them is a linear layer of the encoder.
    """
    if not any(isinstance(layer, nn.Linear) and name.startswith("encoder.") for name, layer in layers.items()):
        raise ModelError(f"encoder {model.encoder.options.name!r} has no linear layers that {strategy} could hold")


def top_layer_names(model: NerModel, count: int) -> list[str]:
    """The names of the last `count` layers of the model's encoder, from the lowest up; of all of them if it is 0.

    Raises:
        ModelError: if it has none that can be told.
    """
    names = {module: name for name, module in model.named_modules()}
    return [names[layer] for layer in top_layers(model.encoder, count)]


@contextmanager
def tap(layers: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Records every use of some layers while it is open.

    The tensors are those of the forward pass, not copies; give the list up, or clear it, after each batch.

    Args:
        layers: by name.
    """
    calls: list[Call] = []

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        return layers[name].register_forward_hook(
            lambda _module, inputs, outputs: calls.append(Call(name, inputs[0], outputs))
        )

    handles = [record(name) for name in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def real_pieces(model: NerModel, batch: Batch) -> Bool[Tensor, "row piece"]:
    """Which pieces stand for text: neither padding nor pieces such as `[CLS]` and `[SEP]`.

    Those two have inputs of their own kind, far from any word's and often far larger: with them, second moments of
    inputs would say more of them than of words.
    """
    tokenizer = model.encoder.tokenizer
    marks = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    special = torch.tensor([mark for mark in marks if mark is not None], device=batch.piece_ids.device)
    return batch.piece_mask.bool() & ~torch.isin(batch.piece_ids, special)


def values_at(
    name: str,
    values: Float[Tensor, "*place value"],
    *,
    pieces: Bool[Tensor, "row piece"],
    words: Bool[Tensor, "row word"],
) -> Float[Tensor, "position value"]:
    """What a layer saw or said at real pieces, or for a layer of the head, which reads word vectors, at real words.

    Of what is not about the pieces of the batch, such as DeBERTa's relative positions, all of it.

    Args:
        name: of the layer.
        values: of a whole batch, or of something that is the same in all batches.
        pieces: which pieces are real.
        words: which words are real.
    """
    mask = words if name.startswith("head.") else pieces
    return values[mask] if values.shape[:-1] == mask.shape else values.flatten(0, -2)


def input_groups(calls: list[Call]) -> list[tuple[str, ...]]:
    """Layers that read the very same tensor, such as query, key and value, or the blocks of a head.

    Args:
        calls: of one forward pass.
    """
    readers: dict[int, dict[str, None]] = {}
    for call in calls:
        readers.setdefault(id(call.inputs), {})[call.name] = None
    groups: dict[str, tuple[str, ...]] = {}
    for names in readers.values():
        groups.setdefault(next(iter(names)), tuple(names))  # a layer used twice stays in its first group
    return list(groups.values())
