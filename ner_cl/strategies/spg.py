"""SPG: soft masks on parameters (Konishi et al. 2023, ICML, "Parameter-Level Soft-Masking for Continual Learning")."""

from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.importance import GradientSum, measuring, relative_importance, rounding_noise
from ner_cl.strategies.kept import check_state

__all__ = ["Spg", "SpgOptions"]


class SpgOptions(StrategyOptions):
    """How importance is measured, and what it holds back. There is no strength, as importance is a share in [0, 1].

    Attributes:
        cross_head: also measure what earlier steps need through their blocks, without labels: by the sum of a block's
            logits. Otherwise only the step's own loss counts.
        old_blocks: what happens to columns of earlier steps: held back by the mean importance of the encoder (`gate`),
            kept as they are (`freeze`), or left `free`.
        head_factor_on_new: hold the new block back like the old ones, as in the authors' code; this about halves the
            new block's learning rate.
        dropout: keep dropout on while measuring, as in the authors' code, wherever the step was trained with it.
        sentences: maximum number of sentences to measure on, drawn at random; 0 takes all of the step.
    """

    name: Literal["spg"] = "spg"
    cross_head: bool = True
    old_blocks: Literal["gate", "freeze", "free"] = "gate"
    head_factor_on_new: bool = False
    dropout: bool = True
    sentences: int = Field(0, ge=0)


@strategies.register("spg")
@final
class Spg(Strategy):
    """Holds back the update of every encoder parameter by its largest importance for any step so far.

    Importance is measured once, when a step has been learned, from gradients of the step's own loss and of the summed
    logits of each earlier block over all of the step's sentences. Each gradient is normalised within its parameter
    tensor, and the largest value counts. Importance never falls from step to step. The authors mask gradients under
    SGD; gating the update is equivalent there, and also works under Adam, which would cancel a mask on the gradient.
    """

    options_class = SpgOptions
    options: SpgOptions
    keeps = True
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts every step from the pre-trained encoder, where nothing learned is left to protect",
    }

    def __init__(self, options: SpgOptions) -> None:
        super().__init__(options)
        self._importance: dict[str, Tensor] = {}
        self._trained: tuple[str, ...] = ()
        self._in_training: Bool[Tensor, " module"] | None = None  # the mode of every module of the model in training

    def begin_step(self, context: StepContext) -> None:
        """Checks that the importance is that of this encoder."""
        self._in_training = None
        shapes = {name: parameter.shape for name, parameter in context.model.encoder.named_parameters(prefix="encoder")}
        check_state("spg", self._importance, shapes)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """One minus the importance for the encoder; factors by `old_blocks` and `head_factor_on_new` for the head."""
        parameters = dict(context.model.named_parameters())
        self._trained = tuple(
            name for name, parameter in parameters.items() if name.startswith("encoder.") and parameter.requires_grad
        )
        gates = {
            name: 1 - self._importance[name].to(parameters[name].device)
            for name in self._trained
            if name in self._importance
        }
        return gates | self._block_gates(context)

    def begin_update(self, context: StepContext) -> None:
        """Notes which modules train without dropout; other strategies may turn it off where nothing learns."""
        self._in_training = torch.tensor([module.training for module in context.model.modules()])

    def progress(self) -> dict[str, Tensor]:
        """Which modules train with dropout: a step that is resumed at its end makes no more updates."""
        return {} if self._in_training is None else {"in_training": self._in_training}

    def load_progress(self, progress: Mapping[str, Tensor]) -> None:
        """Restores which modules train with dropout."""
        self._in_training = progress.get("in_training")

    def end_step(self, context: StepContext) -> None:
        """Measures the step's importance and keeps the larger of old and new, entry by entry."""
        for gradients in self._gradients(context):
            noise = rounding_noise(gradients)
            for name, gradient in zip(self._trained, gradients, strict=True):
                found = relative_importance(gradient, noise=noise)
                known = self._importance.get(name)
                self._importance[name] = found if known is None else torch.maximum(known.to(found.device), found)

    def state_dict(self) -> dict[str, Tensor]:
        """The importance of every encoder parameter that was ever trained, by name."""
        return dict(self._importance)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the importance of every parameter."""
        self._importance = dict(state)

    def _block_gates(self, context: StepContext) -> dict[str, Tensor]:
        if not self._importance:
            return {}
        factor = 1 - self._mean_importance()
        old = {"gate": factor, "freeze": 0.0, "free": 1.0}[self.options.old_blocks]
        new = factor if self.options.head_factor_on_new else 1.0
        newest = len(context.model.head.blocks) - 1
        gates: dict[str, Tensor] = {}
        for number, block in enumerate(context.model.head.blocks):
            if (gate := new if number == newest else old) < 1:
                named = block.named_parameters(prefix=f"head.blocks.{number}")
                gates |= {name: parameter.new_tensor(gate) for name, parameter in named}
        return gates

    def _mean_importance(self) -> float:
        """The mean importance over all entries of all tensors."""
        total = sum(float(tensor.double().sum()) for tensor in self._importance.values())
        return total / sum(tensor.numel() for tensor in self._importance.values())

    def _modes_of_training(self, context: StepContext) -> None:
        """Turns dropout off where the step trained without it."""
        if self._in_training is not None:
            for module, trains in zip(context.model.modules(), self._in_training.tolist(), strict=True):
                module.training &= trains

    def _gradients(self, context: StepContext) -> list[list[Tensor]]:
        """The summed gradients of the trained parameters, for the step's own loss and for each earlier block."""
        parameters = dict(context.model.named_parameters())
        inputs = [parameters[name] for name in self._trained]
        own = GradientSum(inputs)
        earlier = [GradientSum(inputs) for _ in list(context.model.head.blocks)[:-1] if self.options.cross_head]
        with measuring(context, "spg/dropout", dropout=self.options.dropout):
            self._modes_of_training(context)
            for batch in context.batches(sentences=self.options.sentences or None, purpose="spg/sentences"):
                # The loss is a mean over words; with this weight, the sum does not depend on how batches are cut.
                own.add(context.training_loss(batch) * sum(batch.row_words))
                if not earlier:
                    continue
                sums = context.model.head.summed_logits(context.model.encoder(batch), batch.word_mask)
                for number, block in enumerate(earlier):
                    block.add(sums[number], keep_graph=number + 1 < len(earlier))
        return [found.tensors for found in (own, *earlier)]
