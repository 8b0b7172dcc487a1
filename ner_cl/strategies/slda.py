"""Streaming LDA: statistics of each type on lower layers as they were at first (Hayes & Kanan 2020)."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import rows_from
from ner_cl.errors import ModelError
from ner_cl.model.discriminant import PARTS, Discriminant, surroundings
from ner_cl.model.encoder import Encoder
from ner_cl.model.kept import sha256_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast
from ner_cl.model.subnetworks.trunk import all_layers, word_vectors
from ner_cl.registry import strategies
from ner_cl.strategies.base import Settled, StepContext, Strategy
from ner_cl.strategies.heads_needed import why_not_one_softmax
from ner_cl.strategies.kept import check_state
from ner_cl.types import Sentence

__all__ = ["FEWEST", "Slda", "SldaOptions", "discriminant_of"]

FEWEST = 5
"""Sentences that must mention a type for it to have statistics; of fewer, a mean would give away what they say."""
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
    strength: float = Field(0.4, ge=0)
    shrinkage: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"


@strategies.register("slda")
@final
class Slda(Strategy):
    """Corrects the network's choice among types by a linear discriminant on lower layers as they were at first.

    A step that never sees the mentions of an old type can take them for its own, and nothing in its sentences tells it
    otherwise. So each step leaves the means of its types' word vectors and their common covariance, which later steps
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
            self._dropped, reader = [model.types[int(index)] for index in self._state["types"]], None
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
        """Adds the new types' statistics to those of earlier steps."""
        reader = self._reader
        if reader is None:
            return
        if not self._active:
            if len(reader.above):
                self._found = context.model, reader.of_types([])  # later steps measure its copies
            return
        types, counts, means, scatter = _measure(context, reader)
        if self._state:
            types = torch.cat([self._state["types"].long(), types])
            counts = torch.cat([self._state["counts"], counts])
            means = torch.cat([self._state["means"], means])
            scatter = scatter + _square(self._state["scatter"], means.shape[1])
        self._state = {
            "counts": counts,
            "layers": _hash(context.model.encoder, reader),
            "means": means,
            "scatter": _triangle(scatter),
            "types": types.float(),
        }
        found = reader.of_types(types.tolist(), teaching=_scarcity(counts, means))
        found.weight, found.bias = discriminant_of(counts, means, scatter, self.options)
        self._found = context.model, found

    def release(self) -> None:
        """Hands the discriminant over to the model, now that every strategy has measured what was trained."""
        if self._found is not None:
            model, found = self._found
            model.discriminant = found.to(model.device)
        self._found = self._reader = None

    def state_dict(self) -> dict[str, Tensor]:
        """Types (their indices), words counted, means, the upper triangle of the scatter, a hash of the layers."""
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
        size, count = PARTS * context.model.encoder.hidden, len(self._state.get("types", ()))
        shapes = {"counts": (count,), "means": (count, size), "scatter": (size * (size + 1) // 2,), "types": (count,)}
        check_state("slda", {name: tensor for name, tensor in self._state.items() if name != "layers"}, shapes)
        known = range(len(context.old_types))
        if self._state.keys() != {"layers", *shapes} or any(index not in known for index in self._state["types"]):
            raise ModelError(
                "strategies: what slda kept of earlier steps is of another model; restore strategy/slda.safetensors of "
                "the model folder, or delete it"
            )


def discriminant_of(
    counts: Float[Tensor, " type"],
    means: Float[Tensor, "type part"],
    scatter: Float[Tensor, "part part"],
    options: SldaOptions,
) -> tuple[Float[Tensor, "type part"], Float[Tensor, " type"]]:
    """Weights and biases of the discriminant of Gaussians with a common covariance; 0 for fewer than two types.

    With `S` the shrunk covariance, `m_k` a mean and `p_k` a share of all counts, type `k` scores
    `x S⁻¹ m_k − ½ m_k S⁻¹ m_k + log p_k` (Hastie et al., "The elements of statistical learning", equation 4.10), times
    `strength · √(n / (n + d))` with `n` the number of words and `d` that of dimensions: with few words, the covariance
    is mostly chance, and scores are much too large. For the same reason, `shrinkage: auto` is `√(d / (n + d))`.

    Args:
        counts: number of words in mentions of each type.
        means: their mean vectors.
        scatter: sum over all words of the outer product of the deviation from their type's mean.
        options: strength and shrinkage.
    """
    if len(counts) < 2:
        return torch.zeros_like(means), torch.zeros_like(counts)
    means, covariance = means.double(), scatter.double() / counts.sum()
    words, size = float(counts.sum()), means.shape[1]
    diagonal = covariance.diagonal().clone()
    covariance *= 1 - (_scarcity(counts, means) if options.shrinkage == "auto" else options.shrinkage)
    # Vectors of parts of the encoder that always give the same have no variance.
    covariance.diagonal().copy_(diagonal + 1e-6 * diagonal.mean() + 1e-12)
    weight = torch.linalg.solve(covariance, means.T).T
    bias = (counts / counts.sum()).double().log() - 0.5 * (weight * means).sum(1)
    factor = options.strength * math.sqrt(words / (words + size))
    return (factor * weight).float(), (factor * bias).float()


def _scarcity(counts: Float[Tensor, " type"], means: Float[Tensor, "type part"]) -> float:
    """`√(d / (n + d))` of `n` words and `d` dimensions: 1 without words, near 0 with very many."""
    words, size = float(counts.sum()), means.shape[1]
    return math.sqrt(size / (words + size))


@torch.no_grad()
def _measure(
    context: StepContext, reader: Discriminant
) -> tuple[Int[Tensor, " type"], Float[Tensor, " type"], Float[Tensor, "type part"], Float[Tensor, "part part"]]:
    """Statistics of the words in mentions of the new types in the step's own sentences.

    Returns:
        Indices, words and means of the types that `FEWEST` sentences mention, and the scatter of them all.
    """
    model, encoded = context.model, context.encoded
    rows = [row for row in rows_from(encoded.origins, "own") if encoded.sentences[encoded.windows[row].sentence].spans]
    mentioned = Counter(
        type_ for sentence in encoded.sentences_from("own") for type_ in {span.type for span in sentence.spans}
    )
    types = torch.tensor([model.types.index(type_) for type_ in context.types if mentioned[type_] >= FEWEST]).long()
    reader, size = reader.to(model.device), PARTS * model.encoder.hidden
    counts, sums = torch.zeros(len(types)).double(), torch.zeros(len(types), size).double()
    squares = torch.zeros(size, size).double()
    for _, batch in encoded.in_length_order(context.eval_batch_tokens, among=rows):
        batch = batch.to(model.device)
        with autocast(context.precision, model.device):
            lower, _ = reader.word_vectors(model.encoder, batch)
        of_type = ((batch.targets[batch.word_mask].cpu() - 1) // 2).unsqueeze(1) == types  # -1 outside of mentions
        vectors = surroundings(lower.float(), batch.word_mask)[batch.word_mask].cpu()[of_type.any(1)].double()
        which = of_type[of_type.any(1)].double()
        counts += which.sum(0)
        sums += which.T @ vectors
        squares += vectors.T @ vectors
    means = sums / counts.clamp(min=1).unsqueeze(1)
    return types, counts.float(), means.float(), (squares - (means.T * counts) @ means).float()


def _measured(model: NerModel, options: SldaOptions) -> int:
    """How many of the lowest layers are measured, fewer than all."""
    depth = len(all_layers(model.encoder))
    return min(depth // 2 if options.layers == "auto" else options.layers, depth - 1)


@torch.no_grad()
def _reader_of(model: NerModel, layers: int) -> Discriminant | None:
    """A discriminant without types that reads so many layers as they are now.

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


def _triangle(square: Float[Tensor, "part part"]) -> Float[Tensor, " pair"]:
    """The upper triangle of a symmetric matrix, row by row."""
    row, column = torch.triu_indices(*square.shape)
    return square[row, column]


def _square(triangle: Float[Tensor, " pair"], size: int) -> Float[Tensor, "part part"]:
    """The symmetric matrix with this upper triangle."""
    square = triangle.new_zeros(size, size)
    row, column = torch.triu_indices(size, size)
    square[row, column] = triangle
    square[column, row] = triangle
    return square
