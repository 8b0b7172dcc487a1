"""Losses on selected rows: the step's own, or those that strategies added."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.data.batching import Batch, Origin, rows_from
from ner_cl.model.heads.base import Head
from ner_cl.model.heads.emissions import Emissions

__all__ = ["cross_entropy", "cross_entropy_as_annotated", "cross_entropy_as_labelled", "on_rows"]

Terms = dict[str, Float[Tensor, ""]]


def on_rows(batch: Batch, emissions: Emissions, terms: Callable[[Batch, Emissions], Terms], *origins: Origin) -> Terms:
    """Loss terms of a batch's rows with some origins, as shares of a mean over all words of the batch.

    The terms of all origins add up to one mean over the words of the batch.

    Args:
        batch: any batch.
        emissions: emissions of the batch.
        terms: computes the terms of the rows it is given, each a mean over words.
        origins: origins of the rows; the step's own by default.

    Returns:
        The terms; none if the batch has no such row.
    """
    rows = rows_from(batch.origins, *(origins or ("own",)))
    if not rows:
        return {}
    if len(rows) == len(batch.origins):
        return terms(batch, emissions)
    share = sum(batch.row_words[row] for row in rows) / sum(batch.row_words)
    found: dict[str, Any] = terms(batch.select(rows), emissions.select(rows))
    return {name: term * share for name, term in found.items()}


def cross_entropy(
    head: Head, batch: Batch, emissions: Emissions, unannotated: Literal["negative", "unknown"]
) -> Float[Tensor, ""]:
    """Cross entropy as a mean over the words of a batch whose rows may be annotated differently; see `Head.supervised`.

    AddNER averages each block over its own words, so rows annotated for different types are computed separately.
    """
    groups: dict[frozenset[int], list[int]] = {}
    for row, types in enumerate(batch.row_types):
        groups.setdefault(types, []).append(row)
    if len(groups) == 1:
        return head.supervised(emissions, batch, unannotated=unannotated)
    words = sum(batch.row_words)
    parts = [
        head.supervised(emissions.select(rows), batch.select(rows), unannotated=unannotated)
        * (sum(batch.row_words[row] for row in rows) / words)
        for rows in groups.values()
    ]
    return torch.stack(parts).sum()


def cross_entropy_as_annotated(head: Head, batch: Batch, emissions: Emissions, *origins: Origin) -> Terms:
    """Cross entropy of rows with some origins, ignoring types that a row is not annotated for, as `ce`."""
    return on_rows(
        batch,
        emissions,
        lambda batch, emissions: {"ce": cross_entropy(head, batch, emissions, "unknown")},
        *origins,
    )


def cross_entropy_as_labelled(head: Head, batch: Batch, emissions: Emissions) -> Terms:
    """Cross entropy that takes every `O` of the step's own rows literally, as `ce`."""
    return on_rows(
        batch,
        emissions,
        lambda batch, emissions: {"ce": head.supervised(emissions, batch, unannotated="negative")},
    )
