"""The update nearest to the optimizer's that keeps every constraint, in the metric of the gates."""

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.errors import ConfigError
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace, Subspace

__all__ = ["Projector"]

Vector = Mapping[str, Tensor]


@final
class Projector:
    """Projects updates, given the gates of a step.

    With `m` the gates and `d = -update`, it finds the `d` nearest in `⟨m·x, x⟩` for which `⟨m·d, r⟩ ≥ 0` for every
    half-space and `⟨m·d, b⟩ = 0` for every direction of a subspace. That is done in this metric because projecting
    first and masking afterwards breaks the constraint again. Masking is left to the caller.

    Args:
        gates: factors in [0, 1] on parameters, by name; 1 where absent.
    """

    def __init__(self, gates: Mapping[str, Tensor]) -> None:
        self._gates = gates
        # Bases live as long as a step and so do gates: what is computed from both is computed once.
        self._factors: dict[int, tuple[Subspace, Float[Tensor, "direction direction"]]] = {}

    def __call__(self, change: Vector, constraints: Sequence[Constraint]) -> dict[str, Tensor]:
        """The new change of those parameters that have to change otherwise than `change` says.

        Args:
            change: what the optimizer did to each parameter, or would do.
            constraints: on these parameters.

        Raises:
            ConfigError: if two constraints keep subspaces of the same parameter.
        """
        subspaces = [c for c in constraints if not isinstance(c, HalfSpace)]
        half_spaces = [c for c in constraints if isinstance(c, HalfSpace)]
        _check_apart(subspaces)
        moved = self._out_of(subspaces, change)
        if not half_spaces:
            return moved
        inside = {**change, **moved}
        references = [{**h.reference, **self._out_of(subspaces, h.reference)} for h in half_spaces]
        products = self._products([*references, inside])
        slopes = [-value for value in products[-1][:-1]]
        if all(slope >= 0 for slope in slopes):
            return moved
        weights = solve_dual(
            [
                [*row[:i], row[i] + h.ridge, *row[i + 1 : -1]]
                for i, (row, h) in enumerate(zip(products[:-1], half_spaces, strict=True))
            ],
            slopes,
            [h.margin for h in half_spaces],
        )
        for weight, reference in zip(weights, references, strict=True):
            if weight > 0:
                for name in reference.keys() & change.keys():
                    moved[name] = moved.get(name, change[name]) - weight * reference[name]
        return moved

    def _products(self, vectors: Sequence[Vector]) -> list[list[float]]:
        """`⟨m·left, right⟩` of every pair: fp32 within a tensor, fp64 across tensors, one look at the device."""
        total: Tensor | None = None
        for name in _names(vectors[:-1]):
            if name not in vectors[-1]:
                continue
            like = vectors[-1][name]
            rows = torch.stack([vector[name] if name in vector else torch.zeros_like(like) for vector in vectors])
            masked = rows * self._gates[name] if name in self._gates else rows
            gram = (masked.flatten(1) @ rows.flatten(1).T).double()
            total = gram if total is None else total + gram
        return [[0.0] * len(vectors)] * len(vectors) if total is None else total.tolist()

    def _out_of(self, subspaces: Sequence[Subspace | InputSubspace], vector: Vector) -> dict[str, Tensor]:
        """The parts of a vector that the subspaces touch, without what lies in them."""
        found: dict[str, Tensor] = {}
        for subspace in subspaces:
            if isinstance(subspace, InputSubspace):
                for name in subspace.bases.keys() & vector.keys():
                    found[name] = out_of_inputs(vector[name], subspace.bases[name], self._gates.get(name))
            else:
                found |= self._out_of_directions(subspace, vector)
        return found

    def _out_of_directions(self, subspace: Subspace, vector: Vector) -> dict[str, Tensor]:
        names = [name for name in subspace.directions if name in vector]
        parts = {name: subspace.directions[name].flatten(1) for name in names}
        shares = sum(parts[name] @ self._masked(name, vector[name]).flatten() for name in names)
        if not isinstance(shares, Tensor):
            return {}
        if any(name in self._gates for name in names):
            shares = torch.cholesky_solve(shares.unsqueeze(1), self._factor(subspace)).squeeze(1)
        return {name: vector[name] - (shares @ parts[name]).view_as(vector[name]) for name in names}

    def _factor(self, subspace: Subspace) -> Float[Tensor, "direction direction"]:
        """Cholesky factor of the directions' products in the gated metric; the identity where no gate touches them."""
        known = self._factors.get(id(subspace))
        if known is None or known[0] is not subspace:
            gram: Tensor | None = None
            for name, stacked in subspace.directions.items():
                part = (self._masked(name, stacked).flatten(1) @ stacked.flatten(1).T).double()
                gram = part if gram is None else gram + part
            assert gram is not None
            # Directions wholly behind closed gates are out of reach anyway; the ridge keeps the rest solvable.
            gram = gram + 1e-9 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            known = (subspace, torch.linalg.cholesky(gram).float())
            self._factors[id(subspace)] = known
        return known[1]

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        return tensor * self._gates[name] if name in self._gates else tensor


def out_of_inputs(
    weight: Float[Tensor, "output input"],
    basis: Float[Tensor, "input rank"],
    gate: Tensor | None = None,
    *,
    rounds: int = 100,
) -> Float[Tensor, "output input"]:
    """The matrix nearest to `weight` in the gated metric that, once gated, gives 0 for every input of the basis.

    Without gates, or with one gate a row, that is `W - W M Mᵀ`. With other gates every row has a system of its own,
    `Mᵀ diag(m) M c = Mᵀ (m·w)`, solved for all rows at once by conjugate gradients.

    Args:
        weight: what to project.
        basis: orthonormal columns `M`.
        gate: factors in [0, 1] that broadcast to the weight.
        rounds: of conjugate gradients at most.
    """
    if gate is None or gate.shape[-1] == 1:
        return weight - (weight @ basis) @ basis.T
    residual = (gate * weight) @ basis
    shares = torch.zeros_like(residual)
    direction, size = residual, residual.square().sum(dim=-1, keepdim=True)
    enough = 1e-14 * size.max()
    for _ in range(min(rounds, 2 * basis.shape[1])):
        if not (size > enough).any():
            break
        image = (gate * (direction @ basis.T)) @ basis
        length = size / (direction * image).sum(dim=-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
        shares = shares + length * direction
        residual = residual - length * image
        following = residual.square().sum(dim=-1, keepdim=True)
        direction = residual + following / size.clamp(min=torch.finfo(size.dtype).tiny) * direction
        size = following
    return weight - shares @ basis.T


def solve_dual(
    pairs: Sequence[Sequence[float]], slopes: Sequence[float], least: Sequence[float], *, sweeps: int = 10_000
) -> list[float]:
    """`argmin ½ vᵀQv + qᵀv` over `v ≥ least` by coordinate descent, which a handful of references solves at once.

    Args:
        pairs: `Q`, positive semidefinite.
        slopes: `q`.
        least: lower bounds.
        sweeps: over all coordinates at most.
    """
    weights = list(least)
    for _ in range(sweeps):
        moved = 0.0
        for i, row in enumerate(pairs):
            if row[i] <= 0:
                continue
            slope = slopes[i] + sum(q * v for q, v in zip(row, weights, strict=True))
            new = max(least[i], weights[i] - slope / row[i])
            moved = max(moved, abs(new - weights[i]) * row[i] ** 0.5)
            weights[i] = new
        if moved < 1e-12:
            break
    return weights


def _names(vectors: Iterable[Vector]) -> list[str]:
    """Every name once, in the order in which they come: sums over a set would differ from process to process."""
    return list(dict.fromkeys(name for vector in vectors for name in vector))


def _check_apart(subspaces: Sequence[Subspace | InputSubspace]) -> None:
    taken: set[str] = set()
    for subspace in subspaces:
        names = subspace.directions.keys() if isinstance(subspace, Subspace) else subspace.bases.keys()
        if twice := taken & names:
            raise ConfigError(f"strategies: two of them keep subspaces of {min(twice)}; keep one of the two")
        taken |= names
