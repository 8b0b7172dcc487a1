"""New types found as often as they are met, and not as often as sentences of their step mention them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, final

from pydantic import Field

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.registry import strategies
from ner_cl.strategies.balance import tag_logits
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.types import Sentence

__all__ = ["LogitAdjustment", "LogitAdjustmentOptions", "log_ratios"]


class LogitAdjustmentOptions(StrategyOptions):
    """How far, and how much evidence it takes.

    Attributes:
        strength: share of the logarithm that is added (τ); 0 leaves the logits alone, 1 is the whole correction.
        evidence: mentions that the assumption "dev sentences mention a type as often as training sentences" counts as.
    """

    name: Literal["logit_adjustment"] = "logit_adjustment"
    strength: float = Field(0.5, ge=0, le=1)
    evidence: float = Field(10.0, gt=0)


@strategies.register("logit_adjustment")
@final
class LogitAdjustment(Strategy):
    """After a step, adds `τ · log(π_dev / π_train)` to the logits of a new type, π being its mentions a word.

    Sentences that teach a new type were picked because they mention it, so what is learned from them expects it too
    often, at the cost of old types. Menon et al. 2021, "Long-tail learning via logit adjustment", section 4.1, with the
    prior of the dev sentences in place of a uniform one.
    """

    options_class = LogitAdjustmentOptions
    options: LogitAdjustmentOptions
    excludes: ClassVar[Mapping[str, str]] = {"joint": "joint learns all types anew, from sentences of all steps"}

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses a head whose columns are no logits of tags."""
        return tag_logits(head)

    def settle(self, context: StepContext) -> None:
        """Moves the biases of the new columns, once the best weights are there."""
        if not self.options.strength or not context.dev:
            return
        train = context.encoded.sentences_from("own")
        ratios = log_ratios(train, context.dev, context.types, evidence=self.options.evidence)
        context.model.head.shift({type_: self.options.strength * ratio for type_, ratio in ratios.items()})


def log_ratios(
    train: Iterable[Sentence], dev: Iterable[Sentence], types: Iterable[str], *, evidence: float
) -> dict[str, float]:
    """For each type `log((m + k) / (e + k))`: mentions in `dev`, and those expected at the rate of `train`.

    With `k` pseudo-mentions that say "as often as in training", few dev sentences move it little.

    Args:
        train: sentences, each of which counts for the types that it is annotated for.
        dev: the same.
        types: to look at; one that `train` does not mention gets 0.
        evidence: `k`.
    """
    (mentions, words), (dev_mentions, dev_words) = _counted(train), _counted(dev)
    ratios = {}
    for type_ in types:
        expected = mentions[type_] / max(1, words[type_]) * dev_words[type_]
        ratios[type_] = math.log((dev_mentions[type_] + evidence) / (expected + evidence)) if expected else 0.0
    return ratios


def _counted(sentences: Iterable[Sentence]) -> tuple[Counter[str], Counter[str]]:
    """Mentions of every type, and words that are annotated for it."""
    mentions: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for sentence in sentences:
        mentions.update(span.type for span in sentence.spans)
        for type_ in sentence.annotated_types:
            words[type_] += len(sentence.words)
    return mentions, words
