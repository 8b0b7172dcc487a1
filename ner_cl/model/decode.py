"""Decodes IOB2 tags and span probabilities from independent per-word tag scores, under the IOB2 constraint.

Column 0 is `O`, column `1 + 2i` is `B-` and column `2 + 2i` is `I-` of type i. The only illegal move is into `I-x`
from anything but `B-x` or `I-x`, including from the start of the sentence. Along a path each word is therefore either
outside (`O`) or in an open span of one type, so a step of each recursion below costs O(tags), where a general
transition matrix would cost O(tags²).
"""

import math
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ner_cl.data.tagset import Tagset

__all__ = [
    "coupling",
    "hide_types",
    "orphans",
    "span_log_probability",
    "spans_of_rows",
    "viterbi",
    "words_between",
]

_MARGIN = 1e-4  # by which one path must beat another so that rounding cannot swap them


def orphans(tags: Int[Tensor, "row word"]) -> Bool[Tensor, "row word"]:
    """Marks the words whose `I-` continues nothing; a row is legal IOB2 if and only if it has none."""
    previous = torch.nn.functional.pad(tags, (1, 0))[:, :-1]
    inside = (tags > 0) & (tags % 2 == 0)
    return inside & (previous != tags) & (previous != tags - 1)


def viterbi(log_probs: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"]) -> Int[Tensor, "row word"]:
    """Finds the most probable legal IOB2 path of each row, `O` where masked (Monaikul et al. 2021, ExtendNER decoding).

    On a tie, the path with the lowest tag id at the last word wins, then at the word before, and so on backwards. If
    the argmax of every word already forms a legal path, that path is the answer under this same rule, so the recursion
    runs only on the other rows. Sums are in fp64 so that rounding creates no ties.

    Args:
        log_probs: log-probabilities (or any additive scores) of the tags of each word; padding may hold anything.
        mask: which words are real; a masked word counts as `O`. Rows may be empty.

    Example:
        >>> scores = torch.tensor([[[0.4, 0.1, 0.5], [0.1, 0.1, 0.8]]]).log()  # argmax reads I-X I-X
        >>> viterbi(scores, torch.ones(1, 2, dtype=torch.bool)).tolist()
        [[1, 2]]
    """
    tags = log_probs.argmax(-1).masked_fill(~mask, 0)
    illegal = orphans(tags).any(-1).nonzero().squeeze(-1)
    if len(illegal):
        tags[illegal] = _best_paths(_emissions(log_probs.detach()[illegal], mask[illegal]))
    return tags


def _best_paths(emissions: Float[Tensor, "row word tag"]) -> Int[Tensor, "row word"]:
    """Runs Viterbi over states: 0 is outside, i + 1 is in a span of type i."""
    outside, begin, inside = _split(emissions)
    prefix = emissions.new_zeros(len(emissions))  # [row] best score of the words so far
    opened = torch.full_like(begin[0], -math.inf)  # [row type] the same, ending inside a span of the type
    states: list[Tensor] = [torch.zeros_like(prefix, dtype=torch.long)]  # [row] best state of the previous word
    continues: list[Tensor] = []  # [row type] whether I- beats B- in a span of the type
    for o, b, i in zip(outside, begin, inside, strict=True):
        from_begin, from_inside = prefix[:, None] + b, opened + i
        continues.append(from_inside > from_begin)  # on a tie B-, the lower id
        opened = torch.maximum(from_begin, from_inside)
        candidates = torch.cat([(prefix + o)[:, None], opened], dim=1)
        states.append(candidates.argmax(1))  # the first maximum, so the lowest id
        prefix = candidates.gather(1, states[-1][:, None])[:, 0]  # `max` starts all threads, however small the tensor
    return _trace_back(states, continues)


def _trace_back(states: list[Tensor], continues: list[Tensor]) -> Int[Tensor, "row word"]:
    """Follows the best states from the last word to the first; `states[t]` is the best one before word t."""
    state = states[-1]
    tags: list[Tensor] = []
    for before, inside in zip(reversed(states[:-1]), reversed(continues), strict=True):
        stays = (state > 0) & inside.gather(1, (state - 1).clamp(min=0)[:, None])[:, 0]
        tags.append((2 * state - 1 + stays.long()).clamp(min=0))
        state = torch.where(stays, state, before)
    return torch.stack(tags[::-1], dim=1)


def span_log_probability(
    log_probs: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"], spans: Int[Tensor, "span 4"]
) -> Float[Tensor, " span"]:
    """Computes the exact log-probability, over all legal paths of its row, of each span with its borders and type.

    A path contains the span if it has `B-` at its first word, `I-` at its other words, and no `I-` of that type at the
    word after it. Paths are weighted by the exponential of their summed scores and normalised over the legal ones:
    forward–backward, in fp64.

    Args:
        log_probs: log-probabilities (or any additive scores) of the tags of each word; padding may hold anything.
        mask: which words are real; a masked word counts as `O`.
        spans: row, first word, one past the last word, index of the type (from 0); `0 <= first < last <= words`.

    Returns:
        One value ≤ 0 per span, in fp64 (fp32 on devices without it); `-inf` for a span that extends into the padding.
    """
    if not len(spans):
        return _emissions(log_probs[:0], mask[:0]).new_zeros(0)
    rows, row = torch.unique(spans[:, 0], return_inverse=True)  # most rows have no span
    spans = torch.cat([row[:, None], spans[:, 1:]], dim=1)
    emissions = _emissions(log_probs[rows], mask[rows])
    row, start, end, type_ = spans.unbind(1)
    prefix, suffix = _prefixes(emissions), _suffixes(emissions)
    through = emissions[row, start, 1 + 2 * type_] + _inside_scores(emissions, spans)
    joint = prefix[row, start] + through + suffix[row, end]
    return (joint - prefix[row, -1]).clamp(max=0)


def spans_of_rows(tags: Int[Tensor, "row word"]) -> Int[Tensor, "span 4"]:
    """Lists the spans of legal rows by row and position: row, first word, one past the last word, type index."""
    words = tags.shape[1]
    inside = torch.nn.functional.pad((tags > 0) & (tags % 2 == 0), (0, 1))
    place = torch.arange(words + 1, device=tags.device).expand(inside.shape)
    # At t: the first position from t on without an `I-`.
    stop = place.masked_fill(inside, words).flip(1).cummin(1).values.flip(1)
    row, start = (tags % 2 == 1).nonzero(as_tuple=True)
    return torch.stack([row, start, stop[row, start + 1], tags[row, start] // 2], dim=1)


def coupling(scores: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"]) -> Float[Tensor, "row word"]:
    """Returns how much each word depends on those before it: the probability of `I-` at it or the next word.

    It is infinite where a cut could change tags. A row may be cut before any word of finite coupling: `viterbi` of the
    two parts is `viterbi` of the whole. Words depend on each other only through moves into `I-x`, and at such a cut
    `O` on the word before and then `B-x` scores higher than any legal way into `I-x`. After a cut,
    `span_log_probability` is conditioned on no span crossing the cut, which changes the probability by about the
    coupling of the word at the cut.

    Args:
        scores: log-probabilities, or any additive scores, of the tags of each word; padding may hold anything.
        mask: which words are real.

    Returns:
        Values from 0 to 1, or infinity; infinity where masked, and 0 for the first word of a row.
    """
    outside, begin, inside = scores[..., 0], scores[..., 1::2], scores[..., 2::2]
    opened = torch.maximum(begin, inside)[:, :-1] + inside[:, 1:]  # [row, word from the second, type]
    apart = (outside[:, :-1, None] + begin[:, 1:] >= opened + _MARGIN).all(-1)
    continues = (inside.logsumexp(-1) - scores.logsumexp(-1)).exp().masked_fill(~mask, 0)
    here_or_next = torch.maximum(continues, torch.nn.functional.pad(continues[:, 1:], (0, 1)))[:, 1:]
    coupled = here_or_next.masked_fill(~apart, torch.inf)
    return torch.nn.functional.pad(coupled, (1, 0)).masked_fill(~mask, torch.inf)


def words_between(
    start: Int[Tensor, " span"], end: Int[Tensor, " span"]
) -> tuple[Int[Tensor, " word"], Int[Tensor, " word"]]:
    """Lists the words of all spans, span by span: the index of the span, and the word's position in its row.

    Args:
        start: first word of each span.
        end: one past the last word.
    """
    counts = end - start
    owner = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts  # index at which the words of each span begin
    return owner, start[owner] + torch.arange(len(owner), device=start.device) - first[owner]


def _inside_scores(emissions: Float[Tensor, "row word tag"], spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
    """Sums the `I-` scores of each span's words after the first, using memory only for the words of the spans."""
    row, start, end, type_ = spans.unbind(1)
    owner, word = words_between(start + 1, end)
    scores = emissions[row[owner], word, 2 + 2 * type_[owner]]
    return emissions.new_zeros(len(spans)).index_add(0, owner, scores)


def _prefixes(emissions: Float[Tensor, "row word tag"]) -> Float[Tensor, "row word+1"]:
    """At t: the log of the total weight of all legal taggings of the words before t."""
    outside, begin, inside = _split(emissions)
    prefixes = [emissions.new_zeros(len(emissions))]
    opened = emissions.new_full((len(emissions), emissions.shape[-1] // 2), -math.inf)  # [row type], in an open span
    for o, b, i in zip(outside, begin, inside, strict=True):
        opened = torch.logaddexp(prefixes[-1][:, None] + b, opened + i)
        prefixes.append(torch.logaddexp(prefixes[-1] + o, opened.logsumexp(1)))
    return torch.stack(prefixes, dim=1)


def _suffixes(emissions: Float[Tensor, "row word tag"]) -> Float[Tensor, "row word+1"]:
    """At t: the log of the total weight of all legal taggings from word t on that start with `O` or `B-`."""
    outside, begin, inside = _split(emissions)
    suffixes = [emissions.new_zeros(len(emissions))]
    opened = emissions.new_zeros((len(emissions), emissions.shape[-1] // 2))  # [row type], given an open span
    for o, b, i in zip(reversed(outside), reversed(begin), reversed(inside), strict=True):
        suffixes.append(torch.logaddexp(suffixes[-1] + o, (b + opened).logsumexp(1)))
        opened = torch.logaddexp(suffixes[-1][:, None], i + opened)
    return torch.stack(suffixes[::-1], dim=1)


def _emissions(
    log_probs: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"]
) -> Float[Tensor, "row word tag"]:
    """The scores in fp64, with masked words as `O` of score 0, which affect neither paths nor sums."""
    precise = log_probs.to(torch.float32 if log_probs.device.type == "mps" else torch.float64)  # mps has no fp64
    padding = torch.full_like(precise[:1, :1], -math.inf)
    padding[..., 0] = 0
    return torch.where(mask[..., None], precise, padding)


def _split(emissions: Float[Tensor, "row word tag"]) -> tuple[tuple[Tensor, ...], ...]:
    """Splits scores by word: `O` as `[row]`, and the `B-` and `I-` of all types as `[row type]` each."""
    by_word = emissions.transpose(0, 1)
    parts = (by_word[..., 0], by_word[..., 1::2], by_word[..., 2::2])
    return tuple(part.contiguous().unbind(0) for part in parts)


def hide_types(tags: Int[Tensor, "row word"], tagset: Tagset, types: Collection[str] | None) -> Int[Tensor, "row word"]:
    """Replaces tags of types that were not asked for with `O`."""
    if types is None:
        return tags
    shown = torch.tensor([True, *(type_ in types for type_ in tagset.types for _ in "BI")], device=tags.device)
    return torch.where(shown[tags], tags, torch.zeros_like(tags))
