"""One place where gates, constraints and preconditioners of all strategies meet the optimizer.

Soft masks and projections act on the *update*, not on the gradient: Adam divides a constant factor on the gradient out
again, and decoupled weight decay moves a parameter whose gradient is zero. Both are combined in the gated metric, where
projecting and masking agree; done one after the other they break the constraint.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from ner_cl.errors import ConfigError, TrainingError
from ner_cl.strategies.base import Constraint, StepContext, Strategy

__all__ = ["Updater", "combine_gates", "gated", "project"]


@final
class Updater:
    """Makes one update from the gradients in `.grad`.

    Args:
        strategies: asked for gates now, for constraints and preconditioning at every update.
        context: of the step.
        optimizer: over the parameters of the student.
        clip: largest gradient norm; 0 for none.

    Raises:
        ConfigError: if two strategies want to replace the optimizer's direction.
    """

    def __init__(
        self, strategies: Sequence[Strategy], context: StepContext, optimizer: torch.optim.Optimizer, *, clip: float
    ) -> None:
        self._strategies = strategies
        self._context = context
        self._optimizer = optimizer
        self._clip = clip
        self._parameters = dict(context.model.named_parameters())
        self._gates = combine_gates([strategy.gates(context) for strategy in strategies], self._parameters)

    def update(self) -> bool:
        """Clips, steps, projects and gates; False, with nothing changed, if the gradient is not finite."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            return False
        if self._clip:
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._clip, norm)
        constraints = [c for strategy in self._strategies for c in strategy.constraints(self._context)]
        touched = {name for constraint in constraints for name in constraint} | set(self._gates)
        # In the model's order: sums over a set of names would differ from process to process in their last bits.
        before = {name: p.detach().clone() for name, p in self._parameters.items() if name in touched}
        self._step()
        with torch.no_grad():
            if constraints:
                self._project(before, constraints)
            for name, gate in self._gates.items():
                parameter = self._parameters[name]
                parameter.copy_(gated(before[name], parameter, gate))
        return True

    def _step(self) -> None:
        """The optimizer's step, or a strategy's own direction where one gives it."""
        gradient = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        own = [found for s in self._strategies if (found := s.precondition(self._context, gradient)) is not None]
        if len(own) > 1:
            raise ConfigError("strategies: two of them replace the optimizer's direction; keep one")
        for name, change in (own[0] if own else {}).items():
            with torch.no_grad():
                self._parameters[name].add_(change)
            self._parameters[name].grad = None  # what has its own direction is not the optimizer's any more
        self._optimizer.step()

    def _project(self, before: Mapping[str, Tensor], constraints: Sequence[Constraint]) -> None:
        change = {name: self._parameters[name] - before[name] for name in before}
        for name, projected in project(change, constraints, self._gates).items():
            self._parameters[name].copy_(before[name] + projected)


def combine_gates(gates: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The product of all strategies' gates, by parameter name.

    Raises:
        TrainingError: if a gate names no parameter or lies outside [0, 1].
    """
    combined: dict[str, Tensor] = {}
    for declared in gates:
        for name, gate in declared.items():
            if name not in parameters:
                raise TrainingError(f"a gate names {name}, which is no parameter of the model")
            if not ((gate >= 0) & (gate <= 1)).all():  # so put, it refuses NaN too
                raise TrainingError(f"the gate of {name} leaves [0, 1]; a gate is one minus an importance in [0, 1]")
            combined[name] = combined[name] * gate if name in combined else gate
    return combined


def gated(before: Tensor, after: Tensor, gate: Tensor) -> Tensor:
    """`before + gate · (after - before)`, equal to the last bit to `before` at gate 0 and to `after` at gate 1.

    Args:
        before: parameter before the update.
        after: parameter after it.
        gate: factors in [0, 1], of a shape that broadcasts to the parameter's.
    """
    between = torch.where(gate == 1, after, before + gate * (after - before))
    return torch.where(gate == 0, before, between)


def project(
    change: Mapping[str, Tensor], constraints: Sequence[Constraint], gates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The change nearest to `change`, in the gated metric, that opposes no reference direction.

    With `d = -change` and gate `m`, finds `v ≥ 0` such that `⟨m·(d + Σ vᵢ rᵢ), rⱼ⟩ ≥ 0` for every j (GEM's dual
    problem; for one reference A-GEM's closed form), and gives `-(d + Σ vᵢ rᵢ)`, still to be multiplied by the gate.

    Args:
        change: what the optimizer did to each parameter.
        constraints: reference gradients `r`, each on some of these parameters.
        gates: factors in [0, 1] on parameters; 1 where absent.

    Returns:
        The new change of the parameters that change otherwise than `change` says.
    """
    pairs = [[_product(left, right, gates) for right in constraints] for left in constraints]
    slopes = [-_product(change, reference, gates) for reference in constraints]
    if all(slope >= 0 for slope in slopes):
        return {}
    weights = _solve_dual(pairs, slopes)
    projected: dict[str, Tensor] = {}
    for weight, reference in zip(weights, constraints, strict=True):
        if weight > 0:
            for name, direction in reference.items():
                projected[name] = projected.get(name, change[name]) - weight * direction
    return projected


def _product(left: Mapping[str, Tensor], right: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> float:
    """`⟨m·left, right⟩` over the parameters both have: fp32 within a tensor, fp64 across tensors."""
    total = 0.0
    for name in right:
        if name not in left:
            continue
        masked = left[name] * gates[name] if name in gates else left[name]
        total += float((masked * right[name]).sum())
    return total


def _solve_dual(pairs: Sequence[Sequence[float]], slopes: Sequence[float], *, sweeps: int = 10_000) -> list[float]:
    """`argmin ½ vᵀQv + qᵀv` over `v ≥ 0` by coordinate descent, which a handful of references solves at once."""
    weights = [0.0] * len(slopes)
    for _ in range(sweeps):
        moved = 0.0
        for i, row in enumerate(pairs):
            if row[i] <= 0:
                continue
            slope = slopes[i] + sum(q * v for q, v in zip(row, weights, strict=True))
            new = max(0.0, weights[i] - slope / row[i])
            moved = max(moved, abs(new - weights[i]) * row[i] ** 0.5)
            weights[i] = new
        if moved < 1e-12:
            break
    return weights
