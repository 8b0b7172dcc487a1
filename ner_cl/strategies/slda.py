"""Streaming LDA: statistics of each tag on lower layers as they were at first (Hayes & Kanan 2020)."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import rows_from
from ner_cl.errors import ModelError
from ner_cl.model.discriminant import PARTS, PREFIXES, Discriminant, surroundings
from ner_cl.model.encoder import Encoder
from ner_cl.model.kept import sha256_of
from ner_cl.model.losses import by_column
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast
from ner_cl.model.subnetworks.trunk import all_layers, word_vectors
from ner_cl.registry import strategies
from ner_cl.strategies.base import Settled, StepContext, Strategy
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.moments import Moments, Sums
from ner_cl.types import Sentence

__all__ = ["FEWEST", "Slda", "SldaOptions", "discriminant_of"]

FEWEST = 5
"""Sentences that must have a tag for it to have statistics; of fewer, a mean would give away what they say."""
_PROBE = Sentence(("Some", "words", "to", "compare", "layers", "on", "."))


class SldaOptions(StrategyOptions):
    """How much the statistics weigh, and on which layers they are measured.

    Attributes:
        strength: factor of the discriminant's scores (λ) once it knows many words; see `discriminant_of`. With 0,
            nothing is measured and the network's scores stay as they are.
        shrinkage: how far the covariance is drawn towards its diagonal, 0 (exclusive) to 1 (the diagonal alone); `auto`
            is the less, the more words there are.
        layers: number of the lowest transformer layers that are measured; `auto` is half of all layers, rounded down. 0
            is the embeddings alone; the last layer is never measured. The lowest sixth of the encoder is held still,
            as `frozen_trunk` does anyway; the model keeps a copy of the measured layers above, which go on learning.
    """

    name: Literal["slda"] = "slda"
    strength: float = Field(0.2, ge=0)
    shrinkage: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"


@strategies.register("slda")
@final
class Slda(Strategy):
    """Corrects the network's scores of tags by a linear discriminant on lower layers as they were at first.

    A step that never sees the mentions of an old type can take them for its own, and nothing in its sentences tells it
    otherwise. So each step leaves the means of its tags' word vectors and their common covariance, which later steps
    add to but cannot spoil. Predictions combine both, and so does the next step's teacher; what is trained is the
    network alone.

    Hayes & Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant analysis", section 3. There,
    the whole network is frozen and the discriminant is the classifier. Here, it is one of two.
    """

    options_class = SldaOptions
    options: SldaOptions
    keeps = True
    acts_at_once = True
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint learns all types anew, from sentences of all steps",
        "bias_correction": "it counts what the network finds without the statistics",
        **dict.fromkeys(("hat", "modules", "packnet"), "what is computed of earlier steps' types is to stay as it is"),
    }

    def __init__(self, options: SldaOptions) -> None:
        super().__init__(options)
        self._state: dict[str, Tensor] = {}
        self._dropped: list[str] = []
        self._reader: Discriminant | None = None
        self._found: tuple[NerModel, Discriminant] | None = None

    def refuses_head(self, head: HeadOptions) -> str:
        """Refuses a head without one softmax over all tags."""
        return why_not_one_softmax(head)

    def begin_step(self, context: StepContext) -> None:
        """Drops statistics of other layers, or of layers that have changed since."""
        model, self._dropped = context.model, []
        self._reader = reader = model.discriminant
        if not self._active:
            return
        self._check(context)
        if reader is not None and self.options.layers != "auto" and reader.layers != _measured(model, self.options):
            reader = None
        if self._state and (reader is None or not torch.equal(self._state["layers"], _hash(model.encoder, reader))):
            self._dropped, reader = model.tagset.types_of(self._state["tags"].int().tolist()), None
            self._state = {}
        self._reader = reader or _reader_of(model, _measured(model, self.options))

    def begin_stage(self, context: StepContext) -> None:
        """Holds the embeddings and the lowest layers still."""
        if self._active and self._reader is not None:
            for weight in _still(context.model.encoder, self._reader.held).values():
                weight.requires_grad_(False)

    def settle(self, context: StepContext) -> Settled | None:
        """Tells whose statistics were dropped, or why there are none."""
        if self._active and self._reader is None:
            kind = getattr(context.model.encoder.config, "model_type", "unknown")
            return Settled(f"measures nothing, because layers of a {kind} encoder cannot be run on their own", {})
        if not self._dropped:
            return None
        names = ", ".join(self._dropped)
        text = f"dropped its statistics of {names}: the layers they were measured on have changed, or slda.layers has"
        return Settled(text, {"dropped": self._dropped})

    def end_step(self, context: StepContext) -> None:
        """Adds the new tags' statistics to those of earlier steps."""
        reader = self._reader
        if reader is None:
            return
        if not self._active:
            if len(reader.above):
                self._found = context.model, reader.of_tags([])  # later steps measure its copies
            return
        tags, by_tag, by_prefix = _measure(context, reader)
        if self._state:
            tags = torch.cat([self._state["tags"].long(), tags])
            by_tag = Moments.from_tensors(self._state, "tag").beside(by_tag)
            by_prefix = Moments.from_tensors(self._state, "prefix").plus(by_prefix)
        self._state = {
            "layers": _hash(context.model.encoder, reader),
            "tags": tags.float(),
            **by_tag.tensors("tag"),
            **by_prefix.tensors("prefix"),
        }
        found = reader.of_tags(tags.tolist(), teaching=by_tag.scarcity)
        rows = [_prefixes_of(by_prefix, self.options), discriminant_of(by_tag, self.options)]
        found.weight, found.bias = (torch.cat(parts) for parts in zip(*rows, strict=True))
        self._found = context.model, found

    def release(self) -> None:
        """Hands the discriminant over to the model, now that every strategy has measured what was trained."""
        if self._found is not None:
            model, found = self._found
            model.discriminant = found.to(model.device)
        self._found = self._reader = None

    def state_dict(self) -> dict[str, Tensor]:
        """Tags (their indices), statistics of words by tag and by prefix (`Moments`), a hash of the layers."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._state = dict(state)

    @property
    def _active(self) -> bool:
        return self.options.strength > 0

    def _check(self, context: StepContext) -> None:
        """Refuses statistics that are not of this model."""
        if not self._state:
            return
        size, count = PARTS * context.model.encoder.hidden, len(self._state.get("tags", ()))
        shapes = {"tags": (count,), **Moments.shapes("tag", count, size), **Moments.shapes("prefix", PREFIXES, size)}
        check_state("slda", {name: tensor for name, tensor in self._state.items() if name != "layers"}, shapes)
        known = range(1, 1 + 2 * len(context.old_types))
        if self._state.keys() != {"layers", *shapes} or any(index not in known for index in self._state["tags"]):
            raise ModelError(
                "strategies: what slda kept of earlier steps is of another model; restore strategy/slda.safetensors of "
                "the model folder, or delete it"
            )


def discriminant_of(
    moments: Moments, options: SldaOptions
) -> tuple[Float[Tensor, "group part"], Float[Tensor, " group"]]:
    """Weights and biases of the discriminant of Gaussians with a common covariance; 0 for fewer than two classes.

    With `S` the shrunk covariance, `m_k` a mean, `m` that of all words, and `p_k` a share of all words, class `k`
    scores `(x − m) S⁻¹ (m_k − m) − ½ (m_k − m) S⁻¹ (m_k − m) + log p_k` (Hastie et al., "The elements of statistical
    learning", equation 4.10, less what is the same for all classes), times `strength · √(n / (n + d))` with `n` the
    number of words and `d` that of dimensions: with few words, the covariance is mostly chance, and scores are much too
    large. For the same reason, `shrinkage: auto` is `√(d / (n + d))`.

    Args:
        moments: of the words of each class, of which each has some.
        options: strength and shrinkage.
    """
    if len(moments.counts) < 2:
        return torch.zeros_like(moments.means), torch.zeros_like(moments.counts)
    counts, means = moments.counts.double(), moments.means.double()
    shares, covariance = counts / counts.sum(), moments.scatter.double() / counts.sum()
    diagonal = covariance.diagonal().clone()
    covariance *= 1 - (moments.scarcity if options.shrinkage == "auto" else options.shrinkage)
    # Vectors of parts of the encoder that always give the same have no variance.
    covariance.diagonal().copy_(diagonal + 1e-6 * diagonal.mean() + 1e-12)
    mean = shares @ means
    apart = means - mean
    weight = torch.linalg.solve(covariance, apart.T).T
    bias = shares.log() - 0.5 * (weight * apart).sum(1) - weight @ mean
    factor = options.strength * math.sqrt(1 - moments.scarcity**2)
    return (factor * weight).float(), (factor * bias).float()


def _prefixes_of(
    moments: Moments, options: SldaOptions
) -> tuple[Float[Tensor, "prefix part"], Float[Tensor, " prefix"]]:
    """Weights and biases of `O`, `B-` and `I-`; where no mention has a second word, `I-` scores as `B-` does."""
    if moments.counts.all():
        return discriminant_of(moments, options)
    if not moments.counts[:2].all():
        return torch.zeros_like(moments.means), torch.zeros_like(moments.counts)
    weight, bias = discriminant_of(Moments(moments.counts[:2], moments.means[:2], moments.scatter), options)
    return weight[[0, 1, 1]], bias[[0, 1, 1]]


@torch.no_grad()
def _measure(context: StepContext, reader: Discriminant) -> tuple[Int[Tensor, " tag"], Moments, Moments]:
    """Statistics of the words in the step's own sentences.

    Returns:
        Indices of the new types' tags that `FEWEST` sentences have, statistics of words with them, and of these and of
        `O` by prefix. Words that are not annotated for the type that the model takes them for are not counted as `O`.
    """
    model, encoded = context.model, context.encoded
    reader, size = reader.to(model.device), PARTS * model.encoder.hidden
    prefixes, numbers = torch.tensor(model.tagset.prefixes), torch.arange(PREFIXES)
    tags = _of_many(
        set(model.tagset.encode(sentence.spans, len(sentence.words))) for sentence in encoded.sentences_from("own")
    )
    tags = tags[tags > 2 * len(context.old_types)]  # pseudo-labels can be of old types
    rows = rows_from(encoded.origins, "own") if len(tags) else ()
    by_tag, by_prefix = Sums(len(tags), size), Sums(PREFIXES, size)
    for _, batch in encoded.in_length_order(context.eval_batch_tokens, among=rows):
        batch = batch.to(model.device)
        with autocast(context.precision, model.device):
            lower, words = reader.word_vectors(model.encoder, batch)
            scores = model.head(words, batch.word_mask).flat()
        if reader.corrects:
            scores = reader(scores, lower, batch.word_mask)
        said = scores.argmax(-1)
        known = by_column(batch.annotated, outside=True).gather(1, said)
        outside = (batch.targets == 0) & known
        vectors = surroundings(lower.float(), batch.word_mask)[batch.word_mask].cpu()
        gold = batch.targets[batch.word_mask].cpu()
        of_tag = gold.unsqueeze(1) == tags
        by_tag.add(vectors, of_tag)
        counted = of_tag.any(1) | outside[batch.word_mask].cpu()
        by_prefix.add(vectors, (prefixes[gold].unsqueeze(1) == numbers) & counted.unsqueeze(1))
    return tags, by_tag.moments(), by_prefix.moments()


def _of_many(found: Iterable[set[int]]) -> Int[Tensor, " number"]:
    """The numbers that `FEWEST` of these sets have, in ascending order."""
    counts = Counter(chain.from_iterable(found))
    return torch.tensor(sorted(number for number, count in counts.items() if count >= FEWEST)).long()


def _measured(model: NerModel, options: SldaOptions) -> int:
    """How many of the lowest layers are measured, fewer than all."""
    depth = len(all_layers(model.encoder))
    return min(depth // 2 if options.layers == "auto" else options.layers, depth - 1)


@torch.no_grad()
def _reader_of(model: NerModel, layers: int) -> Discriminant | None:
    """A discriminant without tags that reads so many layers as they are now.

    Returns:
        None if copies of the layers compute something else than the encoder does.
    """
    held = min(len(all_layers(model.encoder)) // 6, layers)
    found = Discriminant.on(model.encoder, held=held, layers=layers).to(model.device)
    batch = model.encode([_PROBE]).batch([0]).to(model.device)
    try:
        copied, own = found.word_vectors(model.encoder, batch)[0], word_vectors(model.encoder, batch, layers)[0]
    except Exception:  # layers that are called in other ways raise all kinds of errors
        return None
    return found if torch.allclose(copied, own, rtol=1e-4, atol=1e-5) else None


def _still(encoder: Encoder, held: int) -> dict[str, Tensor]:
    """The parameters of all but the layers above the lowest `held`."""
    above = {id(parameter) for layer in all_layers(encoder)[held:] for parameter in layer.parameters()}
    return {name: weight for name, weight in encoder.named_parameters() if id(weight) not in above}


def _hash(encoder: Encoder, reader: Discriminant) -> UInt8[Tensor, " byte"]:
    """SHA-256 of the weights that word vectors depend on."""
    weights = _still(encoder, reader.held) | {f"above.{name}": weight for name, weight in reader.above.named_buffers()}
    return torch.tensor(list(sha256_of(weights)), dtype=torch.uint8)
