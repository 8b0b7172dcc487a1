"""Bias correction: old types are found as often after a step as before it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import plan_batches
from ner_cl.model.precision import autocast
from ner_cl.registry import strategies
from ner_cl.strategies.base import Settled, StepContext, Strategy
from ner_cl.strategies.heads_needed import why_no_tag_logits
from ner_cl.types import Sentence, Span

__all__ = ["BiasCorrection", "BiasCorrectionOptions", "least_lift"]

_ROUNDS = 8  # halvings of the interval, to less than a hundredth of it


class BiasCorrectionOptions(StrategyOptions):
    """How far the logits of old types are raised, and how much evidence that takes.

    Attributes:
        strength: share of the measured lift that is applied (τ); 0 leaves the logits unchanged.
        evidence: k: the lift aims at the share m / (m + k) of the missing mentions, m being the number found before the
            step. A larger k demands more evidence.
        most: largest lift that is tried.
        sentences: maximum number of dev sentences used for the measurement.
    """

    name: Literal["bias_correction"] = "bias_correction"
    strength: float = Field(0.5, ge=0, le=1)
    evidence: float = Field(10.0, ge=0)
    most: float = Field(3.0, gt=0)
    sentences: int = Field(400, ge=1)


@strategies.register("bias_correction")
@final
class BiasCorrection(Strategy):
    """After a step, adds one number to the logits of all old types, so that they are found as often as before it.

    Wu et al. 2019, "Large scale incremental learning" (BiC), section 4: after a step, the last layer is biased towards
    new classes, which two numbers fitted on held-out data correct. There, the data includes old classes; here none is
    available, so what the model before the step found in the dev sentences is used instead.
    """

    options_class = BiasCorrectionOptions
    options: BiasCorrectionOptions
    settle_order = 2  # counts what the model finds in the end
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint learns all types anew, from sentences of all steps",
        **dict.fromkeys(
            ("frozen", "hat", "ice", "modules", "packnet"),
            "what is computed of earlier steps' types is to stay as it is",
        ),
    }

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses a head whose columns are not tag logits."""
        return why_no_tag_logits(head)

    @property
    def reads_dev(self) -> bool:
        """True unless the strength is 0."""
        return self.options.strength > 0

    def begin_step(self, context: StepContext) -> None:
        """Counts the mentions of old types that the model finds in the dev sentences, outside gold mentions."""
        self._sentences: list[Sentence] = []
        if not context.old_types or not context.dev or not self.options.strength:
            return
        self._sentences = context.at_most(context.dev, self.options.sentences, "bias_correction/sentences")
        self._wanted = sum(
            not any(span.overlaps(gold) for gold in sentence.spans)
            for sentence, spans in zip(self._sentences, context.predict(self._sentences), strict=True)
            for span in spans
        )

    def settle(self, context: StepContext) -> Settled | None:
        """Lifts the logits of old types, once the best weights are restored."""
        if not self._sentences:
            return None
        found = cache(self._counter(context))
        now = found(0.0)
        sure = self._wanted / (self._wanted + self.options.evidence) if self._wanted else 0.0
        lift = self.options.strength * least_lift(found, now + int(sure * (self._wanted - now)), most=self.options.most)
        context.model.head.shift(dict.fromkeys(context.old_types, lift))
        compared = f"{now} of their mentions were found in the dev sentences, {self._wanted} before the step"
        return Settled(
            f"{lift:+.2f} on the logits of old types: {compared}" if lift else f"nothing changed: {compared}",
            {"lift": round(lift, 4), "found_before": self._wanted, "found_after": now},
        )

    def release(self) -> None:
        """Releases the dev sentences."""
        self._sentences = []

    def _counter(self, context: StepContext) -> Callable[[float], int]:
        """Returns a function from a lift of the old types' logits to the number of their mentions that are found."""
        model, old = context.model, context.old_types
        vectors_of = _word_vectors(context, self._sentences)
        batches: list[tuple[Float[Tensor, "row word hidden"], Bool[Tensor, "row word"], list[Sentence]]] = []
        for chosen in plan_batches([len(words) for words in vectors_of], batch_tokens=context.eval_batch_tokens):
            vectors = pad_sequence([vectors_of[index] for index in chosen], batch_first=True)
            lengths = torch.tensor([[len(vectors_of[index])] for index in chosen], device=model.device)
            mask = torch.arange(vectors.shape[1], device=model.device) < lengths
            batches.append((vectors, mask, [self._sentences[index] for index in chosen]))

        biases = {name: bias.detach().clone() for name, bias in model.head.named_parameters() if name.endswith("bias")}

        @torch.no_grad()
        def found(lift: float) -> int:
            model.head.shift(dict.fromkeys(old, lift))
            count = 0
            for vectors, mask, sentences in batches:
                for row, start, end, type_ in model.head.spans(model.head(vectors, mask)).tolist():
                    span = Span(start, end, model.types[type_])
                    count += span.type in old and not any(span.overlaps(gold) for gold in sentences[row].spans)
            model.head.load_state_dict(biases, strict=False)  # exact to the last bit, unlike shifting by -lift
            return count

        return found


@torch.no_grad()
def _word_vectors(context: StepContext, sentences: Sequence[Sentence]) -> list[Float[Tensor, "word hidden"]]:
    """The encoder's vectors of the words of each sentence, whose windows are joined, as for a prediction."""
    model, encoded = context.model, context.model.encode(sentences)
    windows: dict[int, Float[Tensor, "word hidden"]] = {}
    for rows, batch in encoded.in_length_order(context.eval_batch_tokens):
        batch = batch.to(model.device)
        with autocast(context.precision, model.device):
            vectors = model.encoder(batch)
        windows |= {row: vectors[place][batch.word_mask[place]] for place, row in enumerate(rows)}
    return [torch.cat([windows[row] for row in rows]) for rows in encoded.rows_of]


def least_lift(found: Callable[[float], int], goal: int, *, most: float) -> float:
    """The least lift, within a hundredth of `most`, with which `goal` mentions are found; `most` if none is enough.

    Args:
        found: number of mentions found with a lift; grows with it.
        goal: number of mentions to find.
        most: the largest lift to try.
    """
    if found(0.0) >= goal:
        return 0.0
    low, high = 0.0, most
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= goal else (middle, high)
    return high
