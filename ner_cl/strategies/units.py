"""Units of a transformer - attention heads, FFN units - as gates in the forward pass and as masks on parameters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.errors import ModelError
from ner_cl.model.layers import Layer, find_layers, gate_input
from ner_cl.model.ner_model import NerModel

__all__ = ["Family", "PerUnit", "Units"]

Family = Literal["heads", "intermediate", "output"]
PerUnit = dict[str, Float[Tensor, "layer _"]]


@final
class Units:
    """The units of a model's encoder, found by the names of its modules.

    Args:
        model: a model with a BERT, RoBERTa, ELECTRA, DistilBERT or DeBERTa-v2 encoder.

    Attributes:
        layers: the layers, from first to last.
        sizes: number of units in a layer, by family.

    Raises:
        ModelError: if the encoder is of another kind.
    """

    def __init__(self, model: NerModel) -> None:
        modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.layers = [layer.under("encoder") for layer in find_layers(model.encoder)]
        if not self.layers:
            kind = getattr(model.encoder.config, "model_type", "unknown")
            raise ModelError(
                f"strategy das does not know the layers of a {kind} encoder; "
                "use a BERT, RoBERTa, ELECTRA, DistilBERT or DeBERTa-v2 encoder, or leave das out"
            )
        self._encoder = model.encoder
        self._modules = modules
        self._parameters = dict(model.named_parameters())
        first = self.layers[0]
        self.sizes: dict[Family, int] = {
            "heads": int(model.encoder.config.num_attention_heads),
            "intermediate": modules[first.intermediate].out_features,
            "output": modules[first.output].out_features,
        }

    def open_gates(self) -> PerUnit:
        """A gate of 1 for every unit, to differentiate with respect to."""
        weight = self._modules[self.layers[0].output].weight
        return {
            family: torch.ones(len(self.layers), size, device=weight.device, requires_grad=True)
            for family, size in self.sizes.items()
        }

    @contextmanager
    def gated(self, gates: Mapping[str, Float[Tensor, "layer _"]]) -> Iterator[None]:
        """Multiplies units by their gates in every forward pass inside.

        A head's gate multiplies the head's input to the attention output, which equals gating its attention
        probabilities. The gate of an intermediate unit acts before the activation, that of an output unit before
        dropout and residual, as in the authors' code. All layers run, frozen ones too, since their cached outputs were
        computed without gates.
        """
        with ExitStack() as hooks:
            hooks.callback(setattr, self._encoder, "shortcut", self._encoder.shortcut)
            self._encoder.shortcut = None
            for number, layer in enumerate(self.layers):
                heads = gates["heads"][number].repeat_interleave(self._per_head(layer))
                joined = self._modules[layer.joined].register_forward_pre_hook(gate_input(heads))
                inner = self._modules[layer.intermediate].register_forward_hook(
                    _gate_output(gates["intermediate"][number])
                )
                outer = self._modules[layer.output].register_forward_hook(_gate_output(gates["output"][number]))
                for hook in (joined, inner, outer):
                    hooks.callback(hook.remove)
            yield

    def on_parameters(self, factors: Mapping[str, Float[Tensor, "layer _"]]) -> dict[str, Tensor]:
        """Factors per unit as factors on the parameters that feed the unit, in shapes that broadcast to theirs.

        These are rows and biases of queries, keys and values, columns of the attention output (no head owns its bias),
        and rows and biases of both halves of the feed-forward net. Parameters that are not trained get none, nor do
        those of a family without factors.
        """
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            rows: list[tuple[str, Tensor]] = []
            if "heads" in factors:
                heads = factors["heads"][number].repeat_interleave(self._per_head(layer))
                rows += [(name, heads) for name in layer.projections]
                found[f"{layer.joined}.weight"] = heads.unsqueeze(0)
            if "intermediate" in factors:
                rows.append((layer.intermediate, factors["intermediate"][number]))
            if "output" in factors:
                rows.append((layer.output, factors["output"][number]))
            for name, factor in rows:
                found |= {f"{name}.weight": factor.unsqueeze(1), f"{name}.bias": factor}
        trained = {name for name, parameter in self._parameters.items() if parameter.requires_grad}
        return {name: factor for name, factor in found.items() if name in trained}

    def _per_head(self, layer: Layer) -> int:
        return self._modules[layer.joined].in_features // self.sizes["heads"]


def _gate_output(gate: Float[Tensor, " unit"]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, given, output: output * gate.to(output.dtype)
