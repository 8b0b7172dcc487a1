"""Prototypes: the mean word vector of every tag, and tag probabilities from distances to them."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TagMeans", "distances_to", "rectified"]


@final
class TagMeans:
    """The mean of the vectors of each tag, over any number of batches.

    Sums are computed in fp64 by a matrix product, so that neither the batches nor the device's summing order matter.

    Args:
        tags: number of tags.
        hidden: size of a vector.
        device: device of the vectors.
    """

    def __init__(self, tags: int, hidden: int, device: torch.device) -> None:
        self._sums = torch.zeros(tags, hidden, dtype=torch.float64, device=device)
        self._counts = torch.zeros(tags, 1, dtype=torch.float64, device=device)

    def add(self, vectors: Float[Tensor, "item hidden"], tags: Int[Tensor, " item"]) -> None:
        """Adds vectors to the means of their tags."""
        members = F.one_hot(tags, len(self._sums)).T.double()  # [tag, item]
        self._sums += members @ vectors.double()
        self._counts += members.sum(dim=1, keepdim=True)

    @property
    def known(self) -> Bool[Tensor, " tag"]:
        """Which tags have at least one vector."""
        return self._counts[:, 0] > 0

    @property
    def means(self) -> Float[Tensor, "tag hidden"]:
        """The mean of each tag, in fp32; 0 for a tag without vectors."""
        return (self._sums / self._counts.clamp(min=1)).float()


def distances_to(
    prototypes: Float[Tensor, "tag hidden"], known: Bool[Tensor, " tag"], vectors: Float[Tensor, "item hidden"]
) -> Float[Tensor, "item tag"]:
    """Euclidean distances to the prototypes; infinite for tags that are not known."""
    distances = torch.cdist(vectors.float(), prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(~known, torch.inf)


def rectified(logits: Float[Tensor, "item tag"], distances: Float[Tensor, "item tag"]) -> Float[Tensor, "item tag"]:
    """Tag probabilities weighted by how near the tags' prototypes are ("prototypical pseudo label", RDP, 2023).

    `ω · p`, normalised, with `p = softmax(logits)` and `ω = softmax(-distances)`. Equal distances leave `p` as it is.

    Args:
        logits: logits of a tagger.
        distances: distances to the prototype of each tag; infinite where there is none. Such a tag gets 0.

    Example:
        >>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> rectified(logits, torch.tensor([[2.0, 0.5, 1.0]]))[0].tolist()
        [0.27071..., 0.60663..., 0.12264...]
    """
    return torch.softmax(torch.log_softmax(logits.float(), dim=-1) - distances, dim=-1)
