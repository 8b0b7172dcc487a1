"""Reading IOB2 tags and span probabilities off independent per-word tag scores, under the IOB2 constraint.

Column 0 is `O`, column `1 + 2i` is `B-` and column `2 + 2i` is `I-` of type i. The only illegal move is into an `I-x`
from anything but `B-x` or `I-x`, the start of the sentence included. A path is therefore a row of words that are
either outside (`O`) or in an open span of one type, and one step of each recursion below costs O(tags), where a
general transition matrix would cost O(tags²).
"""

import math
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ner_cl.data.tagset import Tagset

__all__ = ["coupling", "hide_types", "orphans", "span_log_probability", "spans_of_rows", "viterbi"]

_MARGIN = 1e-4  # by which one way must beat the other so that rounding cannot change which it is


def orphans(tags: Int[Tensor, "row word"]) -> Bool[Tensor, "row word"]:
    """The words whose `I-` continues nothing; a row is legal IOB2 exactly if it has none."""
    previous = torch.nn.functional.pad(tags, (1, 0))[:, :-1]
    inside = (tags > 0) & (tags % 2 == 0)
    return inside & (previous != tags) & (previous != tags - 1)


def viterbi(log_probs: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"]) -> Int[Tensor, "row word"]:
    """The most probable legal IOB2 path of each row, `O` where masked (Monaikul et al. 2021, ExtendNER decoding).

    Among equally probable paths the one with the lowest tag id at the last word wins, then the lowest one at the word
    before, and so on backwards. Where the argmax of every word already makes a legal path, that path is the answer
    under this very rule, so the recursion runs only on the other rows. Sums are kept in fp64 so that rounding makes
    no ties of its own.

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
    """Viterbi over states: 0 is outside, i + 1 is in a span of type i."""
    outside, begin, inside = _split(emissions)
    prefix = emissions.new_zeros(len(emissions))  # [row] best score of the words so far
    opened = torch.full_like(begin[0], -math.inf)  # [row type] the same, ending in an open span of the type
    states: list[Tensor] = [torch.zeros_like(prefix, dtype=torch.long)]  # [row] best state of the word before
    continues: list[Tensor] = []  # [row type] whether being in the span means I- rather than B-
    for o, b, i in zip(outside, begin, inside, strict=True):
        from_begin, from_inside = prefix[:, None] + b, opened + i
        continues.append(from_inside > from_begin)  # on a tie B-, the lower id
        opened = torch.maximum(from_begin, from_inside)
        candidates = torch.cat([(prefix + o)[:, None], opened], dim=1)
        states.append(candidates.argmax(1))  # the first maximum, so the lowest id
        prefix = candidates.gather(1, states[-1][:, None])[:, 0]  # not `max`, which wakes all threads at any size
    return _trace_back(states, continues)


def _trace_back(states: list[Tensor], continues: list[Tensor]) -> Int[Tensor, "row word"]:
    """Follow the best states from the last word to the first; `states[t]` is the best one before word t."""
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
    """Exact log-probability, over all legal paths of its row, that each span is there with these borders and type.

    A path has the span if it reads `B-` at its first word, `I-` at its other words, and no `I-` of that type at the
    word after it. The paths are weighted by the product of their words' scores and normalised over the legal ones:
    forward–backward, in fp64.

    Args:
        log_probs: log-probabilities (or any additive scores) of the tags of each word; padding may hold anything.
        mask: which words are real; a masked word counts as `O`.
        spans: row, first word, one past the last word, index of the type (from 0); `0 <= first < last <= words`.

    Returns:
        One value ≤ 0 per span, in fp64 (fp32 on devices without it); `-inf` for a span that reaches into the padding.
    """
    if not len(spans):
        return _emissions(log_probs[:0], mask[:0]).new_zeros(0)
    rows, row = torch.unique(spans[:, 0], return_inverse=True)  # in most rows there is nothing
    spans = torch.cat([row[:, None], spans[:, 1:]], dim=1)
    emissions = _emissions(log_probs[rows], mask[rows])
    row, start, end, type_ = spans.unbind(1)
    prefix, suffix = _prefixes(emissions), _suffixes(emissions)
    through = emissions[row, start, 1 + 2 * type_] + _inside_scores(emissions, spans)
    joint = prefix[row, start] + through + suffix[row, end]
    return (joint - prefix[row, -1]).clamp(max=0)


def spans_of_rows(tags: Int[Tensor, "row word"]) -> Int[Tensor, "span 4"]:
    """The spans of legal rows: row, first word, one past the last word, index of the type; sorted by row and place."""
    words = tags.shape[1]
    inside = torch.nn.functional.pad((tags > 0) & (tags % 2 == 0), (0, 1))
    place = torch.arange(words + 1, device=tags.device).expand(inside.shape)
    # At t: the first place from t on that continues nothing.
    stop = place.masked_fill(inside, words).flip(1).cummin(1).values.flip(1)
    row, start = (tags % 2 == 1).nonzero(as_tuple=True)
    return torch.stack([row, start, stop[row, start + 1], tags[row, start] // 2], dim=1)


def coupling(scores: Float[Tensor, "row word tag"], mask: Bool[Tensor, "row word"]) -> Float[Tensor, "row word"]:
    """How much each word hangs on those before it: the probability of an `I-` here or next; infinite if it may matter.

    A row may be cut before any word of finite coupling: `viterbi` of the two parts is `viterbi` of the whole. The only
    ties are moves into `I-x`, and there `O` on the word before and then `B-x` is at least as good as anything that
    leads to the `I-x` and costs no more. What `span_log_probability` says of a span is then what it says given that no
    span lies across the cut, which changes the probability by about the coupling of the word at the cut.

    Args:
        scores: log-probabilities, or any additive scores, of the tags of each word; padding may hold anything.
        mask: which words are real.

    Returns:
        0 to 1, or infinity; infinite where masked, and 0 for the first word of a row.
    """
    outside, begin, inside = scores[..., 0], scores[..., 1::2], scores[..., 2::2]
    opened = torch.maximum(begin, inside)[:, :-1] + inside[:, 1:]  # [row, word from the second, type]
    apart = (outside[:, :-1, None] + begin[:, 1:] >= opened + _MARGIN).all(-1)
    continues = (inside.logsumexp(-1) - scores.logsumexp(-1)).exp().masked_fill(~mask, 0)
    here_or_next = torch.maximum(continues, torch.nn.functional.pad(continues[:, 1:], (0, 1)))[:, 1:]
    coupled = here_or_next.masked_fill(~apart, torch.inf)
    return torch.nn.functional.pad(coupled, (1, 0)).masked_fill(~mask, torch.inf)


def _inside_scores(emissions: Float[Tensor, "row word tag"], spans: Int[Tensor, "span 4"]) -> Float[Tensor, " span"]:
    """Summed score of the `I-` of every span's second to last word, in memory of the spans' words only."""
    row, start, end, type_ = spans.unbind(1)
    counts = end - start - 1
    owner = torch.repeat_interleave(counts)  # [inside], the span of each inside word
    first = counts.cumsum(0) - counts  # [span], where the inside words of a span begin
    position = start[owner] + 1 + torch.arange(len(owner), device=spans.device) - first[owner]
    scores = emissions[row[owner], position, 2 + 2 * type_[owner]]
    return emissions.new_zeros(len(spans)).index_add(0, owner, scores)


def _prefixes(emissions: Float[Tensor, "row word tag"]) -> Float[Tensor, "row word+1"]:
    """At t: log of the summed weight of all legal readings of the words before t."""
    outside, begin, inside = _split(emissions)
    prefixes = [emissions.new_zeros(len(emissions))]
    opened = emissions.new_full((len(emissions), emissions.shape[-1] // 2), -math.inf)  # [row type], in an open span
    for o, b, i in zip(outside, begin, inside, strict=True):
        opened = torch.logaddexp(prefixes[-1][:, None] + b, opened + i)
        prefixes.append(torch.logaddexp(prefixes[-1] + o, opened.logsumexp(1)))
    return torch.stack(prefixes, dim=1)


def _suffixes(emissions: Float[Tensor, "row word tag"]) -> Float[Tensor, "row word+1"]:
    """At t: log of the summed weight of all legal readings of the words from t on that start with `O` or a `B-`."""
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
    """The scores in fp64, a masked word being `O` with score 0: it then changes neither a path nor a sum before it."""
    precise = log_probs.to(torch.float32 if log_probs.device.type == "mps" else torch.float64)  # mps has no fp64
    padding = torch.full_like(precise[:1, :1], -math.inf)
    padding[..., 0] = 0
    return torch.where(mask[..., None], precise, padding)


def _split(emissions: Float[Tensor, "row word tag"]) -> tuple[tuple[Tensor, ...], ...]:
    """Per word, the scores of `O` as `[row]`, and of the `B-` and the `I-` of all types as `[row type]`."""
    by_word = emissions.transpose(0, 1)
    parts = (by_word[..., 0], by_word[..., 1::2], by_word[..., 2::2])
    return tuple(part.contiguous().unbind(0) for part in parts)


def hide_types(tags: Int[Tensor, "row word"], tagset: Tagset, types: Collection[str] | None) -> Int[Tensor, "row word"]:
    """The tags with those of types that were not asked for turned into `O`."""
    if types is None:
        return tags
    shown = torch.tensor([True, *(type_ in types for type_ in tagset.types for _ in "BI")], device=tags.device)
    return torch.where(shown[tags], tags, torch.zeros_like(tags))
