"""Online elastic weight consolidation: a quadratic pull to the previous step's weights, by Fisher information."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.emissions import Emissions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.importance import sampled_loss
from ner_cl.strategies.kept import check_state

__all__ = ["Ewc", "EwcOptions", "QuadraticPenalty"]


class EwcOptions(StrategyOptions):
    """How strong the pull is, and how the Fisher information is measured.

    Attributes:
        strength: weight of the penalty (λ in `λ/2 · Σ F (θ - θ*)²`); 0 turns it off. The Fisher information of a
            sentence is tiny for most weights, so useful values are large.
        decay: factor on the Fisher information of earlier steps at the end of each step (γ).
        fisher: which labels the gradients are taken for: `sample` draws them from the model (the Fisher information);
            `gold` uses the annotation (the empirical Fisher), where `O` says nothing about types that were not
            annotated.
        samples: number of sentences of the step used for the measurement, drawn at random.
    """

    name: Literal["ewc"] = "ewc"
    strength: float = Field(1e5, ge=0)
    decay: float = Field(1.0, ge=0, le=1)
    fisher: Literal["sample", "gold"] = "sample"
    samples: int = Field(200, ge=1)


class QuadraticPenalty(torch.autograd.Function):
    """`λ/2 · Σ weight · (θ - anchor)²`, whose gradient is computed together with its value.

    Plain autograd would pass over all parameters, and allocate memory of their size, about three times as often.
    """

    @staticmethod
    def forward(
        ctx: Any, strength: float, weights: list[Tensor], anchors: list[Tensor], *parameters: Tensor
    ) -> Float[Tensor, ""]:
        """The penalty over all tensors: fp32 within a tensor, fp64 across tensors."""
        gradients: list[Tensor] = []  # λ · weight · (θ - anchor); the penalty is half its product with θ - anchor
        values: list[Tensor] = []
        # On a CPU one tensor at a time, so that it stays in cache; elsewhere all at once, since each call has a cost.
        size = 1 if parameters[0].device.type == "cpu" else len(parameters)
        buffer = torch.empty(max(p.numel() for p in parameters)) if size == 1 else None
        for start in range(0, len(parameters), size):
            part = slice(start, start + size)
            offsets = _difference(parameters[part], anchors[part], buffer)
            scaled = torch._foreach_mul(offsets, weights[part])
            if strength != 1.0:
                torch._foreach_mul_(scaled, strength)
            values += [torch.dot(o.flatten(), s.flatten()) for o, s in zip(offsets, scaled, strict=True)]
            gradients += scaled
        each = torch.stack(values)
        ctx.save_for_backward(each, *gradients)
        return (each.double().sum() / 2).float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """`λ · weight · (θ - anchor)`; None, rather than zeros, for a tensor that is at its anchor."""
        # The loop has already read the loss, so reading its parts does not wait for the device again.
        values, *gradients = ctx.saved_tensors
        factor = upstream[0].item()
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        moved = (gradient if value else None for gradient, value in zip(gradients, values.tolist(), strict=True))
        return (None, None, None, *moved)


def _difference(parameters: Sequence[Tensor], anchors: Sequence[Tensor], buffer: Tensor | None) -> list[Tensor]:
    """`θ - anchor`, for a single parameter written to `buffer`: allocating costs more than all the arithmetic."""
    if buffer is None:
        return list(torch._foreach_sub(list(parameters), list(anchors)))
    out = buffer[: parameters[0].numel()].view_as(parameters[0])
    return [torch.sub(parameters[0], anchors[0], out=out)]


@strategies.register("ewc")
@final
class Ewc(Strategy):
    """Pulls weights that matter for earlier steps back to their old values.

    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", equation 3, with one running
    Fisher information and one anchor as in Schwarz et al. 2018, "Progress & Compress", section 3.2: after each step
    `F ← γF + F_step` and `θ* ← θ`. `F_step` is the mean of squared gradients of the log-likelihood of single sentences,
    on their words. Parameters that did not exist or did not train when it was measured are free.
    """

    options_class = EwcOptions
    options: EwcOptions
    keeps = True
    stands_on = "finetune"
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts every step from the pre-trained encoder, far from the weights of the step before",
    }

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}
        self._held: list[Tensor] | None = None
        self._weights: list[Tensor] = []
        self._anchors: list[Tensor] = []

    def begin_step(self, context: StepContext) -> None:
        """Checks that the state of earlier steps is of this model, and moves it to the model's device."""
        device = context.model.device
        shapes = {name: parameter.shape for name, parameter in context.model.named_parameters()}
        for kept in (self._fisher, self._anchor):
            check_state("ewc", kept, shapes)
        self._fisher = {name: tensor.to(device) for name, tensor in self._fisher.items()}
        self._anchor = {name: tensor.to(device) for name, tensor in self._anchor.items()}

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ewc`, the penalty: the same for every batch."""
        if self._held is None:
            held = [name for name in context.trained if name in self._fisher] if self.options.strength else []
            self._weights = [self._fisher[name] for name in held]
            self._anchors = [self._anchor[name] for name in held]
            self._held = [context.model.get_parameter(name) for name in held]
        if not self._held:
            return {}
        penalty = QuadraticPenalty.apply(self.options.strength, self._weights, self._anchors, *self._held)  # type: ignore[no-untyped-call]
        return {"ewc": penalty}

    def end_step(self, context: StepContext) -> None:
        """`F ← γF + F_step` and `θ* ← θ`, for the parameters that trained in this step."""
        measured = self._measure(context, context.trained)
        decayed = {name: self.options.decay * self._fisher[name] for name in measured if name in self._fisher}
        self._fisher |= {name: decayed[name] + new if name in decayed else new for name, new in measured.items()}
        self._anchor |= {name: context.model.get_parameter(name).detach().clone() for name in measured}

    def release(self) -> None:
        """Releases the tensors of the penalty."""
        self._held, self._weights, self._anchors = None, [], []

    def state_dict(self) -> dict[str, Tensor]:
        """`fisher/…` and `anchor/…` by parameter name."""
        return {
            **{f"fisher/{name}": tensor for name, tensor in self._fisher.items()},
            **{f"anchor/{name}": tensor for name, tensor in self._anchor.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        if other := [name for name in state if not name.startswith(("fisher/", "anchor/"))]:
            raise ValueError(f"{other[0]} is neither a Fisher information nor an anchor")
        fisher, anchor = (
            {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}
            for kind in ("fisher/", "anchor/")
        )
        if negative := [name for name, tensor in fisher.items() if bool((tensor < 0).any())]:
            raise ValueError(f"fisher/{negative[0]} is negative in places")
        if unpaired := sorted(fisher.keys() ^ anchor.keys()):
            raise ValueError(f"{unpaired[0]} has a Fisher information or an anchor, but not both")
        self._fisher, self._anchor = fisher, anchor

    def _measure(self, context: StepContext, names: Sequence[str]) -> dict[str, Tensor]:
        """The mean of squared gradients over sentences, by parameter name."""
        parameters = [context.model.get_parameter(name) for name in names]
        squares = {id(parameter): torch.zeros_like(parameter, requires_grad=False) for parameter in parameters}

        def add_square(parameter: Tensor) -> None:
            """Squares and drops a gradient as soon as it is computed, so that they are never all in memory."""
            gradient = parameter.grad
            assert gradient is not None
            squares[id(parameter)].addcmul_(gradient, gradient)
            parameter.grad = None

        draw = context.generator("ewc/labels")
        labels = torch.Generator().manual_seed(int(draw.integers(2**62)))
        batches = self._sentences(context)
        hooks = [p.register_post_accumulate_grad_hook(add_square) for p in parameters]  # type: ignore[no-untyped-call]
        try:
            for batch in batches:
                with torch.autocast(context.model.device.type, enabled=False):
                    loss = self._loss(context, batch, labels)
                torch.autograd.backward(loss, inputs=parameters)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: squares[id(p)] / max(1, len(batches)) for name, p in zip(names, parameters, strict=True)}

    def _loss(self, context: StepContext, batch: Batch, labels: torch.Generator) -> Float[Tensor, ""]:
        """The negative log-likelihood of a sentence's gold or sampled labels."""
        emissions = context.model(batch)
        if self.options.fisher == "sample":
            return sampled_loss(context.model.head.decisions(emissions), generator=labels)
        mean = context.model.head.supervised(emissions, batch, unannotated="unknown")
        return mean * sum(batch.row_words)

    def _sentences(self, context: StepContext) -> list[Batch]:
        """One batch per measured sentence, with all its windows; remembered ones were measured in their own step."""
        drawn = context.own_rows(self.options.samples, "ewc/sentences")
        return [context.encoded.batch(rows).to(context.model.device) for rows in drawn]
