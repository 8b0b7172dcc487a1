"""IS3: distillation for old types, and two measures against the bias to new ones (Qiu et al. 2024, Findings of ACL)."""

from collections.abc import Mapping
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import cross_entropy_each, kd_full, masked_mean
from ner_cl.registry import strategies
from ner_cl.strategies.balance import word_factors
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.prototypes import TagMeans
from ner_cl.strategies.rows import on_rows
from ner_cl.strategies.step_words import StepWords
from ner_cl.strategies.teacher import Teacher

__all__ = ["Is3", "Is3Options", "hold_back_old_columns"]


class Is3Options(StrategyOptions):
    """Weights of the terms, and how strongly gold labels of new types may change the columns of old ones.

    Attributes:
        distillation: weight of the KL term, on words labelled `O`.
        old_gradient: factor on the gradient of the cross entropy in the columns of old types; 1 leaves it unchanged.
        prototypes: weight of the cross entropy on prototypes of old tags; 0 for none.
        prototype_length: length of prototypes, which are mean directions of word vectors: `words` gives them the mean
            length of the word vectors of their tag; `unit` leaves them as they are, at most 1 long, as in the authors'
            code.
        reduction: `sum_then_mean` divides both cross entropy and KL by the number of all words; `mean_each` divides
            each by the number of its own words, as in the paper, but counted over the whole step, so that batches do
            not matter.
        cache: run the teacher once over all words of the step and keep its outputs; `false` runs it beside the student
            in every update, which takes longer and gives the same targets.
    """

    name: Literal["is3"] = "is3"
    distillation: float = Field(2.0, ge=0)
    old_gradient: float = Field(0.6, ge=0, le=1)
    prototypes: float = Field(0.1, ge=0)
    prototype_length: Literal["words", "unit"] = "words"
    reduction: Literal["mean_each", "sum_then_mean"] = "sum_then_mean"
    cache: bool = True


@strategies.register("is3")
@final
class Is3(Strategy):
    """ExtendNER's two terms, whose KL keeps old types from becoming `O`, and two measures against becoming new types.

    Cross entropy on new types pushes the columns of old types away from everything new, so its gradient there is scaled
    down. In addition, the mean word vector of each old tag must still be classified as that tag.
    """

    options_class = Is3Options
    options: Is3Options
    holds_old_types = True
    keeps = True
    acts_at_once = True

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._prototypes: dict[str, Float[Tensor, " hidden"]] = {}
        self._added: dict[str, Float[Tensor, " hidden"]] = {}
        self._gold = self._imitation = torch.empty(0)

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses heads without one softmax, where new types do not affect old columns."""
        return why_not_one_softmax(head)

    def begin_step(self, context: StepContext) -> None:
        """Keeps a copy of the model as the teacher, from step 2 on and if distillation has a weight."""
        hidden = (context.model.encoder.hidden,)
        check_state("is3", self._prototypes, dict.fromkeys(context.model.tagset.tags, hidden))
        imitates = context.old_types and self.options.distillation
        self._teacher = Teacher(context.model, cache=self.options.cache) if imitates else None

    def begin_stage(self, context: StepContext) -> None:
        """Computes what every word counts in each of the two terms."""
        words = StepWords.of(context.encoded, context.model.device)
        self._gold, self._imitation = (
            word_factors(self.options.reduction, counted, words.own) for counted in (words.typed, words.outside)
        )

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """`ce`, `kd` and `prototypes`, which does not depend on the batch; in step 1, plain cross entropy."""

        def terms(batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
            if not context.old_types:
                return {"ce": context.model.head.supervised(emissions, batch, unannotated="unknown")}
            return self._word_terms(context, batch, emissions)

        found = on_rows(batch, emissions, terms)
        if context.old_types and self.options.prototypes and self._prototypes:
            found["prototypes"] = self.options.prototypes * self._prototype_loss(context)
        return found

    def end_step(self, context: StepContext) -> None:
        """Computes the prototypes of the step's own tags; those of earlier steps do not change."""
        if not self.options.prototypes:
            return
        model = context.model
        tags = model.tagset.tags
        directions, lengths = (TagMeans(len(tags), size, model.device) for size in (model.encoder.hidden, 1))
        for batch in context.batches():
            typed = batch.targets > 0
            with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
                vectors = model.encoder(batch)[typed].float()
            directions.add(F.normalize(vectors, dim=-1), batch.targets[typed])
            lengths.add(vectors.norm(dim=-1, keepdim=True), batch.targets[typed])
        prototypes = directions.means
        if self.options.prototype_length == "words":
            prototypes = prototypes * lengths.means
        for tag in directions.known.nonzero().flatten().tolist():
            self._added[tags[tag]] = prototypes[tag].clone()

    def release(self) -> None:
        """Releases the teacher. New prototypes count only from now on, after others have measured this step's loss."""
        self._teacher = None
        self._gold = self._imitation = torch.empty(0)
        self._prototypes |= self._added
        self._added = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The prototypes, by tag."""
        return dict(self._prototypes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the prototypes."""
        self._prototypes = dict(state)

    def _word_terms(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Each word contributes to one of the two terms and counts in the mean of both."""
        head = context.model.head
        logits = hold_back_old_columns(head, emissions, factor=self.options.old_gradient)
        ce = cross_entropy_each(logits, batch.targets)
        terms = {"ce": masked_mean(self._gold[batch.word_numbers] * ce, batch.word_mask)}
        if self._teacher is not None:
            student_logits = head.as_annotated(emissions.blocks[0], batch)
            kl = kd_full(self._teacher.logits_of(context, batch), student_logits, temperature=1.0)
            kd = masked_mean(self._imitation[batch.word_numbers] * kl, batch.word_mask)
            terms["kd"] = self.options.distillation * kd
        return terms

    def _prototype_loss(self, context: StepContext) -> Float[Tensor, ""]:
        """Mean cross entropy of the head on the prototypes."""
        head, device = context.model.head, context.model.device
        known = [
            (number, self._prototypes[tag].to(device))
            for number, tag in enumerate(head.tagset.tags)
            if tag in self._prototypes
        ]
        vectors = torch.stack([vector for _, vector in known])
        targets = torch.tensor([number for number, _ in known], device=device)
        logits = torch.cat(head.scores(vectors.unsqueeze(0)), dim=-1)[0]
        return F.cross_entropy(logits, targets)


def hold_back_old_columns(head: Head, emissions: Emissions, *, factor: float) -> Float[Tensor, "row word tag"]:
    """The same logits, but with gradients to weights and biases of old types multiplied by `factor`.

    All other gradients, to word vectors and to the columns of `O` and new types, are unchanged. The paper changes the
    gradient between two backward passes; this does the same in one, and works with accumulated batches and several
    processes.

    Args:
        head: a head with one softmax over all columns.
        emissions: its emissions, with the word vectors they were computed from; without these there are no gradients.
        factor: factor on the gradients, in [0, 1].
    """
    logits = emissions.blocks[0]
    if factor == 1 or emissions.words is None:
        return logits
    old = []
    with torch.autocast(logits.device.type, enabled=False):
        words = emissions.words.float()
        for number, block in enumerate(list(head.blocks)[:-1]):
            assert isinstance(block, nn.Linear)
            shares = block.bias.new_full(block.bias.shape, factor)
            if number == 0:
                shares[0] = 1.0  # `O`
            old.append(F.linear(words, _held(block.weight, shares.unsqueeze(-1)), _held(block.bias, shares)))
    old_columns = sum(part.shape[-1] for part in old)
    return torch.cat([*old, logits[..., old_columns:]], dim=-1)


def _held(parameter: Float[Tensor, "*entry"], share: Tensor) -> Float[Tensor, "*entry"]:
    """The parameter, exact to the last bit, with its gradient multiplied by `share`."""
    fixed = parameter.detach()
    return fixed + share * (parameter - fixed)
