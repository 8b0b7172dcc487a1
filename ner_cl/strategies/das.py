"""DAS: soft masks on units (Ke et al. 2023, ICLR, "Continual Pre-training of Language Models"), for a tagger."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import TrainingError
from ner_cl.model.encoder import Encoder
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.precision import autocast
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.importance import GradientSum, measuring, relative_importance
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.masked_words import pretrain
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.units import Family, PerUnit, Units

__all__ = ["Das", "DasOptions", "contrast_loss", "proxy_loss"]


class DasOptions(StrategyOptions):
    """What importance is measured on, which units it protects, and options of the contrastive term and of pre-training.

    Attributes:
        general_sentences: number of sentences of the first step, drawn at random, used to probe general, pre-trained
            knowledge before anything is learned; 0 protects only what was learned in steps.
        sentences: number of sentences of a step, drawn at random, on which its importance is measured; 0 takes all.
        families: which units are protected: attention `heads`, and `intermediate` and `output` units of feed-forward
            nets.
        contrast: weight of the contrastive term, which costs three more forward passes with gradients; 0 for none.
        temperature: temperature of the contrastive term.
        pretrain_epochs: passes of masked language modelling before the step is learned, over the step's own text and
            the unlabeled text given for it, as in the published method; 0 for none.
        pretrain_lr: learning rate of these passes, falling linearly to 0.
    """

    name: Literal["das"] = "das"
    general_sentences: int = Field(1000, ge=0)
    sentences: int = Field(1000, ge=0)
    families: tuple[Family, ...] = Field(("heads", "intermediate", "output"), min_length=1)
    contrast: float = Field(0.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    pretrain_epochs: int = Field(0, ge=0)
    pretrain_lr: float = Field(1e-4, gt=0)

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> "DasOptions":
        if len(set(self.families)) < len(self.families):
            raise ValueError(f"families: {', '.join(self.families)} names one twice; name each once")
        for name, needed in (("temperature", "contrast"), ("pretrain_lr", "pretrain_epochs")):
            if not getattr(self, needed) and name in self.chosen:
                raise ValueError(f"{name}: has no effect without {needed}; leave it out or set {needed} above 0")
        return self


# These constrain weights too, but the pre-step applies the masks of `das` only.
_NOT_IN_THE_PRE_STEP = ("agem", "gem", "gpm", "ncl", "ogd", "spg")


@strategies.register("das")
@final
class Das(Strategy):
    """Holds back the updates of whole attention heads and feed-forward units by their importance so far.

    The importance of a unit is how far the gradient of a gate on it stands out within its layer: before the first step
    under a label-free proxy for what the pre-trained encoder knows, after each step under the step's own loss. The
    largest value so far counts. The forward pass of training is not gated.

    The paper protects a language model during further pre-training; here the mask acts on the tagger's training itself,
    and on the update instead of the gradient, since Adam would cancel a factor on the gradient.
    """

    options_class = DasOptions
    options: DasOptions
    keeps = True
    acts_at_once = True
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts every step from the pre-trained encoder, where nothing learned is left to protect",
    }

    def __init__(self, options: DasOptions) -> None:
        super().__init__(options)
        self._importance: PerUnit = {}
        self._measuring = False

    def refuses(self) -> Mapping[str, str]:
        """Adds, with a pre-step of language modelling, the strategies whose masks or projections it would ignore."""
        if not self.options.pretrain_epochs:
            return self.excludes
        reason = "the pre-step of das (pretrain_epochs) moves weights before it acts"
        return {**self.excludes, **dict.fromkeys(_NOT_IN_THE_PRE_STEP, reason)}

    @property
    def reads_unlabeled(self) -> bool:
        """True with a pre-step of masked language modelling."""
        return self.options.pretrain_epochs > 0

    def begin_step(self, context: StepContext) -> None:
        """Checks that the importance is that of this encoder's units."""
        units = Units(context.model)
        check_state("das", self._importance, {str(family): (len(units.layers), n) for family, n in units.sizes.items()})

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """One minus the importance of the unit that a parameter feeds.

        Everything that precedes the first update happens here: the general importance is measured if none is known yet,
        then the encoder is pre-trained further if `pretrain_epochs` is set. A resumed step gets here with the weights
        it began with, and repeats this.
        """
        self._units = Units(context.model)
        if not self._importance and self.options.general_sentences:
            self._keep(self._general(context))
        self._importance = {family: known.to(context.model.device) for family, known in self._importance.items()}
        gates = self._gates()
        if self.options.pretrain_epochs:
            pretrain(context, gates, epochs=self.options.pretrain_epochs, rate=self.options.pretrain_lr)
        return gates

    def _gates(self) -> dict[str, Tensor]:
        if not self._importance:
            return {}
        return self._units.on_parameters(
            {family: 1 - known for family, known in self._importance.items() if family in self.options.families}
        )

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`contrast`, if it has a weight: contrasts the encoder with the one gated by importance."""
        if not self.options.contrast or self._measuring:
            return {}
        encoder = context.model.encoder

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            with autocast(context.precision, context.model.device):
                views = [encoder(batch), encoder(batch)]
                if self._importance:
                    with self._units.gated(self._importance):
                        views.append(encoder(batch))
            pooled = [_pooled(view, batch) for view in views]
            return {"contrast": self.options.contrast * contrast_loss(*pooled, temperature=self.options.temperature)}

        return on_rows(batch, emissions, terms)

    def end_step(self, context: StepContext) -> None:
        """Measures the step's importance under its own loss and keeps the larger of old and new for each unit."""
        self._measuring = True
        try:
            found = self._measure(
                context,
                lambda batch: context.training_loss(batch) * sum(batch.row_words),
                sentences=self.options.sentences,
                purpose="das/sentences",
                dropout=False,
            )
        finally:
            self._measuring = False
        self._keep(found)

    def state_dict(self) -> dict[str, Tensor]:
        """The importance of every unit, `[layer, unit]` by family."""
        return dict(self._importance)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the importance of every unit."""
        self._importance = dict(state)

    def _keep(self, found: PerUnit) -> None:
        self._importance = {
            family: torch.maximum(self._importance[family].to(new.device), new) if family in self._importance else new
            for family, new in found.items()
        }

    def _general(self, context: StepContext) -> PerUnit:
        """The importance of units to the pre-trained encoder itself, probed on the step's words."""
        total = torch.zeros((), device=context.model.device)

        def probe(batch: Batch) -> Float[Tensor, ""]:
            loss = proxy_loss(context.model.encoder, batch)
            total.add_(loss.detach())
            return loss

        found = self._measure(
            context, probe, sentences=self.options.general_sentences, purpose="das/general", dropout=True
        )
        if not total > 0:
            raise TrainingError(
                "strategy das: two passes with dropout agree on every word, because this encoder has no dropout; "
                "set general_sentences: 0"
            )
        return found

    def _measure(
        self,
        context: StepContext,
        loss: Callable[[Batch], Float[Tensor, ""]],
        *,
        sentences: int,
        purpose: str,
        dropout: bool,
    ) -> PerUnit:
        """The importance of units for a loss that is a sum over the words of a batch."""
        gates = self._units.open_gates()
        gradients = GradientSum(list(gates.values()))
        with measuring(context, f"{purpose}/dropout", dropout=dropout), self._units.gated(gates):
            for batch in context.batches(sentences=sentences or None, purpose=purpose):
                gradients.add(loss(batch))
        return {
            family: torch.stack([relative_importance(layer) for layer in sums])
            for family, sums in zip(gates, gradients.tensors, strict=True)
        }


def proxy_loss(encoder: Encoder, batch: Batch) -> Float[Tensor, ""]:
    """How far two dropout passes over the same words disagree: a proxy for pre-trained knowledge without labels.

    Ke et al. 2023, section 3.1: the KL between hidden states, normalised over the hidden dimension; here summed over
    words. The first pass is the target and has no gradient. Zero without dropout.

    Args:
        encoder: the encoder, with dropout on.
        batch: any batch; its targets are not used.
    """
    with torch.no_grad():
        target = torch.log_softmax(encoder(batch).float(), dim=-1)
    log_probs = torch.log_softmax(encoder(batch).float(), dim=-1)
    divergence = (target.exp() * (target - log_probs)).sum(dim=-1)
    return torch.where(batch.word_mask, divergence, 0.0).sum()


def contrast_loss(
    view: Float[Tensor, "row hidden"],
    other: Float[Tensor, "row hidden"],
    previous: Float[Tensor, "row hidden"] | None = None,
    *,
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """InfoNCE between two dropout views of the same sentences, with vectors from the old units as extra negatives.

    Ke et al. 2023, section 3.2. Row i of `view` is paired with row i of `other` (the authors' code pairs neighbours).

    Args:
        view: pooled vectors of one pass.
        other: pooled vectors of another pass with different dropout.
        previous: those of a pass with units weighted by their importance; without it, the plain two-view loss.
        temperature: divides the cosines.
    """
    against = other if previous is None else torch.cat([other, previous])
    cosines = F.normalize(view.float(), dim=-1) @ F.normalize(against.float(), dim=-1).T
    return F.cross_entropy(cosines / temperature, torch.arange(len(view), device=view.device))


def _pooled(words: Float[Tensor, "row word hidden"], batch: Batch) -> Float[Tensor, "row hidden"]:
    """The mean word vector of each row."""
    mask = batch.word_mask.unsqueeze(-1)
    return torch.where(mask, words.float(), 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
