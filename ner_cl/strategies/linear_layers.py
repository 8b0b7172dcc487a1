"""The linear layers of a model, and their inputs and outputs at real words."""

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
    "of_batch",
    "real_pieces",
    "tap",
    "top_layer_names",
    "values_at",
]


class Call(NamedTuple):
    """One use of a layer in a forward pass.

    Attributes:
        name: name of the layer.
        inputs: its inputs, `[row, piece or word, input]`.
        outputs: its outputs, with their graph if there is one.
    """

    name: str
    inputs: Float[Tensor, "row place input"]
    outputs: Float[Tensor, "row place output"]


def linear_layers(model: NerModel) -> dict[str, nn.Linear]:
    """Every linear layer of encoder and head, by name; with `.weight` or `.bias` appended, it names a parameter."""
    return {
        f"{part}.{name}": module
        for part in ("encoder", "head")
        for name, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear)
    }


def check_linear(model: NerModel, layers: Mapping[str, nn.Module], *, strategy: str) -> None:
    """Checks that a strategy has something to protect.

    Args:
        model: any model.
        layers: the layers that the strategy would protect, by name.
        strategy: name of the strategy.

    Raises:
        ModelError: if none of the layers is a linear layer of the encoder.
    """
    if not any(isinstance(layer, nn.Linear) and name.startswith("encoder.") for name, layer in layers.items()):
        raise ModelError(f"encoder {model.encoder.options.name!r} has no linear layers that {strategy} could hold")


def top_layer_names(model: NerModel, count: int) -> list[str]:
    """The names of the encoder's last `count` layers, from the lowest up; of all layers if it is 0.

    Raises:
        ModelError: if the encoder's layers are not known or cannot be split there.
    """
    names = {module: name for name, module in model.named_modules()}
    return [names[layer] for layer in top_layers(model.encoder, count)]


@contextmanager
def tap(layers: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Records every use of some layers while it is open.

    The tensors are those of the forward pass, not copies; drop or clear the list after each batch.

    Args:
        layers: the layers, by name.
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

    The inputs at special pieces are unlike those at words and often far larger; they would dominate second moments of
    inputs.
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
    """A layer's inputs or outputs at real pieces, or for a layer of the head, which reads word vectors, at real words.

    Values that do not belong to the batch's pieces, such as DeBERTa's relative positions, are all returned.

    Args:
        name: name of the layer.
        values: values for a whole batch, or values that are the same in all batches.
        pieces: which pieces are real.
        words: which words are real.
    """
    mask = _places(name, pieces, words)
    return values[mask] if values.shape[:-1] == mask.shape else values.flatten(0, -2)


def of_batch(name: str, values: Tensor, *, pieces: Bool[Tensor, "row piece"], words: Bool[Tensor, "row word"]) -> bool:
    """Whether a layer's inputs or outputs belong to the batch's pieces or words; see `values_at`."""
    return values.shape[:-1] == _places(name, pieces, words).shape


def _places(name: str, pieces: Tensor, words: Tensor) -> Tensor:
    return words if name.startswith("head.") else pieces


def input_groups(calls: list[Call]) -> list[tuple[str, ...]]:
    """Groups of layers that read the very same tensor, such as query, key and value, or the blocks of a head.

    Args:
        calls: the calls of one forward pass.
    """
    readers: dict[int, dict[str, None]] = {}
    for call in calls:
        readers.setdefault(id(call.inputs), {})[call.name] = None
    groups: dict[str, tuple[str, ...]] = {}
    for names in readers.values():
        groups.setdefault(next(iter(names)), tuple(names))  # a layer used twice stays in its first group
    return list(groups.values())
