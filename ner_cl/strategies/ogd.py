"""OGD: orthogonal gradient descent on stored gradient directions, without samples (Farajtabar et al. 2020, AISTATS)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import Subspace
from ner_cl.strategies.kept import check_state
from ner_cl.strategies.linear_layers import top_layer_names

__all__ = ["Ogd", "OgdOptions", "orthogonalise"]

# A gradient with less than this share left adds nothing to the directions before it.
_SMALLEST_SHARE = 1e-4


class OgdOptions(StrategyOptions):
    """How many directions are stored, and over which parameters.

    Attributes:
        per_step: number of sentences with mentions, drawn at random, whose gradients are stored after a step, one
            direction each; 0 turns the strategy off.
        scope: parameters that directions cover: `head_and_last`, the head's blocks and the last layers of the encoder;
            `last`, those layers alone; `encoder`, everything that is trained in the encoder except its input
            embeddings, whose gradients would reveal the sentence.
        last: number of layers, counted from the end, that `head_and_last` and `last` cover.
    """

    name: Literal["ogd"] = "ogd"
    per_step: int = Field(20, ge=0)
    scope: Literal["head_and_last", "last", "encoder"] = "head_and_last"
    last: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _last_of_what(self) -> "OgdOptions":
        if self.scope == "encoder" and "last" in self.chosen:
            raise ValueError("last has no effect with scope: encoder, which covers all layers; leave one of them out")
        return self


@strategies.register("ogd")
@final
class Ogd(Strategy):
    """Moves weights only in directions that leave the outputs for old sentences unchanged, to first order.

    For each sentence, the gradient of the logits of its gold tags is stored ("ground truth logit", the paper's
    OGD-GTL), which does not vanish when the loss does.
    """

    options_class = OgdOptions
    options: OgdOptions
    keeps = True
    excludes: ClassVar[Mapping[str, str]] = {
        "gpm": "both keep the update out of subspaces of the same weights",
        "joint": "joint starts anew from the pre-trained encoder, whose outputs the directions do not describe",
    }

    def __init__(self, options: OgdOptions) -> None:
        super().__init__(options)
        self._directions: dict[str, Float[Tensor, "direction ..."]] = {}
        self._constraints: tuple[Subspace, ...] = ()
        self._trained: frozenset[str] = frozenset()

    def begin_step(self, context: StepContext) -> None:
        """Checks that the directions are of this model."""
        count = max((len(part) for part in self._directions.values() if part.ndim), default=0)
        check_state("ogd", self._directions, {n: (count, *p.shape) for n, p in context.model.named_parameters()})

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Prepares the constraint and records which parameters this step trains; gates nothing."""
        self._trained = frozenset(name for name, p in context.model.named_parameters() if p.requires_grad)
        directions = {name: part.to(context.model.device) for name, part in self._directions.items()}
        self._constraints = (Subspace(directions),) if directions else ()
        return {}

    def constraints(self, context: StepContext) -> Sequence[Subspace]:
        """The directions of old outputs, as the same object at every update."""
        return self._constraints

    def end_step(self, context: StepContext) -> None:
        """Adds the directions of this step's outputs that are not spanned yet."""
        model, rows = context.model, self._rows(context)
        names = [name for name in self._in_scope(model) if name in self._trained]
        if not rows or not names:
            return
        parameters = [model.get_parameter(name) for name in names]
        basis, count = self._with_room(dict(zip(names, parameters, strict=True)), len(rows))
        for row in rows:
            batch = context.encoded.batch([row]).to(model.device)
            with torch.autocast(model.device.type, enabled=False):
                output = model.head.gold_logits(model(batch), batch)
            gradient = torch.autograd.grad(output, parameters, allow_unused=True, materialize_grads=True)
            so_far = {name: part[:count] for name, part in basis.items()}
            if direction := orthogonalise(dict(zip(names, gradient, strict=True)), so_far):
                for name, part in direction.items():
                    basis[name][count] = part
                count += 1
        self._directions = {name: part[:count].clone().cpu() for name, part in basis.items()} if count else {}

    def release(self) -> None:
        """Releases the constraint."""
        self._constraints = ()

    def state_dict(self) -> dict[str, Tensor]:
        """Each parameter's part of every direction, stacked."""
        return dict(self._directions)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the directions, unless the strategy is turned off."""
        self._directions = dict(state) if self.options.per_step else {}

    def _rows(self, context: StepContext) -> list[int]:
        """Rows of the step's own sentences that mention its types, drawn at random."""
        encoded, types = context.encoded, set(context.types)
        found = [
            row
            for row, window in enumerate(encoded.windows)
            if encoded.origins[row] == "own"
            and any(
                span.type in types
                and span.start < window.first_word + len(window.word_pieces)
                and window.first_word < span.end
                for span in encoded.sentences[window.sentence].spans
            )
        ]
        return context.at_most(found, self.options.per_step, "ogd/sentences")

    def _in_scope(self, model: NerModel) -> list[str]:
        """The parameters to store directions of. All current blocks of the head count, as all will be old ones."""
        if self.options.scope == "encoder":
            parts: tuple[str, ...] = ("encoder.",)
        else:
            parts = tuple(f"{layer}." for layer in top_layer_names(model, self.options.last))
        if self.options.scope == "head_and_last":
            parts = (*parts, "head.")
        # A gradient of input embeddings has rows for the pieces of its sentence only, so it would reveal the sentence.
        spelling = {id(parameter) for parameter in model.encoder.embeddings.parameters()}
        return [
            name
            for name, parameter in model.named_parameters()
            if name.startswith(parts) and id(parameter) not in spelling
        ]

    def _with_room(self, parameters: Mapping[str, Tensor], room: int) -> tuple[dict[str, Tensor], int]:
        """The directions so far, followed by zeros for `room` more, and the number of directions so far.

        A parameter that is new to the directions, such as a block of the head that this step added, is zero in the
        earlier ones.
        """
        old = self._directions
        count = len(next(iter(old.values()))) if old else 0
        device = next((p.device for p in parameters.values()), torch.device("cpu"))
        shapes = {name: part.shape[1:] for name, part in old.items()} | {n: p.shape for n, p in parameters.items()}
        # Sorted, because sums over parameters depend on their order, which must not depend on the directions' source.
        basis = {name: torch.zeros(count + room, *shapes[name], device=device) for name in sorted(shapes)}
        for name, part in old.items():
            basis[name][:count] = part
        return basis, count


def orthogonalise(
    vector: Mapping[str, Tensor], basis: Mapping[str, Float[Tensor, "direction ..."]]
) -> dict[str, Tensor]:
    """The part of a vector outside a basis, normalised to length 1; empty if almost nothing is left.

    Gram-Schmidt is run twice, as one pass leaves an error that grows with the removed part.

    Args:
        vector: the vector, by parameter.
        basis: orthonormal directions over all parameters together.
    """
    length = _length(vector)
    left = dict(vector)
    for _ in range(2):
        parts = {name: part.flatten(1) for name, part in basis.items() if name in left and len(part)}
        if not parts:
            break
        shares = torch.stack([(part @ left[name].flatten()).double() for name, part in parts.items()]).sum(dim=0)
        # A direction also has parts in parameters that are not in the vector.
        left = {
            name: left.get(name, 0.0) - (shares.float() @ part.flatten(1)).view(part.shape[1:])
            for name, part in basis.items()
        }
    new_length = _length(left)
    if not length > 0 or not new_length >= _SMALLEST_SHARE * length:
        return {}
    return {name: part / new_length for name, part in left.items()}


def _length(vector: Mapping[str, Tensor]) -> float:
    return (
        float(torch.stack([part.double().square().sum() for part in vector.values()]).sum()) ** 0.5 if vector else 0.0
    )
