"""Common parts of strategies that keep the steps of a model apart."""

from collections.abc import Mapping
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import ConfigError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.strategies.base import PROTECTING, StepContext, Strategy

__all__ = ["POINTLESS_APART", "ApartStrategy", "options_of", "own_loss", "subnetworks_of"]

POINTLESS_APART: Mapping[str, str] = dict.fromkeys(
    (*PROTECTING, "replay"),
    "what earlier steps compute with does not change anyway, so there is nothing to protect or to remind of",
)
"""Strategies that cannot be combined with one sub-network per step, and why."""

T = TypeVar("T", bound=SubnetworkOptions)


class ApartStrategy(Strategy):
    """Base of strategies under which each step computes independently of all others."""

    holds_old_types = True
    isolates = True
    excludes = POINTLESS_APART

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self._cached: Subnetworks | None = None

    def release(self) -> None:
        """Drops the cached outputs of the frozen layers."""
        if self._cached is not None:
            self._cached.forget_cache()
        self._cached = None

    def _read_once(self, context: StepContext) -> None:
        """Runs the shared layers, which must be frozen, over the step's sentences once and caches the outputs."""
        if self._cached is not None:
            return
        self._cached = context.model.subnetworks
        assert self._cached is not None
        self._cached.cache(
            context.model, context.encoded, batch_tokens=context.eval_batch_tokens, precision=context.precision
        )


def subnetworks_of(model: NerModel, kind: type[T], options: StrategyOptions) -> Subnetworks:
    """Returns the model's sub-networks, creating them if there are none yet.

    Args:
        model: the model, before its head grows.
        kind: the options class that says how sub-networks are built.
        options: the strategy's options, which have the fields of `kind` and possibly more.

    Raises:
        ConfigError: if the model's sub-networks are of another kind, or differ in a field that the options set.
    """
    wanted = options_of(kind, options)
    if model.subnetworks is None:
        return model.isolate(wanted)
    found = model.subnetworks.options
    if found.name != wanted.name:
        raise ConfigError(
            f"strategies: {found.name} keeps the steps of this model apart, so {wanted.name} cannot; list {found.name}"
        )
    for name in sorted(options.model_fields_set & set(kind.model_fields) - {"name"}):
        if getattr(found, name, None) != getattr(wanted, name):
            raise ConfigError(
                f"strategies: the model's sub-networks have {name} {getattr(found, name, None)!r}, not "
                f"{getattr(wanted, name)!r}; leave {name} out, or start a new model"
            )
    return model.subnetworks


def options_of(kind: type[T], options: StrategyOptions) -> T:
    """Extracts the sub-network options from those of a strategy."""
    return kind.model_validate({name: getattr(options, name) for name in kind.model_fields})


def own_loss(context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
    """Cross entropy of the current step's block, as `ce`."""
    return {"ce": context.model.head.supervised(emissions, batch, unannotated="unknown")}
