"""Telling rows of the step from those that strategies brought in."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ner_cl.data.batching import Batch, Origin, rows_from
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions

__all__ = ["cross_entropy_as_labelled", "on_rows"]

Terms = dict[str, Float[Tensor, ""]]


def on_rows(
    batch: Batch, emissions: Emissions, terms: Callable[[Batch, Emissions], Terms], *, origin: Origin = "own"
) -> Terms:
    """Loss terms of those rows of a batch that come from one place, as shares of a mean over all words.

    Adding the terms of all kinds of rows gives one mean over the words of the batch.

    Args:
        batch: any batch.
        emissions: of it.
        terms: gives terms, each a mean over words, of the rows it is shown.
        origin: which rows; the step's own by default.

    Returns:
        No terms if the batch has no such row.
    """
    rows = rows_from(batch.origins, origin)
    if not rows:
        return {}
    if len(rows) == len(batch.origins):
        return terms(batch, emissions)
    share = sum(batch.row_words[row] for row in rows) / sum(batch.row_words)
    found: dict[str, Any] = terms(batch.select(rows), emissions.select(rows))
    return {name: term * share for name, term in found.items()}


def cross_entropy_as_labelled(head: Head, batch: Batch, emissions: Emissions) -> Terms:
    """Cross entropy that takes every `O` of the step's own rows at its word, as `ce`."""
    return on_rows(
        batch,
        emissions,
        lambda rows, said: {"ce": head.supervised(said, rows, unannotated="negative")},
    )
