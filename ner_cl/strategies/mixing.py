"""Batches into which rows are drawn that are not the step's own."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil

import numpy as np

__all__ = ["in_rounds", "mixed"]


def mixed(
    own: Sequence[int], drawn: Iterator[int], lengths: Sequence[int], *, tokens: int, ratio: float
) -> list[list[int]]:
    """Cuts rows, in the order given, into batches in which at least a share of the rows is drawn from others.

    Args:
        own: rows, each of which is in one batch.
        drawn: gives the other rows, without end.
        lengths: word pieces of every row.
        tokens: longest row × rows of a batch stays within this, where more than one row of `own` is in it.
        ratio: the share, in (0, 1).
    """
    each = ratio / (1 - ratio) - 1e-9  # rows to be drawn for one row; whole numbers must not round up
    batches: list[list[int]] = [[]]
    new = longest = 0
    for row in own:
        unit = [row, *islice(drawn, ceil((new + 1) * each) - (len(batches[-1]) - new))]
        longest = max(longest, *(lengths[index] for index in unit))
        if new and longest * (len(batches[-1]) + len(unit)) > tokens:
            unit += islice(drawn, ceil(each) - (len(unit) - 1))
            longest = max(lengths[index] for index in unit)
            batches.append([])
            new = 0
        batches[-1] += unit
        new += 1
    return batches


def in_rounds(rows: Sequence[int], generator: np.random.Generator) -> Iterator[int]:
    """Every row once in random order, again and again."""
    while True:
        yield from generator.permutation(rows).tolist()
