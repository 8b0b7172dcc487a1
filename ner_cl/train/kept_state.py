"""Loads and fingerprints what strategies kept of earlier steps."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ner_cl.data.stream import fingerprint
from ner_cl.errors import ModelError, first_line
from ner_cl.model.kept import sha256_of
from ner_cl.strategies.base import Strategy

__all__ = ["kept_fingerprint", "load_state", "state_of"]


def state_of(strategy: Strategy) -> dict[str, Tensor]:
    """Copies of the tensors that a strategy keeps, sorted by name, as a resumed run reads them."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in sorted(strategy.state_dict().items())
    }


def load_state(strategy: Strategy, state: Mapping[str, Tensor]) -> None:
    """Loads a strategy's kept state.

    Raises:
        ModelError: if the state is damaged.
    """
    name = strategy.options.name
    where = f"strategies: what {name} kept of earlier steps is damaged"
    advice = f"restore strategy/{name}.safetensors of the model folder, or delete it"
    if wrong := [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ModelError(f"{where} ({wrong[0]} is not finite); {advice}")
    try:
        strategy.load_state_dict(state)
    except (LookupError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where} ({type(error).__name__}: {first_line(error)}); {advice}") from error


def kept_fingerprint(strategy: Strategy) -> str:
    """Hashes a strategy's kept sentences and state; sentences may have been deleted since a checkpoint was made."""
    sentences = fingerprint(strategy.kept_sentences())
    return sha256_of(strategy.state_dict(), start=sentences.encode()).hex()
