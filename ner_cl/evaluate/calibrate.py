"""Whether the scores of what is found are the shares of it that is right."""

from collections.abc import Sequence
from dataclasses import dataclass

from ner_cl.types import Sentence, Span

__all__ = ["Bin", "Judged", "expected_calibration_error", "judge", "reliability"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A span that was found: its score, in [0, 1], and whether gold has exactly it."""

    score: float
    right: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Found spans of like score: how many, their mean score, and the share that is right."""

    count: int
    score: float
    right: float


def judge(gold: Sequence[Sentence], found: Sequence[Sequence[tuple[Span, float]]]) -> list[Judged]:
    """Every found span and its score, where the sentence is annotated for its type; of others nothing is known."""
    return [
        Judged(score, span in sentence.spans)
        for sentence, items in zip(gold, found, strict=True)
        for span, score in items
        if span.type in sentence.annotated_types
    ]


def reliability(judged: Sequence[Judged], *, bins: int = 15) -> list[Bin]:
    """Found spans in bins of equal width over [0, 1], from low to high; empty bins are left out (Guo et al. 2017)."""
    members: list[list[Judged]] = [[] for _ in range(bins)]
    for item in judged:
        members[min(int(item.score * bins), bins - 1)].append(item)
    return [
        Bin(len(own), sum(item.score for item in own) / len(own), sum(item.right for item in own) / len(own))
        for own in members
        if own
    ]


def expected_calibration_error(judged: Sequence[Judged], *, bins: int = 15) -> float | None:
    """Mean distance, over found spans, between the score and the share that is right in the span's bin.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3, over spans in place of images.

    Returns:
        In [0, 1]; None where nothing was found.
    """
    if not judged:
        return None
    return sum(own.count * abs(own.right - own.score) for own in reliability(judged, bins=bins)) / len(judged)
