"""Precision matrices of a layer's weights, and the Fisher information, as Kronecker products or diagonals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.data.batching import Batch
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.importance import sampled_loss
from ner_cl.strategies.linear_layers import real_pieces, tap, values_at

__all__ = ["Diagonal", "Kronecker", "fisher", "kronecker_sum", "scaled_identity", "with_ones"]


@final
@dataclass(frozen=True, eq=False, slots=True)
class Kronecker:
    """A symmetric operator on matrices `[output, input]`: `W → outputs · W · inputs`.

    Attributes:
        inputs: the factor over the columns; the last one is the bias, if the layer has one.
        outputs: the factor over the rows.
    """

    inputs: Float[Tensor, "input input"]
    outputs: Float[Tensor, "output output"]

    def times(self, matrix: Float[Tensor, "output input"]) -> Float[Tensor, "output input"]:
        """Applies the operator to a matrix."""
        return self.outputs @ matrix @ self.inputs

    def inverse(self, *, damping: float = 0.0) -> "Kronecker":
        """The inverse, after adding `damping · identity` as `kronecker_sum` does.

        Computed from eigenvalues in fp64; those that rounding made negative are clamped to a tiny positive number.
        """
        inputs, outputs = self.inputs.double(), self.outputs.double()
        if damping:
            # A Kronecker sum with (αI, αI): mean eigenvalues balance the two identities; α cancels in the balance.
            balance = (outputs.diagonal().mean() / inputs.diagonal().mean()).sqrt()
            inputs = inputs + damping / balance * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
            outputs = outputs + damping * balance * torch.eye(len(outputs), dtype=inputs.dtype, device=inputs.device)
        return Kronecker(_inverse(inputs).to(self.inputs.dtype), _inverse(outputs).to(self.outputs.dtype))


@final
@dataclass(frozen=True, eq=False, slots=True)
class Diagonal:
    """A diagonal operator on tensors of any shape.

    Attributes:
        values: the diagonal, in the tensor's shape.
    """

    values: Float[Tensor, "..."]

    def times(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Applies the operator to a tensor."""
        return self.values * tensor

    def inverse(self, *, damping: float = 0.0) -> "Diagonal":
        """The inverse, after adding `damping²`, as in a Kronecker product of two damped factors."""
        return Diagonal(1 / (self.values + damping**2))


def scaled_identity(shape: torch.Size | tuple[int, ...], scale: float) -> Kronecker | Diagonal:
    """`scale · identity` for tensors of a shape: a Kronecker product for matrices, else a diagonal."""
    if len(shape) != 2:
        return Diagonal(torch.full(shape, scale))
    rows, columns = shape
    return Kronecker(torch.eye(columns) * scale**0.5, torch.eye(rows) * scale**0.5)


def kronecker_sum(one: Kronecker, other: Kronecker, *, how: Literal["additive", "nearest"] = "additive") -> Kronecker:
    """A Kronecker product that approximates the sum of two, which is not one itself.

    Args:
        one: positive semidefinite.
        other: positive semidefinite.
        how: `additive` adds factors, balanced by their traces (Martens & Grosse 2015, ICML, section 6.3); it is exact
            if the two are proportional in one factor and balanced, and too large otherwise. `nearest` is the nearest
            in the Frobenius norm (Van Loan & Pitsianis 1993).
    """
    if how == "nearest":
        return _nearest(one, other)
    weights = [k.outputs.trace() * k.inputs.trace() for k in (one, other)]
    if not weights[1] > 0:
        return one
    if not weights[0] > 0:
        return other
    balance = (one.outputs.trace() / other.outputs.trace() * other.inputs.trace() / one.inputs.trace()).sqrt()
    return Kronecker(one.inputs + other.inputs / balance, one.outputs + other.outputs * balance)


def with_ones(layer: nn.Linear, inputs: Float[Tensor, "position input"]) -> Float[Tensor, "position column"]:
    """The inputs, with a column of ones for the bias if the layer has one."""
    if "bias" not in dict(layer.named_parameters()):
        return inputs
    return torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)


def fisher(
    model: NerModel, batches: Iterable[Batch], layers: Mapping[str, nn.Linear | nn.LayerNorm], *, seed: int
) -> dict[str, Kronecker | Diagonal]:
    """The Fisher information of one word, in Kronecker factors for linear layers and as a diagonal for LayerNorm.

    Kao et al. 2021 after Martens & Grosse 2015: `E[a aᵀ] ⊗ E[g gᵀ]` with `a` the inputs of a layer and `g` the gradient
    of the negative log-likelihood with respect to its outputs, over positions that are treated as independent. A word
    may depend on several pieces, so both factors include the square root of the number of positions per word.

    Args:
        model: the model, in eval mode.
        batches: batches of sentences.
        layers: the layers, by name.
        seed: seed for the tags drawn from the model.

    Returns:
        For linear layers a Kronecker product by layer name, with the bias as the last input; for LayerNorm a diagonal
        by parameter name.
    """
    generator = torch.Generator().manual_seed(seed)
    moments: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    words = 0
    for batch in batches:
        with tap(layers) as calls, torch.enable_grad():
            loss = sampled_loss(model.head.decisions(model(batch)), generator=generator)
            gradients = torch.autograd.grad(loss, [call.outputs for call in calls], allow_unused=True)
        words += sum(batch.row_words)
        pieces = real_pieces(model, batch)
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is None:
                continue
            inputs, slopes = (
                values_at(call.name, values.detach(), pieces=pieces, words=batch.word_mask)
                for values in (call.inputs, gradient)
            )
            positions[call.name] = positions.get(call.name, 0) + len(inputs)
            for name, moment in _moments(call.name, layers[call.name], inputs, slopes).items():
                moments[name] = moments[name] + moment if name in moments else moment
    found: dict[str, Kronecker | Diagonal] = {}
    for name, count in positions.items():
        if isinstance(layers[name], nn.Linear):
            scale = (count * words) ** 0.5  # a mean over positions, times √(positions per word)
            found[name] = Kronecker(moments[f"{name}/inputs"] / scale, moments[f"{name}/outputs"] / scale)
        else:
            for parameter, _ in layers[name].named_parameters():
                found[f"{name}.{parameter}"] = Diagonal(moments[f"{name}.{parameter}"] / words)
    return found


def _moments(
    name: str,
    layer: nn.Linear | nn.LayerNorm,
    inputs: Float[Tensor, "position input"],
    slopes: Float[Tensor, "position output"],
) -> dict[str, Tensor]:
    """Second moments of one use of a layer, summed over positions."""
    if isinstance(layer, nn.Linear):
        columns = with_ones(layer, inputs)
        return {f"{name}/inputs": columns.T @ columns, f"{name}/outputs": slopes.T @ slopes}
    scaled = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return {f"{name}.weight": (slopes * scaled).square().sum(dim=0), f"{name}.bias": slopes.square().sum(dim=0)}


def _inverse(matrix: Float[Tensor, "side side"]) -> Float[Tensor, "side side"]:
    scale = matrix.diagonal().mean()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / (2 * scale))
    values = values.clamp(min=len(matrix) * torch.finfo(values.dtype).eps * values[-1])
    inverse: Tensor = (vectors / values) @ vectors.T / scale
    return inverse


def _nearest(one: Kronecker, other: Kronecker) -> Kronecker:
    """The leading singular pair of the sum, rearranged as a rank-two sum of outer products of the factors."""
    outputs = torch.stack([one.outputs.flatten(), other.outputs.flatten()], dim=1).double()
    inputs = torch.stack([one.inputs.flatten(), other.inputs.flatten()], dim=1).double()
    (output_basis, output_rest), (input_basis, input_rest) = torch.linalg.qr(outputs), torch.linalg.qr(inputs)
    left, sizes, right = torch.linalg.svd(output_rest @ input_rest.T)
    new_outputs = (output_basis @ left[:, 0]).view_as(one.outputs) * sizes[0].sqrt()
    new_inputs = (input_basis @ right[0]).view_as(one.inputs) * sizes[0].sqrt()
    sign = torch.sign(new_inputs.trace())  # both factors have the same sign, which the solver picks arbitrarily
    return Kronecker((sign * new_inputs).to(one.inputs.dtype), (sign * new_outputs).to(one.outputs.dtype))
