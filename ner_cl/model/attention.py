"""Attention maps (attention weights before dropout) of every layer and head, and the distance between two of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder

__all__ = ["AttentionRecorder", "attention_maps", "pooled_distance", "pooled_over_heads", "pooled_over_queries"]

Maps = list[Float[Tensor, "row head piece piece"]]

_WITH_MAPS = "ner_cl_with_maps"
_maps: ContextVar[Maps] = ContextVar("maps")  # per thread, as each may train a model


@final
class AttentionRecorder:
    """Records the attention maps of an encoder's last forward pass with gradients enabled.

    The output of a pass stays the same to the last bit, because the maps are computed in addition to the usual
    attention. Passes without gradients (prediction) are not recorded.

    Args:
        encoder: watched from now on, until `close`.

    Raises:
        ModelError: if the encoder does not use the `sdpa` attention of `transformers`.
    """

    def __init__(self, encoder: Encoder) -> None:
        _check(encoder)
        self._encoder = encoder
        self._pass = ExitStack()
        self._read: Tensor | None = None
        self._maps: Maps = []
        self._hooks = (
            encoder.backbone.register_forward_pre_hook(self._begin, with_kwargs=True),
            encoder.backbone.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        )

    def of(self, batch: Batch) -> Maps:
        """The maps of a batch, one tensor per layer, running a new pass unless the last one read this batch.

        Args:
            batch: any batch. Rows of padding are arbitrary and must be masked; no piece attends to padding.
        """
        if self._read is not batch.piece_ids:
            with torch.enable_grad():
                self._encoder.run(batch)
        return self._maps

    def close(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()
        self._pass.close()
        self._read, self._maps = None, []

    def _begin(self, backbone: nn.Module, given: Any, named: dict[str, Any]) -> None:
        self._pass.close()  # left open if the last pass was interrupted
        if torch.is_grad_enabled():
            self._read, self._maps = None, self._pass.enter_context(_collecting(backbone))

    def _end(self, backbone: nn.Module, given: Any, named: dict[str, Any], output: Any) -> None:
        self._pass.close()
        if torch.is_grad_enabled() and output is not None:  # output is None if the pass raised
            self._read = named["input_ids"]

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttentionRecorder":
        return self  # nobody asks a copied encoder for maps


def attention_maps(encoder: Encoder, batch: Batch) -> Maps:
    """Computes the attention maps of a batch without gradients, one tensor per layer; rows of a map sum to 1.

    Args:
        encoder: one that uses the `sdpa` attention of `transformers`.
        batch: any batch. Rows of padding are arbitrary and must be masked; no piece attends to padding.

    Raises:
        ModelError: if the encoder uses another attention.
    """
    _check(encoder)
    with torch.no_grad(), _collecting(encoder.backbone) as maps:
        encoder.run(batch)
    return maps


def pooled_over_heads(
    maps: Float[Tensor, "row head piece piece"], real: Bool[Tensor, "row piece"]
) -> Float[Tensor, "row piece piece"]:
    """Averages attention maps over heads; rows of padding are 0."""
    return torch.where(real.unsqueeze(-1), maps.mean(dim=1), 0.0)


def pooled_over_queries(
    maps: Float[Tensor, "row head piece piece"], real: Bool[Tensor, "row piece"]
) -> Float[Tensor, "row head piece"]:
    """Averages the attention that each piece receives in each head over the real query pieces."""
    looking = torch.where(real[:, None, :, None], maps, 0.0)
    return looking.sum(dim=2) / real.sum(dim=1)[:, None, None]


def pooled_distance(
    maps: Float[Tensor, "row head piece piece"],
    others: Float[Tensor, "row head piece piece"],
    real: Bool[Tensor, "row piece"],
) -> Float[Tensor, " row"]:
    """Computes a distance of attention maps per sentence: mean squared differences of pooled maps over real pieces.

    This is the pooled features distillation of CPFD (Zhang et al. 2023). A third pooling, over key pieces, would give
    the same for all maps, because the rows of a map sum to 1.

    Args:
        maps: maps of one layer.
        others: maps of the same layer of another encoder.
        real: which pieces are not padding.
    """
    pieces = real.sum(dim=1)
    by_head = (pooled_over_heads(maps, real) - pooled_over_heads(others, real)).square().sum(dim=(1, 2)) / pieces**2
    by_query = (pooled_over_queries(maps, real) - pooled_over_queries(others, real)).square().sum(dim=(1, 2))
    return by_head + by_query / (maps.shape[1] * pieces)


def _check(encoder: Encoder) -> None:
    if encoder.config._attn_implementation != "sdpa":
        kind = getattr(encoder.config, "model_type", "unknown")
        raise ModelError(
            f"a {kind} encoder does not tell what its attention looks at; use another encoder, such as BERT, RoBERTa, "
            "ELECTRA or DistilBERT, or do without attention maps"
        )


@contextmanager
def _collecting(backbone: nn.Module) -> Iterator[Maps]:
    """Yields a list that a forward pass inside the context fills with its maps, from first layer to last."""
    config: Any = backbone.config
    usual = config._attn_implementation
    maps: Maps = []
    token = _maps.set(maps)
    config._attn_implementation = _WITH_MAPS
    try:
        yield maps
    finally:
        config._attn_implementation = usual
        _maps.reset(token)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "row head piece size"],
    key: Float[Tensor, "row head piece size"],
    value: Float[Tensor, "row head piece size"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Computes attention as usual, and records the map in fp32."""
    with torch.autocast(query.device.type, enabled=False):
        _maps.get().append(_map(query.float(), key.float(), attention_mask, **options))
    found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return found


def _map(
    query: Float[Tensor, "row head piece size"],
    key: Float[Tensor, "row head piece size"],
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Float[Tensor, "row head piece piece"]:
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


AttentionInterface.register(_WITH_MAPS, _attend)
AttentionMaskInterface.register(_WITH_MAPS, sdpa_mask)
