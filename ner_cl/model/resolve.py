"""Merges the votes of AddNER's heads into one tag sequence (Monaikul et al. 2021, section on AddNER's inference)."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["resolve"]


def resolve(
    blocks: Sequence[Float[Tensor, "row word _"]],
    mask: Bool[Tensor, "row word"],
    *,
    continuation: Literal["wins", "compare"] = "wins",
) -> Int[Tensor, "row word"]:
    """Builds one legal tag sequence per row from heads that each know the types of one step; `O` where masked.

    Greedy from left to right. Each head votes for its most probable tag (on a tie, the lowest id). A vote for `I-x`
    counts only if the previous word was tagged `B-x` or `I-x`; otherwise it is a vote for `O`. A word is tagged with
    the valid `I-x` if there is one, else with the most probable `B-`, else with `O`. The paper leaves four cases open:

    - a valid `I-x` against another head's `B-y`: `I-x` wins; with `continuation="compare"`, the more probable one
      (`I-x` on a tie);
    - two valid `I-` votes: impossible, because the previous tag has only one type;
    - equally probable `B-` votes: the head of the earliest step wins;
    - an `I-x` that continues nothing: dropped, not turned into a `B-x`.

    Args:
        blocks: tag log-probabilities of each head, in step order: its `O` in column 0, then `B-` and `I-` of each of
            its types. Padding may hold anything.
        mask: which words are real.
        continuation: how a valid `I-` vote is weighed against another head's `B-`.

    Returns:
        Ids of the joint tagset: the types of the first block, then those of the second, and so on.

    Example:
        >>> place = torch.tensor([[[0.2, 0.6, 0.2], [0.2, 0.1, 0.7]]]).log()  # B-LOC, I-LOC
        >>> firm = torch.tensor([[[0.2, 0.8, 0.0], [0.3, 0.1, 0.6]]]).log()  # B-ORG, I-ORG
        >>> resolve([place, firm], torch.ones(1, 2, dtype=torch.bool)).tolist()
        [[3, 4]]
    """
    if not blocks:  # a model that knows no type yet
        return torch.zeros_like(mask, dtype=torch.long)
    votes, scores = _votes(blocks, mask)
    begin_tag, begin_score = _best_begin(votes, scores)
    # A type belongs to one head, so only that head can continue it. Types count from 1 here; 0 is "no open span".
    heads = [head for head, block in enumerate(blocks) for _ in range(block.shape[-1] // 2)]
    owner = torch.tensor([0, *heads], device=votes.device)  # [type]
    open_type = votes.new_zeros(len(votes))  # [row]
    tags: list[Tensor] = []
    for word in range(votes.shape[1]):
        head = owner[open_type][:, None]
        vote = votes[:, word].gather(1, head)[:, 0]
        continues = (open_type > 0) & (vote == 2 * open_type)  # 2 · type, counted from 1, is the id of its I-
        if continuation == "compare":
            continues &= begin_score[:, word] <= scores[:, word].gather(1, head)[:, 0]
        tag = torch.where(continues, vote, begin_tag[:, word])
        open_type = (tag + 1) // 2
        tags.append(tag)
    return torch.stack(tags, dim=1) if tags else torch.zeros_like(mask, dtype=torch.long)


def _votes(
    blocks: Sequence[Float[Tensor, "row word _"]], mask: Bool[Tensor, "row word"]
) -> tuple[Int[Tensor, "row word head"], Float[Tensor, "row word head"]]:
    """The joint id of the tag each head votes for (`O` where masked), and its log-probability."""
    # Not `max`, which starts all threads even for tiny tensors, at a cost that grows with the number of heads.
    local = [block.argmax(-1) for block in blocks]
    scores = [block.detach().gather(-1, tag[..., None])[..., 0] for block, tag in zip(blocks, local, strict=True)]
    offsets = list(accumulate((block.shape[-1] - 1 for block in blocks), initial=0))[:-1]
    votes = torch.stack(local, dim=-1)
    says_type = mask[..., None] & (votes > 0)
    return torch.where(says_type, votes + torch.tensor(offsets, device=votes.device), 0), torch.stack(scores, dim=-1)


def _best_begin(
    votes: Int[Tensor, "row word head"], scores: Float[Tensor, "row word head"]
) -> tuple[Int[Tensor, "row word"], Float[Tensor, "row word"]]:
    """The most probable `B-` vote (first head on a tie) and its log-probability; `O` and -inf if none."""
    begins = votes % 2 == 1
    scores = scores.masked_fill(~begins, -math.inf)
    head = scores.argmax(-1, keepdim=True)
    return torch.where(begins, votes, 0).gather(-1, head)[..., 0], scores.gather(-1, head)[..., 0]
