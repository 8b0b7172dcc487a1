"""What an update must not do, declared by strategies and enforced in one place (`ner_cl.train.project`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

__all__ = ["Constraint", "HalfSpace", "InputSubspace", "Subspace"]


@dataclass(frozen=True, eq=False, slots=True)
class HalfSpace:
    """The update must not oppose a reference gradient: `⟨-update, reference⟩ ≥ 0`.

    Attributes:
        reference: the reference gradient, by parameter name.
        margin: least weight of the reference in the projection once any half-space is violated (GEM's memory strength),
            where the gradient has weight 1; it scales with the length that the optimizer gives the update.
        ridge: added to the diagonal of the dual problem (GEM's ε).
    """

    reference: Mapping[str, Tensor]
    margin: float = 0.0
    ridge: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Subspace:
    """The update must be orthogonal to some directions: `⟨update, direction⟩ = 0`.

    Attributes:
        directions: by parameter name, its part of every direction, stacked. Over all parameters together, the
            directions are orthonormal.
    """

    directions: Mapping[str, Float[Tensor, "direction ..."]]


@dataclass(frozen=True, eq=False, slots=True)
class InputSubspace:
    """The update of a weight must not change its outputs for some inputs: `update @ basis = 0`.

    Attributes:
        bases: an orthonormal basis of the inputs of each weight `[output, input]`, by name.
        outputs: what each weight makes of its basis as training starts, for all weights that train, or for none. With
            it, a violation is what weights make of the bases now, minus this; so updates may be left as they are for a
            while and corrected together, which ends where correcting each of them would: the correction is linear.
        every: number of updates that are corrected together, if nothing else acts on the same update. The end of
            an epoch corrects all.
    """

    bases: Mapping[str, Float[Tensor, "input rank"]]
    outputs: Mapping[str, Float[Tensor, "output rank"]] = field(default_factory=dict)
    every: int = 1


Constraint = HalfSpace | Subspace | InputSubspace
