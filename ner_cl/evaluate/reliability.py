"""Calibration of span probabilities: of the spans with score 0.8, eight in ten should be correct."""

from collections.abc import Sequence
from dataclasses import dataclass

from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span

__all__ = ["Bin", "calibration_error", "judge", "reliability"]


@dataclass(frozen=True, slots=True)
class Bin:
    """The predictions whose score lies in `(low, high]`, the first bin including 0.

    Attributes:
        low: lower bound.
        high: upper bound.
        count: number of predictions.
        score: their mean score; None if the bin is empty.
        right: the share of them that is correct; None if the bin is empty.
    """

    low: float
    high: float
    count: int
    score: float | None
    right: float | None


def judge(gold: Sequence[Sentence], found: Sequence[Sequence[tuple[Span, float]]]) -> tuple[list[float], list[bool]]:
    """Return the scores of predicted spans, and whether each is in gold; unannotated types are skipped."""
    judged = [
        (score, span in sentence.spans)
        for sentence, items in zip(gold, found, strict=True)
        for span, score in items
        if span.type in sentence.annotated_types
    ]
    return [score for score, _ in judged], [right for _, right in judged]


def reliability(scores: Sequence[float], right: Sequence[bool], *, bins: int = 10) -> list[Bin]:
    """Bin predictions by score, with equal widths (Guo et al. 2017, "On Calibration of Modern Neural Networks", §2).

    Args:
        scores: probabilities in [0, 1].
        right: whether each prediction is correct.
        bins: number of bins.

    Raises:
        DataError: if the two sequences differ in length.

    Example:
        >>> low, high = reliability([0.4, 0.9, 0.7], [False, True, True], bins=2)
        >>> low.right, high.count, round(high.score, 3)
        (0.0, 2, 0.8)
    """
    if len(scores) != len(right):
        raise DataError(f"{len(scores)} scores but {len(right)} verdicts; give one for each prediction")
    members: list[list[int]] = [[] for _ in range(bins)]
    for index, score in enumerate(scores):
        place = next(number for number in range(bins) if score <= (number + 1) / bins or number == bins - 1)
        members[place].append(index)
    return [
        Bin(
            number / bins,
            (number + 1) / bins,
            len(indices),
            sum(scores[i] for i in indices) / len(indices) if indices else None,
            sum(right[i] for i in indices) / len(indices) if indices else None,
        )
        for number, indices in enumerate(members)
    ]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Return the expected calibration error: the gap between mean score and share correct per bin, weighted by count.

    None if there is no prediction. Source: Guo et al. 2017, §2, equation 3.

    Example:
        >>> round(calibration_error(reliability([0.4, 0.9, 0.7], [False, True, True], bins=2)), 3)
        0.267
    """
    total = sum(cell.count for cell in bins)
    apart = 0.0
    for cell in bins:
        if cell.score is not None and cell.right is not None:
            apart += cell.count * abs(cell.right - cell.score)
    return apart / total if total else None
