"""Significance tests for the difference of two methods: over test sentences, and over seeds and type orders."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import check_lengths
from ner_cl.types import Sentence, Span

__all__ = ["Average", "BootstrapTest", "SignFlipTest", "paired_bootstrap", "sentence_counts", "sign_flip_test"]

Average: TypeAlias = Literal["micro", "macro"]
Table: TypeAlias = Int[np.ndarray, "_ _ 3"]
"""Result of `sentence_counts`; the sizes of two tables may differ."""
# Resamples drawn at once; more would only need more memory.
_CHUNK = 256
# Up to this many pairs all 2^n sign patterns are tried; beyond that, `resamples` patterns are drawn.
_EXACT_PAIRS = 14


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    """A difference of F1 with its uncertainty due to the choice of test sentences.

    Attributes:
        difference: F1 of the second run minus F1 of the first, mean over the pairs of runs.
        low: lower end of the 95 % percentile interval.
        high: upper end of this interval.
        p: two-sided: twice the share of resamples on the rarer side of 0 (add-one corrected), at most 1.
        resamples: number of draws in which F1 is defined.
    """

    difference: float
    low: float
    high: float
    p: float
    resamples: int


@dataclass(frozen=True, slots=True)
class SignFlipTest:
    """A paired permutation test: how often random swaps within pairs give at least as large a mean difference.

    Attributes:
        pairs: number of pairs of runs with the same seed and type order.
        p: two-sided.
        smallest: smallest p possible with this many pairs; above 0.05 the test cannot be significant.
    """

    pairs: int
    p: float
    smallest: float


def sentence_counts(
    gold: Sequence[Sentence], found: Sequence[Sequence[Span]], types: Sequence[str]
) -> Int[np.ndarray, "sentence type 3"]:
    """Count true positives, false positives and misses of each type in each sentence, as `count_spans` does.

    Raises:
        DataError: if the two sequences differ in length.
    """
    check_lengths(gold, found)
    column = {type_: index for index, type_ in enumerate(types)}
    table = np.zeros((len(gold), len(types), 3), dtype=np.int32)
    for number, (sentence, guess) in enumerate(zip(gold, found, strict=True)):
        counted = column.keys() & sentence.annotated_types
        truth = {span for span in sentence.spans if span.type in counted}
        guessed = {span for span in guess if span.type in counted}
        for kind, spans in enumerate((truth & guessed, guessed - truth, truth - guessed)):
            for span in spans:
                table[number, column[span.type], kind] += 1
    return table


def paired_bootstrap(
    pairs: Sequence[tuple[Table, Table]],
    *,
    average: Average = "micro",
    resamples: int = 2000,
    seed: int = 13,
) -> BootstrapTest:
    """Resample the test sentences with replacement, with the same draw for both runs of every pair (Koehn 2004).

    Args:
        pairs: counts of the first and the second method, from runs that differ only in the method.
        average: which F1 to compare.
        resamples: number of draws.
        seed: seed of the draws.

    Raises:
        DataError: if there is no pair or no gold mention, or the numbers of sentences or types of two runs differ.
    """
    if not pairs:
        raise DataError("no pair of runs to compare; two methods need a run with the same seed and type order")
    if len({table.shape for pair in pairs for table in pair}) > 1:
        raise DataError("runs with different test sets cannot be compared sentence by sentence")
    if not pairs[0][0][..., [0, 2]].any():
        raise DataError("the test set has no mention of the types that are compared")
    score = _micro if average == "micro" else _macro

    def difference(weights: Float[np.ndarray, "draw sentence"]) -> Float[np.ndarray, " draw"]:
        changes = [_drawn(second, weights, score) - _drawn(first, weights, score) for first, second in pairs]
        return np.asarray(np.mean(changes, axis=0))

    sentences = len(pairs[0][0])
    whole = float(difference(np.ones((1, sentences)))[0])
    drawn = np.concatenate([difference(weights) for weights in _draws(sentences, resamples, seed)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return BootstrapTest(whole, float(low), float(high), min(1.0, 2 * (side + 1) / (len(drawn) + 1)), len(drawn))


def sign_flip_test(differences: Sequence[float], *, resamples: int = 10000, seed: int = 13) -> SignFlipTest | None:
    """Test a mean difference by swapping the methods within pairs of runs; exact for few pairs. None without a pair.

    Example:
        >>> sign_flip_test([0.1, 0.2, 0.15])
        SignFlipTest(pairs=3, p=0.25, smallest=0.25)
    """
    count = len(differences)
    if not count:
        return None
    values = np.asarray(differences, dtype=float)
    observed = abs(values.mean())
    if count <= _EXACT_PAIRS:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((1, -1), size=(resamples, count))
        extra = 1  # the observed arrangement
    as_large = int((np.abs(signs @ values / count) >= observed - 1e-12).sum())
    smallest = 2 / 2**count if count <= _EXACT_PAIRS else 1 / (resamples + 1)
    return SignFlipTest(count, (as_large + extra) / (len(signs) + extra), smallest)


def _draws(sentences: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "draw sentence"]]:
    """Yield how often each sentence is in each draw, several draws at a time."""
    generator = np.random.default_rng(seed)
    shares = np.full(sentences, 1 / sentences)
    for start in range(0, resamples, _CHUNK):
        yield generator.multinomial(sentences, shares, size=min(_CHUNK, resamples - start)).astype(float)


def _drawn(
    table: Int[np.ndarray, "sentence type 3"],
    weights: Float[np.ndarray, "draw sentence"],
    score: Callable[[Float[np.ndarray, "draw type 3"]], Float[np.ndarray, " draw"]],
) -> Float[np.ndarray, " draw"]:
    flat = table.reshape(len(table), -1)
    return score((weights @ flat).reshape(len(weights), *table.shape[1:]))


def _micro(counts: Float[np.ndarray, "draw type 3"]) -> Float[np.ndarray, " draw"]:
    return _f1(counts.sum(1))


def _macro(counts: Float[np.ndarray, "draw type 3"]) -> Float[np.ndarray, " draw"]:
    """Return mean F1 over the types with gold in the draw, as `macro_f1` does; NaN if none has."""
    scores = _f1(counts)
    known = np.isfinite(scores)
    total = np.where(known, scores, 0).sum(1)
    return np.asarray(np.divide(total, known.sum(1), out=np.full(len(scores), np.nan), where=known.any(1)))


def _f1(counts: Float[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any"]:
    found, invented, missed = counts[..., 0], counts[..., 1], counts[..., 2]
    bottom = 2 * found + invented + missed
    return np.asarray(np.divide(2 * found, bottom, out=np.full(bottom.shape, np.nan), where=(found + missed) > 0))
