"""HAT: each step learns which units of the encoder it uses (Serrà et al. 2018, ICML)."""

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import TrainingError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.hat import Hat, HatOptions
from ner_cl.registry import strategies
from ner_cl.strategies.apart import ApartStrategy, own_loss, subnetworks_of
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.old_blocks import freeze_old_blocks

__all__ = ["HatStrategy", "HatStrategyOptions", "compensate", "place_in_sweep", "scale_at", "sparsity"]

_FEWEST_UPDATES = 10  # from soft gates to hard ones


class HatStrategyOptions(StrategyOptions, HatOptions):
    """Which units have gates, and how the gates are learned.

    Attributes:
        strength: weight of the loss term that makes a step use few units that no earlier step uses.
        s_max: how hard gates are at the end of each epoch, or of each ten updates where epochs are shorter; larger is
            harder.
        clamp: maximum distance of a gate's embedding from 0.
        gate_lr: peak learning rate of the embeddings, under plain gradient descent.
    """

    name: Literal["hat"] = "hat"
    strength: float = Field(0.75, ge=0)
    s_max: float = Field(400.0, ge=1)
    clamp: float = Field(6.0, gt=0)
    gate_lr: float = Field(0.05, gt=0)


@strategies.register("hat")
@final
class HatStrategy(ApartStrategy):
    """Trains the units that no earlier step uses, and gates that choose among all units.

    After step 1, everything that no gate acts on is frozen, and updates to the weights of used units are exactly 0.
    """

    options_class = HatStrategyOptions
    options: HatStrategyOptions

    def begin_step(self, context: StepContext) -> None:
        """Gives the new step its gates, and checks that there is a unit left for it."""
        subnetworks_of(context.model, HatOptions, self.options)
        if not hat_of(context.model).free:
            raise TrainingError(
                f"step {context.number} cannot be learned: earlier steps use every unit that hat has gates on; teach a "
                "new model with a larger strength, or with gates on more layers"
            )

    def begin_stage(self, context: StepContext) -> None:
        """Freezes old blocks and, after step 1, everything that no gate acts on."""
        model, hat = context.model, hat_of(context.model)
        freeze_old_blocks(model.head)
        if context.number > 1:
            model.encoder.requires_grad_(False)
            for name in hat.on_parameters(hat.used()):
                model.get_parameter(name).requires_grad_(True)
        hat.learn(context.number)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """0 for parameters that feed or read a used unit."""
        hat = hat_of(context.model)
        if context.number == 1:
            return {}
        return hat.on_parameters({family: 1 - used.float() for family, used in hat.used().items()})

    def begin_epoch(self, context: StepContext) -> None:
        """After step 1, turns off dropout in the frozen layers and runs them once over the step's sentences."""
        model, hat = context.model, hat_of(context.model)
        if context.number > 1:
            self._read_once(context)
            model.encoder.eval()
            for layer in hat.top(model.encoder):
                layer.train()
        hat.learn(context.number)

    def begin_update(self, context: StepContext) -> None:
        """Hardens the gates over the course of the epoch, or of several short ones."""
        update, updates = place_in_sweep(context)
        hat_of(context.model).scale = scale_at(update, updates, s_max=self.options.s_max)

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of the new block, and a penalty for newly used units."""
        hat = hat_of(context.model)
        price = sparsity(hat.gates(context.number), hat.used())
        return own_loss(context, batch, emissions) | {"sparsity": self.options.strength * price}

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gradient descent on the embeddings, with the gradient they would have without annealing."""
        hat, options = hat_of(context.model), self.options
        changes = {}
        for family, found in hat.embedding.items():
            name, embedding = f"subnetworks.embedding.{family}", found.detach()
            slope = compensate(gradient[name], embedding, scale=hat.scale, s_max=options.s_max)
            moved = embedding - options.gate_lr * context.rate * slope
            changes[name] = moved.clamp(-options.clamp, options.clamp) - embedding
        return changes

    def settle(self, context: StepContext) -> None:
        """Makes the step's gates permanently hard."""
        hat_of(context.model).settle()


def hat_of(model: NerModel) -> Hat:
    """The model's sub-networks, which must be of HAT."""
    assert isinstance(model.subnetworks, Hat)
    return model.subnetworks


def place_in_sweep(context: StepContext) -> tuple[int, int]:
    """The update, from 0, and the number of updates in which gates go from soft to hard.

    That is one epoch in the paper. Nearly all updates of very short epochs would have hard gates, whose gradient is 0,
    so there it is as many epochs as make ten updates, counted back from the last epoch of the step.
    """
    epochs = min(context.epochs, math.ceil(_FEWEST_UPDATES / context.updates))
    done = (context.epoch - 1 - context.epochs) % epochs
    return done * context.updates + context.update, epochs * context.updates


def scale_at(update: int, updates: int, *, s_max: float) -> float:
    """How hard gates are at an update of an epoch (Serrà et al. 2018, "Hard attention training").

    Args:
        update: the update, from 0, where gates are softest (`1 / s_max`).
        updates: number of updates in the epoch; at the last one, gates are hardest (`s_max`). A single one is soft,
            as hard gates would not learn from it.
        s_max: how hard gates get.
    """
    share = update / (updates - 1) if updates > 1 else 0.0
    return 1 / s_max + (s_max - 1 / s_max) * share


def sparsity(
    gates: Mapping[str, Float[Tensor, "layer _"]], used: Mapping[str, Bool[Tensor, "layer _"]]
) -> Float[Tensor, ""]:
    """The share of free units that a step uses, in [0, 1] (Serrà et al. 2018, "Promoting low capacity usage").

    Args:
        gates: the step's gates, by family of units.
        used: whether an earlier step uses a unit, by family.
    """
    free = torch.cat([~units.flatten() for units in used.values()])
    taken = torch.cat([gates[family].flatten() for family in used]) * free
    return taken.sum() / free.sum().clamp(min=1)


def compensate(
    gradient: Float[Tensor, "layer unit"], embedding: Float[Tensor, "layer unit"], *, scale: float, s_max: float
) -> Float[Tensor, "layer unit"]:
    """The gradient with respect to the embeddings as if gates were `sigmoid(embedding)`, times `s_max`.

    Serrà et al. 2018, "Embedding gradient compensation". Hard gates would have almost no gradient except near 0. What
    fp32 has rounded to 0, beyond a `scale · embedding` of about 15, stays 0.

    Args:
        gradient: gradient with respect to the embeddings of gates `sigmoid(scale · embedding)`.
        embedding: the embeddings of the gates.
        scale: the scale that the gates were computed with.
        s_max: how hard gates get.
    """
    annealed = torch.cosh((scale * embedding).clamp(-50, 50)) + 1
    return gradient * (s_max / scale) * annealed / (torch.cosh(embedding) + 1)
