"""The temperature of a step: what its scores are divided by so that they say how often they are right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.evaluate.reliability import calibration_error, reliability
from ner_cl.model.emissions import stretches_of
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.merge import golden_section
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision
from ner_cl.types import Sentence, Span

__all__ = ["Calibration", "calibrate"]

LEAST_SPANS = 20
"""Fewer say too little about how often scores are right."""

_LOWEST, _HIGHEST, _ROUNDS = 0.25, 10.0, 14


@dataclass(frozen=True)
class Calibration:
    """What was measured on the dev sentences of a step.

    Attributes:
        temperature: divides the logits of the step's block when scores are computed; tags stay what they are.
        spans: how many were found.
        error_before: expected calibration error without a temperature, of 1.
        error_after: the same with it, on the same spans.
    """

    temperature: float
    spans: int
    error_before: float
    error_after: float

    def record(self) -> dict[str, Any]:
        """As a line of `history.jsonl` tells it."""
        return {
            "temperature": round(self.temperature, 4),
            "spans": self.spans,
            "error_before": round(self.error_before, 4),
            "error_after": round(self.error_after, 4),
        }


def calibrate(
    model: NerModel,
    dev: Sequence[Sentence],
    *,
    batch_tokens: int | None = None,
    precision: Precision = "auto",
) -> Calibration | None:
    """Gives the newest step the temperature under which the scores of what it finds fit the gold best.

    Minimises the negative log-likelihood that a found span is right, by golden-section search on the logarithm of the
    temperature. Guo et al. (ICML 2017, section 4.2) do the same over all predictions; over all words, most of which are
    an easy `O`, the temperature of a tagger comes out too low. Few spans must not make a tagger certain, so targets are
    smoothed as by Platt (1999): `(n₊ + 1) / (n₊ + 2)` and `1 / (n₋ + 2)` in place of 1 and 0.

    Args:
        model: at the end of a step.
        dev: sentences annotated for types of the newest step.
        batch_tokens: word pieces of one batch, padding included.
        precision: number format of the encoder.

    Returns:
        What was measured; None, with nothing changed, where fewer than 20 spans are found or votes have temperatures.
    """
    types = [type_ for type_ in model.tagset.steps[-1] if any(type_ in s.annotated_types for s in dev)]
    if not types or model.head.votes:
        return None
    found = _Found(model, dev, types, batch_tokens, precision)
    if len(found.right) < LEAST_SPANS:
        return None
    right = int(found.right.sum())
    targets = torch.where(found.right, (right + 1) / (right + 2), 1 / (len(found.right) - right + 2))

    def cost(log_temperature: float) -> float:
        scores = found.scores(math.exp(log_temperature))
        return float(torch.nn.functional.binary_cross_entropy(scores, targets))

    before = found.error(1.0)
    temperature = math.exp(golden_section(cost, math.log(_LOWEST), math.log(_HIGHEST), rounds=_ROUNDS))
    return Calibration(temperature, len(found.right), before, found.error(temperature))


@final
class _Found:
    """The spans found on dev and judged by gold, in rows of tag scores from which probabilities can be computed anew.

    Attributes:
        right: `[span]`, whether gold has each.
    """

    def __init__(
        self,
        model: NerModel,
        dev: Sequence[Sentence],
        types: Sequence[str],
        batch_tokens: int | None,
        precision: Precision,
    ) -> None:
        self.head = model.head
        self.rows: list[tuple[Emissions, Tensor]] = []
        right: list[bool] = []
        filled = [sentence for sentence in dev if sentence.words]
        encoded = model.encode(filled)
        for places, emissions in stretches_of(
            model, encoded, types=types, batch_tokens=batch_tokens, precision=precision
        ):
            spans = model.head.spans(emissions, types=types)
            judged = []
            for number, (row, start, end, type_) in enumerate(spans.tolist()):
                place, first = places[row]
                sentence, name = filled[place], model.types[type_]
                if name in sentence.annotated_types:  # of others nobody knows whether they are right
                    judged.append(number)
                    right.append(Span(first + start, first + end, name) in sentence.spans)
            self.rows.append((emissions, spans[judged]))
        self.right = torch.tensor(right, dtype=torch.bool)

    def scores(self, temperature: float) -> Float[Tensor, " span"]:
        """The probability of each span under a temperature of the newest step, on the CPU."""
        self.head.temperatures[-1] = temperature
        return torch.cat([self.head.span_scores(*row).float().cpu() for row in self.rows]).clamp(1e-6, 1 - 1e-6)

    def error(self, temperature: float) -> float:
        """The expected calibration error under a temperature, which the head has from then on."""
        return calibration_error(reliability(self.scores(temperature).tolist(), self.right.tolist())) or 0.0
