"""A linear discriminant of tags on word vectors of frozen layers, which corrects what a head makes of a word."""

import copy
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.encoder import Encoder
from ner_cl.model.subnetworks.trunk import all_layers, word_vectors

__all__ = ["PARTS", "PREFIXES", "Discriminant", "surroundings"]

PARTS = 4
"""How many vectors describe a word to a discriminant; see `surroundings`."""
PREFIXES = 3
"""`O`, `B-` and `I-`: whether a word is outside of mentions, begins one, or goes on with one."""
_FAR = (-5, -4, -3, -2, 2, 3, 4, 5)  # words away


@final
class Discriminant(nn.Module):
    """Scores tags and their prefixes by what the lower layers of the encoder make of a word and the words around it.

    These layers must not change, so that what was measured in one step holds in all later ones. The lowest are the
    encoder's own; of those above, which go on learning there, it has copies.

    Args:
        hidden: size of a word vector.
        held: number of the encoder's lowest layers that stay still; 0 for the embeddings alone.
        above: copies of the layers that follow.
        tags: indices of the `B-` and `I-` tags that it tells apart, in the order of its rows; it corrects nothing
            without any.
        teaching: factor of its scores in a teacher, 0 to 1.

    Attributes:
        weight: `[3 + tag, 4 · hidden]`; first the rows of `O`, `B-` and `I-`, then one for each of its tags.
        bias: `[3 + tag]`.
    """

    weight: Tensor
    bias: Tensor
    _columns: Tensor

    def __init__(
        self,
        hidden: int,
        *,
        held: int,
        above: Sequence[nn.Module] = (),
        tags: Sequence[int] = (),
        teaching: float = 1.0,
    ) -> None:
        super().__init__()
        self.held, self.teaching = held, teaching
        self.above = nn.ModuleList(above)
        self.tags = tuple(tags)
        self.register_buffer("weight", torch.zeros(PREFIXES + len(self.tags), PARTS * hidden))
        self.register_buffer("bias", torch.zeros(PREFIXES + len(self.tags)))
        self.register_buffer("_columns", torch.tensor(self.tags).long(), persistent=False)
        self.eval()

    @classmethod
    def on(cls, encoder: Encoder, *, held: int, layers: int, tags: Sequence[int] = ()) -> "Discriminant":
        """An empty one that reads `layers` layers of an encoder, with copies of all but the `held` lowest."""
        above = copy.deepcopy(all_layers(encoder)[held:layers])
        for module in (part for layer in above for part in layer.modules()):
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())  # no parameter, so that nothing trains it
        return cls(encoder.hidden, held=held, above=above, tags=tags)

    @property
    def layers(self) -> int:
        """Number of the lowest layers that describe a word."""
        return self.held + len(self.above)

    @property
    def corrects(self) -> bool:
        """Whether it knows any tags."""
        return bool(self.tags)

    def of_tags(self, tags: Sequence[int], *, teaching: float = 1.0) -> "Discriminant":
        """One that reads the same layers, for other tags; its weights and biases are still to be set."""
        hidden = self.weight.shape[1] // PARTS
        return type(self)(hidden, held=self.held, above=[*self.above], tags=tags, teaching=teaching)

    def for_teachers(self) -> "Discriminant":
        """The same with its scores times `teaching`."""
        found = self.of_tags(self.tags)
        found.weight, found.bias = self.teaching * self.weight, self.teaching * self.bias
        return found.to(self.weight.device)

    @classmethod
    def from_settings(cls, values: Any, encoder: Encoder, tags: int, *, where: str) -> "Discriminant":
        """An empty one as `settings` described it, for an encoder and a model of so many `tags`, `O` included.

        Raises:
            ModelError: if it does not fit; names `where`.
        """
        depth = len(all_layers(encoder))
        match values:
            case {"held": int(held), "layers": int(layers), "teaching": float(teaching), "tags": [*rows]} if (
                0 <= held <= layers < depth
                and 0 <= teaching <= 1
                and all(type(row) is int and 0 < row < tags for row in rows)
                and len(set(rows)) == len(rows)
            ):
                return cls.on(encoder, held=held, layers=layers).of_tags(rows, teaching=teaching)
        if isinstance(values, dict) and "types" in values:
            raise ModelError(
                f"{where}.discriminant: statistics of whole types, of an earlier version; train the model anew"
            )
        raise ModelError(
            f"{where}.discriminant: needs layers below {depth}, of them held ones, teaching from 0.0 to 1.0, and tags "
            "by number"
        )

    def settings(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        return {"held": self.held, "layers": self.layers, "teaching": self.teaching, "tags": list(self.tags)}

    def train(self, mode: bool = True) -> "Discriminant":
        """Stays in eval mode, because it never trains."""
        return super().train(False)

    def word_vectors(
        self, encoder: Encoder, batch: Batch
    ) -> tuple[Float[Tensor, "row word hidden"], Float[Tensor, "row word hidden"]]:
        """Word vectors after its layers, and after all of the encoder's."""
        return word_vectors(encoder, batch, self.held, [*self.above])

    def forward(
        self,
        scores: Float[Tensor, "row word tag"],
        lower: Float[Tensor, "row word hidden"],
        word_mask: Bool[Tensor, "row word"],
    ) -> Float[Tensor, "row word tag"]:
        """Corrects scores: first which of its tags a word has if any of them, then whether it has one at all.

        With `a` the scores and `s` the discriminant's, the score of tag `k` becomes
        `log Σ exp a_j + log softmax(a + s)_k` over its tags `j`: what they have together stays, and is divided anew
        among them. Then the discriminant's score of its prefix is added to the score of every tag.

        Args:
            scores: logits of one softmax over all tags.
            lower: word vectors after its layers.
            word_mask: which words are real.
        """
        with torch.autocast(scores.device.type, enabled=False):
            found = self._scores_of(lower.float(), word_mask)
            scores = scores.float().clone()
            own = scores[..., self._columns]
            found, prefixes = found[..., PREFIXES:], found[..., :PREFIXES]
            scores[..., self._columns] = own.logsumexp(-1, keepdim=True) + (own + found).log_softmax(-1)
            types = (scores.shape[-1] - 1) // 2
            return scores + torch.cat([prefixes[..., :1], prefixes[..., 1:].repeat(1, 1, types)], dim=-1)

    def _scores_of(
        self, lower: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
    ) -> Float[Tensor, "row word score"]:
        """`surroundings` times `weight`, plus `bias`: each part of the weights first, since tags are few."""
        rows, size = self.weight.shape
        weight = self.weight.view(rows, PARTS, size // PARTS).transpose(0, 1).flatten(0, 1)
        scores = torch.where(word_mask.unsqueeze(-1), linear(lower, weight), 0.0)
        before, own, after, far = scores.chunk(PARTS, dim=-1)
        return torch.stack(_parts(before, own, after, far, word_mask)).sum(0) + self.bias


def surroundings(
    words: Float[Tensor, "row word hidden"], word_mask: Bool[Tensor, "row word"]
) -> Float[Tensor, "row word part"]:
    """Describes each word by the vectors of the word before, itself, the word after, and the mean of 2 to 5 words away.

    Where there is no such word, the vector is 0. Words of other windows of a long sentence are not seen.
    """
    words = torch.where(word_mask.unsqueeze(-1), words, 0.0)
    return torch.cat(_parts(words, words, words, words, word_mask), dim=-1)


def _parts(
    before: Float[Tensor, "row word size"],
    own: Float[Tensor, "row word size"],
    after: Float[Tensor, "row word size"],
    far: Float[Tensor, "row word size"],
    word_mask: Bool[Tensor, "row word"],
) -> list[Float[Tensor, "row word size"]]:
    """Of each word `before` of the word before, `own`, `after` of the word after, the mean of `far` 2 to 5 words away.

    All values are 0 where there is no word.
    """
    real = word_mask.unsqueeze(-1).to(far.dtype)
    total, count = (torch.stack([_moved(values, by) for by in _FAR]).sum(0) for values in (far, real))
    return [_moved(before, -1), own, _moved(after, 1), total / count.clamp(min=1)]


def _moved(values: Float[Tensor, "row word size"], by: int) -> Float[Tensor, "row word size"]:
    """The values of the word that is `by` words further on; 0 where there is none."""
    return pad(values, (0, 0, max(0, -by), max(0, by)))[:, max(0, by) : values.shape[1] + max(0, by)]
