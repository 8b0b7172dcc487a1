"""Telling rows of the step from rows that were remembered from earlier ones."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ner_cl.data.batching import Batch
from ner_cl.model.heads.base import Emissions, Head

__all__ = ["cross_entropy_as_labelled", "on_rows"]

Terms = dict[str, Float[Tensor, ""]]


def on_rows(
    batch: Batch, emissions: Emissions, terms: Callable[[Batch, Emissions], Terms], *, remembered: bool
) -> Terms:
    """Loss terms of the remembered rows of a batch, or of the others, as shares of a mean over all words.

    Adding the terms of both kinds of rows gives one mean over the words of the batch.

    Args:
        batch: any batch.
        emissions: of it.
        terms: gives terms, each a mean over words, of the rows it is shown.
        remembered: which rows.

    Returns:
        No terms if the batch has no such row.
    """
    if not any(batch.remembered):
        return {} if remembered else terms(batch, emissions)
    rows = [row for row, kept in enumerate(batch.remembered) if kept == remembered]
    if not rows:
        return {}
    share = sum(batch.row_words[row] for row in rows) / sum(batch.row_words)
    found: dict[str, Any] = terms(batch.select(rows), emissions.select(rows))
    return {name: term * share for name, term in found.items()}


def cross_entropy_as_labelled(head: Head, batch: Batch, emissions: Emissions) -> Terms:
    """Cross entropy that takes every `O` of the step's own rows at its word, as `ce`."""
    return on_rows(
        batch,
        emissions,
        lambda rows, said: {"ce": head.supervised(said, rows, unannotated="negative")},
        remembered=False,
    )
