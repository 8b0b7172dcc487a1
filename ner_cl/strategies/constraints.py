"""What an update must not do, declared by strategies and enforced in one place (`ner_cl.train.project`)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Constraint", "HalfSpace", "InputSubspace", "Subspace"]


@dataclass(frozen=True, eq=False, slots=True)
class HalfSpace:
    """The update must not oppose a reference gradient: `⟨-update, reference⟩ ≥ 0`.

    Attributes:
        reference: a tensor for each parameter it touches, by parameter name.
        margin: least weight of the reference in the projection once any half-space is violated (GEM's memory strength),
            where the gradient has weight 1; an update that an optimizer made longer or shorter is projected in
            proportion.
        ridge: added to the diagonal of the dual problem (GEM's ε).
    """

    reference: Mapping[str, Tensor]
    margin: float = 0.0
    ridge: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Subspace:
    """The update must have no part in any of some directions: `⟨update, direction⟩ = 0`.

    Attributes:
        directions: for each parameter by name, its part of every direction, stacked; the directions, over all
            parameters together, are orthonormal.
    """

    directions: Mapping[str, Float[Tensor, "direction ..."]]


@dataclass(frozen=True, eq=False, slots=True)
class InputSubspace:
    """The update of a weight must not change what it makes of some inputs: `update @ basis = 0`.

    Attributes:
        bases: for each weight `[output, input]` by name, an orthonormal basis of the inputs.
    """

    bases: Mapping[str, Float[Tensor, "input rank"]]


Constraint = HalfSpace | Subspace | InputSubspace
