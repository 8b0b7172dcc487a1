"""Logit adjustment: new types are found as often as they occur, not as often as their step's sentences mention them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, final

from pydantic import Field

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.tally import tally
from ner_cl.registry import strategies
from ner_cl.strategies.base import Settled, StepContext, Strategy
from ner_cl.strategies.heads_needed import why_no_tag_logits
from ner_cl.types import Sentence, Span

__all__ = ["LogitAdjustment", "LogitAdjustmentOptions", "log_ratios", "rarity_of_old_types"]


class LogitAdjustmentOptions(StrategyOptions):
    """How far logits are adjusted, and how much evidence that takes.

    Attributes:
        strength: share of the log ratio that is added (τ); 0 leaves the logits unchanged, 1 applies the whole
            correction.
        evidence: number of pseudo-mentions (k) that say "as often as in training", so that a few mentions change
            little.
        prior: what tells how often a new type occurs: `dev` sentences; or `old_types`, on the assumption that the type
            is rarer elsewhere by the same factor as old types are rarer in the step's sentences than in those that
            taught them.
    """

    name: Literal["logit_adjustment"] = "logit_adjustment"
    strength: float = Field(0.5, ge=0, le=1)
    evidence: float = Field(10.0, gt=0)
    prior: Literal["dev", "old_types"] = "dev"


@strategies.register("logit_adjustment")
@final
class LogitAdjustment(Strategy):
    """After a step, adds `τ · log(π / π_train)` to the logits of a new type, π being its mentions per word.

    Sentences that teach a new type were picked because they mention it, so a model trained on them predicts it too
    often, at the cost of old types. Menon et al. 2021, "Long-tail learning via logit adjustment", section 4.1, with the
    prior of the dev sentences instead of a uniform one, or one estimated from old types in the step's own sentences.
    """

    options_class = LogitAdjustmentOptions
    options: LogitAdjustmentOptions
    excludes: ClassVar[Mapping[str, str]] = {"joint": "joint learns all types anew, from sentences of all steps"}

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses a head whose columns are not tag logits."""
        return why_no_tag_logits(head)

    @property
    def reads_dev(self) -> bool:
        """True if dev sentences give the prior, and the strength is above 0."""
        return self.options.prior == "dev" and self.options.strength > 0

    def begin_step(self, context: StepContext) -> None:
        """Resets the rarity of old types, not yet measured in this step."""
        self._rarity = 0.0

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The same sentences; counts the old types in them if these give the prior."""
        if self.options.prior == "old_types" and context.old_types and self.options.strength:
            own = [sentence for sentence in train if not sentence.annotated_types.isdisjoint(context.types)]
            evidence, history = self.options.evidence, context.model.history
            self._rarity = rarity_of_old_types(own, context.predict(own), history, context.types, evidence=evidence)
        return train

    def settle(self, context: StepContext) -> Settled | None:
        """Shifts the biases of the new columns, once the best weights are restored."""
        if not self.options.strength:
            return None
        if self.options.prior == "old_types" and context.old_types:
            ratios = dict.fromkeys(context.types, self._rarity)
        elif self.options.prior == "dev" and context.dev:
            train = context.encoded.sentences_from("own")
            ratios = log_ratios(train, context.dev, context.types, evidence=self.options.evidence)
        else:
            return None
        shifts = {type_: self.options.strength * ratio for type_, ratio in ratios.items()}
        context.model.head.shift(shifts)
        return Settled(self._told(shifts), {"shifts": {type_: round(shift, 4) for type_, shift in shifts.items()}})

    def _told(self, shifts: Mapping[str, float]) -> str:
        """What became of the logits of new types, in one line."""
        if not any(shifts.values()):
            if self.options.prior == "old_types":
                return "nothing changed: the step's sentences mention old types as often as their own steps did"
            return "nothing changed: the dev sentences mention new types as often as the training sentences"
        listed = ", ".join(f"{type_} {shift:+.2f}" for type_, shift in shifts.items())
        return f"on the logits of new types: {listed}"


def log_ratios(
    train: Iterable[Sentence], dev: Iterable[Sentence], types: Iterable[str], *, evidence: float
) -> dict[str, float]:
    """For each type `log((m + k) / (e + k))`: `m` mentions in `dev`, and `e` expected at the rate of `train`.

    The `k` pseudo-mentions for "as often as in training" keep the ratio near 0 when there are few dev sentences.

    Args:
        train: training sentences, each of which counts for the types that it is annotated for.
        dev: dev sentences, which count likewise.
        types: the types; one that `train` does not mention gets 0.
        evidence: `k`.
    """
    (mentions, words), (dev_mentions, dev_words) = tally(train), tally(dev)
    ratios = {}
    for type_ in types:
        expected = mentions[type_] / max(1, words[type_]) * dev_words[type_]
        ratios[type_] = math.log((dev_mentions[type_] + evidence) / (expected + evidence)) if expected else 0.0
    return ratios


def rarity_of_old_types(
    train: Sequence[Sentence],
    found: Sequence[Sequence[Span]],
    history: Iterable[Mapping[str, Any]],
    new: Iterable[str],
    *,
    evidence: float,
) -> float:
    """`log((m + k) / (e + k))`: `m` mentions of old types in `train`, and `e` expected at the rate in their own steps.

    Taken over all old types together whose rate the history records; 0 if they are as frequent or more frequent.

    Args:
        train: the step's own sentences.
        found: spans that the model before the step finds in each; those that overlap a mention of a new type are wrong.
        history: a record of each earlier step, with mentions and words of its types.
        new: the types of the step.
        evidence: `k`, pseudo-mentions for "as often".
    """
    new = set(new)
    taught = {
        type_: mentions / record["words"][type_]
        for record in history
        for type_, mentions in record.get("mentions", {}).items()
        if record["words"][type_]
    }
    words = sum(len(sentence.words) for sentence in train)
    expected = words * sum(taught.values())
    met = sum(
        span.type in taught and not any(span.overlaps(gold) for gold in sentence.spans if gold.type in new)
        for sentence, spans in zip(train, found, strict=True)
        for span in spans
    )
    return min(0.0, math.log((met + evidence) / (expected + evidence)))
