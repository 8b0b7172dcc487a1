"""A linear discriminant of types on word vectors that never change, which corrects what a head makes of them."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ner_cl.errors import ModelError

__all__ = ["PARTS", "Discriminant", "surroundings"]

PARTS = 4
"""How many vectors describe a word to a discriminant; see `surroundings`."""
_FAR = (-5, -4, -3, -2, 2, 3, 4, 5)  # words away


@final
class Discriminant(nn.Module):
    """Scores types by what the lowest layers of the encoder make of a word and the words around it.

    The layers must not change, so that what was measured in one step holds in all later ones.

    Args:
        hidden: size of a word vector.
        layers: number of the lowest transformer layers; 0 for the embeddings alone.
        types: indices of the types that it tells apart, in the order of its rows.

    Attributes:
        weight: `[type, 4 · hidden]`.
        bias: `[type]`.
    """

    weight: Tensor
    bias: Tensor
    _begin: Tensor

    def __init__(self, hidden: int, *, layers: int, types: Sequence[int]) -> None:
        super().__init__()
        self.layers = layers
        self.types = tuple(types)
        self.register_buffer("weight", torch.zeros(len(self.types), PARTS * hidden))
        self.register_buffer("bias", torch.zeros(len(self.types)))
        self.register_buffer("_begin", torch.tensor(self.types) * 2 + 1, persistent=False)

    @classmethod
    def from_settings(cls, values: Any, hidden: int, depth: int, types: int, *, where: str) -> "Discriminant":
        """An empty one as `settings` described it, for an encoder of `depth` layers and a model of so many `types`.

        Raises:
            ModelError: if it does not fit; names `where`.
        """
        match values:
            case {"layers": int(layers), "types": [*rows]} if (
                0 <= layers < depth
                and len(rows) > 1
                and all(type(row) is int and 0 <= row < types for row in rows)
                and len(set(rows)) == len(rows)
            ):
                return cls(hidden, layers=layers, types=rows)
        raise ModelError(f"{where}.discriminant: needs layers below {depth} and types by number")

    def settings(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        return {"layers": self.layers, "types": list(self.types)}

    def forward(
        self,
        scores: Float[Tensor, "row word tag"],
        lower: Float[Tensor, "row word hidden"],
        word_mask: Bool[Tensor, "row word"],
    ) -> Float[Tensor, "row word tag"]:
        """Divides what the scores give to the `B-` tags of its types, and to their `I-` tags, anew among these types.

        With `a` the scores and `s` the discriminant's, the score of the `B-` tag of type `k` becomes
        `log Σ exp a_j + log softmax(a + s)_k` over its types `j`: the probability that a word begins a mention of one
        of them stays, and `s` says which is more likely. The scores of `O` and of other types do not change.

        Args:
            scores: logits of one softmax over the tags of all types.
            lower: word vectors after the lowest layers.
            word_mask: which words are real.
        """
        with torch.autocast(scores.device.type, enabled=False):
            found = linear(surroundings(lower.float(), word_mask), self.weight, self.bias)
            scores = scores.float().clone()
            for columns in (self._begin, self._begin + 1):
                own = scores[..., columns]
                scores[..., columns] = own.logsumexp(-1, keepdim=True) + (own + found).log_softmax(-1)
        return scores


def surroundings(
    words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
) -> Float[Tensor, "row word part"]:
    """Describes each word by the vectors of the word before, itself, the word after, and the mean of 2 to 5 words away.

    Where there is no such word, the vector is 0. Words of other windows of a long sentence are not seen.
    """
    words = torch.where(word_mask.unsqueeze(-1), words, 0.0)
    real = word_mask.unsqueeze(-1).to(words.dtype)
    total, count = (torch.stack([_moved(values, by) for by in _FAR]).sum(0) for values in (words, real))
    around = total / count.clamp(min=1)
    return torch.cat([_moved(words, -1), words, _moved(words, 1), around], dim=-1)


def _moved(values: Float[Tensor, "row word size"], by: int) -> Float[Tensor, "row word size"]:
    """The values of the word that is `by` words further on; 0 where there is none."""
    return pad(values, (0, 0, max(0, -by), max(0, by)))[:, max(0, by) : values.shape[1] + max(0, by)]
