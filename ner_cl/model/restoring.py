"""Contexts that restore what is changed inside: modes of modules, and torch's random state."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

__all__ = ["modes_restored", "random_state_restored"]


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restores every module's training or evaluation mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def random_state_restored(device: torch.device) -> AbstractContextManager[None]:
    """Restores torch's random state, on the CPU and on `device`, whatever is drawn or seeded inside."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
