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
        margin: GEM's memory strength γ: lower bound of the reference's weight in the projection, once any half-space is
            violated. The gradient has weight 1; the bound is rescaled to the length of the optimizer's update.
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
        outputs: the output of each weight for its basis when training starts; given for all weights that train, or for
            none. With it, updates can be corrected some time later, all at once: the violation is the output now minus
            this. Correction is linear, so the result equals that of correcting each update.
        every: number of updates that are corrected together, if nothing else acts on the same update. The end of
            an epoch corrects all.
    """

    bases: Mapping[str, Float[Tensor, "_input _rank"]]
    outputs: Mapping[str, Float[Tensor, "_output _rank"]] = field(default_factory=dict)
    every: int = 1


Constraint = HalfSpace | Subspace | InputSubspace
