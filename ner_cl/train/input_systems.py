"""Systems of equations for updates of a gated weight that must not change its outputs for protected inputs."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["InputSystem"]

_MOST_ROUNDS = 200
# Relative to the square of what outputs are computed from: what rounding makes of outputs that should be 0.
_ROUNDING, _ROUNDING_OF_DIFFERENCES = 1e-13, 1e-12
# Smaller eigenvalues, relative to the largest, are rounding errors, or directions behind closed gates.
_SMALLEST_EIGENVALUE = 1e-7


@final
class InputSystem:
    """Solves `Mᵀ diag(m) M c = v` for every row `m` of a weight's gates and its row `v` of outputs for `M`.

    Where all rows have the same gates, there is one matrix, which is inverted once. Otherwise there is one for each
    row, too many to keep: conjugate gradients solve all rows at once. The number of rounds is estimated here, on a
    random weight and with a few to spare, so that updates need no device sync to know when to stop.

    Args:
        basis: orthonormal columns `M`.
        gate: factors in [0, 1] that broadcast to the weight.
        shape: shape of the weight.

    Attributes:
        rounds: iterations of conjugate gradients; 0 with one matrix for all rows.
        solvable: whether they are enough; otherwise outputs still change a little.
    """

    def __init__(self, basis: Float[Tensor, "input rank"], gate: Tensor, shape: torch.Size) -> None:
        self._basis, self._gate = basis, gate
        self._inverse: Float[Tensor, "rank rank"] | None = None
        self.rounds, self.solvable = 0, True
        if gate.ndim == 1 or gate.shape[0] == 1:
            self._inverse = _inverse(basis, gate)
            return
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(gate)
        masked = gate * weight
        enough = _ROUNDING * _square(masked)
        _, done, self.solvable = _solve_rows(masked @ basis, basis, gate, enough, None)
        self.rounds = min(_MOST_ROUNDS, done + max(2, done // 4))

    def solve(
        self,
        outputs: Float[Tensor, "output rank"],
        *,
        of: Float[Tensor, "output input"] | None = None,
        whole: Float[Tensor, "output input"] | None = None,
    ) -> Float[Tensor, "output rank"]:
        """Returns `c` of every row.

        Args:
            outputs: `v` of every row.
            of: the gated update whose outputs they are.
            whole: the weight, if they are the difference of its outputs from earlier ones, which is less exact.
        """
        if self._inverse is not None:
            return (outputs.double() @ self._inverse).to(outputs)
        enough = _ROUNDING * _square(of) if of is not None else 0.0
        if whole is not None:
            enough = enough + _ROUNDING_OF_DIFFERENCES * _square(whole)
        return _solve_rows(outputs, self._basis, self._gate, enough, self.rounds)[0]


def _square(rows: Float[Tensor, "row column"]) -> Float[Tensor, "row 1"]:
    return rows.square().sum(dim=-1, keepdim=True)


def _inverse(basis: Float[Tensor, "input rank"], gate: Tensor) -> Float[Tensor, "rank rank"]:
    """The inverse of `Mᵀ diag(m) M`, in fp64, but for combinations of inputs that closed gates cut off."""
    columns = basis.double()
    values, vectors = torch.linalg.eigh(columns.T @ (gate.double().reshape(-1, 1) * columns))
    inverted = torch.where(values > _SMALLEST_EIGENVALUE * values.amax(), 1 / values, 0.0)
    inverse: Tensor = vectors * inverted @ vectors.T
    return inverse


def _solve_rows(
    outputs: Float[Tensor, "output rank"],
    basis: Float[Tensor, "input rank"],
    gate: Float[Tensor, "output input"],
    enough: Tensor | float,
    rounds: int | None,
) -> tuple[Float[Tensor, "output rank"], int, bool]:
    """Returns `c` of every row, the iterations made, and whether all rows are solved (True if not looked at).

    Args:
        outputs: `v` of every row.
        basis: `M`.
        gate: the gates of every row.
        enough: squared lengths of residuals that are rounding errors.
        rounds: iterations to make; None makes as many as are needed and allowed.
    """
    residual = outputs
    shares = torch.zeros_like(residual)
    direction, size = residual, _square(residual)
    tiny = torch.finfo(size.dtype).tiny
    done = 0
    while done < (_MOST_ROUNDS if rounds is None else rounds):
        unsolved = size > enough
        if rounds is None and not unsolved.any():
            break
        image = (gate * (direction @ basis.T)) @ basis
        length = torch.where(unsolved, size / (direction * image).sum(dim=-1, keepdim=True).clamp(min=tiny), 0.0)
        shares = torch.addcmul(shares, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        following = _square(residual)
        direction = torch.addcmul(residual, following / size.clamp(min=tiny), direction)
        size = following
        done += 1
    return shares, done, rounds is not None or not bool((size > enough).any())
