"""Merges blocks with separate softmaxes into one tag sequence, in other ways than the conflict resolver.

`known` lists the types of each block's columns, as indices into the joint tagset. The columns are `O`, then `B-` and
`I-` of each of these types, in this order.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ner_cl.model.bands import non_maximum_suppression, tags_of_disjoint
from ner_cl.model.decode import span_log_probability, spans_of_rows, viterbi
from ner_cl.model.losses import marginal_cross_entropy

__all__ = ["best_temperature", "exclusive_scores", "golden_section", "majority", "span_probability", "weighted_vote"]

_GOLDEN = (math.sqrt(5) - 1) / 2


def exclusive_scores(blocks: Sequence[Float[Tensor, "row word _"]]) -> Float[Tensor, "row word tag"]:
    """The log-odds against `O` of every tag of every block, after one shared `O` column of 0.

    This is the exact joint score of independent blocks, given that at most one of them gives the word a tag other than
    `O`. Let `p_j(t)` be the probability of tag t in block j. Block j says t and all others say `O` with probability
    `p_j(t) · Π_{i≠j} p_i(O)`; all say `O` with probability `Π_i p_i(O)`. Divided by the latter, these are
    `p_j(t) / p_j(O)` and 1. Both terms of the ratio come from one softmax, so its logarithm is
    `logit_j(t) − logit_j(O)`. Viterbi on these scores gives the most probable legal path under that condition.

    Args:
        blocks: logits or log-probabilities of blocks that share no types, in the order of the joint tagset.

    Returns:
        Scores in columns of the joint tagset; their softmax is the conditional probability described above.
    """
    odds = [block[..., 1:] - block[..., :1] for block in blocks]
    return torch.cat([torch.zeros_like(blocks[0][..., :1]), *odds], dim=-1)


def weighted_vote(
    probabilities: Sequence[Float[Tensor, "row word _"]],
    known: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    types: int,
) -> Float[Tensor, "row word tag"]:
    """`Σ_k w_k p_k(y) 1[y ∈ Y_k] / Σ_k w_k 1[y ∈ Y_k]`: the weighted mean over the blocks that know a tag.

    Without the denominator a type would lose merely because few blocks know it. All blocks know `O`. The scores of a
    word do not sum to 1 if blocks know different types.

    Args:
        probabilities: tag probabilities of each block.
        known: see the module docstring.
        weights: positive, one per block; only their ratios matter.
        types: number of types in the joint tagset.

    Returns:
        Scores in columns of the joint tagset; 0 for tags that no block knows.
    """
    columns = [_columns(indices, device=probabilities[0].device) for indices in known]
    total = probabilities[0].new_zeros(*probabilities[0].shape[:2], 1 + 2 * types)
    coverage = total.new_zeros(1 + 2 * types)
    for index, weight in zip(columns, weights, strict=True):
        coverage[index] += weight
    for index, weight, block in zip(columns, weights, probabilities, strict=True):
        total[..., index] += weight / coverage[index] * block  # divide first: exactly 1 for a single block
    return total


def majority(
    log_probs: Sequence[Float[Tensor, "row word _"]],
    known: Sequence[Sequence[int]],
    mask: Bool[Tensor, "row word"],
    *,
    types: int,
) -> Int[Tensor, "row word"]:
    """Keeps spans found by more than half of the blocks that know their type, each block decoded by Viterbi.

    Of overlapping spans, the one with the highest mean probability stays (on a tie, the first by position, then by type
    in learning order). If each type is known to a single block, all spans win the vote and only overlaps are resolved.

    Args:
        log_probs: tag log-probabilities of each block.
        known: see the module docstring.
        mask: which words are real.
        types: number of types in the joint tagset.

    Returns:
        Legal tags of the joint tagset, `O` where masked.
    """
    voters = torch.bincount(torch.tensor([index for indices in known for index in indices]), minlength=types)
    found = []
    for block, indices in zip(log_probs, known, strict=True):
        spans = spans_of_rows(viterbi(block, mask))
        spans[:, 3] = torch.tensor(indices, device=mask.device)[spans[:, 3]]
        found.append(spans)
    spans, votes = torch.unique(torch.cat(found), dim=0, return_counts=True)  # sorted by row, position and type
    spans = spans[2 * votes > voters.to(mask.device)[spans[:, 3]]]
    scores = span_probability(log_probs, known, [1.0] * len(known), mask, spans)
    return tags_of_disjoint(spans[non_maximum_suppression(spans, scores)], mask)


def span_probability(
    log_probs: Sequence[Float[Tensor, "row word _"]],
    known: Sequence[Sequence[int]],
    weights: Sequence[float],
    mask: Bool[Tensor, "row word"],
    spans: Int[Tensor, "span 4"],
) -> Float[Tensor, " span"]:
    """Each span's forward-backward probability, as a weighted mean over the blocks that know its type.

    Args:
        log_probs: tag log-probabilities of each block, or any additive scores.
        known: see the module docstring.
        weights: positive, one per block.
        mask: which words are real.
        spans: row, first word, one past the last word, index of the type in the joint tagset.

    Returns:
        Probabilities in [0, 1]; 0 for a type that no block knows.
    """
    total = torch.zeros(len(spans), device=mask.device)
    coverage = torch.zeros_like(total)
    by_width: dict[int, list[int]] = {}
    for block, types in enumerate(known):
        by_width.setdefault(len(types), []).append(block)
    for blocks in by_width.values():  # stacked as rows of one call, as its recursion loops over words
        found, places = [], []
        for position, block in enumerate(blocks):
            own = spans[:, 3:] == torch.tensor(known[block], device=spans.device)  # [span, type of the block]
            index = own.any(dim=1).nonzero().squeeze(-1)  # the spans whose type the block knows
            row, start, end, _ = spans[index].unbind(1)
            found.append(index)
            places.append(torch.stack([row + position * len(mask), start, end, own[index].long().argmax(dim=1)], dim=1))
        stacked = torch.cat([log_probs[block] for block in blocks])
        together = span_log_probability(stacked, mask.repeat(len(blocks), 1), torch.cat(places)).exp().float()
        parts = torch.split(together, [len(index) for index in found])
        for block, index, probability in zip(blocks, found, parts, strict=True):
            total[index] += weights[block] * probability
            coverage[index] += weights[block]
    return torch.where(coverage > 0, total / coverage, 0.0).clamp(max=1.0)


def best_temperature(
    logits: Float[Tensor, "word tag"],
    targets: Int[Tensor, " word"],
    annotated: Bool[Tensor, " type"],
    *,
    lowest: float = 0.05,
    highest: float = 20.0,
) -> float:
    """Finds the temperature at which a block's probabilities best fit annotated words (Guo et al. 2017).

    Minimises the mean marginal negative log-likelihood by golden-section search on the logarithm of the temperature.

    Args:
        logits: the block's logits.
        targets: tag ids of the block.
        annotated: whether the words are annotated for each type of the block.
        lowest: lower end of the search.
        highest: upper end of the search.
    """

    def cost(log_temperature: float) -> float:
        scaled = logits.double()[None] / math.exp(log_temperature)
        return float(marginal_cross_entropy(scaled, targets[None], annotated[None]).mean())

    return math.exp(golden_section(cost, math.log(lowest), math.log(highest), rounds=30))


def golden_section(cost: Callable[[float], float], low: float, high: float, *, rounds: int) -> float:
    """Finds the minimum of a unimodal function to within `0.618 ** rounds` of the search interval."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_cost, right_cost = cost(left), cost(right)
    for _ in range(rounds):  # each round reuses one of the two points and evaluates one new one
        if left_cost <= right_cost:
            high, right, right_cost = right, left, left_cost
            left = high - _GOLDEN * (high - low)
            left_cost = cost(left)
        else:
            low, left, left_cost = left, right, right_cost
            right = low + _GOLDEN * (high - low)
            right_cost = cost(right)
    return (low + high) / 2


def _columns(indices: Sequence[int], *, device: torch.device) -> Int[Tensor, " tag"]:
    """The joint tagset ids of a block's tags."""
    return torch.tensor([0, *(1 + 2 * index + inside for index in indices for inside in (0, 1))], device=device)
