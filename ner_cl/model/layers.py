"""Finds, by name, the linear modules of transformer layers that feed units and those that read them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Layer", "find_layers", "gate_input"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Names of the linear modules of a transformer layer that feed units or read them.

    Attributes:
        projections: queries, keys and values; their rows belong to attention heads.
        joined: attention output; its columns belong to attention heads.
        intermediate: first half of the feed-forward network; its rows are the intermediate units.
        output: its second half; its rows are the output units.
    """

    projections: tuple[str, ...]
    joined: str
    intermediate: str
    output: str

    def under(self, prefix: str) -> "Layer":
        """The same names with a prefix in front."""
        names = tuple(f"{prefix}.{name}" for name in self.projections)
        return Layer(names, *(f"{prefix}.{name}" for name in (self.joined, self.intermediate, self.output)))


def _bert(*projections: str) -> Layer:
    names = tuple(f"attention.self.{name}" for name in projections)
    return Layer(names, "attention.output.dense", "intermediate.dense", "output.dense")


# Longest first: if two kinds fit, the longer one leaves no module out.
_KINDS = (
    _bert("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"),  # DeBERTa-v2, separate positions
    _bert("query_proj", "key_proj", "value_proj"),  # DeBERTa-v3
    _bert("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    Layer(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", "ffn.lin1", "ffn.lin2"),
)


def find_layers(module: nn.Module) -> list[Layer]:
    """All layers, first to last, named after the first kind that fits them; an empty list if none does.

    Args:
        module: an encoder of the BERT, RoBERTa, ELECTRA, DistilBERT or DeBERTa-v2 kind, or a module that contains one.
            Names are those of its `named_modules`.
    """
    linear = [name for name, found in module.named_modules() if isinstance(found, nn.Linear)]
    for kind in _KINDS:
        first = f".{kind.projections[0]}"
        layers = [kind.under(name.removesuffix(first)) for name in linear if name.endswith(first)]
        named = {
            name for layer in layers for name in (*layer.projections, layer.joined, layer.intermediate, layer.output)
        }
        if layers and named <= set(linear):
            return layers
    return []


def gate_input(gate: Float[Tensor, " unit"]) -> Callable[[nn.Module, Any], Any]:
    """A forward pre-hook that multiplies a module's input by one factor per unit."""
    # Cast to the input's dtype, or a bf16 pass would continue in fp32 from here.
    return lambda module, given: (given[0] * gate.to(given[0].dtype), *given[1:])
