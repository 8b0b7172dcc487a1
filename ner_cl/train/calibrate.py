"""Temperature scaling of a step's scores, so that they tell how often a prediction is right."""

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
"""With fewer spans the temperature is not measured."""

_LOWEST, _HIGHEST, _ROUNDS = 0.25, 10.0, 14


@dataclass(frozen=True)
class Calibration:
    """Calibration of a step, measured on its dev sentences.

    Attributes:
        temperature: divides the logits of the step's block when scores are computed; tags do not change.
        spans: how many predicted spans were judged.
        error_before: expected calibration error (0 to 1) without a temperature.
        error_after: the same with the temperature, on the same spans.
    """

    temperature: float
    spans: int
    error_before: float
    error_after: float

    def record(self) -> dict[str, Any]:
        """Returns the entry for `history.jsonl`."""
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
    """Sets the temperature of the newest step so that the scores of its predicted spans fit the gold best.

    Minimises the negative log-likelihood of whether a predicted span is right, by golden-section search on the
    logarithm of the temperature. Guo et al. (ICML 2017, section 4.2) do the same over all predictions; over all words,
    most of which are an easy `O`, the temperature of a tagger comes out too low. So that few spans do not make a tagger
    certain, targets are smoothed as by Platt (1999): `(n₊ + 1) / (n₊ + 2)` and `1 / (n₋ + 2)` instead of 1 and 0.

    Args:
        model: the model at the end of a step; changed in place.
        dev: sentences annotated for types of the newest step.
        batch_tokens: word pieces per batch, padding included.
        precision: number format of the encoder.

    Returns:
        The calibration; None, with nothing changed, if there are fewer than 20 judged spans or the blocks vote.
    """
    types = [type_ for type_ in model.tagset.steps[-1] if any(type_ in s.annotated_types for s in dev)]
    if not types or model.head.votes:
        return None
    found = _JudgedSpans(model, dev, types, batch_tokens, precision)
    if len(found.right) < LEAST_SPANS:
        return None
    right = int(found.right.sum())
    targets = torch.where(found.right, (right + 1) / (right + 2), 1 / (len(found.right) - right + 2))

    def cost(log_temperature: float) -> float:
        scores = found.scores(math.exp(log_temperature))
        return float(torch.nn.functional.binary_cross_entropy(scores, targets))

    before = found.error(1.0)
    temperature = math.exp(golden_section(cost, math.log(_LOWEST), math.log(_HIGHEST), rounds=_ROUNDS))
    model.head.temperatures[-1] = temperature
    return Calibration(temperature, len(found.right), before, found.error(temperature))


@final
class _JudgedSpans:
    """Spans predicted on dev and judged by the gold, with the emissions to recompute their probabilities from.

    Attributes:
        right: `[span]`, whether each span is in the gold.
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
                if name in sentence.annotated_types:  # otherwise it is unknown whether it is right
                    judged.append(number)
                    right.append(Span(first + start, first + end, name) in sentence.spans)
            self.rows.append((emissions, spans[judged]))
        self.right = torch.tensor(right, dtype=torch.bool)

    def scores(self, temperature: float) -> Float[Tensor, " span"]:
        """Probability of each span with a temperature of the newest step, on the CPU."""
        known, self.head.temperatures[-1] = self.head.temperatures[-1], temperature
        scores = torch.cat([self.head.span_scores(*row).float().cpu() for row in self.rows])
        self.head.temperatures[-1] = known
        return scores.clamp(1e-6, 1 - 1e-6)

    def error(self, temperature: float) -> float:
        """Expected calibration error with a temperature of the newest step."""
        return calibration_error(reliability(self.scores(temperature).tolist(), self.right.tolist())) or 0.0
