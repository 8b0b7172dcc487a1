"""Finds the update nearest to the optimizer's that satisfies every constraint, in the metric of the gates."""

from collections.abc import Collection, Mapping, Sequence
from math import inf, isfinite
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.errors import ConfigError
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace, Subspace
from ner_cl.train.input_systems import InputSystem

__all__ = ["Projector", "names_of"]

Vector = Mapping[str, Tensor]
# Smaller eigenvalues of the Gram matrix of unit directions are rounding errors, or directions behind closed gates.
_SMALLEST_EIGENVALUE = 1e-7
# Relative to a vector's length, what rounding leaves of it when all of it has been removed.
_ROUNDING = 1e-5
# Columns of directions multiplied in fp64 at a time.
_CHUNK = 65_536


@final
class Projector:
    """Projects updates, given the gates of a step.

    With `m` the gates and `d = -update`, it finds the `d` nearest in `⟨m·x, x⟩` for which `⟨m·d, r⟩ ≥ 0` for every
    half-space and `⟨m·d, b⟩ = 0` for every direction of a subspace. In the plain metric, masking after projecting would
    break the constraint again. Masking is left to the caller.

    The part in the subspaces is first removed from the update and from the references, so that what the half-spaces add
    afterwards stays outside the subspaces.

    Args:
        gates: factors in [0, 1] on parameters, by name; 1 where absent.

    Attributes:
        unsolved: weights with gates and input subspaces whose updates are projected only in part; see `InputSystem`.
    """

    def __init__(self, gates: Mapping[str, Tensor]) -> None:
        self._gates = gates
        # Subspaces and gates last for a whole step, so results computed from both are cached. A key starts with the id
        # of the subspace, which the entry keeps alive so that the id cannot be reused.
        self._inverses: dict[tuple[int, tuple[str, ...]], tuple[Subspace, Float[Tensor, "direction direction"]]] = {}
        self._systems: dict[tuple[int, str], tuple[InputSubspace, InputSystem]] = {}
        self.unsolved: set[str] = set()

    def __call__(
        self, change: Vector, constraints: Sequence[Constraint], *, unit: Tensor | float = 1.0
    ) -> dict[str, Tensor]:
        """Returns the projected change, only for parameters whose change must be corrected; see `excess`."""
        found: dict[str, Tensor] = {}
        for weight, vector in self.excess(change, constraints, unit=unit):
            for name, part in vector.items():
                found[name] = found.get(name, change[name]) - weight * part
        return found

    def excess(
        self, change: Vector, constraints: Sequence[Constraint], *, unit: Tensor | float = 1.0
    ) -> list[tuple[float, Vector]]:
        """Returns weighted vectors to subtract from a change; none if it satisfies every constraint.

        A half-space whose reference is not finite is ignored, because it would make the update non-finite too.

        Args:
            change: actual or intended change of each parameter.
            constraints: the constraints; their parts on parameters outside `change` are ignored.
            unit: unit of length in `change` for the margins of half-spaces.

        Raises:
            ConfigError: if two constraints have subspaces of the same parameter.
        """
        subspaces = [c for c in constraints if not isinstance(c, HalfSpace)]
        half_spaces = [c for c in constraints if isinstance(c, HalfSpace)]
        self._forget_all_but(subspaces)
        inside = self._inside(subspaces, change, change.keys())
        found: list[tuple[float, Vector]] = [(1.0, inside)] if inside else []
        if not half_spaces or not change:
            return found
        whole = [{name: part for name, part in h.reference.items() if name in change} for h in half_spaces]
        references = [_without(r, self._inside(subspaces, r, change.keys())) for r in whole]
        # If a reference lies in the subspaces, its remainder is a rounding error, not a direction to push along.
        least = [_ROUNDING**2 * self._square(reference) for reference in whole] if subspaces else [0.0] * len(whole)
        weights = self._weights(half_spaces, references, _without(change, inside), [unit, *least])
        return [*found, *((w, r) for w, r in zip(weights, references, strict=True) if w > 0 and r)]

    def _weights(
        self,
        half_spaces: Sequence[HalfSpace],
        references: Sequence[Vector],
        change: Vector,
        numbers: Sequence[Tensor | float],
    ) -> list[float]:
        """Returns how much of each reference to subtract from the change; all 0 if no half-space is violated.

        Args:
            half_spaces: the half-spaces, with margin and ridge.
            references: reference of each, with the part in the subspaces removed.
            change: the change, with the part in the subspaces removed.
            numbers: the unit of margins, then the smallest valid squared length of each reference; read from the device
                together with the products.
        """
        products, (unit, *smallest) = self._products([*references, change], numbers)
        weights = [0.0] * len(half_spaces)
        agreement = [-row[-1] for row in products]  # ⟨m·d, r⟩ with d = -change; below 0, the half-space is violated
        kept = [i for i, low in enumerate(smallest) if low <= products[i][i] < inf and isfinite(agreement[i])]
        if all(agreement[i] >= 0 for i in kept):
            return weights
        gram = [[products[i][j] + (half_spaces[i].ridge if i == j else 0.0) for j in kept] for i in kept]
        margins = [half_spaces[i].margin * unit if isfinite(unit) else 0.0 for i in kept]
        for i, weight in zip(kept, solve_dual(gram, [agreement[i] for i in kept], margins), strict=True):
            weights[i] = weight
        return weights

    def _products(
        self, vectors: Sequence[Vector], numbers: Sequence[Tensor | float]
    ) -> tuple[list[list[float]], list[float]]:
        """Returns `⟨m·left, right⟩` of every pair but the last vector with itself, and the numbers, in one device sync.

        Products within a parameter are fp32, their sum is fp64.
        """
        last, size = vectors[-1], len(vectors)
        pairs = [(i, j) for i in range(size - 1) for j in range(i, size)]
        terms: list[list[Tensor]] = [[] for _ in pairs]
        # In the order of `change`: the order of a set, and so the last bits of sums, would differ between processes.
        for name in last:
            flat = [vector[name].flatten() if name in vector else None for vector in vectors]
            masked = [self._masked(name, vector[name]).flatten() if name in vector else None for vector in vectors[:-1]]
            for (i, j), found in zip(pairs, terms, strict=True):
                if (left := masked[i]) is not None and (right := flat[j]) is not None:
                    found.append(torch.dot(left, right))
        device = next(iter(last.values())).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        sums = [torch.stack(found).double().sum() if found else zero for found in terms]
        values = torch.stack([*sums, *(torch.as_tensor(n).to(zero) for n in numbers)]).tolist()
        products = [[0.0] * size for _ in range(size)]
        for (i, j), value in zip(pairs, values, strict=False):
            products[i][j] = products[j][i] = value
        return products, values[len(pairs) :]

    def _square(self, vector: Vector) -> Tensor | float:
        """`⟨m·x, x⟩`."""
        squares = [(self._masked(name, part) * part).sum().double() for name, part in vector.items()]
        return torch.stack(squares).sum() if squares else 0.0

    def _inside(
        self, subspaces: Sequence[Subspace | InputSubspace], vector: Vector, names: Collection[str]
    ) -> dict[str, Tensor]:
        """Returns the part of a vector that lies in the subspaces.

        Args:
            subspaces: subspaces without common parameters.
            vector: the vector, 0 where a name is absent.
            names: parameters that change, in an order that fixes the order of sums; subspaces ignore all others.
        """
        found: dict[str, Tensor] = {}
        for subspace in subspaces:
            if isinstance(subspace, Subspace):
                found |= self._in_directions(subspace, vector, tuple(n for n in names if n in subspace.directions))
                continue
            for name in subspace.bases.keys() & vector.keys():
                if subspace.bases[name].shape[1]:
                    found[name] = self._in_basis(subspace, name, vector[name])
        return found

    def _in_directions(self, subspace: Subspace, vector: Vector, names: tuple[str, ...]) -> dict[str, Tensor]:
        parts = {name: subspace.directions[name].flatten(1) for name in names}
        touched = [name for name in names if name in vector and len(parts[name])]
        if not touched:
            return {}
        shares = torch.stack([(parts[n] @ self._masked(n, vector[n]).flatten()).double() for n in touched]).sum(dim=0)
        if len(names) < len(subspace.directions) or any(name in self._gates for name in names):
            shares = self._inverse(subspace, names) @ shares
        shares = shares.float()
        return {name: (shares @ parts[name]).view(subspace.directions[name].shape[1:]) for name in names}

    def _inverse(self, subspace: Subspace, names: tuple[str, ...]) -> Float[Tensor, "direction direction"]:
        """Inverse Gram matrix of the directions in the gated metric, restricted to some parameters.

        Combinations of directions that vanish there, because of closed gates or parameters that do not change, are out
        of the update's reach and ignored.
        """
        key = (id(subspace), names)
        if key not in self._inverses:
            gram: Tensor | None = None
            for name in names:
                stacked = subspace.directions[name].flatten(1)
                gate = self._gates[name].expand(subspace.directions[name].shape[1:]) if name in self._gates else None
                for start in range(0, stacked.shape[1], _CHUNK):
                    chunk = stacked[:, start : start + _CHUNK].double()
                    masked = chunk if gate is None else chunk * gate.flatten()[start : start + _CHUNK]
                    gram = masked @ chunk.T if gram is None else gram + masked @ chunk.T
            assert gram is not None
            lengths = gram.diagonal().sqrt()
            scale = torch.where(lengths > 0, 1 / lengths, 0.0)
            values, vectors = torch.linalg.eigh(scale[:, None] * gram * scale)
            inverted = torch.where(values > _SMALLEST_EIGENVALUE, 1 / values, 0.0)
            self._inverses[key] = subspace, scale[:, None] * (vectors * inverted @ vectors.T) * scale
        return self._inverses[key][1]

    def _in_basis(
        self, subspace: InputSubspace, name: str, weight: Float[Tensor, "output input"]
    ) -> Float[Tensor, "output input"]:
        basis, gate = subspace.bases[name], self._gates.get(name)
        if gate is None or gate.ndim == 0 or gate.shape[-1] == 1:
            return (weight @ basis) @ basis.T
        masked = gate * weight
        return self._system(subspace, name, weight.shape).solve(masked @ basis, of=masked) @ basis.T

    def restored(
        self, subspace: InputSubspace, name: str, weight: Float[Tensor, "output input"]
    ) -> Float[Tensor, "output input"]:
        """What to subtract from a weight behind a gate of its own shape, so that its `outputs` become what they were.

        Linear as projecting is, it ends where projecting each update since training started would.
        """
        basis, gate = subspace.bases[name], self._gates[name]
        shares = self._system(subspace, name, weight.shape).solve(weight @ basis - subspace.outputs[name], whole=weight)
        return gate * (shares @ basis.T)

    def _system(self, subspace: InputSubspace, name: str, shape: torch.Size) -> InputSystem:
        key = (id(subspace), name)
        if key not in self._systems:
            system = InputSystem(subspace.bases[name], self._gates[name], shape)
            self._systems[key] = subspace, system
            if not system.solvable:
                self.unsolved.add(name)
        return self._systems[key][1]

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        return tensor * self._gates[name] if name in self._gates else tensor

    def _forget_all_but(self, subspaces: Sequence[Subspace | InputSubspace]) -> None:
        """Checks that no two subspaces share a parameter, and drops cached results of other subspaces."""
        taken: set[str] = set()
        for subspace in subspaces:
            names = names_of(subspace)
            if twice := taken & names:
                raise ConfigError(f"strategies: two of them keep subspaces of {min(twice)}; keep one of the two")
            taken |= names
        current = {id(subspace) for subspace in subspaces}
        self._inverses = {key: value for key, value in self._inverses.items() if key[0] in current}
        self._systems = {key: value for key, value in self._systems.items() if key[0] in current}


def names_of(constraint: Constraint) -> set[str]:
    """The parameters a constraint touches."""
    if isinstance(constraint, HalfSpace):
        return set(constraint.reference)
    return set(constraint.directions if isinstance(constraint, Subspace) else constraint.bases)


def solve_dual(
    pairs: Sequence[Sequence[float]], slopes: Sequence[float], least: Sequence[float], *, sweeps: int = 10_000
) -> list[float]:
    """Solves `argmin ½ vᵀQv + qᵀv` over `v ≥ least` by coordinate descent, which is fast for a few references.

    Args:
        pairs: `Q`, positive semidefinite.
        slopes: `q`.
        least: lower bounds.
        sweeps: maximum number of passes over all coordinates.
    """
    weights = list(least)
    # Done when no weight moves the solution by more than 1e-10 of what the largest reference alone would.
    lengths = [row[i] ** 0.5 for i, row in enumerate(pairs)]
    enough = 1e-10 * max(
        (abs(q) / length for q, length in zip(slopes, lengths, strict=True) if length > 0), default=0.0
    )
    for _ in range(sweeps):
        moved = 0.0
        for i, row in enumerate(pairs):
            if row[i] <= 0:
                continue
            slope = slopes[i] + sum(q * v for q, v in zip(row, weights, strict=True))
            new = max(least[i], weights[i] - slope / row[i])
            moved = max(moved, abs(new - weights[i]) * lengths[i])
            weights[i] = new
        if moved <= enough:
            break
    return weights


def _without(vector: Vector, part: Vector) -> Vector:
    """Returns `vector - part`, either being 0 where a name is absent."""
    if not part:
        return vector
    return {**vector, **{name: vector[name] - inside if name in vector else -inside for name, inside in part.items()}}
