"""Combines the gates, constraints and preconditioners of all strategies with the optimizer.

Soft masks and projections act on the *update*, not on the gradient: Adam cancels a constant factor on the gradient, and
decoupled weight decay moves a parameter whose gradient is zero. Under SGD they may act on the gradient, as in the
papers. Both are combined in the gated metric, in which projecting and masking agree; simply applying one after the
other would break the constraint.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from ner_cl.errors import ConfigError, TrainingError
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace
from ner_cl.strategies.gated import hold_back
from ner_cl.train.project import Projector, names_of

__all__ = ["Updater", "combine_gates"]

Vector = Mapping[str, Tensor]


@final
class Updater:
    """Makes updates from the gradients in `.grad`.

    Args:
        strategies: asked for gates once, at construction, and for constraints and preconditioning at every update.
        context: the context of the step.
        optimizer: the optimizer of the student's parameters.
        clip: largest gradient norm; 0 for no clipping.
        apply_to: whether gates and constraints act on the update or on the gradient.
        average: averages the tensors of a reference gradient over processes.

    Raises:
        TrainingError: if a gate names no parameter or lies outside [0, 1].
    """

    def __init__(
        self,
        strategies: Sequence[Strategy],
        context: StepContext,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float,
        apply_to: Literal["update", "gradient"] = "update",
        average: Callable[[Vector], Vector] = lambda tensors: tensors,
    ) -> None:
        self._strategies = strategies
        self._context = context
        self._optimizer = optimizer
        self._clip = clip
        self._apply_to = apply_to
        self._average = average
        self._parameters = dict(context.model.named_parameters())
        self._gates = combine_gates([strategy.gates(context) for strategy in strategies], self._parameters)
        self._project = Projector(self._gates)
        self._before: dict[str, Tensor] = {}
        self._deferred: InputSubspace | None = None  # the updates since the last correction violate it

    def update(self) -> bool:
        """Clips, steps, projects and gates; if the gradient is not finite, leaves the update out and returns False.

        Raises:
            ConfigError: if two strategies replace the optimizer's direction.
        """
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if not torch.isfinite(norm):
            self._correct_if_due()
            return False
        constraints = self._defer(self._constraints())
        if self._apply_to == "gradient":
            self._shape_gradients(gradients, constraints)
            norm, constraints = nn.utils.get_total_norm(gradients.values()), []
        gradient_length = _length(gradients, constraints)
        if self._clip:
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._clip, norm)
        gated = self._gates.keys() & gradients.keys() if self._apply_to == "update" else set()
        constrained = set().union(*(names_of(constraint) for constraint in constraints)) & gradients.keys()
        touched = gated | constrained
        # In the model's order: the order of a set, and so the last bits of sums, would differ between processes.
        before = self._remember([name for name in self._parameters if name in touched])
        self._step(gradients)
        with torch.no_grad():
            to_project = {name: old for name, old in before.items() if name in constrained}
            self._project_update(constraints, to_project, gated, gradient_length)
            held = {name: old for name, old in before.items() if name in gated}
            hold_back([self._parameters[n] for n in held], list(held.values()), [self._gates[n] for n in held])
        self._correct_if_due()
        return True

    @torch.no_grad()
    def correct(self) -> None:
        """Corrects updates that were left to be corrected together; the loop calls it at the end of an epoch.

        The outputs of weights for protected inputs become again what they were as training started.
        """
        if self._deferred is not None:
            for name, outputs in self._deferred.outputs.items():
                weight, basis = self._parameters[name], self._deferred.bases[name]
                if name in self._gates:
                    weight.sub_(self._project.restored(self._deferred, name, weight))
                else:
                    weight.addmm_(weight @ basis - outputs, basis.T, alpha=-1)
        self._deferred = None

    @property
    def unsolved(self) -> Collection[str]:
        """Weights whose updates satisfy their constraints only in part."""
        return self._project.unsolved

    def _correct_if_due(self) -> None:
        """Corrects the deferred updates after every `every` of them; after an epoch's last, the loop does."""
        made = self._context.update + 1
        if self._deferred is not None and not made % self._deferred.every and made < self._context.updates:
            self.correct()

    def _defer(self, constraints: list[Constraint]) -> list[Constraint]:
        """The constraints to apply to this update: none if its correction can wait.

        It can if an `InputSubspace` is the only constraint. Weights whose rows or columns share a gate do not wait:
        projecting them is cheap, and differences of their outputs are too inexact where gates are nearly closed.
        """
        if len(constraints) == 1 and isinstance(only := constraints[0], InputSubspace):
            trained = {name for name in only.bases if self._parameters[name].requires_grad}
            gated = trained & self._gates.keys()
            by_entry = all(self._gates[name].shape == self._parameters[name].shape for name in gated)
            if trained <= only.outputs.keys() and by_entry and self._apply_to == "update":
                if self._deferred is not only:
                    self.correct()
                self._deferred = only
                return []
        self.correct()  # deferred corrections come before the change of this update is measured
        return constraints

    def _project_update(
        self, constraints: Sequence[Constraint], before: Vector, gated: Collection[str], gradient_length: Tensor
    ) -> None:
        """Removes the part of the update that violates constraints.

        Args:
            constraints: the constraints of all strategies.
            before: old values of the parameters they touch; overwritten, except for those in `gated`.
            gated: parameters whose old values are still needed afterwards.
            gradient_length: length of the gradient; see `_length`.
        """
        if not before:
            return
        change = {
            name: torch.sub(self._parameters[name], old, out=None if name in gated else old)
            for name, old in before.items()
        }
        unit = _length(change, constraints) / gradient_length
        for weight, vector in self._project.excess(change, constraints, unit=unit):
            torch._foreach_sub_([self._parameters[name] for name in vector], list(vector.values()), alpha=weight)

    def _constraints(self) -> list[Constraint]:
        """The constraints of all strategies, with references averaged over processes."""
        return [
            replace(constraint, reference=self._average(constraint.reference))
            if isinstance(constraint, HalfSpace)
            else constraint
            for strategy in self._strategies
            for constraint in strategy.constraints(self._context)
        ]

    def _shape_gradients(self, gradients: Vector, constraints: Sequence[Constraint]) -> None:
        """Projects and masks the gradient before the optimizer's step, as the papers do under SGD."""
        if constraints:
            touched = set().union(*(names_of(constraint) for constraint in constraints))
            descent = {name: -gradient for name, gradient in gradients.items() if name in touched}
            for name, projected in self._project(descent, constraints).items():
                gradients[name].copy_(-projected)
        for name, gate in self._gates.items():
            if name in gradients:
                gradients[name].mul_(gate)

    def _step(self, gradient: Vector) -> None:
        """Makes the optimizer's step, except for parameters that a strategy gives its own update."""
        own = [found for s in self._strategies if (found := s.precondition(self._context, gradient)) is not None]
        if len(own) > 1:
            raise ConfigError("strategies: two of them replace the optimizer's direction; keep one")
        for name, change in (own[0] if own else {}).items():
            with torch.no_grad():
                self._parameters[name].add_(change)
            self._parameters[name].grad = None  # the optimizer skips it
        self._optimizer.step()

    def _remember(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies parameters into buffers that are reused at every update."""
        for name in names:
            if name not in self._before:
                self._before[name] = torch.empty_like(self._parameters[name], requires_grad=False)
        before = {name: self._before[name] for name in names}
        if before:
            torch._foreach_copy_(list(before.values()), [self._parameters[name].detach() for name in names])
        return before


def _length(vector: Vector, constraints: Sequence[Constraint]) -> Tensor:
    """Length of a vector over the parameters of half-spaces with a margin.

    Margins are in units of the gradient's length. The update's length differs, and an adaptive optimizer's learning
    rate does not determine it, so both lengths are measured.
    """
    names = set().union(*(names_of(c) for c in constraints if isinstance(c, HalfSpace) and c.margin))
    return nn.utils.get_total_norm([tensor for name, tensor in vector.items() if name in names])


def combine_gates(gates: Sequence[Vector], parameters: Vector) -> dict[str, Tensor]:
    """Multiplies the gates of all strategies, by parameter name.

    Raises:
        TrainingError: if a gate names no parameter or lies outside [0, 1].
    """
    combined: dict[str, Tensor] = {}
    for declared in gates:
        for name, gate in declared.items():
            if name not in parameters:
                raise TrainingError(f"a gate names {name}, which is no parameter of the model")
            if not ((gate >= 0) & (gate <= 1)).all():  # written so that it refuses NaN too
                raise TrainingError(f"the gate of {name} leaves [0, 1]; a gate is one minus an importance in [0, 1]")
            combined[name] = combined[name] * gate if name in combined else gate
    return combined
