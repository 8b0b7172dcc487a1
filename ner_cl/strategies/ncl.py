"""NCL: natural continual learning, with updates in the metric of old steps' precision (Kao et al. 2021, NeurIPS)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ner_cl.config import StrategyOptions
from ner_cl.errors import ConfigError
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.kronecker import Diagonal, Kronecker, fisher, kronecker_sum, scaled_identity
from ner_cl.strategies.linear_layers import check_linear, top_layer_names

__all__ = ["Ncl", "NclOptions", "Part", "joined", "parted"]


class NclOptions(StrategyOptions):
    """The prior, the trust region and the learning rates.

    Attributes:
        lr: step size γ of the encoder, scaled by the schedule of `training`; the learning rates of its optimizer do not
            count.
        head_lr: the same for the head.
        momentum: momentum of these updates.
        layers: number of last layers of the encoder that learn after step 1; the rest is then frozen.
        data_size: N, the number of words that a step's information counts for; the prior before step 1 is the identity
            over N. A larger value holds old types more tightly.
        prior: λ, weight of the pull towards the weights before the step.
        damping: α, added to each factor before it is inverted; usually 0, as the prior makes the factors invertible.
        radius: maximum length of an update in the metric of the precision; with 0 only the learning rate limits it.
        samples: number of sentences of the step, drawn at random, on which its Fisher information is measured.
        kronecker_sum: how the information of two steps is added: `additive` or `nearest`.
        first_step: what trains step 1, where there is nothing to hold yet: the `optimizer` of `training`, as under any
            other strategy, or `ncl`, as in the paper (the optimizer still trains what does not learn later).
    """

    name: Literal["ncl"] = "ncl"
    lr: float = Field(0.2, gt=0)
    head_lr: float = Field(0.3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    layers: int = Field(2, ge=0)
    data_size: int = Field(10_000, ge=1)
    prior: float = Field(1.0, ge=0)
    damping: float = Field(0.0, ge=0)
    radius: float = Field(0.0, ge=0)
    samples: int = Field(500, ge=1)
    kronecker_sum: Literal["additive", "nearest"] = "additive"
    first_step: Literal["optimizer", "ncl"] = "optimizer"


@final
@dataclass(eq=False, slots=True, kw_only=True)
class Part:
    """Parameters that share a precision: a weight with its bias as last column, or a single tensor.

    Attributes:
        names: names of the parameters.
        parameters: the parameters.
        precision: the precision from old steps and the prior.
        inverse: its damped inverse.
        anchor: the weights before the step, joined.
        rate: learning rate.
        momentum: running sum of preconditioned forces; None before the first.
    """

    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    precision: Kronecker | Diagonal
    inverse: Kronecker | Diagonal
    anchor: Tensor
    rate: float
    momentum: Tensor | None = None

    def change(self, slope: Float[Tensor, "..."], options: NclOptions, *, scale: float = 1.0) -> Float[Tensor, "..."]:
        """The update `-γ/N · [Λ⁻¹∇L + λ(θ - μ)]` with momentum (Kao et al. 2021, in the form of a loss).

        The paper's code accumulates momentum before preconditioning. Both are linear and the preconditioner is constant
        within a step, so accumulating afterwards is equivalent, and saves two products where Λ⁻¹Λ is the identity.

        Args:
            slope: the gradient of the loss, joined like the weights.
            options: the options of the strategy.
            scale: the schedule's current factor on the learning rate.
        """
        pull = joined(self.parameters) - self.anchor
        if options.damping:
            pull = self.inverse.times(self.precision.times(pull))
        force = self.inverse.times(slope) + options.prior * pull
        if options.momentum:
            force = force if self.momentum is None else self.momentum.mul_(options.momentum).add_(force)
            self.momentum = force
        return force * (-self.rate * scale / options.data_size)


@strategies.register("ncl")
@final
class Ncl(Strategy):
    """Moves to the optimum of loss and prior along `-Λ⁻¹∇L - (θ - μ)`, little in directions that matter to old steps.

    `Λ` is the precision of the weights after the old steps: a Kronecker product for each linear layer, a diagonal for
    LayerNorm. The strategy replaces the optimizer for all that learns: the last layers of the encoder and the head.
    """

    options_class = NclOptions
    options: NclOptions
    keeps = True
    acts_at_once = True
    replaces_optimizer = True
    excludes: ClassVar[Mapping[str, str]] = {
        "ewc": "both put the same quadratic prior on the weights, which would count twice",
        "gpm": "gpm freezes biases, which ncl moves together with their weights",
        "joint": "joint starts anew from the pre-trained encoder, which the precision says nothing of",
    }

    def __init__(self, options: NclOptions) -> None:
        super().__init__(options)
        self._precisions: dict[str, Kronecker | Diagonal] = {}
        self._parts: list[Part] = []

    def begin_step(self, context: StepContext) -> None:
        """Checks that the precision belongs to the layers to train.

        Raises:
            ConfigError: if it was measured with another number of layers.
            ModelError: if the encoder has no linear layers there.
        """
        known = {name for name in self._precisions if name.startswith("encoder.")}
        wanted = {name for name, _ in _shapes(self._layers(context)) if name.startswith("encoder.")}
        if self.options.layers:
            check_linear(context.model, self._layers(context), strategy="ncl")
        if self._precisions and known != wanted:
            raise ConfigError("strategies.ncl.layers: not as in the steps before; keep it the same in all steps")
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in _shapes(self._layers(context)):
            if isinstance(self._precisions.get(name), Kronecker):
                shapes |= {f"{name}/inputs": (shape[-1],) * 2, f"{name}/outputs": (shape[0],) * 2}
            else:
                shapes[f"{name}/diagonal"] = shape
        check_state("ncl", self.state_dict(), shapes)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Inverts the precision once for all updates and, after step 1, freezes every parameter without one."""
        self._parts = []
        if context.number > 1 or self.options.first_step == "ncl":
            for name, shape in _shapes(self._layers(context)):
                self._parts.append(self._part(context, name, shape))
        if context.number > 1:
            learning = {name for part in self._parts for name in part.names}
            for name, parameter in context.model.named_parameters():
                if name not in learning:
                    parameter.requires_grad_(False)
        return {}

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The updates of all parts, together within the radius. The loop has already clipped the gradients."""
        if not self._parts:
            return None
        with torch.no_grad():
            parts = [part for part in self._parts if all(name in gradient for name in part.names)]
            changes = [
                part.change(joined([gradient[name] for name in part.names]), self.options, scale=context.rate)
                for part in parts
            ]
            if self.options.radius and changes:
                lengths = [(c * part.precision.times(c)).sum() for part, c in zip(parts, changes, strict=True)]
                length = torch.stack(lengths).sum().sqrt()
                shrink = (self.options.radius / length).clamp(max=1.0)  # at length 0 the ratio is infinite, so 1
                changes = [change * shrink for change in changes]
        found: dict[str, Tensor] = {}
        for part, change in zip(parts, changes, strict=True):
            found |= parted(change, part.names)
        return found

    def end_step(self, context: StepContext) -> None:
        """Adds this step's Fisher information to the precision."""
        batches = context.batches(sentences=self.options.samples, purpose="ncl/sentences")
        seed = int(context.generator("ncl/tags").integers(2**62))
        layers = self._layers(context)
        measured = fisher(context.model, batches, layers, seed=seed)
        for name, shape in _shapes(layers):
            old, new = self._precision(name, shape), measured.get(name)
            if isinstance(old, Kronecker) and isinstance(new, Kronecker):
                new = Kronecker(new.inputs.cpu(), new.outputs.cpu())
                self._precisions[name] = kronecker_sum(old, new, how=self.options.kronecker_sum)
            elif isinstance(old, Diagonal) and isinstance(new, Diagonal):
                self._precisions[name] = Diagonal(old.values + new.values.cpu())
            else:
                self._precisions[name] = old  # the step's loss did not reach it

    def release(self) -> None:
        """Releases inverses, anchors and momentum."""
        self._parts = []

    def state_dict(self) -> dict[str, Tensor]:
        """Both factors of each linear layer, and the diagonals."""
        state: dict[str, Tensor] = {}
        for name, precision in self._precisions.items():
            if isinstance(precision, Kronecker):
                state |= {f"{name}/inputs": precision.inputs, f"{name}/outputs": precision.outputs}
            else:
                state[f"{name}/diagonal"] = precision.values
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the precision."""
        self._precisions = {}
        for key, values in state.items():
            name, kind = key.rsplit("/", maxsplit=1)
            if kind == "inputs":
                self._precisions[name] = Kronecker(values, state[f"{name}/outputs"])
            elif kind == "diagonal":
                self._precisions[name] = Diagonal(values)

    def progress(self) -> dict[str, Tensor]:
        """The momentum of each part."""
        return {part.names[0]: part.momentum for part in self._parts if part.momentum is not None}

    def load_progress(self, progress: Mapping[str, Tensor]) -> None:
        """Restores the momentum."""
        for part in self._parts:
            if part.names[0] in progress:
                part.momentum = progress[part.names[0]].to(part.anchor.device)

    def _layers(self, context: StepContext) -> dict[str, nn.Linear | nn.LayerNorm]:
        """The modules that learn after step 1: linear layers and LayerNorms of the last layers and of the head."""
        count = self.options.layers
        last = tuple(f"{name}." for name in top_layer_names(context.model, count)) if count else ()
        return {
            name: module
            for name, module in context.model.named_modules()
            if isinstance(module, nn.Linear | nn.LayerNorm) and name.startswith((*last, "head."))
        }

    def _precision(self, name: str, shape: tuple[int, ...]) -> Kronecker | Diagonal:
        """The precision so far; the prior if there is none."""
        return self._precisions.get(name) or scaled_identity(shape, 1 / self.options.data_size)

    def _part(self, context: StepContext, name: str, shape: tuple[int, ...]) -> Part:
        parameters = dict(context.model.named_parameters())
        names = (
            (name,)
            if name in parameters
            else tuple(full for full in (f"{name}.weight", f"{name}.bias") if full in parameters)
        )
        tensors = tuple(parameters[full] for full in names)
        anchor = joined(tensors).detach().clone()
        precision = self._precision(name, shape)
        inverse = precision.inverse(damping=self.options.damping)
        rate = self.options.head_lr if name.startswith("head.") else self.options.lr
        return Part(
            names=names,
            parameters=tensors,
            precision=_on(precision, anchor.device),
            inverse=_on(inverse, anchor.device),
            anchor=anchor,
            rate=rate,
        )


def _shapes(layers: Mapping[str, nn.Linear | nn.LayerNorm]) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of everything with a precision: a linear layer with its bias, or else a single parameter."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, layer in layers.items():
        own = dict(layer.named_parameters())
        if isinstance(layer, nn.Linear):
            found.append((name, (layer.out_features, layer.in_features + ("bias" in own))))
        else:
            found += [(f"{name}.{parameter}", tuple(own[parameter].shape)) for parameter in own]
    return found


def joined(tensors: Sequence[Tensor]) -> Float[Tensor, "..."]:
    """Joins a weight with its bias as last column, or returns a single tensor as it is."""
    if len(tensors) == 1:
        return tensors[0]
    weight, bias = tensors
    return torch.cat([weight, bias.unsqueeze(1)], dim=1)


def parted(joined: Float[Tensor, "..."], names: tuple[str, ...]) -> dict[str, Tensor]:
    """The reverse of `joined`."""
    return {names[0]: joined} if len(names) == 1 else {names[0]: joined[:, :-1], names[1]: joined[:, -1]}


def _on(precision: Kronecker | Diagonal, device: torch.device) -> Kronecker | Diagonal:
    if isinstance(precision, Kronecker):
        return Kronecker(precision.inputs.to(device), precision.outputs.to(device))
    return Diagonal(precision.values.to(device))
