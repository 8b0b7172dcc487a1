"""Batches that mix the step's own rows with others."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from math import ceil

import numpy as np

__all__ = ["mixed"]

_POOL = 512  # units sorted by length together: little padding, while the order stays random


def mixed(
    own: Sequence[Sequence[int]],
    others: Sequence[int],
    lengths: Sequence[int],
    *,
    tokens: int,
    ratio: float,
    generator: np.random.Generator,
) -> list[list[int]]:
    """Cuts rows into batches of similar length, with at least a share `ratio` of the rows drawn from `others`.

    Args:
        own: units of one or more rows in random order, each of which is in one batch.
        others: the other rows; each is drawn once before any is drawn twice.
        lengths: word pieces of every row.
        tokens: limit on longest row × rows of a batch, for batches with more than one unit of `own`.
        ratio: the share, in (0, 1).
        generator: draws rows, and the order of batches.
    """
    each = ratio / (1 - ratio) - 1e-9  # rows drawn per own row; whole numbers must not round up
    drawn = _in_rounds(others, generator)
    batches: list[list[int]] = []
    for start in range(0, len(own), _POOL):
        pool = sorted(own[start : start + _POOL], key=lambda unit: max(lengths[row] for row in unit))
        beside = sorted(islice(drawn, ceil(sum(map(len, pool)) * each)), key=lambda row: lengths[row])
        batches += _cut(pool, chain(beside, drawn), lengths, tokens=tokens, each=each)
    return [batches[index] for index in generator.permutation(len(batches))]


def _in_rounds(rows: Sequence[int], generator: np.random.Generator) -> Iterator[int]:
    """All rows in random order, repeated forever with a new order each time."""
    while True:
        yield from generator.permutation(rows).tolist()


def _cut(
    own: Sequence[Sequence[int]], drawn: Iterator[int], lengths: Sequence[int], *, tokens: int, each: float
) -> list[list[int]]:
    """Batches of `own` in the given order; one with n rows of `own` gets `ceil(n · each)` drawn rows."""
    batches: list[list[int]] = [[]]
    own_rows = longest = 0  # of the last batch
    for rows in own:
        unit = [*rows, *islice(drawn, ceil((own_rows + len(rows)) * each) - ceil(own_rows * each))]
        longest = max(longest, *(lengths[row] for row in unit))
        if own_rows and longest * (len(batches[-1]) + len(unit)) > tokens:
            unit += islice(drawn, ceil(len(rows) * each) - (len(unit) - len(rows)))  # none, or one because of rounding
            longest = max(lengths[row] for row in unit)
            batches.append([])
            own_rows = 0
        batches[-1] += unit
        own_rows += len(rows)
    return batches
