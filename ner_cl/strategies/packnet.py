"""PackNet: each step trains the free weights, then frees the smallest of them for later steps."""

from collections.abc import Mapping, Sequence
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import TrainingError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.packnet import PackNet, PackNetOptions
from ner_cl.registry import strategies
from ner_cl.strategies.apart import ApartStrategy, own_loss, subnetworks_of
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.old_blocks import freeze_old_blocks

__all__ = ["PackNetStrategy", "PackNetStrategyOptions"]


class PackNetStrategyOptions(StrategyOptions, PackNetOptions):
    """Which weights are shared out among steps, and how many of them a step leaves to later ones.

    Attributes:
        prune_first: share of its weights that step 1 frees; 0 leaves no weights for later steps to learn with.
        prune: share of its weights that each later step frees.
        retrain_epochs: maximum number of passes over the step's sentences, after pruning, with the weights that are
            left.
    """

    name: Literal["packnet"] = "packnet"
    prune_first: float = Field(0.5, ge=0, lt=1)
    prune: float = Field(0.75, ge=0, lt=1)
    retrain_epochs: int = Field(3, ge=1)


@strategies.register("packnet")
@final
class PackNetStrategy(ApartStrategy):
    """Trains all free weights, prunes the smallest of them, and trains the others again.

    Mallya and Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning". What is not
    allocated to steps - embeddings, biases, normalisation, lower layers - learns only in step 1, before pruning.
    """

    options_class = PackNetStrategyOptions
    options: PackNetStrategyOptions

    def begin_step(self, context: StepContext) -> None:
        """Checks that there are free weights to train.

        Raises:
            ConfigError: if the model has sub-networks of another kind or size.
            ModelError: if the model has learned steps without this strategy.
            TrainingError: if the model has no free weight.
        """
        subnetworks_of(context.model, PackNetOptions, self.options)
        if not _packed(context.model).free:
            raise TrainingError(
                f"packnet has no free weight left for step {context.number}; start a new model with larger shares "
                "prune_first and prune, or a larger encoder"
            )

    def stages(self, context: StepContext) -> Sequence[int]:
        """A second stage, after pruning, if a share of the weights is pruned."""
        return (self.options.retrain_epochs,) if self._share(context) else ()

    def begin_stage(self, context: StepContext) -> None:
        """Claims all free weights, or prunes them before the second stage, and freezes what only step 1 learns.

        A step resumed in its second stage has claimed none, so none are pruned here: its checkpoint restores the
        owners. Nothing else here may depend on them.
        """
        model = context.model
        if context.stage == 0:
            _packed(model).claim(context.number)
        elif context.stage == 1:
            _packed(model).prune(model, context.number, self._share(context))
        if _all_learns(context):
            return
        model.encoder.requires_grad_(False)
        for weight, _ in _packed(model).owned(model).values():
            weight.requires_grad_(True)
        freeze_old_blocks(model.head)

    def begin_epoch(self, context: StepContext) -> None:
        """Turns off dropout in the frozen layers and runs them once over the step's sentences."""
        if not _all_learns(context):
            model = context.model
            self._read_once(context)  # not in `begin_stage`: a resumed step has no weights there yet
            model.encoder.eval()
            for layer in _packed(model).top(model.encoder):
                layer.train()

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of the new block, as `ce`."""
        return own_loss(context, batch, emissions)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """0 for entries of earlier steps. Pruned entries need no gate: they are 0 and get no gradient."""
        if context.number == 1:
            return {}
        owned = _packed(context.model).owned(context.model)
        return {
            name: ((owner == 0) | (owner >= context.number)).to(weight.dtype) for name, (weight, owner) in owned.items()
        }

    def _share(self, context: StepContext) -> float:
        return self.options.prune_first if context.number == 1 else self.options.prune


def _all_learns(context: StepContext) -> bool:
    """Whether the whole encoder is trained in this stage."""
    return context.number == 1 and context.stage == 0


def _packed(model: NerModel) -> PackNet:
    assert isinstance(model.subnetworks, PackNet)
    return model.subnetworks
