"""Importance of parameters and units: how far their loss gradient stands out, measured without side effects."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.errors import TrainingError
from ner_cl.model.restoring import modes_restored, random_state_restored
from ner_cl.strategies.base import StepContext

__all__ = ["GradientSum", "measuring", "relative_importance", "rounding_noise", "sampled_loss"]

# Relative to the typical gradient of a model. The biases of attention keys, whose gradient is 0 but for rounding, have
# up to 3e-7; whatever has a gradient at all, some 1e-4 and more.
_ROUNDING = 3e-6


def relative_importance(gradient: Float[Tensor, "*unit"], *, noise: float = 0.0) -> Float[Tensor, "*unit"]:
    """`|tanh(z)|` with `z` the gradient's z-score within the tensor: 0 at the tensor's mean, towards 1 far from it.

    SPG (Konishi et al. 2023) uses it per parameter tensor, DAS (Ke et al. 2023) per layer and kind of unit. It is a
    relative measure: whatever the scale of the gradients, about a third of normally distributed ones get more than
    0.76. A single entry, or entries that are all equal, get 0.

    Args:
        gradient: the signed gradient, summed over batches.
        noise: standard deviation up to which entries count as equal.

    Returns:
        Importance in [0, 1], fp32.

    Example:
        >>> relative_importance(torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.5]]))[0].tolist()
        [0.38063..., 0.88595..., 0.09986...]
    """
    if gradient.numel() < 2:
        return torch.zeros_like(gradient, dtype=torch.float32)
    # In fp64 the mean of equal entries is exact, so no rounding noise is blown up to importance.
    centred = gradient.double() - gradient.double().mean()
    spread = centred.std(unbiased=True)
    return torch.where(spread > noise, (centred / spread).tanh().abs(), 0.0).float()


def rounding_noise(gradients: Sequence[Tensor]) -> float:
    """How far entries of a tensor may differ by rounding alone, judged by the root mean square of all gradients.

    Softmax ignores what is added to all its inputs, so the gradient of the biases of attention keys is 0, but is
    computed as a sum of rounding errors. These must not be blown up to importance.

    Args:
        gradients: the gradients of all parameters.
    """
    squares = sum(float(gradient.double().square().sum()) for gradient in gradients)
    return _ROUNDING * math.sqrt(squares / max(1, sum(gradient.numel() for gradient in gradients)))


@final
class GradientSum:
    """Signed gradients of scalars, summed over the batches of a measurement.

    A batch whose gradients overflow adds nothing, as it would update nothing in training.

    Args:
        inputs: the tensors to differentiate with respect to.

    Attributes:
        tensors: the sums so far, one for each input.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)
        self.tensors = [torch.zeros_like(tensor, requires_grad=False) for tensor in self._inputs]

    def add(self, value: Float[Tensor, ""], *, keep_graph: bool = False) -> None:
        """Adds the gradients of `value`, leaving weights and their `.grad` unchanged.

        Args:
            value: a sum over the words of a batch.
            keep_graph: whether another value of the same forward pass follows.
        """
        gradients = torch.autograd.grad(
            value, self._inputs, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        if torch.isfinite(nn.utils.get_total_norm(gradients)):
            torch._foreach_add_(self.tensors, list(gradients))


@contextmanager
def measuring(context: StepContext, purpose: str, *, dropout: bool) -> Iterator[None]:
    """Sets the model's mode for a measurement, with its own random numbers; restores both afterwards.

    Args:
        context: the step.
        purpose: names the random stream, which is the same whenever the step is run again.
        dropout: whether dropout is on, as in training.
    """
    model = context.model
    fp32 = torch.autocast(model.device.type, enabled=False)
    with random_state_restored(model.device), modes_restored(model), fp32:
        torch.manual_seed(int(context.generator(purpose).integers(2**62)))
        model.train(dropout)
        yield


def sampled_loss(decisions: Sequence[Float[Tensor, "decision _"]], *, generator: torch.Generator) -> Float[Tensor, ""]:
    """The summed negative log-likelihood of choices drawn from the model's own distributions.

    Args:
        decisions: the logits of each block's decisions, such as the tag of each word, with a graph.
        generator: draws the choices on the CPU, so that they do not depend on the device.

    Raises:
        TrainingError: if the distributions are not finite, because training has diverged.
    """
    total = decisions[0].new_zeros(())
    for logits in decisions:
        shares = logits.detach().softmax(dim=-1).cpu()
        if not torch.isfinite(shares).all():
            raise TrainingError("the model's scores are not finite; lower the learning rate")
        drawn = torch.multinomial(shares, 1, generator=generator).squeeze(1)
        total = total + F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
    return total
