"""GPM: gradient projection memory, which stores bases of layer inputs but no samples (Saha et al. 2021, ICLR)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from ner_cl.config import StrategyOptions
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import InputSubspace
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.linear_layers import (
    check_linear,
    input_groups,
    linear_layers,
    of_batch,
    real_pieces,
    tap,
    values_at,
)

__all__ = ["Gpm", "GpmOptions", "extend_basis"]


class GpmOptions(StrategyOptions):
    """How much of the inputs of old steps is protected, and how much text the bases are computed from.

    Attributes:
        threshold: share of the inputs' energy that a layer's basis explains after step 1, in [0, 1]; 0 turns the
            strategy off.
        increase: added to that share in every later step; the share never exceeds 1.
        samples: number of sentences of the step whose inputs are used, drawn at random.
        positions: maximum number of word pieces taken from them.
        wide: what happens after step 1 to weights with more inputs than the encoder is wide (the second halves of its
            feed-forward blocks): `project` them like all others, as in the paper, or `freeze` them. Projecting them
            takes longer than projecting all others together.
        heads: protect old head blocks too: their outputs for word vectors, and their biases.
        every: updates between two projections; the paper projects every update (1). In between, weights may leave the
            permitted directions, but they are always projected at the end of an epoch, before they are scored or kept.
            Beside other constraints, or gates of whole rows and columns, every update is projected.
    """

    name: Literal["gpm"] = "gpm"
    threshold: float = Field(0.97, ge=0, le=1)
    increase: float = Field(0.003, ge=0, le=1)
    samples: int = Field(128, ge=1)
    positions: int = Field(2000, ge=1)
    wide: Literal["freeze", "project"] = "project"
    heads: bool = False
    every: int = Field(5, ge=1)


@strategies.register("gpm")
@final
class Gpm(Strategy):
    """Moves weights only in directions that do not change their outputs for the inputs of old steps.

    The gradient of a linear layer lies in the span of its inputs, and so does what an old step needs of the layer. From
    step 2 on, the encoder's biases, LayerNorm and embeddings, which have no inputs in this sense, are frozen.
    """

    options_class = GpmOptions
    options: GpmOptions
    keeps = True
    excludes: ClassVar[Mapping[str, str]] = {
        "joint": "joint starts anew from the pre-trained encoder, whose inputs the bases do not describe",
        "ogd": "both keep the update out of subspaces of the same weights",
    }

    def __init__(self, options: GpmOptions) -> None:
        super().__init__(options)
        # Keyed by the names of the layers that share the input, separated by spaces.
        self._bases: dict[str, Float[Tensor, "input rank"]] = {}
        self._constraints: tuple[InputSubspace, ...] = ()

    def begin_step(self, context: StepContext) -> None:
        """Checks that there is something to protect, and that the bases are of this model.

        Raises:
            ModelError: if the encoder has no linear layers that can be protected, or others than the bases are of.
        """
        if self.options.threshold:
            check_linear(context.model, self._layers(context), strategy="gpm")
        layers = linear_layers(context.model)
        shapes = {
            names: (layers[names.split()[0]].in_features, basis.shape[-1])
            for names, basis in self._bases.items()
            if all(name in layers for name in names.split())
        }
        check_state("gpm", self._bases, shapes)

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Prepares the constraint, and freezes what has no basis or whose basis is full."""
        self._constraints = ()
        if self._bases:
            device = context.model.device
            layers = self._layers(context)
            weights = dict(context.model.named_parameters())
            bases: dict[str, Tensor] = {}
            for names, basis in self._bases.items():
                if basis.shape[1] < basis.shape[0]:
                    shared = basis.to(device)
                    bases |= {f"{name}.weight": shared for name in names.split() if name in layers}
            self._freeze(context, bases.keys())
            outputs = {
                name: weights[name].detach() @ basis for name, basis in bases.items() if weights[name].requires_grad
            }
            self._constraints = (InputSubspace(bases, outputs, self.options.every),)
        return {}

    def constraints(self, context: StepContext) -> Sequence[InputSubspace]:
        """The input subspaces of old steps, as the same object at every update."""
        return self._constraints

    def end_step(self, context: StepContext) -> None:
        """Extends the bases by what they do not explain yet of this step's inputs.

        A basis must cover all steps. So a group of layers without a basis from earlier steps never gets one, and one
        that was not measured in this step loses its own.
        """
        options = self.options
        if not options.threshold:
            return
        share = min(1.0, options.threshold + options.increase * (context.number - 1))
        known = {names.split()[0]: basis for names, basis in self._bases.items()}
        found: dict[str, Tensor] = {}
        for names, kinds in self._input_products(context).items():
            old = known.get(names.split()[0])
            if known and old is None:
                continue
            for products in kinds:
                basis = products.new_zeros(len(products), 0, dtype=torch.float32) if old is None else old
                old = extend_basis(basis.to(products.device), products, share=share)
            assert old is not None
            found[names] = old.cpu()
        self._bases = found

    def release(self) -> None:
        """Releases the copies of the bases on the model's device."""
        self._constraints = ()

    def state_dict(self) -> dict[str, Tensor]:
        """The basis of each group of layers that share their input."""
        return dict(self._bases)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the bases, unless the strategy is turned off: they would then lack this step for good."""
        self._bases = dict(state) if self.options.threshold else {}

    def _freeze(self, context: StepContext, free: Collection[str]) -> None:
        """Freezes every parameter of the encoder, and with `heads` of old head blocks, that is not in `free`."""
        head = [f"head.blocks.{index}." for index in range(len(context.model.head.blocks) - 1)]
        protected = ("encoder.", *head) if self.options.heads else ("encoder.",)
        for name, parameter in context.model.named_parameters():
            if name.startswith(protected) and name not in free:
                parameter.requires_grad_(False)

    def _layers(self, context: StepContext) -> dict[str, nn.Linear]:
        """The layers that keep learning after step 1, as far as their bases allow."""
        widest = context.model.encoder.hidden if self.options.wide == "freeze" else float("inf")
        return {
            name: layer
            for name, layer in linear_layers(context.model).items()
            if layer.in_features <= widest and (self.options.heads or not name.startswith("head."))
        }

    def _input_products(self, context: StepContext) -> dict[str, list[Float[Tensor, "input input"]]]:
        """The sums of `x xᵀ` over the inputs of each group of layers, in fp64.

        First over the inputs at pieces or words; then, for layers that also read something else, such as DeBERTa's
        relative positions, over that.
        """
        model, options, layers = context.model, self.options, self._layers(context)
        batches = list(context.batches(sentences=options.samples, purpose="gpm/sentences"))
        draw = context.generator("gpm/positions")
        pieces = _thinned([real_pieces(model, batch) for batch in batches], options.positions, draw)
        words = _thinned([batch.word_mask for batch in batches], options.positions, draw)
        of_text: dict[str, Tensor] = {}
        constant: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with torch.no_grad(), tap(layers) as calls:
                model(batch)
            for names in input_groups(calls):
                for call in (call for call in calls if call.name == names[0]):
                    is_text = of_batch(call.name, call.inputs, pieces=pieces[index], words=words[index])
                    if index and not is_text:
                        continue  # the same in every batch, so counted in the first only
                    inputs = values_at(call.name, call.inputs, pieces=pieces[index], words=words[index]).double()
                    sums, size = of_text if is_text else constant, inputs.shape[-1]
                    sums.setdefault(" ".join(names), inputs.new_zeros(size, size)).addmm_(inputs.T, inputs)
        groups = of_text | constant
        return {group: [sums[group] for sums in (of_text, constant) if group in sums] for group in groups}


def extend_basis(
    basis: Float[Tensor, "input old"], products: Float[Tensor, "input input"], *, share: float
) -> Float[Tensor, "input rank"]:
    """Adds the fewest directions with which a basis explains at least a share of the inputs' energy.

    Saha et al. 2021, section 4, equations 8 and 9, on the residual `X - M Mᵀ X`. The rule is "at least": with one
    input, one direction (the published code takes one fewer in its first step).

    Args:
        basis: the orthonormal columns so far.
        products: `X Xᵀ` of the inputs, in fp64.
        share: the share to explain, in [0, 1].

    Returns:
        The old columns, unchanged, followed by the new ones.
    """
    old = basis.double()
    inside = old.T @ products
    residual = products - old @ inside
    residual = residual - (residual @ old) @ old.T
    energy, vectors = torch.linalg.eigh((residual + residual.T) / 2)
    energy, vectors = energy.flip(0).clamp(min=0), vectors.flip(1)
    total = products.trace()
    explained = (inside * old.T).sum()
    # Rounding must neither add an extra direction nor, at a share of 1, directions without any energy.
    wanted = share * total - 1e-9 * total
    before = explained + energy.cumsum(0) - energy  # energy explained before each direction is added
    count = int(((before < wanted) & (energy > 1e-12 * total)).sum())
    new = vectors[:, : min(count, len(products) - old.shape[1])]
    new = new - old @ (old.T @ new)
    return torch.cat([basis, (new / new.norm(dim=0)).to(basis.dtype)], dim=1)


def _thinned(masks: Sequence[Bool[Tensor, "_ _"]], most: int, draw: np.random.Generator) -> list[Bool[Tensor, "_ _"]]:
    """The masks, reduced to at most `most` true entries in total, drawn at random."""
    counts = [int(mask.sum()) for mask in masks]
    kept = np.zeros(sum(counts), dtype=bool)
    kept[draw.choice(len(kept), size=min(most, len(kept)), replace=False)] = True

    def thin() -> Iterator[Bool[Tensor, "_ _"]]:
        start = 0
        for mask, count in zip(masks, counts, strict=True):
            thinned = torch.zeros_like(mask)
            thinned[mask] = torch.from_numpy(kept[start : start + count]).to(mask.device)
            start += count
            yield thinned

    return list(thin())
