"""Arithmetic of the SpanKL head: scoring spans from two vectors per word, and selecting spans by their scores.

A band is a tensor `[row, word, length, type]`: one value for each span of `length + 1` words that begins at a word.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ner_cl.model.decode import words_between

__all__ = ["crossing", "non_maximum_suppression", "span_band", "tags_of_disjoint", "within"]


def span_band(
    starts: Float[Tensor, "row word type width"], ends: Float[Tensor, "row word type width"], *, longest: int
) -> Float[Tensor, "row word length type"]:
    """Computes `s_i · e_j / √width` for the first word i and the last word j of every span.

    Words are processed in chunks as long as the longest span, each with itself and the next one, so time and memory are
    linear in the length of the document. Values of spans that extend past the row are arbitrary.

    Args:
        starts: vector of each word as the first word of a span of each type.
        ends: the same as the last word.
        longest: maximum words of a span; the band is no wider than the row.
    """
    rows, words, types, width = starts.shape
    size = min(longest, max(words, 1))
    chunks = max(1, math.ceil(words / size))
    starts = F.pad(starts, (0, 0, 0, 0, 0, chunks * size - words)).view(rows, chunks, size, types, width)
    ends = F.pad(ends, (0, 0, 0, 0, 0, (chunks + 1) * size - words)).unfold(1, 2 * size, size)
    scores = starts.permute(0, 1, 3, 2, 4) @ ends  # [row, chunk, type, word of the chunk, word of two chunks]
    # Word a of a chunk needs columns a to a + size - 1: with one more column per row, row a is read from column a on.
    skewed = F.pad(scores.flatten(-2), (0, size)).view(rows, chunks, types, size, 2 * size + 1)[..., :size]
    band = skewed.permute(0, 1, 3, 4, 2).reshape(rows, chunks * size, size, types)
    return band[:, :words] / math.sqrt(width)


def within(mask: Bool[Tensor, "row word"], longest: int) -> Bool[Tensor, "row word length"]:
    """Which spans of a band end within their row.

    Args:
        mask: which words are real.
        longest: maximum words of a span.
    """
    words = mask.shape[1]
    last = torch.arange(words, device=mask.device)[:, None] + torch.arange(
        min(longest, max(words, 1)), device=mask.device
    )
    return last < mask.sum(dim=1)[:, None, None]


def crossing(band: Float[Tensor, "row word length"]) -> Float[Tensor, "row word"]:
    """The best score of the spans that contain both a word and the word before it; -inf if there is none.

    Args:
        band: score of each span, over all types.
    """
    reaching = band.flip(-1).cummax(-1).values.flip(-1)  # at m: the best score of spans of more than m words
    best = torch.full_like(band[..., 0], -torch.inf)
    for before in range(1, band.shape[-1]):
        best[:, before:] = torch.maximum(best[:, before:], reaching[:, :-before, before])
    return best


def non_maximum_suppression(spans: Int[Tensor, "span 4"], scores: Float[Tensor, " span"]) -> Bool[Tensor, " span"]:
    """Which spans a greedy selection keeps: best score first, skipping spans that overlap a kept one.

    Each round takes all spans that are the best at each of their words: the same result as one by one, in a few rounds.
    On a tie the span listed first is better.

    Args:
        spans: row, first word, one past the last word, type.
        scores: score of each span.
    """
    owner, word = words_between(spans[:, 1], spans[:, 2])
    _, place = torch.unique(torch.stack([spans[owner, 0], word]), dim=1, return_inverse=True)
    rank = torch.empty_like(spans[:, 0])
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(len(spans), 0, -1, device=spans.device)
    kept = torch.zeros_like(rank, dtype=torch.bool)
    waiting = ~kept
    while waiting.any():
        best = torch.zeros_like(place).scatter_reduce(0, place, torch.where(waiting, rank, 0)[owner], "amax")
        kept |= waiting & ~_anywhere(best[place] > rank[owner], owner, len(spans))
        taken = torch.zeros_like(place, dtype=torch.bool)
        taken[place[kept[owner]]] = True
        waiting &= ~_anywhere(taken[place], owner, len(spans))
    return kept


def tags_of_disjoint(spans: Int[Tensor, "span 4"], mask: Bool[Tensor, "row word"]) -> Int[Tensor, "row word"]:
    """The IOB2 tag ids of spans that do not overlap.

    Args:
        spans: row, first word, one past the last word, index of the type.
        mask: which words are real; gives the shape.
    """
    tags = torch.zeros_like(mask, dtype=torch.long)
    owner, word = words_between(spans[:, 1], spans[:, 2])
    tags[spans[owner, 0], word] = 2 + 2 * spans[owner, 3]
    tags[spans[:, 0], spans[:, 1]] = 1 + 2 * spans[:, 3]
    return tags


def _anywhere(flags: Bool[Tensor, " word"], owner: Int[Tensor, " word"], spans: int) -> Bool[Tensor, " span"]:
    """Whether a flag is set at any word of each span."""
    return torch.zeros(spans, dtype=torch.long, device=flags.device).index_add(0, owner, flags.long()) > 0
